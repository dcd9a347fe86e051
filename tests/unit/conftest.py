"""What more than one file of unit tests sets up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from refresh_cases import WINDOW


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred documents are several windows of a refresh."""
    monkeypatch.setattr("encoder_server.window._DOCUMENTS", WINDOW)


@pytest.fixture
def fresh_process() -> Iterator[None]:
    """No accelerator yet, as in a process that has just begun, and none of this one's afterwards."""
    from accelerate.state import AcceleratorState  # with torch: most tests need neither

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
