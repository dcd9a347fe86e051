"""Queries on their way to an embedding, and the requests that wait for them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from scorer_server.cache import Key
from twinbert.runtime import Floats, Runtime
from twinbert.serving.tracing import current_trace


@dataclass(slots=True, eq=False)
class Pending:
    """A query on its way through an engine, and the places where its embedding is wanted.

    Attributes:
        key: the digest of the query tower, and the text.
        runtime: encodes it.
        tokens: that it probably has; it is tokenised with its batch.
        arrived: when it was first asked for (perf_counter).
        wanted: by tickets, and as which of their queries.
    """

    key: Key
    runtime: Runtime
    tokens: int
    arrived: float
    wanted: list[tuple[Ticket, int]] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        """Whether a request still waits for it, and has time."""
        now = time.perf_counter()
        return any(not ticket.done.done() and now < ticket.expires for ticket, _ in self.wanted)

    @property
    def expires(self) -> float:
        """When the first of those who still wait for it would have waited in vain (perf_counter)."""
        return min((ticket.expires for ticket, _ in self.wanted if not ticket.done.done()), default=math.inf)


class Ticket:
    """The queries of one request: `embeddings` fill in as they come, `done` is set with the last or the first error.

    Args:
        queries: how many.
        expires: see the attribute.
        gave_up: told of it where it ends before its last query is there.

    Attributes:
        embeddings: by query; None until it is there.
        done: result None, or the error of a query.
        queue_s: longest wait for an engine, in seconds.
        tokenize_s: tokenising the batches that its queries were in, in seconds.
        encode_s: encoding them, in seconds.
        cached: how many of its queries came from the cache.
        submitted: when it was made (perf_counter).
        expires: when nobody waits for it any more (perf_counter).
        expected_s: seconds it was let in for, by an estimate; 0: it found an engine idle, or waits for others' queries.
    """

    def __init__(self, queries: int, expires: float, gave_up: Callable[[Ticket], None]) -> None:
        self.embeddings: list[Floats | None] = [None] * queries
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue_s = self.tokenize_s = self.encode_s = 0.0
        self.cached, self.expires, self.expected_s = 0, expires, 0.0
        self.submitted, self._trace = time.perf_counter(), current_trace()
        self._missing, self._gave_up = queries, gave_up

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """From here on nobody waits: queries wanted by no other ticket are dropped when their turn comes."""
        self.done.cancel()
        if self._missing:
            self._gave_up(self)

    def looked_up(self) -> None:
        """The cache was asked."""
        if self._trace:
            self._trace.stage("cache", self.submitted, time.perf_counter())

    def encoded(self, started: float, tokenize_s: float, encode_s: float) -> None:
        """A batch with queries of it, which started at `started` (perf_counter), came back."""
        self.tokenize_s += tokenize_s
        self.encode_s += encode_s
        if self._trace:
            # Of a batch that it joined when that was at work already, only what was left.
            begun, tokenized, ended = (
                max(self.submitted, at) for at in (started, started + tokenize_s, started + tokenize_s + encode_s)
            )
            self._trace.stage("queue", self.submitted, begun)
            self._trace.stage("tokenize", begun, tokenized)
            self._trace.stage("encode", tokenized, ended)

    def waited(self, pending: Pending, now: float) -> None:
        """A query of it leaves the queue."""
        self.queue_s = max(self.queue_s, now - max(pending.arrived, self.submitted))

    def fill(self, place: int, embedding_D: Floats) -> None:
        """One query is there."""
        self.embeddings[place] = embedding_D
        self._missing -= 1
        if not self._missing and not self.done.done():
            self.done.set_result(None)

    @property
    def is_filled(self) -> bool:
        """Whether its last query is there."""
        return not self._missing

    def fail(self, error: Exception) -> None:
        """One query cannot be encoded, so the request cannot be answered."""
        if not self.done.done():
            self.done.set_exception(error)
