"""Calls, as bytes, so that the caller costs little of the cores that the server has: closed and open loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from faults.fault import BrokenPromiseError

SCORE = "/twinbert.v1.ScorerService/Score"
_DETAILS = "grpc-status-details-bin"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call.

    Attributes:
        ended: when, by the monotonic clock.
        seconds: how long it took.
        code: how it ended.
        response: its bytes; empty unless it is OK.
        details: what the server said of an error; None where it said nothing, as where the client gave up.
    """

    ended: float
    seconds: float
    code: grpc.StatusCode
    response: bytes = b""
    details: Status | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a response."""
        return self.code is grpc.StatusCode.OK

    @property
    def says_when_to_retry(self) -> bool:
        """Whether the server did."""
        return self.details is not None and any(one.Is(RetryInfo.DESCRIPTOR) for one in self.details.details)

    @property
    def message(self) -> str:
        """What the server says of an error."""
        return str(self.details.message) if self.details else ""

    @property
    def reason(self) -> str:
        """The `ErrorInfo.reason` of an error; empty where the server said nothing."""
        details = self.details.details if self.details else ()
        return "".join(ErrorInfo.FromString(one.value).reason for one in details if one.Is(ErrorInfo.DESCRIPTOR))


class Caller:
    """Calls one server, from a loop of its own.

    Args:
        address: the server's.
        connections: to spread the calls over.
    """

    def __init__(self, address: str, connections: int = 1) -> None:
        self._loop = asyncio.new_event_loop()
        self._channels = self.run(self._connect(address, connections))
        self._next = 0

    async def _connect(self, address: str, connections: int) -> list[grpc.aio.Channel]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return [grpc.aio.insecure_channel(address, options) for _ in range(connections)]

    def run(self, work: Awaitable[T]) -> T:
        """Runs what calls, to its end."""
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """Ends its connections."""
        for channel in self._channels:
            self.run(channel.close())
        self._loop.close()

    def begin(self, request: bytes, timeout: float, method: str = SCORE) -> grpc.aio.UnaryUnaryCall[bytes, bytes]:
        """A call that goes on by itself."""
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel().unary_unary(method)
        return call(request, timeout=timeout)

    async def answer(self, request: bytes, timeout: float = 10.0, method: str = SCORE) -> Answer:
        """A call, to its end."""
        begun = time.monotonic()
        call = self.begin(request, timeout, method)
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            return _failed(error, begun)
        ended = time.monotonic()
        return Answer(ended, ended - begun, grpc.StatusCode.OK, response)

    def _channel(self) -> grpc.aio.Channel:
        self._next = (self._next + 1) % len(self._channels)
        return self._channels[self._next]

    async def closed(self, request: Callable[[], bytes], callers: int, seconds: float) -> list[Answer]:
        """So many callers, each calling again when it is answered."""
        until, answers = time.monotonic() + seconds, []

        async def one() -> None:
            while time.monotonic() < until:
                answers.append(await self.answer(request()))

        await asyncio.gather(*(one() for _ in range(callers)))
        return answers

    async def opened(
        self, requests: Sequence[bytes], rate: float, seconds: float, timeout: float, chance: random.Random
    ) -> list[Answer]:
        """Calls at random moments, so many a second whatever becomes of them."""
        calls, due, end = [], time.monotonic(), time.monotonic() + seconds
        while due < end:
            due += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))  # the load itself
            calls.append(asyncio.ensure_future(self.answer(chance.choice(requests), timeout)))
        return await asyncio.gather(*calls)


def stream(channel: grpc.Channel, method: str, requests: Sequence[bytes], timeout: float) -> Answer:
    """A call with several requests, to its end; of several responses the last one counts.

    Not asyncio's: that one loses the status of a server which ends a call while requests are still written.
    """
    begun = time.monotonic()
    call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
    try:
        responses = deque(call(iter(requests), timeout=timeout), maxlen=1)
    except grpc.RpcError as error:
        return _failed(error, begun)
    ended = time.monotonic()
    return Answer(ended, ended - begun, grpc.StatusCode.OK, responses.pop() if responses else b"")


def _failed(error: grpc.RpcError, begun: float) -> Answer:
    ended = time.monotonic()
    metadata: dict[str, str | bytes] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]  # pairs, whatever the stubs say
    told = metadata.get(_DETAILS)
    details = Status.FromString(told) if isinstance(told, bytes) else None
    return Answer(ended, ended - begun, error.code(), details=details)


@contextmanager
def calling(address: str, connections: int = 1) -> Iterator[Caller]:
    """A caller, which is closed at the end."""
    caller = Caller(address, connections)
    try:
        yield caller
    finally:
        caller.close()


def require_ok(answers: Sequence[Answer]) -> None:
    """Raises BrokenPromiseError where a call failed."""
    failed = [one.code.name for one in answers if not one.ok]
    if failed:
        raise BrokenPromiseError(f"{len(failed)} of {len(answers)} calls failed: {sorted(set(failed))}")
