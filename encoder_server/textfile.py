"""What a run of `twinbert refresh` did, as a file that node exporter's textfile collector reads."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from prometheus_client.parser import text_string_to_metric_families

from encoder_server.current import current_manifest
from encoder_server.progress import Progress
from encoder_server.report import Report
from store.errors import StoreError
from store.store import Store
from twinbert.errors import DriftError, UsageError

RUN_OUTCOMES = ("published", "refused", "failed", "interrupted")

_LAST_SUCCESS = "twinbert_refresh_last_success_timestamp_seconds"


class Run:
    """A run whose end is written down. `progress` is asked then, once a refresh has begun."""

    def __init__(self) -> None:
        self.progress: Callable[[], Progress] = Progress


@contextlib.contextmanager
def recording_run(path: Path | None, store: Store, report: Report) -> Iterator[Run]:
    """Writes the file when the run ends, however it does; only a SIGKILL leaves what it said of the run before.

    Args:
        path: the file, replaced in one step; None: nothing is written.
        store: what is refreshed.
        report: is told where the file cannot be written at the end; the run does not fail for it.

    Raises:
        UsageError: no file can be made there; nothing was begun.
        KeyboardInterrupt: on SIGTERM too, which is how a job's scheduler interrupts.
    """
    if path is not None and not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: make its folder, writable, or name another --metrics-file")
    run, outcome, started = Run(), "failed", time.time()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield run
        outcome = "published"
    except DriftError:
        outcome = "refused"
        raise
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    finally:
        if path is not None:
            try:
                _write(path, store, run.progress(), outcome, started)
            except OSError as error:
                report.event("notice", f"{path} could not be written: {error.strerror}")
        signal.signal(signal.SIGTERM, before)


def _write(path: Path, store: Store, progress: Progress, outcome: str, started: float) -> None:
    registry, now, at = CollectorRegistry(), time.time(), str(store.path.absolute())

    # Several stores of a host have a file each, and all files together are one exposition.
    def gauge(name: str, about: str, value: float) -> None:
        Gauge(name, about, ["store"], registry=registry).labels(at).set(value)

    gauge("twinbert_refresh_duration_seconds", "How long the last run took, however it ended.", now - started)
    gauge("twinbert_refresh_end_timestamp_seconds", "When the last run ended.", now)
    success = now if outcome == "published" else _last_success(path)
    gauge(_LAST_SUCCESS, "When a run last published, or found nothing to change; 0: none has.", success)
    outcomes = Gauge(
        "twinbert_refresh_outcome", "1 for how the last run ended.", ["store", "outcome"], registry=registry
    )
    for one in RUN_OUTCOMES:
        outcomes.labels(at, one).set(one == outcome)
    documents = Gauge(
        "twinbert_refresh_documents",
        "Documents of the last run, by what became of them; a duplicate may also have been encoded or reused.",
        ["store", "outcome"],
        registry=registry,
    )
    counts = {
        "encoded": progress.encoded,
        "reused": progress.reused,
        "deleted": progress.deleted,
        "rejected": progress.rejected,
        "duplicate": progress.duplicates,
    }
    for one, count in counts.items():
        documents.labels(at, one).set(count)
    with contextlib.suppress(StoreError):  # the run has ended with the same error
        if (current := current_manifest(store)) is not None:
            about = "Latest source time in the generation that is current."
            gauge("twinbert_refresh_watermark_timestamp_seconds", about, current.watermark_ms / 1000)
            about = "Documents of the generation that is current."
            gauge("twinbert_refresh_generation_documents", about, current.documents)
    write_to_textfile(str(path), registry)


def _last_success(path: Path) -> float:
    """What the file says of the runs before, whose last success a failure does not undo."""
    try:
        families = [*text_string_to_metric_families(path.read_text("utf-8"))]
    except (OSError, ValueError):
        return 0.0
    return next((family.samples[0].value for family in families if family.name == _LAST_SUCCESS), 0.0)
