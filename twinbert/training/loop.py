"""The training loop: every model here is trained by it, so every one is checkpointed, resumed and reported alike.

Nothing random carries over from one step to the next: batches follow from seed and epoch, dropout from seed and step.
So a run that was killed and goes on from its checkpoint does what it would have done.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import accelerate
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from twinbert.errors import UsageError
from twinbert.training.devices import deterministic, keep_heap, new_accelerator, to_device
from twinbert.training.report import Report
from twinbert.training.runs import Checkpoint, Run
from twinbert.training.schedule import Schedule, groups_of

_B = TypeVar("_B")
Terms = Mapping[str, Tensor]

_DRAWN_SECONDS = 60.0  # between two drawings of the curves, which take a second
_SAVED_SECONDS = 300.0  # between two checkpoints at most, and what a line of metrics takes


@dataclass(frozen=True, kw_only=True)
class Task(Generic[_B]):
    """What is to be learned.

    Attributes:
        name: for progress.
        module: what is trained; called with a collated batch it returns its losses by name, `loss` their sum.
        batches: the batches of an epoch, the same ones whenever asked.
        collate: a batch → the module's arguments: tensors, or nested lists of them.
        validate: measures the module after an epoch, for metrics.jsonl.
    """

    name: str
    module: nn.Module
    batches: Callable[[int], Sequence[_B]]
    collate: Callable[[_B], Mapping[str, Any]]
    validate: Callable[[], Mapping[str, float]] | None = None


def fit(
    task: Task[_B],
    schedule: Schedule,
    *,
    run: Run,
    seed: int,
    report: Report,
    accelerator: accelerate.Accelerator | None = None,
) -> None:
    """Trains `task.module` in place, from the run's checkpoint where there is one.

    Args:
        task: what is learned.
        schedule: how.
        run: where it is recorded.
        seed: of batches' order and dropout.
        report: what is told.
        accelerator: devices; several processes each take every so manieth batch.

    Raises:
        UsageError: the checkpoint is damaged, or of another number of processes or precision.
    """
    keep_heap()
    with deterministic():
        _Fit(task, schedule, run=run, seed=seed, report=report, accelerator=accelerator or new_accelerator()).run()


class _Fit(Generic[_B]):
    def __init__(
        self,
        task: Task[_B],
        schedule: Schedule,
        *,
        run: Run,
        seed: int,
        report: Report,
        accelerator: accelerate.Accelerator,
    ) -> None:
        self._task, self._schedule, self._run, self._seed = task, schedule, run, seed
        self._report, self._accelerator = report, accelerator
        self._parameters = {name: p for name, p in task.module.named_parameters() if p.requires_grad}
        self._optimiser = torch.optim.AdamW(groups_of(self._parameters, schedule), fused=True)
        self._rates = [float(group["lr"]) for group in self._optimiser.param_groups]
        self._lengths = [len(task.batches(epoch)) // accelerator.num_processes for epoch in range(schedule.epochs)]
        self._steps = sum(self._lengths)
        self._step, self._seconds = 0, 0.0
        self._sums: defaultdict[str, Tensor | float] = defaultdict(float)
        self._summed = 0
        self._drawn = self._saved = time.monotonic()

    def run(self) -> None:
        if not all(self._lengths):
            raise UsageError(f"{self._task.name}: an epoch has fewer batches than there are processes; give more data")
        model, optimiser = self._accelerator.prepare(self._task.module, self._optimiser)
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()} if self._averaging else {}
        if (checkpoint := self._run.load()) is not None:
            self._restore(checkpoint)
            self._report.event(
                "resumed", f"{self._task.name}: goes on at step {self._step:,}", stage=self._task.name, step=self._step
            )
        first = 0
        for epoch, length in enumerate(self._lengths):
            if self._step < first + length:
                self._epoch(epoch, first, model, optimiser)
            first += length
        if self._averaging:
            self._swap_averages()
        self._run.draw()

    @property
    def _averaging(self) -> bool:
        return self._schedule.average > 0

    @property
    def _setting(self) -> dict[str, Any]:
        """What a step means and how it rounds."""
        return {"processes": self._accelerator.num_processes, "precision": self._accelerator.mixed_precision}

    def _epoch(self, epoch: int, first: int, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        batches = self._task.batches(epoch)
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        last = first + self._lengths[epoch]
        began = time.monotonic()
        while self._step < last:
            batch = self._task.collate(batches[(self._step - first) * processes + rank])
            self._one_step(model, optimiser, batch)
            self._step += 1
            # What is summed up is not in a checkpoint, so it is written before.
            saves = self._step % self._schedule.checkpoint_steps == 0
            if self._step % self._schedule.log_steps == 0 or self._step == last or saves:
                self._seconds += time.monotonic() - began
                began = time.monotonic()
                self._log(epoch)
                if self._step < last and (saves or began - self._saved > _SAVED_SECONDS):
                    self._save()
        self._validate(epoch)
        self._save()
        if time.monotonic() - self._drawn > _DRAWN_SECONDS:
            self._run.draw()
            self._drawn = time.monotonic()

    def _one_step(self, model: nn.Module, optimiser: torch.optim.Optimizer, batch: Mapping[str, Any]) -> None:
        # One stream of random numbers a step and process: dropout is the same whether or not there was a kill.
        torch.manual_seed((self._seed * 1_000_003 + self._step) * 1_000 + self._accelerator.process_index)
        factor = self._schedule.factor(self._step, self._steps)
        for group, rate in zip(optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        model.train()
        terms: Terms = model(**to_device(batch, self._accelerator.device))
        self._accelerator.backward(terms["loss"])
        self._accelerator.clip_grad_norm_(self._parameters.values(), self._schedule.clip)
        optimiser.step()
        optimiser.zero_grad()
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value.detach()
        self._summed += 1
        if self._averaging:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        # Young averages forget faster, or the first weights would stay in them for long.
        decay = min(self._schedule.average, (self._step + 1) / (self._step + 10))
        for name, parameter in self._parameters.items():
            self._averages[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def _swap_averages(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self._averages[name])
            self._averages[name] = kept

    def _log(self, epoch: int) -> None:
        means = {name: float(total) / self._summed for name, total in self._sums.items()}
        if not math.isfinite(means["loss"]):
            raise UsageError(
                f"{self._task.name}: the loss became {means['loss']} by step {self._step:,}; "
                "lower the learning rate, or look for broken weights in the checkpoint"
            )
        self._sums.clear()
        self._summed = 0
        rate = max(float(group["lr"]) for group in self._optimiser.param_groups)
        self._run.log(step=self._step, epoch=epoch, seconds=round(self._seconds, 1), rate=rate, **means)
        self._report.progress(self._task.name, self._step, self._steps, unit="steps", loss=means["loss"])

    def _validate(self, epoch: int) -> None:
        if self._task.validate is None or not self._accelerator.is_main_process:
            return
        if self._averaging:
            self._swap_averages()
        self._task.module.eval()
        with torch.inference_mode():
            metrics = {f"dev {name}": value for name, value in self._task.validate().items()}
        if self._averaging:
            self._swap_averages()
        self._run.log(step=self._step, epoch=epoch, **metrics)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._report.event(
            "epoch",
            f"{self._task.name}: epoch {epoch + 1} of {self._schedule.epochs}, {self._seconds:,.0f} s: {shown}",
            stage=self._task.name,
            epoch=epoch + 1,
            seconds=round(self._seconds, 1),
            **metrics,
        )

    def _save(self) -> None:
        if not self._accelerator.is_main_process:
            return
        tensors = {f"model/{name}": p.detach().cpu() for name, p in self._parameters.items()}
        tensors |= {f"average/{name}": average.cpu() for name, average in self._averages.items()}
        for name, parameter in self._parameters.items():
            for field, value in self._optimiser.state[parameter].items():
                tensors[f"optimiser/{field}/{name}"] = value.detach().cpu()
        contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        self._run.save(Checkpoint(contiguous, {"step": self._step, "seconds": self._seconds, **self._setting}))
        self._saved = time.monotonic()

    @torch.no_grad()
    def _restore(self, checkpoint: Checkpoint) -> None:
        # Old checkpoints do not say.
        left = {name: checkpoint.progress.get(name, value) for name, value in self._setting.items()}
        if left != self._setting:
            raise UsageError(
                f"{self._task.name}: was left at step {checkpoint.progress['step']:,} by {_in_words(left)}, and this "
                f"is {_in_words(self._setting)}, which would train on other batches or round otherwise; go on as it "
                f"was, with `accelerate launch --num_processes` and --precision, or remove {self._run.path}"
            )
        self._step, self._seconds = checkpoint.progress["step"], checkpoint.progress["seconds"]
        for name, parameter in self._parameters.items():
            parameter.copy_(checkpoint.tensors[f"model/{name}"])
            if self._averaging:
                self._averages[name].copy_(checkpoint.tensors[f"average/{name}"])
        for key, tensor in checkpoint.tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "optimiser":
                field, _, name = rest.partition("/")
                parameter = self._parameters[name]
                self._optimiser.state[parameter][field] = tensor.to(parameter.device)


def _in_words(setting: Mapping[str, Any]) -> str:
    precision = "float32" if setting["precision"] == "no" else setting["precision"]
    return f"{setting['processes']} process{'es' * (setting['processes'] != 1)} in {precision}"


def windows(
    order: Iterable[int], lengths: Sequence[int] | npt.NDArray[np.int64], size: int, *, window: int = 50
) -> list[list[int]]:
    """Batches of items of like length: sorted within windows of `window` batches, so that little is padded."""
    items = list(order)
    span = size * window
    batches: list[list[int]] = []
    for start in range(0, len(items), span):
        part = sorted(items[start : start + span], key=lambda item: lengths[item])
        batches += [part[at : at + size] for at in range(0, len(part), size)]
    return batches
