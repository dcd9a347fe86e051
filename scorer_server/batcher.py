"""Queries → embeddings. Work-conserving: an idle engine starts at once, and a batch forms only while all are busy.

A query that is asked for several times at once is encoded once. One that nobody waits for any more, because its callers
were cancelled or ran out of time, is never started. A batch that fails is tried again query by query, so that a query
that breaks the model fails alone. While two bundles are served each query is encoded by its own request's: they never
share a batch, and share an embedding only where their query towers are the same.

Shapes: Q queries of a request, B queries of a batch, D dimension.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from scorer_server.cache import Key, QueryCache
from scorer_server.metrics import Metrics
from scorer_server.settings import Settings
from twinbert.errors import QueueFullError
from twinbert.runtime import Floats, Runtime


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A batch that came back: embeddings, or an error, of each query; times in seconds."""

    embeddings: Sequence[Floats | Exception]
    tokens: int
    truncated: int
    tokenize_s: float
    encode_s: float


@dataclass(slots=True, eq=False)
class _Pending:
    """A query on its way through an engine, and the places where its embedding is wanted."""

    key: Key
    runtime: Runtime
    tokens: int
    arrived: float
    wanted: list[tuple[Ticket, int]] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        """Whether a request still waits for it."""
        return not all(ticket.done.done() for ticket, _ in self.wanted)


class Ticket:
    """The queries of one request: `embeddings` fill in as they come, `done` is set with the last or the first error.

    Attributes:
        embeddings: by query; None until it is there.
        done: result None, or the error of a query.
        queue_s: longest wait for an engine, in seconds.
        tokenize_s: tokenising the batches that its queries were in, in seconds.
        encode_s: encoding them, in seconds.
        cached: how many of its queries came from the cache.
    """

    def __init__(self, queries: int, loop: asyncio.AbstractEventLoop) -> None:
        self.embeddings: list[Floats | None] = [None] * queries
        self.done: asyncio.Future[None] = loop.create_future()
        self.queue_s = self.tokenize_s = self.encode_s = 0.0
        self.cached = 0
        self._missing = queries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """From here on nobody waits: queries wanted by no other ticket are dropped when their turn comes."""
        self.done.cancel()

    def fill(self, place: int, embedding_D: Floats) -> None:
        """One query is there."""
        self.embeddings[place] = embedding_D
        self._missing -= 1
        if not self._missing and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """One query cannot be encoded, so the request cannot be answered."""
        if not self.done.done():
            self.done.set_exception(error)


