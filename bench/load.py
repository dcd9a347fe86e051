"""Load: closed loops, in which each caller calls again when it is answered, and open ones, which wait for nobody.

A latency of the open loop counts from the moment at which the call was due, so a generator or a server that falls
behind cannot hide it (coordinated omission). Only the standard library: this also runs in the environments of peers.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bench.workloads import Task

OK = "OK"
MICRO = 1e6

Call = Callable[[Sequence[Task]], Awaitable[list[list[float]]]]
"""Answers a request: the scores of each task's candidates. Raises `CallError`."""


class CallError(Exception):
    """A call was answered by something else than scores; its text is the outcome's name."""


@dataclass(slots=True)
class Calls:
    """What became of calls, in the order of their ends.

    Attributes:
        due: when each was to be sent, in microseconds since the first command of its kind began.
        latency: from then to its end, in microseconds.
        late: from then to its sending, in microseconds.
        outcome: "OK", or why not.
    """

    due: list[int] = field(default_factory=list)
    latency: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    outcome: list[str] = field(default_factory=list)

    async def make(self, call: Call, request: Sequence[Task], due: float, begun: float) -> None:
        """Makes one call and notes what became of it; times in seconds of `time.perf_counter`."""
        sent = time.perf_counter()
        try:
            await call(request)
            outcome = OK
        except CallError as failure:
            outcome = str(failure)
        self.due.append(round((due - begun) * MICRO))
        self.latency.append(round((time.perf_counter() - due) * MICRO))
        self.late.append(round((sent - due) * MICRO))
        self.outcome.append(outcome)


async def closed(call: Call, requests: Iterator[Sequence[Task]], *, clients: int, calls: int, seconds: float) -> Calls:
    """So many clients, each of which sends its next request when the last one is answered.

    Args:
        call: the system.
        requests: what to ask.
        clients: callers at a time.
        calls: after which no more are sent…
        seconds: …or after this time, whichever comes first.
    """
    done, begun = Calls(), time.perf_counter()
    left = iter(range(calls))

    async def client() -> None:
        while (now := time.perf_counter()) < begun + seconds and next(left, None) is not None:
            await done.make(call, next(requests), now, begun)

    await asyncio.gather(*(client() for _ in range(clients)))
    return done


async def open_loop(call: Call, requests: Iterator[Sequence[Task]], due_s: Sequence[float]) -> Calls:
    """Calls that are sent when they are due, in seconds from now, whether or not those before them were answered."""
    done, begun, loop = Calls(), time.perf_counter(), asyncio.get_running_loop()
    calls: list[asyncio.Task[None]] = []
    ended = asyncio.Event()

    def send(due: float) -> None:
        calls.append(loop.create_task(done.make(call, next(requests), due, begun)))

    def pace() -> None:
        # A thread of its own: the event loop's timers are a millisecond late.
        for one in due_s:
            time.sleep(max(0.0, begun + one - time.perf_counter()))
            loop.call_soon_threadsafe(send, begun + one)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=pace, daemon=True).start()
    await ended.wait()
    await asyncio.gather(*calls)
    return done


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrivals of so many a second on average, independent of each other: their times in seconds."""
    drawn, times = random.Random(seed), [0.0]
    while times[-1] < seconds:
        times.append(times[-1] + drawn.expovariate(rate))
    return times[1:-1]
