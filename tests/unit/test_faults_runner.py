"""The runner of faults: seeds go on, counts add up, and what is broken can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from faults.fault import Attempt, BrokenPromiseError, Fault, NotRunError, Tally, require
from faults.ledger import Ledger
from faults.page import page
from faults.runner import run


class Scene:
    """A fault whose attempts do what the test says; `seeds` are those that were tried."""

    def __init__(self, folder: Path) -> None:
        self.seeds: list[int] = []
        self.ledger, self.bundle = Ledger(folder / "ledger.json"), folder
        self.error: BaseException | None = None
        self.fault = Fault(
            name="paint",
            title="Paint on the wall",
            promise="it dries",
            unit="walls",
            wanted=4,
            quick=2,
            prepare=self._prepared,
        )

    @contextmanager
    def _prepared(self, _folder: Path, _bundle: Path) -> Iterator[Attempt]:
        if isinstance(self.error, NotRunError):
            raise self.error
        yield self._attempt

    def _attempt(self, seed: int) -> Tally:
        if self.error is not None and len(self.seeds) == 3:
            raise self.error
        self.seeds.append(seed)
        return Tally({"dry": 1}, figures={"hours": 2.0 * seed})


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_runs_add_up(scene: Scene) -> None:
    """A later run takes the seeds after those of the one before, and the page shows the sum beside what is wanted."""
    assert run(scene.fault, scene.ledger, scene.bundle, quick=True) == 0
    assert "| 4 walls | **2** |" in page([scene.fault], scene.ledger)
    assert run(scene.fault, scene.ledger, scene.bundle) == 0
    assert scene.seeds == [0, 1, 2, 3, 4, 5]
    shown = page([scene.fault], scene.ledger)
    assert "| [Paint on the wall](#paint) | it dries | 4 walls | 6 |" in shown
    assert "Seeds 0 to 5;" in shown
    assert "| dry | 6 |" in shown
    assert "| hours | 6.00 | 2.00 | 10.00 | 2 |" in shown


def test_what_has_to_be_one_run_is_not_added_up(scene: Scene) -> None:
    """Of a fault that has to go on for long the longest run counts, and not the sum of them."""
    fault = replace(scene.fault, one_run=True, unit="walls in one run")
    for quick in (True, False, True):
        assert run(fault, scene.ledger, scene.bundle, quick=quick) == 0
    assert sum(one.done for one in scene.ledger.runs("paint")) == 8
    shown = page([fault], scene.ledger)
    assert "| 4 walls in one run | 4 |" in shown
    assert "Longest run, walls: 4." in shown
    fault = replace(fault, wanted=5)
    assert "| 5 walls in one run | **4** |" in page([fault], scene.ledger)


def test_a_broken_promise_ends_a_run_and_can_be_repeated(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """The first one is told with its seed and the command for it; what held before counts, and the seed stays to do."""
    scene.error = BrokenPromiseError("it runs")
    assert run(scene.fault, scene.ledger, scene.bundle) == 1
    told = capsys.readouterr().err
    assert "it runs" in told
    assert "broken by seed 3; again: make faults FAULT=paint SEED=3" in told
    assert [(one.seeds, one.done) for one in scene.ledger.runs("paint")] == [((0, 3), 3)]


def test_one_seed_alone_is_not_counted(scene: Scene) -> None:
    """To repeat an attempt leaves no trace in the counts."""
    assert run(scene.fault, scene.ledger, scene.bundle, seed=7) == 0
    assert scene.seeds == [7]
    assert scene.ledger.runs("paint") == []


def test_an_interrupted_run_keeps_its_counts(scene: Scene) -> None:
    """What was done before the interrupt is written down."""
    scene.error = KeyboardInterrupt()
    assert run(scene.fault, scene.ledger, scene.bundle) == 130
    assert [one.done for one in scene.ledger.runs("paint")] == [3]


def test_what_cannot_be_run_is_said(scene: Scene) -> None:
    """The page says why nothing was done, and no run fails for it."""
    scene.error = NotRunError("there is no brush")
    assert run(scene.fault, scene.ledger, scene.bundle) == 0
    assert "Last not run: there is no brush." in page([scene.fault], scene.ledger)


def test_a_promise_is_required() -> None:
    """What does not hold is told in its words."""
    require(True, "never told")
    with pytest.raises(BrokenPromiseError, match="it runs"):
        require(0, "it runs")
