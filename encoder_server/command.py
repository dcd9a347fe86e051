"""What `twinbert refresh` does: a bundle, a store and an input become the store's next generation."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from encoder_server.current import current_manifest, readable_manifest, verify_ahead
from encoder_server.documents import Deletion, Document, DocumentSource, Rejection
from encoder_server.gate import Gate
from encoder_server.missing import Missing
from encoder_server.refresh import Refresh
from encoder_server.report import Rejections, Report, reporting_pace
from encoder_server.settings import MAX_DEAD_SHARE, MAX_SEGMENTS, GateSettings
from encoder_server.textfile import Run
from store.compaction import due
from store.store import Store
from twinbert.bundle import TOWERS, Bundle
from twinbert.runtime import Runtime

_READ_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 4 << 20

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_REPEATED_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a refresh did, in documents: see `Progress`; `rejected` by reason, `quality` of the sample of it."""

    generation: str
    documents: int
    received: int
    encoded: int
    reused: int
    deleted: int
    absent: int
    duplicates: int
    truncated: int
    rejected: Mapping[str, int]
    seconds: float
    documents_per_s: float
    encoding: str
    quality: Mapping[str, Any]


def refresh(
    *,
    bundle: Path,
    store: Path,
    documents: Path | str,
    report: Report,
    format: str = "auto",  # noqa: A002  the word that users know
    id_column: str = "id",
    text_columns: Sequence[str] = ("text",),
    time_column: str = "time",
    id_type: Literal["string", "integer"] | None = None,
    encoding: str | None = None,
    workers: int | None = None,
    rejected: Path | None = None,
    delta: bool = False,
    missing: Path | None = None,
    gate: GateSettings | None = None,
    run: Run | None = None,
) -> Result:
    """Makes the documents of an input the next generation of a store, or what the next one has otherwise.

    Args:
        bundle: the bundle's directory.
        store: the store's folder; for a full refresh it is made where there is none.
        documents: a file or folder, or "-" for standard input: see `DocumentSource`.
        report: what is told of the progress.
        format: of the documents.
        id_column: of the documents.
        text_columns: of the documents.
        time_column: of the documents.
        id_type: what ids are; None: as in the current generation, else as the input has them.
        encoding: how embeddings are stored; None: as in the current generation, else float32.
        workers: threads that encode; None: one for each core.
        rejected: file for the documents that were left out, as JSON Lines.
        delta: the documents are what changed, some of them deletions.
        missing: a delta of those documents only that a scorer recorded here as missing.
        gate: what the generation has to pass before it is published; None: the gate with its defaults.
        run: is told of the progress, for what is written down in the end.

    Raises:
        KeyboardInterrupt: interrupted; what was encoded is kept for the next run.
        DriftError: the gate refused the generation; nothing was published, and the report has what was measured.
        TwinbertError, StoreError: nothing was published; the message says why.
    """
    delta = delta or missing is not None
    target = Store(store)
    current, known = current_manifest(target), readable_manifest(target)
    # Reading all of a store to verify it and loading a model take as long, and neither needs the other.
    threading.Thread(target=verify_ahead, args=(target,), daemon=True).start()
    opened = Bundle.open(bundle)
    source = DocumentSource(
        path=documents,
        format=format,
        id_column=id_column,
        text_columns=text_columns,
        time_column=time_column,
        id_type=id_type or (known.id_type if known else "auto"),
        delta=delta,
    )
    chosen = Missing(missing, known.id_type if known else "string", source) if missing else None
    runtime = Runtime(opened, towers=TOWERS)
    judge = Gate(gate or GateSettings(), runtime)
    started = time.monotonic()
    pipeline = Refresh(target, runtime, id_type=id_type, encoding=encoding, workers=workers, delta=delta, gate=judge)
    if run is not None:
        run.progress = lambda: pipeline.progress
    reader = _Reader(chosen or source, pipeline)
    text = f"refreshing {store} from {'what changed in ' if delta else ''}{documents}, {pipeline.encoding}"
    with Rejections(report, rejected) as rejections:
        try:
            with reader.heeding_interrupts():
                described = {"model": opened.model, "encoding": pipeline.encoding}
                report.event("started", text, store=str(store), documents=str(documents), **described)
                with reporting_pace(pipeline, source, report), pipeline:
                    if chosen is not None:
                        chosen.leave_deleted(target)
                    _add_all(reader, pipeline, rejections, report)
                    if chosen is not None:
                        text = f"{documents} has {chosen.found:,} of the {chosen.wanted:,} documents that were missing"
                        report.event("missing", text, wanted=chosen.wanted, found=chosen.found)
                    generation = _commit(pipeline, report)
                    for rejection in pipeline.rejections:
                        rejections.add(rejection)
        except (CancelledError, KeyboardInterrupt):
            report.event("interrupted", "interrupted: run it again to go on, what is encoded so far is reused")
            raise KeyboardInterrupt from None
    progress, seconds = pipeline.progress, time.monotonic() - started
    result = Result(
        generation=generation,
        documents=target.manifest(generation).documents,
        received=progress.received,
        encoded=progress.encoded,
        reused=progress.reused,
        deleted=progress.deleted,
        absent=progress.absent,
        duplicates=progress.duplicates,
        truncated=progress.truncated,
        rejected=dict(rejections.by_reason.most_common()),
        seconds=round(seconds, 3),
        documents_per_s=round(progress.received / seconds, 1),
        encoding=pipeline.encoding,
        quality=pipeline.quality,
    )
    if current is not None and generation == current.name:
        report.event("unchanged", f"nothing changed: {generation} stays", generation=generation)
    else:
        report.event("published", f"published {generation}", generation=generation, documents=result.documents)
    manifest = target.manifest(generation)
    if due(manifest, max_segments=MAX_SEGMENTS, max_dead_share=MAX_DEAD_SHARE):
        text = f"{len(manifest.segments)} segments, {manifest.dead_share:.0%} of the rows dead: twinbert store compact"
        report.event("notice", f"{store}: {text} makes lookups faster, where no encoder does it in the background")
    return result


