"""What deltas cost: lookups among several segments against one, publishing a small delta, merging. It needs no model.

(one)     100 ids of a generation of one segment
(few)     100 others, which nobody has just read, in a generation of as many segments as are allowed; nearly all are in
          the oldest
(spread)  100 ids spread evenly over all segments: the worst case
(delta)   ten changed documents, from the lock to CURRENT, in a process that has the store open, and in a fresh one

python -m bench.deltas [--documents N] [--dimension D] [--rounds N]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import report
from bench.corpora import number_ids, numbered
from encoder_server.settings import MAX_SEGMENTS
from store.compaction import compact
from store.store import Store

CANDIDATES = 100
CALLS = 200  # of each lookup in a round
CHANGED = 1_000  # documents of each delta that lookups meet
BATCH = 1 << 14


def main() -> None:
    """Runs the benchmark; see the module."""
    parser = argparse.ArgumentParser(description="What deltas cost.")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder), arguments.documents, arguments.dimension)
        text = bench.measure(arguments.rounds)
    print(text)
    print(f"written to {report.write('deltas', text)}")


class _Bench:
    """A store, and what is done to it."""

    def __init__(self, folder: Path, documents: int, dimension: int) -> None:
        self._store, self._documents, self._dimension = Store(folder / "store"), documents, dimension
        self._random = np.random.default_rng(0)
        self._texts = 0
        self._publish(self._store, np.arange(documents), delta=False)

    def _publish(self, store: Store, numbers: npt.NDArray[np.int64], *, delta: bool) -> str:
        """A refresh of documents of these numbers, with new texts and random embeddings."""
        settings: dict[str, Any] = {"fingerprint": "fe" * 32, "model": "8d" * 32, "encoding": "float32"}
        settings |= {"id_type": "string", "fixed_step": False, "software": "bench", "dimension": self._dimension}
        with store.writer(**settings, delta=delta) as writer:
            for start in range(0, len(numbers), BATCH):
                some = numbers[start : start + BATCH]
                batch = numbered(some, self._texts)
                self._texts += len(some)
                assert not writer.add_known(batch).any()
                writer.add(batch, self._random.standard_normal((len(some), self._dimension), np.float32))
            with writer.seal():
                pass
            return writer.publish({})

    def measure(self, rounds: int) -> str:
        """The report."""
        published = {"open": [], "fresh": []}  # type: dict[str, list[float]]
        for _ in range(rounds):
            for name, store in (("open", self._store), ("fresh", Store(self._store.path))):
                numbers = self._random.integers(0, self._documents, 10)
                begun = time.perf_counter()
                self._publish(store, np.unique(numbers), delta=True)
                published[name].append(time.perf_counter() - begun)
        compact(self._store, software="bench")

        one = self._store.open(self._store.current())
        numbers = np.random.default_rng(1).permutation(self._documents)
        parts = [numbers[part * CHANGED : (part + 1) * CHANGED] for part in range(MAX_SEGMENTS - 1)]
        for changed in parts:
            self._publish(self._store, np.sort(changed), delta=True)
        several = self._store.open(self._store.current())
        spread = [*parts, numbers[len(parts) * CHANGED :]]
        seconds: dict[str, list[float]] = {"one": [], "few": [], "spread": []}
        for number in range(-1, rounds):  # the first round only warms up
            for _ in range(CALLS):
                ids, others = (number_ids(self._random.integers(0, self._documents, CANDIDATES)) for _ in range(2))
                everywhere = number_ids(
                    np.concatenate([self._random.choice(part, CANDIDATES // MAX_SEGMENTS) for part in spread])
                )
                for name, generation, asked in (
                    ("one", one, ids),
                    ("few", several, others),
                    ("spread", several, everywhere),
                ):
                    begun = time.perf_counter()
                    generation.read(generation.locate(asked))
                    if number >= 0:
                        seconds[name].append(time.perf_counter() - begun)
        one.close()
        several.close()
        begun = time.perf_counter()
        compact(self._store, software="bench")
        return self._report(seconds, published, time.perf_counter() - begun)

    def _report(self, seconds: dict[str, list[float]], published: dict[str, list[float]], merged: float) -> str:
        names = {
            "one": "100 ids, one segment",
            "few": f"100 other ids, {MAX_SEGMENTS} segments",
            "spread": f"100 ids spread over {MAX_SEGMENTS} segments",
        }
        lookups = {name: report.percentile(seconds[name], 50) for name in names}
        rows = [
            f"| {names[name]} | {1e3 * lookups[name]:,.1f} | {1e3 * report.percentile(seconds[name], 99):,.1f} | "
            f"{lookups[name] / lookups['one']:.2f} |"
            for name in names
        ]
        times = {name: report.spread([1e3 * one for one in values]) for name, values in published.items()}
        lines = [
            "# What deltas cost",
            "",
            *report.machine("numpy", "lmdb"),
            f"- {self._documents:,} documents × {self._dimension} float32; deltas of {CHANGED:,} documents",
            "",
            "| lookup | p50 µs | p99 µs | of one segment's (at most 1.5) |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "| what | ms: median (quartiles) |",
            "| --- | --- |",
            f"| publish ten documents, in a process that has the store open | {times['open']} |",
            f"| the same in a fresh one, which first reads the checksum | {times['fresh']} |",
            f"| merge {MAX_SEGMENTS} segments to one, once | {1e3 * merged:,.0f} |",
            "",
        ]
        return "\n".join(lines)


if __name__ == "__main__":
    main()
