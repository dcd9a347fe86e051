"""Run folders and the loop: resumed equals uninterrupted, and nothing is overwritten."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinbert.errors import UsageError
from twinbert.training import devices, loop
from twinbert.training.devices import Precision, new_accelerator
from twinbert.training.loop import Task, fit, windows
from twinbert.training.report import Silent
from twinbert.training.runs import Checkpoint, Run
from twinbert.training.schedule import Schedule

SCHEDULE = Schedule(epochs=3, rate=0.05, checkpoint_steps=3, log_steps=2, average=0.5)


class KilledError(Exception):
    """Stands for a kill."""


class Regression(nn.Module):
    """Learns a sum, with dropout, so that random numbers matter; dies at a step, where one is given."""

    def __init__(self, dies_at: int | None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.Linear(16, 1))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self._dies_at, self._steps = dies_at, 0

    def forward(self, inputs_BH: Tensor) -> dict[str, Tensor]:
        if self._steps == self._dies_at:
            raise KilledError
        self._steps += 1
        output_B = self.scale * self.layers(inputs_BH).squeeze(-1)
        return {"loss": (output_B - inputs_BH.sum(1)).square().mean()}


def task(dies_at: int | None = None) -> tuple[Regression, Task[int]]:
    """The same module and batches whenever called."""
    torch.manual_seed(0)
    module = Regression(dies_at)

    def collate(seed: int) -> dict[str, Any]:
        return {"inputs_BH": torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))}

    def validate() -> dict[str, float]:
        return {"loss": module(torch.ones(1, 4))["loss"].item()}

    def batches(epoch: int) -> Sequence[int]:
        return range(100 * epoch, 100 * epoch + 7)

    module_ = Task(name="regression", module=module, batches=batches, collate=collate, validate=validate)
    return module, module_


def trained(path: Path, dies_at: int | None = None, schedule: Schedule = SCHEDULE) -> dict[str, Tensor]:
    module, what = task(dies_at)
    fit(what, schedule, run=Run(path, {"a": 1}), seed=5, report=Silent())
    return {name: value.clone() for name, value in module.state_dict().items()}


def metrics(path: Path) -> list[dict[str, Any]]:
    """All that is logged but times."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in Run(path, {"a": 1}).metrics()]


@pytest.mark.parametrize("steps", [0, 2, 4, 7, 11, 20])
def test_a_killed_run_resumed_equals_an_uninterrupted_one(steps: int, tmp_path: Path) -> None:
    """Killed in any epoch, weights, their average and metrics come out the same to the bit."""
    whole = trained(tmp_path / "whole")
    with pytest.raises(KilledError):
        trained(tmp_path / "killed", dies_at=steps)
    again = trained(tmp_path / "killed")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    assert (tmp_path / "killed" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_slow_steps_are_kept_without_waiting_for_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a step takes long, time makes a checkpoint with the line of metrics that follows."""
    rare = dataclasses.replace(SCHEDULE, checkpoint_steps=1000)
    whole = trained(tmp_path / "whole", schedule=rare)
    monkeypatch.setattr(loop, "_SAVED_SECONDS", 0.0)
    with pytest.raises(KilledError):
        trained(tmp_path / "killed", dies_at=5, schedule=rare)
    left = Run(tmp_path / "killed", {"a": 1}).load()
    assert left is not None
    assert left.progress["step"] == 4
    again = trained(tmp_path / "killed", schedule=rare)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    """From its last checkpoint there is no step left, and the result is the same."""
    whole = trained(tmp_path)
    again = trained(tmp_path, dies_at=0)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_training_lowers_the_loss_and_the_average_counts(tmp_path: Path) -> None:
    """The loop optimises: what is measured after epochs falls, and what is kept is the average of the weights."""
    kept = trained(tmp_path)
    first, *_, last_loss = (line["dev loss"] for line in metrics(tmp_path) if "dev loss" in line)
    assert last_loss < first / 2
    last = Run(tmp_path, {"a": 1}).load()
    assert last is not None
    assert torch.equal(kept["scale"], last.tensors["average/scale"])
    assert not torch.equal(kept["scale"], last.tensors["model/scale"])


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    """A run that has blown up is stopped with what to do, not carried on for hours."""
    module, what = task()
    with torch.no_grad():
        module.scale.fill_(torch.nan)
    with pytest.raises(UsageError, match="the loss became nan by step 2; lower the learning rate"):
        fit(what, SCHEDULE, run=Run(tmp_path, {}), seed=5, report=Silent())


class Lookup(nn.Module):
    """Few rows, each looked up by many: their gradients are long sums, which threads share."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))

    def forward(self, row_N: Tensor) -> dict[str, Tensor]:
        random_N64 = torch.randn(len(row_N), 64, generator=torch.Generator().manual_seed(1))
        return {"loss": (self.rows[row_N] * random_N64).square().mean()}


def test_two_threads_train_the_same_every_time(tmp_path: Path) -> None:
    """The order in which threads end changes no bit of the weights, and torch is left as it was found."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = []
        for attempt in range(3):
            lookup = Task(
                name="lookup",
                module=Lookup(),
                batches=lambda _: range(8),
                collate=lambda _: {"row_N": torch.arange(8_000) % 8},
            )
            fit(lookup, Schedule(rate=1.0), run=Run(tmp_path / str(attempt), {}), seed=5, report=Silent())
            found.append(lookup.module.get_parameter("rows"))
    finally:
        torch.set_num_threads(threads)
    assert all(rows.equal(found[0]) for rows in found)
    assert torch.get_deterministic_debug_mode() == 0


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize(
    ("launched", "option", "precision"),
    [("no", None, "bf16"), (None, None, "bf16"), ("no", "float32", "no"), ("bf16", "float32", "no")],
)
def test_bf16_is_the_default_also_under_accelerate_launch(
    launched: str | None, option: Precision | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` says `no` unasked, so only our own option turns bf16 off; the first call counts for all."""
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: True)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert new_accelerator(option).mixed_precision == precision
    assert new_accelerator().mixed_precision == precision


