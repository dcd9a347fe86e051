"""What is told of work that takes long."""

from __future__ import annotations

import pytest

from twinbert.serving import log
from twinbert.training.report import JsonLines


def test_rate_and_time_left_are_of_the_stage_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work of another name, or the same from the beginning, is not timed with what came before it."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(log, "event", lambda _name, **fields: told.append((fields["per_s"], fields["eta_s"])))
    told: list[tuple[float, int | None]] = []
    lines = JsonLines()
    for stage, second, done in (
        ("pairs: words", 100, 10),
        ("pairs: words", 110, 30),
        ("pairs: twin", 200, 10),
        ("pairs: twin", 210, 50),
        ("pairs: twin", 300, 10),
        ("pairs: twin", 310, 40),
    ):
        now = second
        lines.progress(stage, done, 100, unit="pairs")
    assert told == [(0, None), (2, 35), (0, None), (4, 12), (0, None), (3, 20)]
