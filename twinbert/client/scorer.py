"""Clients of ScorerService, synchronous and asyncio: the same methods, the same messages, the same errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

import grpc

from twinbert.client.channel import Endpoint
from twinbert.client.messages import (
    CrossingName,
    Description,
    RetrieveReply,
    ScoreReply,
    Task,
    description,
    retrieve_reply,
    retrieve_request,
    score_reply,
    score_request,
)
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1.scorer_pb2_grpc import ScorerServiceStub

if TYPE_CHECKING:
    from twinbert.v1.scorer_pb2_grpc import ScorerServiceAsyncStub

SCORE_TIMEOUT_S = 1.0  # a ranker that waits longer has lost its user
SCAN_TIMEOUT_S = 10.0  # Retrieve reads every row
DESCRIBE_TIMEOUT_S = 5.0


class ScorerClient:
    """Scores candidates and retrieves documents over gRPC. Threads may share it; close it, or use it in a `with`.

    Args:
        address: `HOST:PORT`, or several, separated by commas or as a sequence, which take calls in turn.
        credentials: TLS credentials, see `tls_credentials`; None: plain text.
        token: A bearer token, where servers demand one, or a function that gives the one of the moment.

    Raises:
        UsageError: An address is not `HOST:PORT`, its host is unknown, or a token would cross a network in plain text.
            Nothing is connected until the first call.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | Callable[[], str] | None = None,
    ) -> None:
        self._endpoint = Endpoint(address, credentials, token)
        self._channel = self._endpoint.channel()
        self._stub = ScorerServiceStub(self._channel)

    def score(
        self,
        tasks: Task | Iterable[Task],
        *,
        generation: str = "",
        crossing: CrossingName | None = None,
        allow_partial: bool = False,
        timeout: float = SCORE_TIMEOUT_S,
    ) -> ScoreReply:
        """Scores the candidates of each task.

        Args:
            tasks: One task or several: at most `describe().limits.tasks` (64), and `.candidates` (10,000) in all.
            generation: The generation to score against; empty: the current one.
            crossing: The crossing layer; None: the bundle's default.
            allow_partial: Answer just before the deadline with the tasks that are finished; the candidates of the
                others are NOT_SCORED.
            timeout: Deadline in seconds, retries included.

        Raises:
            InvalidRequestError: A value that the request cannot hold.
            RemoteError: The server refused, failed, was not reached, or missed the deadline.
        """
        request = score_request(tasks, generation=generation, crossing=crossing, allow_partial=allow_partial)
        with self._endpoint.errors(timeout):
            return score_reply(self._stub.Score(request, timeout=timeout, metadata=self._endpoint.metadata()))

    def retrieve(
        self, queries: str | Iterable[str], limit: int = 10, *, generation: str = "", timeout: float = SCAN_TIMEOUT_S
    ) -> RetrieveReply:
        """Finds the best `limit` documents of the whole generation for each query.

        Args:
            queries: One query or several.
            limit: Documents wanted for each query; at most `describe().limits.hits` (1,000).
            generation: The generation to search; empty: the current one.
            timeout: Deadline in seconds, retries included.

        Raises:
            InvalidRequestError: A value that the request cannot hold.
            RemoteError: As from `score`; UNIMPLEMENTED when the bundle has no cosine crossing.
        """
        request = retrieve_request(queries, limit, generation=generation)
        with self._endpoint.errors(timeout):
            return retrieve_reply(self._stub.Retrieve(request, timeout=timeout, metadata=self._endpoint.metadata()))

    def describe(self, *, timeout: float = DESCRIBE_TIMEOUT_S) -> Description:
        """What the server serves and accepts.

        Args:
            timeout: Deadline in seconds, retries included.

        Raises:
            RemoteError: As from `score`.
        """
        with self._endpoint.errors(timeout):
            return description(
                self._stub.Describe(pb.DescribeRequest(), timeout=timeout, metadata=self._endpoint.metadata())
            )

    def close(self) -> None:
        """Closes the connections; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncScorerClient:
    """`ScorerClient` for asyncio: make it inside the event loop that uses it; close it, or use it in an `async with`.

    Arguments, results and errors are those of `ScorerClient`.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | Callable[[], str] | None = None,
    ) -> None:
        self._endpoint = Endpoint(address, credentials, token)
        self._channel = self._endpoint.aio_channel()
        self._stub = cast("ScorerServiceAsyncStub", ScorerServiceStub(self._channel))

    async def score(
        self,
        tasks: Task | Iterable[Task],
        *,
        generation: str = "",
        crossing: CrossingName | None = None,
        allow_partial: bool = False,
        timeout: float = SCORE_TIMEOUT_S,
    ) -> ScoreReply:
        """As `ScorerClient.score`."""
        request = score_request(tasks, generation=generation, crossing=crossing, allow_partial=allow_partial)
        with self._endpoint.errors(timeout):
            return score_reply(await self._stub.Score(request, timeout=timeout, metadata=self._endpoint.metadata()))

    async def retrieve(
        self, queries: str | Iterable[str], limit: int = 10, *, generation: str = "", timeout: float = SCAN_TIMEOUT_S
    ) -> RetrieveReply:
        """As `ScorerClient.retrieve`."""
        request = retrieve_request(queries, limit, generation=generation)
        with self._endpoint.errors(timeout):
            return retrieve_reply(
                await self._stub.Retrieve(request, timeout=timeout, metadata=self._endpoint.metadata())
            )

    async def describe(self, *, timeout: float = DESCRIBE_TIMEOUT_S) -> Description:
        """As `ScorerClient.describe`."""
        with self._endpoint.errors(timeout):
            return description(
                await self._stub.Describe(pb.DescribeRequest(), timeout=timeout, metadata=self._endpoint.metadata())
            )

    async def close(self) -> None:
        """Closes the connections; calls under way are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
