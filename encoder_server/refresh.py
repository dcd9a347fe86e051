"""A refresh: documents in, the store's next generation out. The command and the gRPC service both run it.

A full refresh is told the whole corpus, a delta what changed.

    add ─► window ─► text has a stored row: reused ───────────────────────► store ─► commit: seal, check, publish
                └──► others: tokenised, cut into runs ─► workers encode ──┘

The caller's thread does everything but encode, so the store has one writer and nothing needs a lock. While the workers
encode one window, the caller's thread reads and tokenises the next; it waits before a third, which bounds the memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self

from encoder_server.current import current_manifest, notices, readable_manifest
from encoder_server.documents import Deletion, Document, Rejection
from encoder_server.gate import Gate
from encoder_server.progress import Progress
from encoder_server.sample import Sample
from encoder_server.settings import default_workers
from encoder_server.verdict import Verdict
from encoder_server.window import Changes, Window
from encoder_server.workers import Workers
from store.delta import DeltaWriter
from store.documents import Batch
from store.errors import EmptyGenerationError, NoGenerationError, StoreFullError
from store.manifest import IdType
from store.reader import Generation
from store.store import Store
from store.writer import Writer
from twinbert import __version__
from twinbert.errors import MismatchError
from twinbert.runtime import Floats, Runtime

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
        readable = readable_manifest(store)
        self.id_type = id_type or (readable.id_type if readable else None)
        self.encoding = encoding or (readable.encoding if readable else "float32")
        self.notices: list[str] = []
        self.quality: dict[str, Any] = {}
        self.verdict: Verdict | None = None
        self.rejections: list[Rejection] = []
        self.generation: str | None = None
        self._gate = gate
        self._exit = contextlib.ExitStack()
        self._writer: Writer
        self._workers = Workers(runtime, workers or default_workers())
        self._window = Window()
        self._sample = Sample()
        self._count = Progress()
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
            self._workers.end()
            self._exit.close()

    @property
    def progress(self) -> Progress:
        """The refresh so far; may be read from any thread."""
        return dataclasses.replace(self._count)

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
            self._count.received += 1
            if isinstance(document, Rejection):
                self._count.rejected += 1
                self._first_rejection = self._first_rejection or document
                continue
            if self.id_type is None:
                self._open("string" if isinstance(document.key, str) else "integer")
            self._window.add(self._count.received - 1, document)
            if self._window.full:
                self._submit(self._window.take())
        while self._workers.ready:  # where the input is slow, nothing waits for it
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
        if self._count.received == self._count.rejected and not (self._delta and not self._count.received):
            raise EmptyGenerationError(f"there is nothing to publish: {self._why_empty()}")
        if self._window:
            self._submit(self._window.take())
        while self._workers:
            self._collect()
        self._appendable = False  # sealing makes every row durable, and nothing comes after it
        with self._writer.seal() as generation:
            self._note_what_sealing_showed()
            try:
                self.quality = self._sample.check(generation, self._runtime, self._workers.threads)
            except MismatchError:
                self._writer.discard()  # the wrong row may be among those that the next refresh would reuse
                raise
            self._pass_gate(generation)
        self._stop_if_cancelled()
        self.generation = self._writer.publish(self.quality)
        return self.generation

    def _pass_gate(self, generation: Generation) -> None:
        """Compares a sealed generation with the current one, where there is one that can be read."""
        if self._gate is None:
            return
        with contextlib.ExitStack() as stack, contextlib.suppress(NoGenerationError):
            if self._writer.damage is None:
                current = stack.enter_context(contextlib.closing(self._store.open(self._store.current())))
                model, texts = generation.manifest.model, self._sample.texts
                self.verdict = self._gate.judge(current, generation, model, texts, self._workers.threads)
        self.quality |= self._gate.noted(self.verdict)
        if self.verdict is not None:
            self.verdict.require()

    def _note_what_sealing_showed(self) -> None:
        self._count.duplicates += self._writer.duplicates
        if isinstance(self._writer, DeltaWriter):
            self._count.absent = self._writer.absent
            for clash in self._writer.clashes:
                reason = f"its key is that of {clash.other!r}: refresh with the whole corpus, which takes other keys"
                self.rejections.append(Rejection("", clash.position, str(clash.id), reason))
            self._count.rejected += len(self.rejections)
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

    def _submit(self, changes: Changes) -> None:
        """Adds the documents that have a row, hands the others to the workers, and waits for the window before."""
        self._count.skipped += changes.skipped
        self._count.duplicates += changes.skipped
        if changes.deleted:
            self._delete(changes)
        batch = changes.batch
        self._sample.offer(batch.ids, changes.texts)
        with self._writing():
            known_N = self._writer.add_known(batch)
        self._count.reused += int(known_N.sum())
        earlier = len(self._workers)
        texts = [text for text, known in zip(changes.texts, known_N.tolist(), strict=True) if not known]
        self._count.truncated += self._workers.submit(batch.take(~known_N), texts)
        for _ in range(earlier):
            self._collect()

    def _delete(self, changes: Changes) -> None:
        assert isinstance(self._writer, DeltaWriter)
        with self._writing():
            self._writer.delete(changes.deleted, changes.deleted_at)
        self._sample.forget(changes.deleted)
        self._count.deleted += len(changes.deleted)

    def _collect(self) -> None:
        """Stores the oldest run under way, when it is encoded."""
        self._stop_if_cancelled()
        self._workers.wait()
        self._stop_if_cancelled()
        self._add(*self._workers.collect())

    def _keep_encoded(self) -> None:
        """Stores the runs that are finished or being computed, for the next refresh to reuse."""
        with contextlib.suppress(StoreFullError):  # then what is durable already stays
            for batch, embeddings_ND in self._workers.stop():
                self._add(batch, embeddings_ND)
            self._writer.sync()

    def _add(self, batch: Batch, embeddings_ND: Floats) -> None:
        with self._writing():
            self._writer.add(batch, embeddings_ND)
        self._count.encoded += len(embeddings_ND)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Should writing fail or be interrupted half-way, nothing may be appended after it."""
        self._appendable = False
        yield
        self._appendable = True

    def _why_empty(self) -> str:
        if self._first_rejection is None:
            return "no document came"
        return f"all {self._count.rejected:,} documents were rejected, the first because {self._first_rejection.kind}"

    def _stop_if_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("the refresh was cancelled; what it encoded is reused by the next one")