class Batcher:
    """The engines that encode queries and the queue before them. Used from one event loop.

    Args:
        settings: engines, threads, bounds.
        metrics: where to count.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._cache = QueryCache(settings.cache_bytes, metrics.cache_bytes)
        self._queue: deque[_Pending] = deque()
        self._waiting_tokens = 0  # of the queue
        self._in_flight: dict[Key, _Pending] = {}
        self._idle = settings.engines
        self._executor = ThreadPoolExecutor(settings.engines, "encode")
        self._loop = asyncio.get_running_loop()
        self._recent_s = 0.01  # duration of a batch, smoothed: how long a refused caller should wait

    def submit(self, queries: Sequence[str], runtime: Runtime) -> Ticket:
        """Takes the queries of a request, for the bundle that serves it; use the ticket in a `with` statement, which
        gives up what is not there yet.

        Raises:
            QueueFullError: too many queries are waiting already; says when to try again.
        """
        ticket, metrics = Ticket(len(queries), self._loop), self._metrics
        missing = []
        tower = runtime.bundle.query_digest
        for place, query in enumerate(queries):
            key = tower, query
            embedding_D = self._cache.get(key)
            if embedding_D is None:
                missing.append((place, key))
            else:
                ticket.fill(place, embedding_D)
        ticket.cached = len(queries) - len(missing)
        new = sum(key not in self._in_flight for _, key in missing)
        if new and len(self._queue) + new > self._settings.queue:
            self._purge()
        if new and self._queue and len(self._queue) + new > self._settings.queue:
            batches = 1 + len(self._queue) // max(1, self._settings.batch_tokens // 16)
            raise QueueFullError(
                f"{len(self._queue)} queries are waiting, {self._settings.queue} may; try again, or another replica",
                self._recent_s * batches,
            )
        metrics.queries.inc(len(queries))
        metrics.cache_hits.inc(ticket.cached)
        metrics.cache_misses.inc(len(missing))
        for place, key in missing:
            self._want(key, runtime).wanted.append((ticket, place))
        self._start()
        return ticket

    def close(self) -> None:
        """Ends the engines; nothing may be waiting."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _want(self, key: Key, runtime: Runtime) -> _Pending:
        pending = self._in_flight.get(key)
        if pending is None:
            # A token is seldom shorter than 3 bytes of text; two are the special ones.
            tokens = min(runtime.max_tokens("query"), 2 + len(key[1].encode()) // 3)
            pending = self._in_flight[key] = _Pending(key, runtime, tokens, time.perf_counter())
            self._queue.append(pending)
            self._waiting_tokens += tokens
        return pending

    def _start(self) -> None:
        """Gives idle engines what is waiting."""
        while self._idle and (batch := self._take()):
            self._idle -= 1
            now = time.perf_counter()
            for pending in batch:
                self._metrics.stages["queue"].observe(now - pending.arrived)
                for ticket, _ in pending.wanted:
                    ticket.queue_s = max(ticket.queue_s, now - pending.arrived)
            self._executor.submit(self._run, batch)
        self._metrics.queue_depth.set(len(self._queue))

    def _take(self) -> list[_Pending]:
        """The next batch: an idle engine's share of what waits for the first one's bundle, without queries that nobody
        waits for any more.
        """
        batch: list[_Pending] = []
        others: list[_Pending] = []
        tokens, limit = 0, min(self._settings.batch_tokens, math.ceil(self._waiting_tokens / self._idle))
        while self._queue:
            pending = self._queue[0]
            wanted = pending.is_wanted
            if wanted and batch and pending.runtime is not batch[0].runtime:
                others.append(self._queue.popleft())
                continue
            if wanted and batch and tokens + pending.tokens > limit:
                break
            self._queue.popleft()
            self._waiting_tokens -= pending.tokens
            if wanted:
                batch.append(pending)
                tokens += pending.tokens
            else:
                self._drop(pending)
        self._queue.extendleft(reversed(others))
        return batch

    def _purge(self) -> None:
        """Drops what nobody waits for from the whole queue."""
        kept: deque[_Pending] = deque()
        for pending in self._queue:
            if pending.is_wanted:
                kept.append(pending)
            else:
                self._waiting_tokens -= pending.tokens
                self._drop(pending)
        self._queue = kept

    def _drop(self, pending: _Pending) -> None:
        del self._in_flight[pending.key]
        self._metrics.dropped.inc()

    def _run(self, batch: list[_Pending]) -> None:
        """An engine's thread: encodes a batch, and hands it to the event loop by the shortest way."""
        encoded: _Encoded | Exception
        try:
            encoded = self._encode(batch[0].runtime, [pending.key[1] for pending in batch])
        except Exception as error:  # noqa: BLE001  the edge of a thread: reaches the requests that wait for the batch
            encoded = error
        self._loop.call_soon_threadsafe(self._finish, batch, encoded)

    def _encode(self, runtime: Runtime, texts: list[str]) -> _Encoded:
        started = time.perf_counter()
        tokens = runtime.tokenize(texts)
        tokenized = time.perf_counter()
        embeddings: Sequence[Floats | Exception]
        try:
            embeddings = list(runtime.embed(tokens))
        except Exception as error:  # noqa: BLE001  the edge of a thread: reaches the requests whose queries failed
            alone = len(texts) == 1
            embeddings = [error] if alone else [self._encode(runtime, [text]).embeddings[0] for text in texts]
        encode_s = time.perf_counter() - tokenized
        truncated = int(np.count_nonzero(tokens.truncated))
        return _Encoded(embeddings, int(tokens.lengths.sum()), truncated, tokenized - started, encode_s)

    def _finish(self, batch: list[_Pending], encoded: _Encoded | Exception) -> None:
        self._idle += 1
        for pending in batch:
            del self._in_flight[pending.key]
        self._start()
        if isinstance(encoded, Exception):
            for ticket in {ticket for pending in batch for ticket, _ in pending.wanted}:
                ticket.fail(encoded)
            return
        self._observe(len(batch), encoded)
        for ticket in {ticket for pending in batch for ticket, _ in pending.wanted}:
            ticket.tokenize_s += encoded.tokenize_s
            ticket.encode_s += encoded.encode_s
        for pending, embedding_D in zip(batch, encoded.embeddings, strict=True):
            if not isinstance(embedding_D, Exception):
                # A copy, so that the cache does not keep the whole batch alive.
                self._cache.put(pending.key, embedding_D.copy())
            for ticket, place in pending.wanted:
                if isinstance(embedding_D, Exception):
                    ticket.fail(embedding_D)
                else:
                    ticket.fill(place, embedding_D)

    def _observe(self, queries: int, encoded: _Encoded) -> None:
        metrics = self._metrics
        metrics.stages["tokenize"].observe(encoded.tokenize_s)
        metrics.stages["encode"].observe(encoded.encode_s)
        metrics.batch_queries.observe(queries)
        metrics.batch_tokens.observe(encoded.tokens)
        metrics.truncated.inc(encoded.truncated)
        self._recent_s += 0.2 * (encoded.tokenize_s + encoded.encode_s - self._recent_s)
