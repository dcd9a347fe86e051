"""Half of what a scorer can do, for long, with a delta and a swap every few seconds, and a compaction now and then."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from encoder_server.documents import Document
from encoder_server.refresh import SOFTWARE, Refresh
from faults.fault import Attempt, Fault, Tally, require
from faults.load import calling, require_ok
from faults.serving import SLOPED, Vitals, hourly, minilm, minilm_store, requests, words
from store.compaction import compact
from store.maintenance import gc
from store.store import Store
from tests.servers import running
from twinbert.bundle import TOWERS, Bundle
from twinbert.runtime import Runtime

_SECONDS = 10.0
_CHANGED = 10
_COMPACTED_EVERY = 5
_ENOUGH_READINGS = 60


@contextmanager
def _prepared(folder: Path, _bundle: Path) -> Iterator[Attempt]:
    path = minilm_store(folder, 2000)
    messages = requests(folder, random.Random(0), count=500, queries=8, candidates=100)
    ids = [json.loads(line)["id"] for line in (folder / "corpus.jsonl").read_text().splitlines()]
    store, runtime = Store(path), Runtime(Bundle.open(minilm()), towers=TOWERS, threads=1)
    holding = ("--hold-generations", "0", "--hold-seconds", "0", "--cache-bytes", str(4 << 20))
    with (
        running("serve", minilm(), path, *holding) as server,
        calling(server.address, connections=4) as caller,
        ThreadPoolExecutor(1) as pool,
    ):
        chance = random.Random(0)
        closed = caller.run(caller.closed(lambda: chance.choice(messages), 8, 4.0))
        rate = len(closed) / 4.0 / 2
        vitals, p99s = Vitals(server), list[tuple[float, float]]()

        def change(seed: int) -> None:
            chance = random.Random(seed)
            with Refresh(store, runtime, workers=1, delta=True) as refresh:
                refresh.add(Document(id_, words(chance, 10, 30), None) for id_ in chance.sample(ids, _CHANGED))
                refresh.commit()
            if seed % _COMPACTED_EVERY == 0:
                compact(store, software=SOFTWARE)
                gc(store, keep=2)

        def attempt(seed: int) -> Tally:
            """Ten seconds, in which a delta is published."""
            changing = pool.submit(change, seed)
            answers = caller.run(caller.opened(messages, rate, _SECONDS, 10.0, random.Random(seed)))
            changing.result()
            require_ok(answers)
            now = time.monotonic()
            vitals.read(now)
            p99s.append((now, 1e3 * float(np.percentile([one.seconds for one in answers], 99))))
            figures = {"rate, requests a second": rate, "p99, ms": float(np.median([p99 for _, p99 in p99s]))}
            if len(p99s) >= SLOPED:
                figures["p99, ms an hour"] = hourly(*np.array(p99s).T)
            if len(vitals.readings) >= _ENOUGH_READINGS:
                memory, descriptors, mappings = vitals.growth()
                grown = f"{memory:.0f} MB, {descriptors:.0f} descriptors, {mappings:.0f} mappings"
                require(memory < 32 and descriptors < 4 and mappings < 8, f"it has grown by {grown}")
            outcomes = Counter({"calls answered": len(answers), "deltas published and swapped to": 1})
            return Tally(outcomes, done=round(_SECONDS), figures=figures | vitals.slopes())

        yield attempt


SOAK = Fault(
    name="soak",
    title="A soak at half load with refreshes and swaps",
    promise="p99, RSS, descriptors flat",
    unit="seconds",
    wanted=3600,
    quick=20,
    prepare=_prepared,
)
