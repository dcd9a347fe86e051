"""What a refresh shows on standard error: a bar on a terminal, elsewhere one line of JSON an event."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from encoder_server.documents import DocumentSource, Rejection
from encoder_server.refresh import Refresh
from twinbert.errors import UsageError
from twinbert.serving.log import event

_PACE_SECONDS = 30.0
_REJECTIONS_SHOWN = 20
_REASONS_COUNTED = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How far a refresh is, in documents finished and in bytes of the input that held them.

    Attributes:
        documents: encoded, reused, deleted or left out.
        documents_per_s: over the last 30 s.
        bytes_done: of the input.
        bytes_total: None for a stream.
        eta_s: seconds to the end at this pace; None where that is not known.
    """

    documents: int
    documents_per_s: float
    bytes_done: int
    bytes_total: int | None
    eta_s: float | None


class Report(Protocol):
    """Tells somebody about a refresh; `interval_s` is how often of its pace."""

    interval_s: float

    def event(self, name: str, text: str, **fields: Any) -> None:  # noqa: ANN401 - what JSON can say
        """Something happened: its name and fields for programs, `text` for people.

        Where the text quotes documents, which no log may, the field `message` has for programs what it says without.
        """

    def pace(self, pace: Pace) -> None:
        """The refresh goes on."""


class JsonLines:
    """For logs and programs: see `twinbert.serving.log`."""

    interval_s = 5.0

    def event(self, name: str, text: str, **fields: Any) -> None:  # noqa: ANN401 - what JSON holds
        """Logs the event."""
        event(name, **({"message": text} | fields))

    def pace(self, pace: Pace) -> None:
        """Logs the pace."""
        event("progress", **dataclasses.asdict(pace))


class Bar:
    """For people: a bar with rate, bytes and time left; events are printed above it. Use it in a `with`."""

    interval_s = 0.25

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def event(self, name: str, text: str, **fields: Any) -> None:  # noqa: ANN401 - what JSON holds
        """Prints the text; its fields are for programs."""
        self._bar.console.print(text, markup=False)

    def pace(self, pace: Pace) -> None:
        """Moves the bar."""
        from rich.filesize import decimal

        of_total = f" of {decimal(pace.bytes_total)}" if pace.bytes_total is not None else ""
        left = f" · {time.strftime('%H:%M:%S', time.gmtime(pace.eta_s))} left" if pace.eta_s else ""
        text = (
            f"{pace.documents:,} documents · {pace.documents_per_s:,.0f}/s · {decimal(pace.bytes_done)}{of_total}{left}"
        )
        self._bar.update(self._task, description=text, completed=pace.bytes_done, total=pace.bytes_total)


@contextlib.contextmanager
def reporting_pace(refresh: Refresh, source: DocumentSource, report: Report) -> Iterator[None]:
    """Reports the pace every `report.interval_s`, from a thread of its own, and once more at the end."""
    measure, ended = _pace_of(refresh, source), threading.Event()

    def run() -> None:
        while not ended.wait(report.interval_s):
            report.pace(measure())

    thread = threading.Thread(target=run, name="pace", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        report.pace(measure())


def _pace_of(refresh: Refresh, source: DocumentSource) -> Callable[[], Pace]:
    past: deque[tuple[float, int, int]] = deque([(time.monotonic(), 0, 0)])

    def measure() -> Pace:
        progress, now = refresh.progress, time.monotonic()
        documents = progress.finished
        # Reading is ahead of encoding by up to two windows.
        bytes_done = source.bytes_read * documents // max(1, progress.received)
        past.append((now, documents, bytes_done))
        while now - past[0][0] > _PACE_SECONDS and len(past) > 2:
            past.popleft()
        began, documents_then, bytes_then = past[0]
        seconds, bytes_passed, total = now - began, bytes_done - bytes_then, source.total_bytes
        return Pace(
            documents=documents,
            documents_per_s=round((documents - documents_then) / seconds, 1) if seconds else 0.0,
            bytes_done=bytes_done,
            bytes_total=total,
            eta_s=round((total - bytes_done) / bytes_passed * seconds, 1) if total and bytes_passed else None,
        )

    return measure


class Rejections:
    """Reports the first rejections and counts all by reason; writes all to a file where one is wanted.

    Args:
        report: what is told.
        path: JSON Lines of all of them: where, position, document_id and reason; None: no file.

    Raises:
        UsageError: the file cannot be written.
    """

    def __init__(self, report: Report, path: Path | None) -> None:
        self._report = report
        try:
            self._file = path.open("w", encoding="utf-8") if path else None
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written: {error.strerror}; name another file with --rejected"
            ) from error
        self._shown = 0
        self.by_reason: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def add(self, rejection: Rejection) -> None:
        """Takes one."""
        reason = rejection.kind
        if reason not in self.by_reason and len(self.by_reason) >= _REASONS_COUNTED:
            reason = "other reasons"
        self.by_reason[reason] += 1
        if self._file:
            self._file.write(json.dumps(dataclasses.asdict(rejection), ensure_ascii=False) + "\n")
        if self._shown < _REJECTIONS_SHOWN:
            self._shown += 1
            self._report.event(
                "rejected",
                f"{rejection.where}: {rejection.reason}",
                message=f"{rejection.where}: {rejection.kind}",
                where=rejection.where,
                reason=rejection.kind,
            )
