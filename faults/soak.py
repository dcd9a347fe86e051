"""Half of what a scorer can do, for long, with a delta and a swap every few seconds, and now and then a compaction or a
full refresh.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from encoder_server.documents import Document
from encoder_server.refresh import SOFTWARE, Refresh
from faults.fault import Attempt, Fault, Tally, require
from faults.load import Caller, calling, require_ok
from faults.serving import SLOPED, Stored, Vitals, hourly, minilm_stored, words
from store.compaction import compact
from store.maintenance import gc
from store.store import Store
from tests.servers import running
from twinbert.bundle import TOWERS, Bundle
from twinbert.runtime import Runtime
from twinbert.v1.scorer_pb2 import ScoreResponse

_SECONDS = 10.0
_CHANGED = 10
_COMPACTED_EVERY = 5
_REFRESHED_EVERY = 20
_SWAP_S = 10.0  # a swap takes a fifth of a second, and here the cores are shared with who publishes
_ENOUGH = 60  # windows, so that neither warming up nor chance makes a slope
_SLOWER = 1.5


@contextmanager
def attempts(stored: Stored, *, seconds: float = _SECONDS) -> Iterator[Attempt]:
    """Attempts at a store, which they change.

    Args:
        stored: the store.
        seconds: of the window in which an attempt publishes one generation, or two.
    """
    messages = stored.requests(random.Random(0), count=500, queries=8, candidates=100)
    publisher = _Publisher(stored)
    holding = ("--hold-generations", "0", "--hold-seconds", "0", "--cache-bytes", str(4 << 20))
    with (
        running("serve", stored.bundle, stored.store, *holding) as server,
        calling(server.address, connections=4) as caller,
        ThreadPoolExecutor(1) as pool,
    ):
        chance, full_s = random.Random(0), 0.4 * seconds
        closed = caller.run(caller.closed(lambda: chance.choice(messages), 8, full_s))
        rate = len(closed) / full_s / 2
        vitals, p99s = Vitals(server), list[tuple[float, float]]()

        def attempt(seed: int) -> Tally:
            """A window of the load, in which the store changes."""
            changing = pool.submit(publisher.change, seed)
            answers = caller.run(caller.opened(messages, rate, seconds, 10.0, random.Random(seed)))
            outcomes = Counter(changing.result()) + Counter({"calls answered": len(answers)})
            require_ok(answers)
            _require_served(caller, messages[0], publisher.store.current())
            now = time.monotonic()
            vitals.read(now)
            p99s.append((now, 1e3 * float(np.percentile([one.seconds for one in answers], 99))))
            figures = {"rate, requests a second": rate} | _p99_figures(p99s)
            if len(vitals.readings) >= _ENOUGH:
                memory, descriptors, mappings = vitals.growth()
                grown = f"{memory:.0f} MB, {descriptors:.0f} descriptors, {mappings:.0f} mappings"
                require(memory < 32 and descriptors < 4 and mappings < 8, f"it has grown by {grown}")
            return Tally(outcomes, done=round(seconds), figures=figures | vitals.slopes())

        yield attempt


class _Publisher:
    """Changes a store: most often by a delta, now and then by a compaction besides, or by a full refresh instead."""

    def __init__(self, stored: Stored) -> None:
        self.store, self._documents = Store(stored.store), stored.documents
        self._runtime = Runtime(Bundle.open(stored.bundle), towers=TOWERS, threads=1)

    def change(self, seed: int) -> dict[str, int]:
        """What the seed says; returns what was published."""
        chance = random.Random(seed)
        full = seed % _REFRESHED_EVERY == _REFRESHED_EVERY - 1
        texts = {id_: words(chance, 10, 30) for id_ in chance.sample([*self._documents], _CHANGED)}
        with Refresh(self.store, self._runtime, workers=1, delta=not full) as refresh:
            corpus = {**self._documents, **texts} if full else texts
            refresh.add(Document(id_, text, None) for id_, text in corpus.items())
            refresh.commit()
        published = {f"{'full refreshes' if full else 'deltas'} published and swapped to": 1}
        if seed % _COMPACTED_EVERY == 0:
            compact(self.store, software=SOFTWARE)
            gc(self.store, keep=2)
            published["compactions published and swapped to"] = 1
        return published


def _require_served(caller: Caller, message: bytes, generation: str) -> None:
    """Waits for answers from the generation that was published last."""
    until = time.monotonic() + _SWAP_S
    while True:
        answer = caller.run(caller.answer(message))
        require_ok([answer])
        answered = ScoreResponse.FromString(answer.response).generation
        if answered == generation:
            return
        require(
            time.monotonic() < until,
            f"{answered} is served and {generation} is not, {_SWAP_S:g} s after it was published",
        )


def _p99_figures(p99s: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The p99 in ms, by when: the last third of the windows must be about as quick as the first."""
    at, values = np.array(p99s).T
    figures = {"p99, ms": float(np.median(values))}
    if len(values) >= SLOPED:
        figures["p99, ms an hour"] = hourly(at, values)
    if len(values) >= _ENOUGH:
        third = len(values) // 3
        first, last = float(np.median(values[:third])), float(np.median(values[-third:]))
        figures["p99 of the last third, of the first's"] = last / first
        require(last <= _SLOWER * first, f"p99 was {first:.0f} ms and is {last:.0f}")
    return figures


SOAK = Fault(
    name="soak",
    title="A soak at half load with refreshes and swaps",
    promise="no failed call; p99, RSS, descriptors flat",
    unit="seconds in one run",
    wanted=3600,
    quick=20,
    one_run=True,
    prepare=lambda folder, _: attempts(minilm_stored(folder, 2000)),
)
