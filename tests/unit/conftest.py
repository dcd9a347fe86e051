"""What more than one file of unit tests sets up."""

from __future__ import annotations

import pytest
from refresh_cases import WINDOW


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred documents are several windows of a refresh."""
    monkeypatch.setattr("encoder_server.window._DOCUMENTS", WINDOW)
