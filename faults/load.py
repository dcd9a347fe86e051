"""Calls of Score, as bytes, so that the caller costs little of the cores that the server has: closed and open loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from faults.fault import BrokenPromiseError

_SCORE = "/twinbert.v1.ScorerService/Score"
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


class Caller:
    """Calls one server, from a loop of its own.

    Args:
        address: the server's.
        connections: to spread the calls over.
    """

    def __init__(self, address: str, connections: int = 1) -> None:
        self._loop = asyncio.new_event_loop()
        self._channels, self._calls = self.run(self._connect(address, connections))
        self._next = 0

    async def _connect(
        self, address: str, connections: int
    ) -> tuple[list[grpc.aio.Channel], list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(address, options) for _ in range(connections)]
        return channels, [channel.unary_unary(_SCORE) for channel in channels]

    def run(self, work: Awaitable[T]) -> T:
        """Runs what calls, to its end."""
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """Ends its connections."""
        for channel in self._channels:
            self.run(channel.close())
        self._loop.close()

    def begin(self, request: bytes, timeout: float) -> grpc.aio.UnaryUnaryCall[bytes, bytes]:
        """A call that goes on by itself."""
        self._next = (self._next + 1) % len(self._calls)
        return self._calls[self._next](request, timeout=timeout)

    async def answer(self, request: bytes, timeout: float = 10.0) -> Answer:
        """A call, to its end."""
        begun = time.monotonic()
        call = self.begin(request, timeout)
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            ended = time.monotonic()
            told = dict(error.trailing_metadata() or ()).get(_DETAILS)
            details = Status.FromString(told) if isinstance(told, bytes) else None
            return Answer(ended, ended - begun, error.code(), details=details)
        ended = time.monotonic()
        return Answer(ended, ended - begun, grpc.StatusCode.OK, response)

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
