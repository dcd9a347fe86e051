"""How long each stage of a run has worked, over all its parts: a run may be killed and taken up again.

The file has a line {"stage", "seconds"} for every minute or so of work, so a kill loses no more. Seconds of one stage
add up; a stage whose result was there has none.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twinbert.training.report import Report

_PACE_SECONDS = 60.0


@contextmanager
def timed(path: Path, stage: str, report: Report, *, writes: bool) -> Iterator[Report]:
    """Times what is told to the report that it gives, and at the end tells `report` how long the stage took in all.

    Args:
        path: the file.
        stage: the line's name.
        report: what is told.
        writes: whether this process is the one of several that writes.
    """
    if not writes:
        yield report
        return
    clock = _Timed(path, stage, report)
    try:
        yield clock
    finally:
        clock.note()
    if clock.works:
        seconds = seconds_of(path)[stage]
        report.event("done", f"{stage}: done in {seconds:,.0f} s", stage=stage, seconds=seconds)


def seconds_of(path: Path) -> dict[str, float]:
    """Seconds by stage, in the order in which stages began; lines that a kill has cut short do not count."""
    total: Counter[str] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            noted = json.loads(line)
        except ValueError:
            continue
        total[noted["stage"]] += noted["seconds"]
    return {stage: round(seconds, 1) for stage, seconds in total.items()}


class _Timed:
    """A report whose being told of anything but waiting is work."""

    def __init__(self, path: Path, stage: str, report: Report) -> None:
        self._path, self._stage, self._report = path, stage, report
        self._began = time.monotonic()
        self.works = False

    def event(self, name: str, text: str, **fields: Any) -> None:  # noqa: ANN401 - what JSON holds
        self._report.event(name, text, **fields)
        if name == "waiting":
            self.note()
        elif name == "waited":
            self._began = time.monotonic()
        else:
            self.works = True

    def progress(self, stage: str, done: int, total: int, *, unit: str, loss: float | None = None) -> None:
        self._report.progress(stage, done, total, unit=unit, loss=loss)
        self.works = True
        if time.monotonic() - self._began > _PACE_SECONDS:
            self.note()

    def note(self) -> None:
        """Writes what has been worked since the last line."""
        if not self.works:
            return
        now = time.monotonic()
        line = {"stage": self._stage, "seconds": round(now - self._began, 1)}
        self._began = now
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
