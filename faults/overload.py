"""More requests than a scorer can answer: from what it can to three times as many, whatever becomes of them."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import grpc

from faults.fault import Attempt, Fault, Tally, require
from faults.load import Answer, Caller, calling
from faults.serving import Stored, minilm_stored
from tests.servers import running

_FACTORS = (1.0, 1.5, 2.0, 3.0)
_SECONDS = 8.0  # of each
_CALLERS = 16
_TIMEOUT = 0.5
_RECOVERY_S = 5.0
_LEAST = 0.85
_REFUSED_S = 0.002
_REFUSED = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
_LATE = "the deadline passed before an engine was free"  # let in, and not refused


@dataclass(frozen=True, slots=True)
class _Load:
    """What became of a load.

    Attributes:
        factor: of what it could answer just before.
        answers: to all of its calls.
        asked: calls a second.
        goodput: of them answered, a second.
        peak: what it could answer just before and just after, the mean: the speed of a machine changes by the minute.
    """

    factor: float
    answers: Sequence[Answer]
    asked: float
    goodput: float
    peak: float

    @property
    def wanted(self) -> float:
        """What has to be answered a second. At 1 × fewer may be asked for than can be answered, since calls come at
        random, and no server answers what nobody asks: there the lower one counts. Above, it is the peak.
        """
        return self.peak if self.factor > 1 else min(self.peak, self.asked)


@contextmanager
def attempts(
    stored: Stored,
    *,
    seconds: float = _SECONDS,
    least: float = _LEAST,
    refused_s: float = _REFUSED_S,
    recovery: float = _RECOVERY_S,
) -> Iterator[Attempt]:
    """Attempts at a store whose query tower takes milliseconds, beside which a refusal is cheap.

    Args:
        stored: the store.
        seconds: of each load.
        least: of the peak, what has to be answered under every load.
        refused_s: seconds that a refusal takes on the server, in the median.
        recovery: seconds after which no call fails any more.
    """
    messages = stored.requests(random.Random(0), count=300, queries=8, candidates=100)
    # Without the cache every query is encoded; one engine leaves the other core to the event loop, and to who calls.
    with (
        running("serve", stored.bundle, stored.store, "--cache-bytes", "0", "--engines", "1") as server,
        calling(server.address, connections=4) as caller,
    ):

        def attempt(seed: int) -> Tally:
            """Finds out what it can do, loads it with that and more, then with half."""
            logged, chance = len(server.log), random.Random(seed)
            loads = _loads(caller, messages, seconds, chance)
            recovered = _recovery(caller, messages, loads[-1].peak, (seconds / 2, min(recovery, seconds) + 1), chance)
            require(recovered <= recovery, f"it took {recovered:.1f} s to recover")
            figures = (
                _judged(loads, least) | _refusals(loads, server.log[logged:], refused_s) | {"recovery, s": recovered}
            )
            outcomes = Counter("answered" if one.ok else one.code.name for load in loads for one in load.answers)
            return Tally(outcomes, done=round(seconds * len(loads)), figures=figures)

        yield attempt


def _loads(caller: Caller, messages: Sequence[bytes], seconds: float, chance: random.Random) -> list[_Load]:
    """One of each factor, before and after which it is found out what can be answered."""

    def most() -> float:
        return _rate(caller, caller.closed(lambda: chance.choice(messages), _CALLERS, seconds / 2), seconds / 2)[1]

    loads, before = list[_Load](), most()
    for factor in _FACTORS:
        calls = caller.opened(messages, factor * max(before, 1.0), seconds, _TIMEOUT, chance)
        answers, goodput = _rate(caller, calls, seconds)
        after = most()
        loads.append(_Load(factor, answers, len(answers) / seconds, goodput, (before + after) / 2))
        before = after
    require(all(load.peak for load in loads), "without any overload nothing is answered")
    return loads


def _rate(caller: Caller, calls: Awaitable[list[Answer]], seconds: float) -> tuple[list[Answer], float]:
    """What became of calls, and how many a second were answered: not counted are the first quarter, before which they
    have not filled the queue, and what is answered when no more are made.
    """
    begun = time.monotonic()
    answers = caller.run(calls)
    counted = sum(one.ok and begun + seconds / 4 <= one.ended <= begun + seconds for one in answers)
    return answers, counted / (0.75 * seconds)


def _judged(loads: Sequence[_Load], least: float) -> dict[str, float]:
    for load in loads:
        share = f"{load.goodput / load.wanted:.0%} of {load.wanted:.1f} a second"
        require(load.goodput >= least * load.wanted, f"at {load.factor:g} × it answers {share}: {_told(loads)}")
    return _told(loads)


def _told(loads: Sequence[_Load]) -> dict[str, float]:
    figures = {f"goodput at {load.factor:g} ×, of the peak beside it": load.goodput / load.peak for load in loads}
    return figures | {"peak, requests a second": median(load.peak for load in loads)}


def _refusals(loads: Sequence[_Load], log: Sequence[dict[str, Any]], refused_s: float) -> dict[str, float]:
    """They are quick, and say when to try again; whatever is not answered is one, or was let in and late."""
    failed = [one for load in loads for one in load.answers if not one.ok]
    others = Counter(one.code.name for one in failed if one.code not in _REFUSED)
    require(not others, f"calls failed: {others}")
    mute = [one for one in failed if one.details and not one.says_when_to_retry and _LATE not in one.message]
    require(not mute, f"{len(mute)} refusals do not say when to try again, such as: {mute[:1]}")
    seconds = [one["seconds"] for one in log if _is_refusal(one)]
    if not seconds:
        return {}
    require(median(seconds) < refused_s, f"refusals take {1e3 * median(seconds):.1f} ms on the server")
    return {"refusals on the server, p50 ms": 1e3 * median(seconds)}


def _is_refusal(event: dict[str, Any]) -> bool:
    """Whether a line of the log is a request that was refused without work."""
    return (
        event["event"] == "rpc"
        and event["code"] in {code.name for code in _REFUSED}
        and bool(event.get("message"))
        and _LATE not in str(event["message"])
    )


def _recovery(
    caller: Caller, messages: Sequence[bytes], peak: float, seconds: tuple[float, float], chance: random.Random
) -> float:
    """Seconds from the end of an overload to the last call that fails at half of the peak; `seconds` are those of both
    loads.
    """
    caller.run(caller.opened(messages, _FACTORS[-1] * peak, seconds[0], _TIMEOUT, chance))
    ended = time.monotonic()
    answers = caller.run(caller.opened(messages, peak / 2, seconds[1], _TIMEOUT, chance))
    return max((one.ended - ended for one in answers if not one.ok), default=0.0)


OVERLOAD = Fault(
    name="overload",
    title="Overload, open loop, 1 × to 3 × of what it can do, 8 queries × 100 candidates a request",
    promise="at every load goodput at least 85 % of the peak (at 1 × of what is asked for, where that is less); "
    "refusals under 2 ms (p50, on the server) with RetryInfo; recovery within 5 s",
    unit="seconds",
    wanted=600,
    quick=32,
    prepare=lambda folder, _: attempts(minilm_stored(folder, 2000)),
)
