"""A refresh: documents in, the store's next generation out. The command and the gRPC service both run it.

A full refresh is told the whole corpus, a delta what changed.

    add ─► window ─► text has a stored row: reused ───────────────────────► store ─► commit: seal, check, publish
                └──► others: tokenised, cut into runs ─► workers encode ──┘

The caller's thread does everything but encode, so the store has one writer and nothing needs a lock. While the workers
encode one window, the caller's thread reads and tokenises the next; it waits before a third, which bounds the memory.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from encoder_server.current import current_manifest, notices
from encoder_server.documents import Deletion, Document, Rejection
from encoder_server.gate import Gate
from encoder_server.progress import Progress
from encoder_server.sample import Sample
from encoder_server.settings import default_workers
from encoder_server.verdict import Verdict
from store.delta import DeltaWriter
from store.documents import Batch
from store.errors import EmptyGenerationError, NoGenerationError, StoreFullError
from store.manifest import IdType
from store.reader import Generation
from store.store import Store
from store.writer import Writer, digests
from twinbert import __version__
from twinbert.errors import MismatchError
from twinbert.runtime import MAX_RUN_TOKENS, Floats, Runtime, TokenBatch

# Enough that texts of like length meet, so that hardly a token is padding.
_WINDOW_DOCUMENTS = 4096
_WINDOW_CHARACTERS = 16 << 20

SOFTWARE = f"twinbert {__version__}"  # for manifests


class Refresh:
    """A refresh. Use it in a `with`: leaving it without `commit` publishes nothing, and keeps what was encoded for the
    next refresh of its kind.

    Args:
        store: the store; it is made where there is none.
        runtime: with both towers, and one thread a call.
        id_type: what ids are; None: as in the current generation, else as that of the first document.
        encoding: how embeddings are stored; None: as in the current generation, else float32.
        workers: threads that encode; None: one for each core that this process may use.
        delta: change the current generation, which must have been made with this bundle's fingerprint and encoding.
        gate: what the generation has to pass before it is published; None: anything passes.

    Attributes:
        id_type: what ids are; None until it is known.
        encoding: how embeddings are stored.
        notices: why rows of the current generation cannot be reused, in sentences; known with the id type.
        quality: what the encoding costs, as the manifest says; empty until the generation was checked.
        verdict: of the gate; None until then, and where there was nothing to compare with.
        rejections: of documents that only sealing showed to be impossible.
        generation: name of the published generation, or of the current one where a delta changes nothing; None until
            then.
    """

    def __init__(
        self,
        store: Store,
        runtime: Runtime,
        *,
        id_type: IdType | None = None,
        encoding: str | None = None,
        workers: int | None = None,
        delta: bool = False,
        gate: Gate | None = None,
    ) -> None:
        self._store, self._runtime, self._delta = store, runtime, delta
        self._current = current_manifest(store)
        self.id_type = id_type or (self._current.id_type if self._current else None)
        self.encoding = encoding or (self._current.encoding if self._current else "float32")
        self.notices: list[str] = []
        self.quality: dict[str, Any] = {}
        self.verdict: Verdict | None = None
        self.rejections: list[Rejection] = []
        self.generation: str | None = None
        self._gate = gate
        self._exit = contextlib.ExitStack()
        self._writer: Writer
        self._workers = ThreadPoolExecutor(workers or default_workers(), "encode")
        self._window: list[tuple[int, Document | Deletion]] = []  # with their places in the input
        self._window_characters = 0
        self._in_flight: deque[tuple[Batch, Future[Floats]]] = deque()
        self._sample = Sample()
        self._received = self._encoded = self._reused = self._deleted = self._rejected = 0
        self._duplicates = self._skipped = self._truncated = self._absent = 0
        self._first_rejection: Rejection | None = None
        self._appendable = self._cancelled = False

    def __enter__(self) -> Self:
        """Takes the store's lock; where the id type is not known yet, the first document does.

        Raises:
            StoreLockedError: somebody else changes the store.
            IdTypeError: the store has ids of another type.
            VectorsError: no such encoding.
            RowsMismatchError: a delta of another fingerprint or encoding than the current generation.
            NoGenerationError: a delta, and there is nothing to change.
            StoreError: the store cannot be made or written; for a delta, or be read.
            UsageError: what the gate needs is not there.
        """
        if self._gate is not None:
            kept = self._current if self._delta else None
            self._gate.prepare(self._current, kept.model if kept else self._runtime.bundle.model)
        if self.id_type is not None or self._delta:
            self._open(self.id_type or "string")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the workers after the runs that they are at, and releases the lock."""
        try:
            if self._appendable:
                self._keep_encoded()
        finally:
            self._workers.shutdown(cancel_futures=True)
            self._exit.close()

    @property
    def progress(self) -> Progress:
        """The refresh so far; may be read from any thread."""
        return Progress(
            received=self._received,
            encoded=self._encoded,
            reused=self._reused,
            deleted=self._deleted,
            rejected=self._rejected,
            duplicates=self._duplicates,
            skipped=self._skipped,
            truncated=self._truncated,
            absent=self._absent,
        )

    def add(self, documents: Iterable[Document | Deletion | Rejection]) -> None:
        """Takes the next documents of the input, in its order, and for a delta deletions; waits while enough is under
        way. Rejections are counted.

        Raises:
            CancelledError: `cancel` was called.
            StoreLockedError: as on entry, where the first document opens the store.
            IdTypeError: an id is not of the refresh's type.
            VectorsError: the tower gave what the encoding cannot hold.
            StoreFullError: no space left.
        """
        for document in documents:
            self._received += 1
            if isinstance(document, Rejection):
                self._rejected += 1
                self._first_rejection = self._first_rejection or document
                continue
            if self.id_type is None:
                self._open("string" if isinstance(document.key, str) else "integer")
            self._window.append((self._received - 1, document))
            self._window_characters += len(document.text) if isinstance(document, Document) else 0
            if len(self._window) == _WINDOW_DOCUMENTS or self._window_characters >= _WINDOW_CHARACTERS:
                self._submit_window()
        while self._in_flight and self._in_flight[0][1].done():  # where the input is slow, nothing waits for it
            self._collect()

    def commit(self) -> str:
        """Publishes what was added; returns the generation's name. Where a delta changes nothing, that is the current
        one.

        Raises:
            EmptyGenerationError: there is no document, or a delta leaves none.
            MismatchError: a stored embedding is not what its document encodes to; nothing was published, and what was
                encoded is discarded.
            DriftError: the gate refuses the generation; nothing was published.
            CancelledError, VectorsError, StoreFullError: as `add`.
        """
        if self._received == self._rejected and not (self._delta and not self._received):
            raise EmptyGenerationError(f"there is nothing to publish: {self._why_empty()}")
        if self._window:
            self._submit_window()
        while self._in_flight:
            self._collect()
        self._appendable = False  # sealing makes every row durable, and nothing comes after it
        with self._writer.seal() as generation:
            self._note_what_sealing_showed()
            try:
                self.quality = self._sample.check(generation, self._runtime, self._workers)
            except MismatchError:
                self._writer.discard()  # the wrong row may be among those that the next refresh would reuse
                raise
            self._pass_gate(generation)
        self._stop_if_cancelled()
        self.generation = self._writer.publish(self.quality)
        return self.generation

    def _pass_gate(self, generation: Generation) -> None:
        """Compares a sealed generation with the current one, where there is one that can be read."""
        if self._gate is None or self._writer.damage is not None:
            return
        with contextlib.ExitStack() as stack, contextlib.suppress(NoGenerationError):
            current = stack.enter_context(contextlib.closing(self._store.open(self._store.current())))
            model, texts = generation.manifest.model, self._sample.texts
            self.verdict = self._gate.judge(current, generation, model, texts, self._workers)
        if self.verdict is not None:
            self.quality["gate"] = self.verdict.as_dict()
            self.verdict.require()

    def _note_what_sealing_showed(self) -> None:
        self._duplicates += self._writer.duplicates
        if isinstance(self._writer, DeltaWriter):
            self._absent = self._writer.absent
            for clash in self._writer.clashes:
                reason = f"its key is that of {clash.other!r}: refresh with the whole corpus, which takes other keys"
                self.rejections.append(Rejection("", clash.position, str(clash.id), reason))
            self._rejected += len(self.rejections)
            self._sample.forget(clash.id for clash in self._writer.clashes)

    def cancel(self) -> None:
        """Makes `add` and `commit` raise CancelledError soon. For any thread, and for signal handlers."""
        self._cancelled = True

    def _open(self, id_type: IdType) -> None:
        bundle = self._runtime.bundle
        writer = self._store.writer(
            fingerprint=bundle.fingerprint,
            model=bundle.model,
            dimension=bundle.dimension,
            encoding=self.encoding,
            fixed_step=bundle.fixed_step,
            id_type=id_type,
            software=SOFTWARE,
            delta=self._delta,
        )
        self._writer = self._exit.enter_context(writer)
        self.id_type = id_type
        self.notices = notices(self._current, writer, self.encoding, bundle.fingerprint)
        if self._delta and self._current and self._current.model != bundle.model:
            self.notices.append(
                f"the model that serves the store stays {self._current.model}, not this bundle's {bundle.model}: "
                "changing it takes a full refresh"
            )
        self._appendable = True

    def _submit_window(self) -> None:
        """Adds the documents that have a row, hands the others to the workers, and waits for the window before. Of what
        comes more than once in the window only the last is looked at.
        """
        window, self._window, self._window_characters = self._window, [], 0
        last = {one.key: (position, one) for position, one in window}.values()
        self._skipped += len(window) - len(last)
        self._duplicates += len(window) - len(last)
        if deletions := [(position, one.key) for position, one in last if isinstance(one, Deletion)]:
            self._delete(deletions)
        documents = [(position, one) for position, one in last if isinstance(one, Document)]
        keys: Any = [document.key for _, document in documents]
        texts = [document.text for _, document in documents]
        now_ms = time.time_ns() // 1_000_000
        times = [now_ms if document.time_ms is None else document.time_ms for _, document in documents]
        batch = Batch(
            ids=keys,
            digests=digests(texts),
            times=np.array(times, dtype=np.int64),
            positions=np.array([position for position, _ in documents], dtype=np.int64),
        )
        self._sample.offer(keys, texts)
        with self._writing():
            known_N = self._writer.add_known(batch)
        self._reused += int(known_N.sum())
        earlier = len(self._in_flight)
        self._in_flight.extend(self._encode(batch, texts, np.flatnonzero(~known_N)))
        for _ in range(earlier):
            self._collect()

    def _delete(self, deletions: list[tuple[int, str | int]]) -> None:
        assert isinstance(self._writer, DeltaWriter)
        keys: Any = [key for _, key in deletions]
        with self._writing():
            self._writer.delete(keys, np.array([position for position, _ in deletions], dtype=np.int64))
        self._sample.forget(keys)
        self._deleted += len(deletions)

    def _encode(
        self, batch: Batch, texts: list[str], places: npt.NDArray[np.int64]
    ) -> Iterator[tuple[Batch, Future[Floats]]]:
        """Submits the documents at `places`, a run of like length at a time."""
        tokens = self._runtime.tokenize([texts[place] for place in places.tolist()], "document")
        self._truncated += int(tokens.truncated.sum())
        for run in _runs(tokens.lengths):
            of_run = np.zeros(len(texts), dtype=np.bool_)
            of_run[places[run]] = True
            run_tokens = TokenBatch([tokens.ids[i] for i in run.tolist()], tokens.truncated[run])
            yield batch.take(of_run), self._workers.submit(self._runtime.embed, run_tokens, "document")

    def _collect(self) -> None:
        """Stores the oldest run under way, when it is encoded."""
        self._stop_if_cancelled()
        embeddings_ND = self._in_flight[0][1].result()
        self._stop_if_cancelled()
        batch, _ = self._in_flight.popleft()
        with self._writing():
            self._writer.add(batch, embeddings_ND)
        self._encoded += len(embeddings_ND)

    def _keep_encoded(self) -> None:
        """Stores the runs that are finished or being computed, for the next refresh to reuse."""
        for _, run in self._in_flight:
            run.cancel()
        with contextlib.suppress(StoreFullError):  # then what is durable already stays
            for batch, run in self._in_flight:
                if not run.cancelled() and run.exception() is None:
                    self._writer.add(batch, run.result())
                    self._encoded += len(batch.ids)
            self._writer.sync()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Should writing fail or be interrupted half-way, nothing may be appended after it."""
        self._appendable = False
        yield
        self._appendable = True

    def _why_empty(self) -> str:
        if self._first_rejection is None:
            return "no document came"
        return f"all {self._rejected:,} documents were rejected, the first because {self._first_rejection.reason}"

    def _stop_if_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("the refresh was cancelled; what it encoded is reused by the next one")


def _runs(lengths_N: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Cuts texts into runs of like length that one call of the tower computes: their places, ascending within a run.

    The longest come first, so that at the end of a refresh no worker is left alone with a long run.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    start = 0
    while start < len(order_N):
        stop = start + max(1, MAX_RUN_TOKENS // int(lengths_N[order_N[start]]))
        yield np.sort(order_N[start:stop])
        start = stop
