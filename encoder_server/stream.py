"""Refresh calls: the requests of each drive a pipeline, which works in a thread of its own.

The next request is read when the last one is done with, so a client that sends faster than documents are encoded is
held back by gRPC's flow control.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

from encoder_server.documents import Deletion, Document, Rejection
from encoder_server.documents.document import Columns, InvalidValueError, Row, document_key, document_text
from encoder_server.gate import Gate
from encoder_server.metrics import Metrics
from encoder_server.refresh import Refresh
from encoder_server.settings import Settings
from store.store import Store
from twinbert.errors import DriftError, InvalidRequestError
from twinbert.runtime import Runtime
from twinbert.serving.log import event
from twinbert.serving.rpc import parsed
from twinbert.v1 import encoder_pb2 as pb

_ENCODINGS = {
    pb.ENCODING_UNSPECIFIED: None,
    pb.ENCODING_FLOAT32: "float32",
    pb.ENCODING_FLOAT16: "float16",
    pb.ENCODING_UINT8: "uint8",
}
_FIELDS = Columns("id", ("text",), "time_ms")
# A rejection takes up to 1 KB, and a client's limit for a message may be gRPC's default of 4 MiB.
_REJECTIONS_A_RESPONSE = 4000

_T = TypeVar("_T")
Reply = Callable[[pb.RefreshResponse], Awaitable[None]]


class Refresher:
    """Answers Refresh calls.

    Args:
        store: the store.
        runtime: with both towers, and one thread a call.
        settings: bounds.
        metrics: where to count.
    """

    def __init__(self, store: Store, runtime: Runtime, settings: Settings, metrics: Metrics) -> None:
        self._store, self._runtime, self._settings, self._metrics = store, runtime, settings, metrics
        self._ending: set[asyncio.Task[None]] = set()

    async def answer(self, requests: AsyncIterator[pb.RefreshRequest], reply: Reply) -> None:
        """Replies after each batch, and with the generation once it is published and the store's lock released.

        Raises:
            InvalidRequestError: the requests are not start, batches, commit, or a full refresh has deletions.
            TimeoutError: the client sent nothing for too long.
            StoreError, TwinbertError: as from `Refresh`.
        """
        delta, encoding, force = _started(await self._next(requests))
        gate = Gate(replace(self._settings.gate, force=force), self._runtime)
        workers = self._settings.workers
        refresh = Refresh(self._store, self._runtime, encoding=encoding, workers=workers, delta=delta, gate=gate)
        generation = None
        async with self._working(refresh) as thread:
            while request := await self._next(requests):
                step = request.WhichOneof("step")
                if step == "commit":
                    generation = await thread.call(refresh.commit)
                    break
                if step != "batch":
                    raise InvalidRequestError("step", f"is {step or 'empty'}; after start come batches, then commit")
                if not delta and (request.batch.deleted_ids or request.batch.deleted_numbers):
                    raise InvalidRequestError(
                        "batch", "has deletions, which need REFRESH_MODE_DELTA: a full refresh leaves the documents out"
                    )
                rejections = await thread.call(_add, refresh, request.batch)
                for response in _responses(refresh, rejections):
                    await reply(response)
        if generation is not None:
            self._metrics.set_generation(self._store.manifest(generation))
            for response in _responses(refresh, refresh.rejections, generation):
                await reply(response)

    @contextlib.asynccontextmanager
    async def _working(self, refresh: Refresh) -> AsyncIterator[_Thread]:
        """The refresh in its thread; leaving without a published generation abandons it, or counts it as failed."""
        thread, started = _Thread(refresh, self._metrics), time.monotonic()
        outcome, message = "failed", ""
        try:
            await thread.call(refresh.__enter__)
            yield thread
            outcome = "published" if refresh.generation else "abandoned"
        except asyncio.CancelledError:
            outcome = "abandoned"
            raise
        except DriftError as error:
            outcome, message = "refused", str(error)
            raise
        except Exception as error:
            message = str(error)
            raise
        finally:
            # A task of its own, since gRPC may cancel a call more than once.
            ending = asyncio.create_task(thread.end())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            ending.add_done_callback(lambda _: self._account(refresh, outcome, message, started))
            await asyncio.shield(ending)

    def _account(self, refresh: Refresh, outcome: str, message: str, started: float) -> None:
        if refresh.generation:  # a cancel that came after the commit changes nothing
            outcome = "published"
        self._metrics.refreshes[outcome].inc()
        self._metrics.duration.observe(time.monotonic() - started)
        progress = refresh.progress
        event(
            f"refresh_{outcome}",
            message=message,
            generation=refresh.generation,
            received=progress.received,
            encoded=progress.encoded,
            reused=progress.reused,
            deleted=progress.deleted,
            rejected=progress.rejected,
            notices=refresh.notices,
            gate=refresh.verdict and refresh.verdict.as_dict(),
        )

    async def close(self) -> None:
        """Waits until the refreshes whose calls have ended have let go of the store."""
        if self._ending:
            await asyncio.wait(self._ending)

    async def _next(self, requests: AsyncIterator[pb.RefreshRequest]) -> pb.RefreshRequest | None:
        try:
            async with asyncio.timeout(self._settings.idle_s):
                request = await anext(requests, None)
                return None if request is None else parsed(request)
        except TimeoutError:
            raise TimeoutError(
                f"the refresh sent nothing for {self._settings.idle_s:g} s and is ended, so that others can have the "
                "store; nothing was published, and what it encoded is reused by the next one"
            ) from None


class _Thread:
    """The one thread in which a refresh does all its work."""

    def __init__(self, refresh: Refresh, metrics: Metrics) -> None:
        self._refresh, self._metrics = refresh, metrics
        self._counted = refresh.progress
        self._executor = ThreadPoolExecutor(1, "refresh")

    async def call(self, function: Callable[..., _T], *arguments: object) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        finally:
            self._count()

    async def end(self) -> None:
        """Breaks off what the refresh is at, and releases the store's lock."""
        self._refresh.cancel()
        try:
            await self.call(self._refresh.__exit__, None, None, None)
        finally:
            self._executor.shutdown(wait=False)

    def _count(self) -> None:
        before, self._counted = self._counted, self._refresh.progress
        self._metrics.count(before, self._counted)


