"""Calls with deadlines of 1 to 5 ms and calls that are cancelled, while the only engine is at work."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from faults.fault import Attempt, Fault, Tally, require
from faults.load import Caller, calling
from faults.serving import Stored, minilm_stored
from tests.servers import Server, running

_BURST = 1000
_HOG_QUERIES = 64
_ENCODED = "twinbert_batch_queries_sum"
_IN_FLIGHT = 'twinbert_rpc_in_flight{method="Score"}'
_LONG_S = 60.0


@contextmanager
def attempts(stored: Stored) -> Iterator[Attempt]:
    """Attempts at a store whose query tower is busy for long enough with one request to be seen so."""
    hogs = stored.requests(random.Random(0), count=20, queries=_HOG_QUERIES, candidates=1, most_words=60)
    short = stored.requests(random.Random(1), count=2000, queries=1, candidates=5)
    # One engine, so that it is known to be busy; no cache, so that every query needs it.
    options = ("--engines", "1", "--cache-bytes", "0")
    with (
        running("serve", stored.bundle, stored.store, *options) as server,
        calling(server.address, connections=2) as caller,
    ):

        def attempt(seed: int) -> Tally:
            """A request that keeps the engine busy, and a burst that has no time to wait for it."""
            return caller.run(_burst(server, caller, hogs, short, random.Random(seed)))

        yield attempt


async def _burst(
    server: Server, caller: Caller, hogs: Sequence[bytes], short: Sequence[bytes], chance: random.Random
) -> Tally:
    before = server.metrics()
    hog = asyncio.ensure_future(caller.answer(chance.choice(hogs), _LONG_S))
    while not (await asyncio.to_thread(server.metrics))[_IN_FLIGHT]:
        require(not hog.done(), "the engine was not busy long enough to be seen so")
    calls = [caller.begin(chance.choice(short), chance.uniform(0.001, 0.005)) for _ in range(_BURST)]
    cancelled = chance.sample(calls, _BURST // 3)
    for call in cancelled:
        asyncio.get_running_loop().call_later(chance.uniform(0, 0.005), call.cancel)
    codes = await asyncio.wait_for(asyncio.gather(*(call.code() for call in calls)), _LONG_S)
    busy = not hog.done()
    answered = await asyncio.wait_for(hog, _LONG_S)
    require(answered.ok, f"the long request ended as {answered.code}")
    after = await _at_rest(server)
    encoded = after[_ENCODED] - before[_ENCODED]
    outcomes = Counter(code.name for code in codes)
    require(set(outcomes) <= {"OK", "DEADLINE_EXCEEDED", "CANCELLED"}, f"calls ended as {outcomes}")
    if busy:  # all were over before the engine was free: not one of them may have been begun
        require(encoded == _HOG_QUERIES, f"{encoded - _HOG_QUERIES:.0f} queries were encoded for nobody")
        require(not outcomes["OK"], f"{outcomes['OK']} were answered without an engine")
    outcomes["bursts that were over before the engine was free" if busy else "bursts that outlasted its work"] = 1
    return Tally(outcomes, done=_BURST)


async def _at_rest(server: Server) -> dict[str, float]:
    """The metrics once no request is being answered: a call that the client gave up may still be ending."""
    for _ in range(1000):
        metrics = await asyncio.to_thread(server.metrics)
        if not metrics[_IN_FLIGHT] and not metrics["twinbert_queue_depth"]:
            return metrics
    require(False, f"{metrics[_IN_FLIGHT]:.0f} calls hang")
    return metrics


DEADLINES = Fault(
    name="deadlines",
    title="Deadlines of 1 to 5 ms, and cancelled calls, while the engine is busy",
    promise="no work begins after expiry; nothing hangs",
    unit="calls",
    wanted=100_000,
    quick=2000,
    prepare=lambda folder, _: attempts(minilm_stored(folder, 500)),
)