def _add_all(reader: _Reader, pipeline: Refresh, rejections: Rejections, report: Report) -> None:
    told = 0
    for chunk in reader:
        for document in chunk:
            if isinstance(document, Rejection):
                rejections.add(document)
        pipeline.add(chunk)
        for notice in pipeline.notices[told:]:
            report.event("notice", notice)
        told = len(pipeline.notices)


def _commit(pipeline: Refresh, report: Report) -> str:
    try:
        return pipeline.commit()
    finally:
        if pipeline.verdict is not None:
            report.event("gate", pipeline.verdict.table(), **pipeline.verdict.as_dict())


def _chunk(documents: Iterator[Document | Deletion | Rejection]) -> list[Document | Deletion | Rejection]:
    """The next documents: so many, or as many as have so many characters."""
    chunk: list[Document | Deletion | Rejection] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document.text) if isinstance(document, Document) else 0
        if len(chunk) == _READ_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            break
    return chunk


class _Reader:
    """Reads the input in chunks, and knows what an interrupt meets: a read that may wait for ever, which it breaks off,
    or a refresh at work, which comes to an orderly end.
    """

    def __init__(self, source: Iterable[Document | Deletion | Rejection], refresh: Refresh) -> None:
        self._source, self._refresh = source, refresh
        self._reading = self._interrupted = False

    def __iter__(self) -> Iterator[list[Document | Deletion | Rejection]]:
        documents = iter(self._source)
        while True:
            self._reading = True
            try:
                if self._interrupted:
                    raise KeyboardInterrupt
                chunk = _chunk(documents)
            finally:
                self._reading = False  # what comes now must end in order, also where the source failed
            if not chunk:
                return
            yield chunk

    @contextlib.contextmanager
    def heeding_interrupts(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._interrupt) for number in _INTERRUPTS}
        try:
            with _repeating_signals(lambda: self._interrupted):
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        self._interrupted = True
        self._refresh.cancel()
        if self._reading:
            self._reading = False  # once: a second interrupt must not break into what ends the refresh
            raise KeyboardInterrupt


@contextlib.contextmanager
def _repeating_signals(heard: Callable[[], bool]) -> Iterator[None]:
    """Sends a signal again until its handler has run.

    Python runs handlers between its own steps: one that comes after the last of them, but before the read that this
    step ends in, would be heard when that read returns, which may be never. The next one breaks the read off.
    """
    wakes, woken = socket.socketpair()
    woken.setblocking(False)
    before = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    reading = threading.main_thread().ident or 0

    def run() -> None:
        while number := wakes.recv(1):
            time.sleep(_REPEATED_S)
            if number[0] in _INTERRUPTS and not heard():
                signal.pthread_kill(reading, number[0])  # which comes back here

    thread = threading.Thread(target=run, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        woken.close()
        thread.join()
        wakes.close()