def _started(first: pb.RefreshRequest | None) -> tuple[bool, str | None, bool]:
    """Whether the start of a refresh asks for a delta, for which encoding, and whether to publish what is refused."""
    if first is None or first.WhichOneof("step") != "start":
        raise InvalidRequestError("start", "is missing: a refresh begins with it")
    start = first.start
    if start.mode not in (pb.REFRESH_MODE_FULL, pb.REFRESH_MODE_DELTA):
        raise InvalidRequestError(
            "start.mode", "is unspecified or unknown: give REFRESH_MODE_FULL or REFRESH_MODE_DELTA"
        )
    if start.encoding not in _ENCODINGS:
        raise InvalidRequestError("start.encoding", f"{start.encoding} is unknown: give one of the contract's")
    return start.mode == pb.REFRESH_MODE_DELTA, _ENCODINGS[start.encoding], start.force


def _add(refresh: Refresh, batch: pb.DocumentBatch) -> list[Rejection]:
    """Adds documents, then deletions; returns those that were left out."""
    rejections: list[Rejection] = []

    def judged() -> Iterator[Document | Deletion | Rejection]:
        changes: Iterable[Any] = chain(batch.documents, batch.deleted_ids, batch.deleted_numbers)
        for position, change in enumerate(changes, refresh.progress.received):
            result = _judged(change, position, refresh.id_type)
            if isinstance(result, Rejection):
                rejections.append(result)
            yield result

    refresh.add(judged())
    return rejections


def _judged(change: pb.Document | str | int, position: int, id_type: str | None) -> Document | Deletion | Rejection:
    """The document, or the deletion of an id, checked as one from a file is."""
    if isinstance(change, pb.Document):
        field = change.WhichOneof("key")
        row = Row(position, getattr(change, field) if field else None, (change.text,), None, None)
    else:
        row = Row(position, change, (), None, True)
    document_id = ""
    try:
        key = document_key(row, _FIELDS, id_type)
        if not isinstance(change, pb.Document):
            return Deletion(key)
        document_id = str(key)
        text = document_text(row, _FIELDS)
    except InvalidValueError as error:
        return Rejection("", position, document_id, str(error))
    return Document(key, text, change.time_ms if change.HasField("time_ms") else None)


def _responses(refresh: Refresh, rejections: list[Rejection], generation: str = "") -> Iterator[pb.RefreshResponse]:
    """The progress, in one response unless there are very many rejections."""
    progress = refresh.progress
    for start in range(0, max(1, len(rejections)), _REJECTIONS_A_RESPONSE):
        some = rejections[start : start + _REJECTIONS_A_RESPONSE]
        yield pb.RefreshResponse(
            received=progress.received,
            encoded=progress.encoded,
            reused=progress.reused,
            deleted=progress.deleted,
            absent=progress.absent,
            rejected=progress.rejected,
            duplicates=progress.duplicates,
            rejections=[
                pb.Rejection(document_id=one.document_id, position=one.position, reason=one.reason) for one in some
            ],
            generation=generation,
        )
