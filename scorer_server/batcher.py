"""Queries → embeddings. Work-conserving: an idle engine starts at once, and a batch forms only while all are busy.

A query that is asked for several times at once is encoded once. One that would come too late for its caller is refused;
one that nobody waits for any more, because its callers were cancelled or ran out of time, is never started. A batch
that fails is tried again query by query, so that a query that breaks the model fails alone. While two bundles are
served each query is encoded by its own request's: they never share a batch, and share an embedding only where their
query towers are the same.

Shapes: Q queries of a request, B queries of a batch, D dimension.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from scorer_server.cache import Key, QueryCache
from scorer_server.cost import CAUTION, BatchCost, Lateness
from scorer_server.metrics import Metrics
from scorer_server.settings import Settings
from scorer_server.tickets import Pending, Ticket
from twinbert.errors import DeadlineError, QueueFullError
from twinbert.runtime import Floats, Runtime


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A batch that came back: embeddings, or an error, of each query; times in seconds, `started` by perf_counter."""

    embeddings: Sequence[Floats | Exception]
    started: float
    tokenize_s: float = 0.0
    encode_s: float = 0.0
    tokens: int = 0
    truncated: int = 0


class Batcher:
    """The engines that encode queries and the queue before them. Used from one event loop.

    Args:
        settings: engines, threads, bounds.
        metrics: where to count.

    Attributes:
        cost: what batches cost here.
        lateness: how much later answers are than expected.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._cache = QueryCache(settings.cache_bytes, metrics.cache_bytes)
        self._queue: deque[Pending] = deque()
        self._waiting_tokens = 0  # of the queue
        self._has_unwanted = False  # the queue, perhaps: somebody gave up since it was looked through
        self._in_flight: dict[Key, Pending] = {}
        self._idle = settings.engines
        self.cost, self.lateness = BatchCost(), Lateness()
        self._ends: dict[int, float] = {}  # of the batches at work, by identity: when they should be done
        self._executor = ThreadPoolExecutor(settings.engines, "encode")
        self._loop = asyncio.get_running_loop()

    def submit(self, queries: Sequence[str], runtime: Runtime, remaining: float = math.inf) -> Ticket:
        """Takes the queries of a request, for the bundle that serves it; use the ticket in a `with` statement, which
        gives up what is not there yet.

        Args:
            queries: texts.
            runtime: encodes them.
            remaining: seconds within which they must be encoded to be of use.

        Raises:
            QueueFullError: too many queries are waiting already; says when to try again.
            DeadlineError: they would not be encoded in time; says when to try again.
        """
        metrics = self._metrics
        ticket = Ticket(len(queries), time.perf_counter() + remaining, self._gave_up)
        missing = []
        tower = runtime.query_digest
        for place, query in enumerate(queries):
            key = tower, query
            embedding_D = self._cache.get(key)
            if embedding_D is None:
                missing.append((place, key))
            else:
                ticket.fill(place, embedding_D)
        ticket.cached = len(queries) - len(missing)
        ticket.looked_up()
        ticket.expected_s = self._admit({key for _, key in missing}, runtime, remaining)
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

    def _admit(self, keys: set[Key], runtime: Runtime, remaining: float) -> float:
        """Raises unless there is room for queries that are not in the cache, and time; returns the seconds expected.

        Who is refused has cost nothing; who is late has cost the engine what another would have had, and a full queue
        is late as a whole: so an estimate counts by as much more as the latest were too low. Who finds an engine idle
        is let in, whatever the estimate, and so it is put right: 0 is expected of it.
        """
        tokens = [_tokens(key, runtime) for key in keys if key not in self._in_flight]
        waits = bool(tokens) and not self._idle
        caution, wait_s = self.lateness.factor, self._wait_s(tokens) if waits else 0.0
        if self._has_unwanted and (self._overflows(tokens) or caution * wait_s > remaining):
            self._purge()
            wait_s = self._wait_s(tokens) if waits else 0.0
        if self._overflows(tokens):
            raise QueueFullError(
                f"{len(self._queue)} queries are waiting, {self._settings.queue} may; try again, or another replica",
                self._retry_s(),
                what="queries",
            )
        if keys and (remaining <= 0 or caution * wait_s > remaining):
            raise DeadlineError(
                f"encoding may take {1000 * caution * wait_s:.0f} ms with what is waiting, and the call has "
                f"{1000 * max(0.0, remaining):.0f} ms left; give it more time, or try another replica",
                self._retry_s(),
                what="deadline",
            )
        return wait_s

    def _overflows(self, tokens: Sequence[int]) -> bool:
        """Whether the queue cannot take so many queries; an empty one takes any number."""
        return bool(tokens and self._queue) and len(self._queue) + len(tokens) > self._settings.queue

    def _retry_s(self) -> float:
        """When what waits now is done; nobody need come back at once."""
        return max(0.01, self._wait_s())

    def _wait_s(self, new: Iterable[int] = ()) -> float:
        """Estimated seconds until all that waits is encoded, and beyond it queries of so many tokens, by engines that
        take a whole batch each as they become free.
        """
        now = time.perf_counter()
        free = [now] * self._idle + [max(now, end) for end in self._ends.values()]
        heapq.heapify(free)
        last = free[0]
        tokens, most = self._waiting_tokens + sum(new), self._settings.batch_tokens
        while tokens > 0:
            last = free[0] + self.cost.seconds(min(tokens, most), most)
            heapq.heapreplace(free, last)
            tokens -= most
        return last - now

    def _want(self, key: Key, runtime: Runtime) -> Pending:
        pending = self._in_flight.get(key)
        if pending is None:
            tokens = _tokens(key, runtime)
            pending = self._in_flight[key] = Pending(key, runtime, tokens, time.perf_counter())
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
                    ticket.waited(pending, now)
            tokens = sum(pending.tokens for pending in batch)
            self._ends[id(batch)] = now + self.cost.seconds(tokens, self._settings.batch_tokens)
            self._executor.submit(self._run, batch)
        self._metrics.queue_depth.set(len(self._queue))

    def _take(self) -> list[Pending]:
        """The next batch: an idle engine's share of what waits for the first one's bundle, without queries that nobody
        waits for any more. A batch is ready as a whole, so it ends where another query would make one before it late.
        """
        batch: list[Pending] = []
        others: list[Pending] = []
        tokens, limit = 0, min(self._settings.batch_tokens, math.ceil(self._waiting_tokens / self._idle))
        until = math.inf
        while self._queue:
            pending = self._queue[0]
            wanted = pending.is_wanted
            if wanted and batch and pending.runtime is not batch[0].runtime:
                others.append(self._queue.popleft())
                continue
            if wanted and batch and (tokens + pending.tokens > limit or self._end(tokens + pending.tokens) > until):
                break
            self._queue.popleft()
            self._waiting_tokens -= pending.tokens
            if wanted:
                batch.append(pending)
                tokens += pending.tokens
                if self._end(tokens) <= (expires := pending.expires):  # else it is late in any company
                    until = min(until, expires)
            else:
                self._drop(pending)
        self._queue.extendleft(reversed(others))
        return batch

    def _end(self, tokens: int) -> float:
        """When a batch of so many tokens that begins now is surely ready (perf_counter).

        What was learned of lateness does not count: a batch that ends earlier for it makes the queue longer.
        """
        return time.perf_counter() + CAUTION * self.cost.seconds(tokens, self._settings.batch_tokens)

    def _purge(self) -> None:
        """Drops what nobody waits for from the whole queue."""
        self._has_unwanted = False
        kept: deque[Pending] = deque()
        for pending in self._queue:
            if pending.is_wanted:
                kept.append(pending)
            else:
                self._waiting_tokens -= pending.tokens
                self._drop(pending)
        self._queue = kept

    def _drop(self, pending: Pending) -> None:
        del self._in_flight[pending.key]
        self._metrics.dropped.inc()
        for ticket, _ in pending.wanted:  # gRPC's word that the call is over may still be on its way
            ticket.fail(TimeoutError("the deadline passed before an engine was free"))

    def _run(self, batch: list[Pending]) -> None:
        """An engine's thread: encodes a batch, and hands it to the event loop by the shortest way."""
        encoded = self._encode(batch[0].runtime, [pending.key[1] for pending in batch])
        self._loop.call_soon_threadsafe(self._finish, batch, encoded)

    def _encode(self, runtime: Runtime, texts: list[str]) -> _Encoded:
        started = time.perf_counter()
        try:
            tokens = runtime.tokenize(texts)
            tokenized = time.perf_counter()
            embeddings = list(runtime.embed(tokens))
        except Exception as error:  # noqa: BLE001  the edge of a thread: reaches the requests whose queries failed
            if len(texts) == 1:
                return _Encoded([error], started)
            return _Encoded([self._encode(runtime, [text]).embeddings[0] for text in texts], started)
        return _Encoded(
            embeddings,
            started,
            tokenize_s=tokenized - started,
            encode_s=time.perf_counter() - tokenized,
            tokens=int(tokens.lengths.sum()),
            truncated=int(np.count_nonzero(tokens.truncated)),
        )

    def _finish(self, batch: list[Pending], encoded: _Encoded) -> None:
        self._idle += 1
        del self._ends[id(batch)]
        for pending in batch:
            del self._in_flight[pending.key]
        self._start()
        if encoded.encode_s:  # else it broke: what that took is nothing to learn from
            self._observe(batch, encoded)
        tickets = {ticket for pending in batch for ticket, _ in pending.wanted}
        for ticket in tickets:
            ticket.encoded(encoded.started, encoded.tokenize_s, encoded.encode_s)
        for pending, embedding_D in zip(batch, encoded.embeddings, strict=True):
            if not isinstance(embedding_D, Exception):
                # A copy, so that the cache does not keep the whole batch alive.
                self._cache.put(pending.key, embedding_D.copy())
            for ticket, place in pending.wanted:
                if isinstance(embedding_D, Exception):
                    ticket.fail(embedding_D)
                else:
                    ticket.fill(place, embedding_D)
        for ticket in tickets:
            if ticket.is_filled:
                self._learn(ticket)

    def _gave_up(self, ticket: Ticket) -> None:
        """What only it wanted is in the queue still; and if its time is over, it waited longer than was expected."""
        self._has_unwanted = True
        if time.perf_counter() > ticket.expires:
            self._learn(ticket)

    def _learn(self, ticket: Ticket) -> None:
        if ticket.expected_s:
            self.lateness.observe(ticket.expected_s, time.perf_counter() - ticket.submitted)

    def _observe(self, batch: list[Pending], encoded: _Encoded) -> None:
        metrics = self._metrics
        metrics.stages["tokenize"].observe(encoded.tokenize_s)
        metrics.stages["encode"].observe(encoded.encode_s)
        metrics.batch_queries.observe(len(batch))
        metrics.batch_tokens.observe(encoded.tokens)
        metrics.truncated.inc(encoded.truncated)
        self.cost.observe(sum(pending.tokens for pending in batch), encoded.tokenize_s + encoded.encode_s)


def _tokens(key: Key, runtime: Runtime) -> int:
    """Estimated tokens of a query: one is seldom shorter than 3 bytes of text; two are the special ones."""
    return min(runtime.max_tokens("query"), 2 + len(key[1].encode()) // 3)
