"""Which generations a server refuses, and what they are compared with."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from scorer_server.metrics import Metrics
from scorer_server.snapshots import Snapshots
from store.copying import copy
from store.maintenance import rollback
from store.store import Store
from tests.unit import store_cases
from tests.unit.snapshot_cases import FORCED, IDS, Bundles, overtaken, published_with, refused, run, serves, until


def test_a_generation_that_lost_documents_is_refused_unless_someone_wants_it(tmp_path: Path) -> None:
    """More than the set share of what is served: refused, said and not tried again; forced, or rolled back to, it is
    served. A generation that is small is served whatever it lacks.
    """
    store = Store(tmp_path / "store")
    small = published_with(store, [f"x{number}" for number in range(50)], {})

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        async def accepts(name: str) -> None:
            await serves(snapshots, name)
            assert snapshots.refusal is None
            assert refused(metrics, "documents_lost") == 0

        assert snapshots.current.generation.name == small
        whole = published_with(store, IDS, {})
        await accepts(whole)
        most = published_with(store, IDS[50:], {})
        await accepts(most)
        other_ids = published_with(store, [f"y{number}" for number in range(200)], {"gate": {"forced": False}})
        await until(lambda: refused(metrics, "documents_lost") == 1)
        assert snapshots.refusal is not None
        assert (snapshots.refusal.name, snapshots.refusal.until) == (other_ids, float("inf"))
        assert re.search("lacks 100.0% of the 150 documents.*30.0% may be missing.*--force", snapshots.refusal.message)
        assert snapshots.current.generation.name == most
        few = published_with(store, IDS[:80], FORCED)
        await accepts(few)
        await accepts(published_with(store, IDS, {}))
        rollback(store, small)
        await accepts(small)

    run(store, test, hold_generations=0, hold_seconds=0)


def test_a_store_that_was_built_again_elsewhere_is_compared(tmp_path: Path) -> None:
    """Its generations have low numbers, and are no rollback: what lacks documents is refused when it is copied over."""
    store, elsewhere = Store(tmp_path / "store"), Store(tmp_path / "elsewhere")
    published_with(store, IDS, {})
    whole = published_with(store, IDS, {})
    other = published_with(elsewhere, IDS[:80], {})

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        copy(elsewhere, store)
        await until(lambda: refused(metrics, "documents_lost") == 1)
        assert snapshots.refusal is not None
        assert (snapshots.refusal.name, snapshots.current.generation.name) == (other, whole)

    run(store, test)


def test_what_a_newer_version_wrote_and_ids_of_the_other_type_are_no_damage(tmp_path: Path) -> None:
    """They are refused each under its own reason, and the disk is not at fault."""
    store, elsewhere = Store(tmp_path / "store"), Store(tmp_path / "elsewhere")
    whole = published_with(store, IDS, {})
    published_with(elsewhere, range(200), {}, id_type="integer")

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        copy(elsewhere, store)
        await until(lambda: refused(metrics, "mismatch") == 1)
        store_cases.forge(store, lambda fields: fields.update(format=2), number=3)
        await until(lambda: refused(metrics, "format") == 1)
        assert refused(metrics, "mismatch") == refused(metrics, "unverified") == 0
        assert snapshots.current.generation.name == whole

    run(store, test)


def test_a_refusal_ends_when_current_names_another(tmp_path: Path) -> None:
    """From the moment in which the other one is opened, which may take minutes, and not only when it is served."""
    store, bundles = Store(tmp_path / "store"), Bundles()
    published_with(store, IDS, {})

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        published_with(store, IDS[:9], {})
        await until(lambda: refused(metrics, "documents_lost") == 1)
        late = published_with(store, IDS, {"bundle": "late"})
        await until(bundles.holding.is_set)
        assert snapshots.refusal is None
        assert refused(metrics, "documents_lost") == 0
        bundles.release.set()
        await serves(snapshots, late)

    run(store, test, bundles)


@pytest.mark.parametrize("case", ["forced unseen", "manifest gone", "forced long ago"])
def test_what_was_forced_and_never_seen_counts_for_what_follows(tmp_path: Path, case: str) -> None:
    """A replica that sees only what came after a forced generation serves it, if it can tell; but one that was forced
    before what is served excuses nothing.
    """
    store, elsewhere = Store(tmp_path / "store"), Store(tmp_path / "elsewhere")
    published_with(elsewhere, IDS, {})
    forced = published_with(elsewhere, IDS[:80], FORCED)
    if case == "forced long ago":
        published_with(elsewhere, IDS, {})
    else:
        rollback(elsewhere)
    whole, _ = copy(elsewhere, store)
    if case != "forced long ago":
        rollback(elsewhere, forced)
    last = published_with(elsewhere, IDS[:81], {})
    for name in elsewhere.generations():
        if name != forced or case != "manifest gone":
            shutil.copy(store_cases.manifest_path(elsewhere, name), store.path / "generations")

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        assert snapshots.current.generation.name == whole
        copy(elsewhere, store)
        if case == "forced unseen":
            await serves(snapshots, last)
        else:
            await until(lambda: refused(metrics, "documents_lost") == 1)
            assert snapshots.current.generation.name == whole

    run(store, test)


def test_a_generation_is_compared_with_the_one_that_it_replaces(tmp_path: Path) -> None:
    """Where another is served by the time that it is ready, it is compared again, with that one."""
    store = Store(tmp_path / "store")
    first = published_with(store, IDS, {})
    bundles = Bundles()

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        second = published_with(store, IDS[:150], {})
        await serves(snapshots, second)
        third = await overtaken(snapshots, store, bundles, first, IDS[:110])
        rollback(store, third)
        bundles.release.set()
        await until(lambda: refused(metrics, "documents_lost") == 1)
        assert snapshots.current.generation.name == first

    run(store, test, bundles)
