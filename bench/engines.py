"""What encodes queries fastest: the engines of a bundle, on packed texts, and float32 on padded ones, in turn.

MiniLM (6 × 384), and the paper's tri-letter tower of 6 and of 3 layers × 512 with random weights, which do not change
the time. A call is tokenising and encoding. Each engine's calls come in blocks, so that it finds its weights in the
cache as it does when it serves alone.

python -m bench.engines [--folder DIR] [--rounds N]       DIR keeps the bundles for the next time
"""

from __future__ import annotations

import argparse
import gc
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench import report
from bench.material import Material
from twinbert.bundle import ENGINES, Bundle
from twinbert.quantize import Limits, quantize
from twinbert.runtime import Runtime
from twinbert.tuning import TYPICAL

MINILM = "MiniLM 6 × 384"
TRILETTER = {"tri-letter 6 × 512": 6, "tri-letter 3 × 512": 3}
WORDS = ("white", "wall", "light", "outdoor", "door", "steel", "wood", "garden", "power", "water", "paint", "floor")
THREADS = (1, 2)
PADDED = "float32, padded"
SYSTEMS = (PADDED, *ENGINES)
CALLS = {1: 24, 8: 6, 32: 2}  # in a block, by queries
_ANY_COST = Limits(score_largest=1, score_mean=1, cosine_smallest=-1, top10_overlap=0, auc2_loss=1)


def main() -> None:
    """Runs the benchmark; see the module."""
    parser = argparse.ArgumentParser(description="What encodes queries fastest.")
    parser.add_argument("--folder", type=Path, help="where bundles are kept; by default nowhere")
    parser.add_argument("--rounds", type=int, default=6, help="0 only makes the bundles")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bundles = _bundles(arguments.folder or Path(temporary))
        if not arguments.rounds:
            return
        lines = [
            "# Engines of the query tower",
            "",
            *report.machine("onnxruntime", "numpy"),
            f"- {arguments.rounds} rounds, in each a block of calls of every engine in turn; ms a call: median, and in "
            "brackets the quartiles of the rounds",
            "- equal queries have 7 tokens of WordPiece, 4 words of tri-letters; mixed ones "
            f"{_lengths(bundles[MINILM])} tokens of WordPiece",
        ]
        for name, bundle in bundles.items():
            lines += ["", f"## {name}", "", *_measure(bundle, arguments.rounds)]
            gc.collect()
    text = "\n".join(lines) + "\n"
    print(text)
    print(f"written to {report.write('engines', text)}")


def _bundles(folder: Path) -> dict[str, Bundle]:
    """The bundles, made where they are not there yet."""
    made = {}
    for name, layers in ((MINILM, None), *TRILETTER.items()):
        path = folder / name.replace(" ", "-")
        if not path.exists():
            with tempfile.TemporaryDirectory() as temporary:
                material = Material(Path(temporary))
                source = material.minilm if layers is None else material.triletter(layers)
                quantize(Bundle.open(source), path, limits=_ANY_COST)
        made[name] = Bundle.open(path)
    return made


def _measure(bundle: Bundle, rounds: int) -> list[str]:
    """The table of a bundle."""
    systems = list(itertools.product(SYSTEMS, THREADS))
    runtimes = {(PADDED, threads): Runtime(replace(bundle, packed={}), threads=threads) for threads in THREADS}
    for packed, threads in itertools.product(ENGINES, THREADS):
        runtimes[packed, threads] = Runtime(bundle, engine=packed, threads=threads)
    words = 5 if bundle.tokenizer.kind == "wordpiece" else 4  # and [CLS] and [SEP]
    loads = {f"{count} equal": (_equal(words, count), CALLS[count]) for count in CALLS}
    loads |= {
        f"{count} mixed": ([*itertools.islice(itertools.cycle(TYPICAL), count)], CALLS[count]) for count in (8, 32)
    }
    table = ["| engine | threads | company | " + " | ".join(loads) + " |", "| --- " * (3 + len(loads)) + "|"]
    times = {(system, load): np.empty(rounds) for system in systems for load in loads}
    for turn, (load, (queries, calls)), system in itertools.product(range(rounds), loads.items(), systems):
        times[system, load][turn] = _block(runtimes[system], queries, calls)
    for engine, threads in systems:
        cells = [report.spread((1e3 * times[(engine, threads), load]).tolist()) for load in loads]
        company = _company(runtimes[engine, threads])
        table.append(f"| {engine} | {threads} | {company} | {' | '.join(cells)} |")
    for faster, threads in itertools.product(ENGINES, THREADS):
        ratios = [times[(PADDED, threads), load] / times[(faster, threads), load] for load in loads]
        cells = [report.spread(ratio.tolist()) for ratio in ratios]
        table.append(f"| {PADDED} ÷ {faster} | {threads} | | {' | '.join(cells)} |")
    return table


def _equal(words: int, count: int) -> list[str]:
    return [" ".join(WORDS[(start + word) % len(WORDS)] for word in range(words)) for start in range(count)]


def _lengths(bundle: Bundle) -> str:
    lengths = Runtime(bundle).tokenize(TYPICAL).lengths
    return f"{lengths.min()} to {lengths.max()}, median {np.median(lengths):.0f}"


def _block(runtime: Runtime, queries: Sequence[str], calls: int) -> float:
    """Median seconds of a call."""
    runtime.encode(queries)
    times = np.empty(calls)
    for call in range(calls):
        start = time.perf_counter()
        runtime.encode(queries)
        times[call] = time.perf_counter() - start
    return float(np.median(times))


def _company(runtime: Runtime) -> str:
    """The largest difference between embeddings alone and among others."""
    together_ND = runtime.encode(TYPICAL)
    alone_ND = np.concatenate([runtime.encode([query]) for query in TYPICAL])
    difference = float(np.abs(together_ND - alone_ND).max())
    return f"{difference:.0e}" if difference else "same bits"


if __name__ == "__main__":
    main()
