"""More requests than a scorer can answer: from what it can to three times as many, whatever becomes of them."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import grpc

from faults.fault import Attempt, Fault, Tally, require
from faults.load import Answer, Caller, calling
from faults.serving import minilm, minilm_store, requests
from tests.servers import Server, running

_FACTORS = (1.0, 1.5, 2.0, 3.0)
_SECONDS = 4.0  # of each
_TIMEOUT = 0.5
_RECOVERY_S = 5.0
_LEAST = 0.85
_REFUSED = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
_LATE = "the deadline passed before an engine was free"  # let in, and not refused


@contextmanager
def _prepared(folder: Path, _bundle: Path) -> Iterator[Attempt]:
    store = minilm_store(folder, 2000)
    messages = requests(folder, random.Random(0), count=300, queries=8, candidates=100)
    # Without the cache every query is encoded; one engine leaves the other core to the event loop, and to who calls.
    with (
        running("serve", minilm(), store, "--cache-bytes", "0", "--engines", "1") as server,
        calling(server.address, connections=4) as caller,
    ):

        def attempt(seed: int) -> Tally:
            """Finds out what it can do, loads it with that and more, then with half."""
            return _overload(server, caller, messages, random.Random(seed))

        yield attempt


def _overload(server: Server, caller: Caller, messages: Sequence[bytes], chance: random.Random) -> Tally:
    closed = caller.run(caller.closed(lambda: chance.choice(messages), 16, _SECONDS))
    most = sum(one.ok for one in closed) / _SECONDS
    logged = len(server.log)
    answers = {
        factor: caller.run(caller.opened(messages, factor * most, _SECONDS, _TIMEOUT, chance)) for factor in _FACTORS
    }
    recovered = _recovery(caller, messages, most / 2, chance)
    goodput = {factor: sum(one.ok for one in some) / _SECONDS for factor, some in answers.items()}
    peak = max(goodput.values())
    figures = {f"goodput at {factor:g} ×, of the peak": good / peak for factor, good in goodput.items()}
    figures |= {"peak, requests a second": peak, "recovery, s": recovered}
    told = [one for some in answers.values() for one in some if not one.ok and one.details]
    refused = [one["seconds"] for one in server.log[logged:] if _is_refusal(one)]
    if refused:
        figures["refusals on the server, p50 ms"] = 1e3 * median(refused)
        require(median(refused) < 0.002, f"refusals take {1e3 * median(refused):.1f} ms on the server")
    mute = [one for one in told if one.code in _REFUSED and not one.says_when_to_retry and _LATE not in _message(one)]
    require(not mute, f"{len(mute)} refusals do not say when to try again, such as: {mute[:1]}")
    best = goodput[_FACTORS[0]]
    for factor, good in goodput.items():  # the larger load must not do worse; where the peak lies is for it to show
        require(good >= _LEAST * best, f"goodput falls to {good / best:.0%} at {factor:g} ×: {goodput}")
        best = max(best, good)
    require(recovered <= _RECOVERY_S, f"it took {recovered:.1f} s to recover")
    outcomes = Counter("answered" if one.ok else one.code.name for some in answers.values() for one in some)
    return Tally(outcomes, done=round(_SECONDS * len(_FACTORS)), figures=figures)


def _message(answer: Answer) -> str:
    return answer.details.message if answer.details else ""


def _is_refusal(event: dict[str, object]) -> bool:
    """Whether a line of the log is a request that was refused without work."""
    return (
        event["event"] == "rpc"
        and event["code"] in {code.name for code in _REFUSED}
        and bool(event.get("message"))
        and _LATE not in str(event["message"])
    )


def _recovery(caller: Caller, messages: Sequence[bytes], rate: float, chance: random.Random) -> float:
    """Seconds from the end of the overload to the last call that fails, at half of what it can do."""
    ended = time.monotonic()
    answers = caller.run(caller.opened(messages, rate, _RECOVERY_S + 1, _TIMEOUT, chance))
    return max((one.ended - ended for one in answers if not one.ok), default=0.0)


OVERLOAD = Fault(
    name="overload",
    title="Overload, open loop, 1 × to 3 × of what it can do, 8 queries × 100 candidates a request",
    promise="goodput at least 85 % of the peak; refusals under 2 ms (p50, on the server) with RetryInfo; recovery "
    "within 5 s",
    unit="seconds",
    wanted=600,
    quick=16,
    prepare=_prepared,
)
