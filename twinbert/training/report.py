"""What training shows on standard error: a bar on a terminal, elsewhere one line of JSON an event."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from twinbert.serving import log

_PACE_SECONDS = 5.0


class Report(Protocol):
    """Tells somebody about training."""

    def event(self, name: str, text: str, **fields: Any) -> None:  # noqa: ANN401 - what JSON can say
        """Something happened: its name and fields for programs, `text` for people."""

    def progress(self, stage: str, done: int, total: int, *, unit: str, loss: float | None = None) -> None:
        """`done` of `total` things of a stage are finished."""


class Silent:
    """Says nothing: for processes beside the first."""

    def event(self, name: str, text: str, **fields: Any) -> None:  # noqa: ANN401 - what JSON holds
        """Nothing."""

    def progress(self, stage: str, done: int, total: int, *, unit: str, loss: float | None = None) -> None:
        """Nothing."""


class _Clock:
    """Rate and time left of the stage that runs."""

    def __init__(self) -> None:
        self._stage = ""
        self._began = (0.0, 0)
        self._done = 0

    def read(self, stage: str, done: int, total: int) -> tuple[float, float | None]:
        """Things a second since the stage was first heard of, and seconds left at that rate."""
        now = time.monotonic()
        if stage != self._stage or done < self._done:
            self._stage, self._began = stage, (now, done)
        self._done = done
        began, before = self._began
        rate = (done - before) / (now - began) if now > began else 0.0
        return rate, (total - done) / rate if rate else None


class JsonLines:
    """For logs and programs: see `twinbert.serving.log`."""

    def __init__(self) -> None:
        self._clock = _Clock()
        self._shown = -_PACE_SECONDS

    def event(self, name: str, text: str, **fields: Any) -> None:  # noqa: ANN401 - what JSON holds
        """Logs the event."""
        log.event(name, message=text, **fields)

    def progress(self, stage: str, done: int, total: int, *, unit: str, loss: float | None = None) -> None:
        """Logs the progress, every few seconds and at the end."""
        rate, left = self._clock.read(stage, done, total)
        now = time.monotonic()
        if now - self._shown < _PACE_SECONDS and done < total:
            return
        self._shown = now
        log.event(
            "progress",
            stage=stage,
            done=done,
            total=total,
            unit=unit,
            loss=None if loss is None else round(loss, 5),
            per_s=round(rate, 2),
            eta_s=None if left is None else round(left),
        )


class Bar:
    """For people: a bar with loss, rate and time left; events are printed above it. Use `reporting`."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
        self.bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
        self._task = self.bar.add_task("", total=None)
        self._clock = _Clock()

    def event(self, name: str, text: str, **fields: Any) -> None:  # noqa: ANN401 - what JSON holds
        """Prints the text; its fields are for programs."""
        self.bar.console.print(text, markup=False)

    def progress(self, stage: str, done: int, total: int, *, unit: str, loss: float | None = None) -> None:
        """Moves the bar."""
        rate, left = self._clock.read(stage, done, total)
        parts = [
            f"{stage}: {done:,} of {total:,} {unit}",
            "" if loss is None else f"loss {loss:.4f}",
            f"{rate:,.1f}/s",
            "" if left is None else f"{time.strftime('%H:%M:%S', time.gmtime(left))} left",
        ]
        self.bar.update(self._task, description=" · ".join(filter(None, parts)), completed=done, total=total)


@contextmanager
def reporting(*, speaks: bool = True) -> Iterator[Report]:
    """A bar where someone looks, JSON lines elsewhere; nothing where `speaks` is false."""
    if not speaks:
        yield Silent()
    elif sys.stderr.isatty():
        bar = Bar()
        with bar.bar:
            yield bar
    else:
        log.configure()
        # torch.onnx, bm25s and others tell at this level how they work, to their own developers.
        logging.getLogger().setLevel(logging.WARNING)
        log.LOGGER.setLevel(logging.INFO)
        yield JsonLines()
