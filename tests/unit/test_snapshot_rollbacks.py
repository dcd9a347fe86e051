"""Rollbacks that a server follows while it opens another generation."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from scorer_server.metrics import Metrics
from scorer_server.snapshots import Snapshots
from store.maintenance import rollback
from store.store import Store
from tests.unit.scoring_cases import published
from tests.unit.snapshot_cases import IDS, Bundles, overtaken, published_with, run, serves, until


def test_a_rollback_is_followed_while_another_generation_is_opened(tmp_path: Path) -> None:
    """To one that is held at once, however long the opening takes; what was opened then is closed unserved, and what
    CURRENT names by then is opened.
    """
    store = Store(tmp_path / "store")
    first = published(store)
    bundles = Bundles()

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        second = published(store)
        await serves(snapshots, second)
        await overtaken(snapshots, store, bundles, first)
        fourth = published(store)
        bundles.release.set()
        await serves(snapshots, fourth)
        assert [one.generation.name for one in snapshots.held] == [fourth, first, second]
        assert metrics.registry.get_sample_value("twinbert_generation_swaps_total") == 3

    run(store, test, bundles)


def test_a_generation_that_was_rolled_back_while_it_was_opened_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is ready CURRENT is read again, and the generation is closed: nothing of it stays open."""
    store = Store(tmp_path / "store")
    first = published(store)
    bundles, opened, closed = Bundles(), Snapshots._open, threading.Event()

    def rolled_back(self: Snapshots, name: str, served: Any) -> Any:
        snapshot = opened(self, name, served)
        rollback(store, first)  # at the last moment
        close = snapshot.generation.close
        monkeypatch.setattr(snapshot.generation, "close", lambda: (close(), closed.set()))
        return snapshot

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        monkeypatch.setattr(Snapshots, "_open", rolled_back)
        published_with(store, IDS, {})
        await until(closed.is_set)
        assert snapshots.current.generation.name == first
        assert len(snapshots.held) == 1

    run(store, test, bundles)
