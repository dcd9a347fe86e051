"""Messages to both servers: recorded ones mutated, and well-formed ones with whatever values their fields can have."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from faults.fault import require
from faults.inputs.mutation import mutated
from faults.inputs.recorder import DESCRIBE, ENCODE, REFRESH, RETRIEVE, SCORE, Calls
from faults.load import Answer, Caller, stream
from twinbert.v1 import encoder_pb2, scorer_pb2

_LONG_S = 120.0  # only a hang takes this long
_AT_ONCE = (
    8  # as many Retrieve requests as a server lets in, and of the others far fewer: none is refused for want of room
)

_INVALID = "INVALID_ARGUMENT INVALID_REQUEST"


class _Method:
    """What may come of a method's requests.

    Args:
        request: their type.
        response: of the answers.
        allowed: other outcomes than OK and a request that is refused as such.
        answers: whether a response is one to a request.
    """

    def __init__(
        self,
        request: type[Message],
        response: type[Message],
        allowed: Iterable[str],
        answers: Callable[[Any, Any], bool],
    ) -> None:
        self._request, self._response, self._answers = request, response, answers
        self._allowed = {"OK", _INVALID, *allowed}

    def require_right(self, name: str, content: bytes, answer: Answer) -> str:
        """Raises BrokenPromiseError where a request must not end like this; else says how it ended."""
        outcome = outcome_of(answer)
        require(outcome in self._allowed, f"{name} ended as {outcome}: {answer.message}: {content!r}")
        try:
            request = self._request.FromString(content)
        except DecodeError:
            require(outcome == _INVALID, f"{name} of what is no message ended as {outcome}: {content!r}")
            return outcome
        if outcome == "OK":
            response = self._response.FromString(answer.response)
            require(self._answers(request, response), f"{name}: {response} is no answer to {content!r}")
        return outcome


def _scored(request: scorer_pb2.ScoreRequest, response: scorer_pb2.ScoreResponse) -> bool:
    wanted = [len(task.document_ids) + len(task.document_numbers) for task in request.tasks]
    return [len(one.scores) for one in response.results] == [len(one.statuses) for one in response.results] == wanted


_HELD = "NOT_FOUND GENERATION_NOT_HELD"
_METHODS: Mapping[str, _Method] = {
    SCORE: _Method(
        scorer_pb2.ScoreRequest,
        scorer_pb2.ScoreResponse,
        (_HELD, "FAILED_PRECONDITION CROSSING_MISSING", "INVALID_ARGUMENT ID_TYPE"),
        _scored,
    ),
    RETRIEVE: _Method(
        scorer_pb2.RetrieveRequest,
        scorer_pb2.RetrieveResponse,
        (_HELD,),
        lambda request, response: len(request.queries) == len(response.results),
    ),
    DESCRIBE: _Method(
        scorer_pb2.DescribeRequest,
        scorer_pb2.DescribeResponse,
        (),
        lambda _, response: bool(response.current.name),
    ),
    ENCODE: _Method(
        encoder_pb2.EncodeRequest,
        encoder_pb2.EncodeResponse,
        (),
        lambda request, response: len(response.embeddings) == 4 * response.dimension * len(request.texts),
    ),
}

# A delta of another encoding, a corpus without documents, and one that lost too many.
_REFRESHED = {f"FAILED_PRECONDITION {why}" for why in ("FINGERPRINT_MISMATCH", "NO_DOCUMENTS", "GENERATION_DRIFT")}
_REFRESHED |= {"OK", _INVALID, "INVALID_ARGUMENT ID_TYPE"}


def outcome_of(answer: Answer) -> str:
    """Code and reason of how a call ended; neither may tell what only a trace does."""
    require("Traceback" not in answer.message and ".py" not in answer.message, f"a trace in a status: {answer.message}")
    return "OK" if answer.ok else f"{answer.code.name} {answer.reason}"


def mutate(calls: Mapping[str, Calls], method: str, chance: random.Random, count: int) -> list[bytes]:
    """Mutated requests of a method that takes one; of Describe, whose own have no bytes, those of the others."""
    own = [message for call in calls[method] for message in call if message]
    every = [message for some in calls.values() for call in some for message in call if message]
    return [mutated(chance.choice(own or every), chance) for _ in range(count)]


async def ask(caller: Caller, method: str, contents: Sequence[bytes]) -> Counter[str]:
    """Sends requests, some at a time; each has to end as it may."""
    name, outcomes, todo = method.rpartition("/")[2], Counter[str](), iter(contents)

    async def one() -> None:
        for content in todo:
            answer = await caller.answer(content, _LONG_S, method)
            outcomes[f"{name}: {_METHODS[method].require_right(name, content, answer)}"] += 1

    await asyncio.gather(*(one() for _ in range(_AT_ONCE)))
    return outcomes


def refresh(channel: grpc.Channel, calls: Calls, chance: random.Random, count: int) -> Counter[str]:
    """Sends mutated streams of Refresh, one at a time since the store has one writer: one of the messages is mutated,
    left out or repeated.
    """
    outcomes = Counter[str]()
    for _ in range(count):
        messages = [*chance.choice(calls)]
        place = chance.randrange(len(messages))
        times = chance.choice((0, 1, 1, 1, 1, 2))
        changed = mutated(messages[place], chance) if times == 1 else messages[place]
        messages[place : place + 1] = [changed] * times
        answer = stream(channel, REFRESH, messages, _LONG_S)
        outcome = outcome_of(answer)
        require(outcome in _REFRESHED, f"Refresh ended as {outcome}: {answer.message}: {messages}")
        outcomes[f"Refresh: {outcome}"] += 1
    return outcomes


def generated(seed: int, count: int) -> list[bytes]:
    """Score requests that are well-formed."""
    made: list[bytes] = []
    task = st.builds(
        scorer_pb2.ScoreTask,
        query=st.text(max_size=40),
        document_ids=st.lists(st.text(max_size=20), max_size=5),
        document_numbers=st.lists(st.integers(0, (1 << 64) - 1), max_size=2),
    )
    request = st.builds(
        scorer_pb2.ScoreRequest,
        tasks=st.lists(task, max_size=4),
        generation=st.sampled_from(["", "", "000001-00000000", "../x"]) | st.text(max_size=30),
        crossing=st.integers(0, 5),
        allow_partial=st.booleans(),
    )

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(request)
    def make(one: scorer_pb2.ScoreRequest) -> None:
        made.append(one.SerializeToString())

    make()
    return made