@pytest.mark.usefixtures("fresh_process")
def test_a_precision_that_training_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scaling of losses is in no checkpoint, so a run that was killed would go on otherwise."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UsageError, match="accelerate launch --mixed_precision fp16: training is in float32 or bf16"):
        new_accelerator()


@pytest.mark.parametrize(
    ("changed", "was"), [({"processes": 3}, "3 processes in float32"), ({"precision": "fp16"}, "1 process in fp16")]
)
@pytest.mark.usefixtures("fresh_process")
def test_a_run_goes_on_as_it_was(changed: dict[str, Any], was: str, tmp_path: Path) -> None:
    """Other processes would take other batches for its steps, so they are refused; an old checkpoint does not say."""
    new_accelerator("float32")
    with pytest.raises(KilledError):
        trained(tmp_path, dies_at=11)
    run = Run(tmp_path, {"a": 1})
    left = run.load()
    assert left is not None
    run.save(dataclasses.replace(left, progress=left.progress | changed))
    with pytest.raises(UsageError, match=rf"was left at step 9 by {was}, and this is 1 process in float32"):
        trained(tmp_path)
    run.save(dataclasses.replace(left, progress={name: left.progress[name] for name in ("step", "seconds")}))
    trained(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"epochs": 0}, {"rate": 0.0}, {"warmup": 1.0}, {"layer_decay": 0.0}, {"average": 1.0}]
)
def test_schedules_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    """A value that makes no sense is refused when the schedule is made, and named."""
    with pytest.raises(UsageError, match=next(iter(changes))):
        Schedule(**changes)


def test_the_rate_rises_and_falls() -> None:
    """Linear from 0 to 1 within the warm-up, and linear to 0 after it."""
    schedule = Schedule(warmup=0.2)
    factors = [schedule.factor(step, 10) for step in range(10)]
    assert factors[:2] == [0.5, 1.0]
    assert all(0 < after < before for before, after in pairwise(factors[1:]))


def test_windows_pad_little_and_lose_nothing() -> None:
    """Batches of like length hold every item once."""
    lengths = [n * 7 % 11 for n in range(50)]
    batches = windows(range(50), lengths, 5, window=5)
    assert sorted(item for batch in batches for item in batch) == list(range(50))
    assert all(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) <= 3 for batch in batches)


def test_a_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    """The message says which values differ; nothing in the folder is changed."""
    Run(tmp_path, {"student": {"layers": (1, 2), "rate": 0.1}})
    with pytest.raises(UsageError, match=r"another configuration \(student.rate is 0.1 there and 0.2 here\)"):
        Run(tmp_path, {"student": {"layers": (1, 2), "rate": 0.2}})
    assert Run(tmp_path, {"student": {"layers": (1, 2), "rate": 0.1}}).metrics() == []


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    """A folder that is not empty and no run is left alone."""
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match="is no folder of a run"):
        Run(tmp_path, {})
    (tmp_path / "configuration.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        Run(tmp_path, {})


@pytest.mark.parametrize("kill", [lambda p: p.rename(p.with_name("checkpoint.old")), lambda p: None])
def test_a_kill_while_saving_leaves_a_checkpoint(kill: Callable[[Path], None], tmp_path: Path) -> None:
    """Between the two renames the old checkpoint still counts; one half written never does."""
    run = Run(tmp_path, {})
    run.save(Checkpoint({"a": torch.ones(2)}, {"step": 1}))
    (tmp_path / "checkpoint.building").mkdir()
    kill(tmp_path / "checkpoint")
    loaded = run.load()
    assert loaded is not None
    assert loaded.progress == {"step": 1}
    run.save(Checkpoint({"a": torch.zeros(2)}, {"step": 2}))
    assert [file.name for file in tmp_path.glob("checkpoint*")] == ["checkpoint"]


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    """They come again; a line that a kill has cut short is dropped, and a damaged checkpoint is named."""
    run = Run(tmp_path, {})
    run.save(Checkpoint({"a": torch.ones(2)}, {"step": 3}))
    for step in (1, 3, 4):
        run.log(step=step, loss=float(step), bad=float("nan"))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    run.load()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 3, "loss": 3.0},
    ]
    (tmp_path / "checkpoint" / "state.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="checkpoint: is damaged"):
        run.load()
