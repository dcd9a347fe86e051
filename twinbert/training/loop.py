"""The training loop: every model here is trained by it, so every one is checkpointed, resumed and reported alike.

Nothing random carries over from one step to the next: batches follow from seed and epoch, dropout from seed and step.
So a run that was killed and goes on from its checkpoint does what it would have done.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar

import accelerate
import numpy as np
import numpy.typing as npt
import torch
from accelerate.state import is_initialized
from torch import Tensor, nn

from twinbert.errors import UsageError
from twinbert.training.report import Report
from twinbert.training.runs import Checkpoint, Run

_B = TypeVar("_B")
Precision = Literal["float32", "bf16"]
Terms = Mapping[str, Tensor]

_MIXED = {"float32": "no", "bf16": "bf16"}  # in accelerate's words
_DRAWN_SECONDS = 60.0  # between two drawings of the curves, which take a second


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a model is optimised: AdamW, its rate rising linearly from 0 and falling linearly to 0.

    Raises:
        UsageError: a value is out of range.
    """

    epochs: int = 1
    """Passes over the data."""
    rate: float = 1e-4
    """Largest learning rate."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only."""
    clip: float = 1.0
    """Longest gradient."""
    layer_decay: float = 1.0
    """The rate of each layer is this times that of the layer above it (Howard and Ruder, arXiv 1801.06146)."""
    scalars: float = 100.0
    """The rate of lone numbers, a crossing's a and b, is this times `rate`: a step of AdamW is about its rate long."""
    average: float = 0.0
    """Decay of an exponential moving average of the weights, which is what is kept at the end; 0: none."""
    checkpoint_steps: int = 500
    """Steps between checkpoints: what a kill loses at most."""
    log_steps: int = 20
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        wanted = {
            "epochs": self.epochs >= 1,
            "rate": self.rate > 0,
            "warmup": 0 <= self.warmup < 1,
            "weight_decay": self.weight_decay >= 0,
            "clip": self.clip > 0,
            "layer_decay": 0 < self.layer_decay <= 1,
            "scalars": self.scalars > 0,
            "average": 0 <= self.average < 1,
            "checkpoint_steps": self.checkpoint_steps >= 1,
            "log_steps": self.log_steps >= 1,
        }
        for name, good in wanted.items():
            if not good:
                raise UsageError(f"schedule: {name} is {getattr(self, name)}, which is out of range")

    def factor(self, step: int, steps: int) -> float:
        """What the rate is multiplied by in step `step` of `steps`, from 0."""
        rising = max(1, round(self.warmup * steps))
        return min((step + 1) / rising, (steps - step) / max(1, steps - rising + 1))


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


def new_accelerator(precision: Precision | None = None) -> accelerate.Accelerator:
    """Devices as `accelerate launch` says, else one GPU or the CPU.

    Args:
        precision: of a process's first call, and so of all that it trains. None: what `accelerate launch` was told,
            else bf16 where the processor multiplies it. Its `no` counts as nothing: it says so unasked too.
    """
    # cuBLAS reads it once, before its first product, and repeats its sums to the bit only with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The first process works alone for hours where a teacher scores pairs; the others wait for it.
    patience = accelerate.InitProcessGroupKwargs(timeout=timedelta(days=2))
    mixed = None if precision is None else _MIXED[precision]
    if mixed is None and not is_initialized():
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        mixed = launched if launched != "no" else "bf16" if multiplies_bf16() else "no"
    return accelerate.Accelerator(mixed_precision=mixed, kwargs_handlers=[patience])


def multiplies_bf16() -> bool:
    """Whether the processor that trains has instructions for it; without them it is slower than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _keep_heap() -> None:
    """Lets glibc keep what tensors free: each step asks for it again, and fresh pages cost a fifth of a step."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**26)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Sums in one order, whatever the threads: the gradient of an indexed tensor is else added up as they come.

    A layer for which a GPU has no such form trains all the same, with a warning.
    """
    memory: Any = torch.utils.deterministic  # types do not tell that a module has a property
    mode, filled = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    memory.fill_uninitialized_memory = False  # it finds faults, and costs time
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = filled


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
    _keep_heap()
    with _deterministic():
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
        self._optimiser = torch.optim.AdamW(_groups(self._parameters, schedule), fused=True)
        self._rates = [float(group["lr"]) for group in self._optimiser.param_groups]
        self._lengths = [len(task.batches(epoch)) // accelerator.num_processes for epoch in range(schedule.epochs)]
        self._steps = sum(self._lengths)
        self._step, self._seconds = 0, 0.0
        self._sums: defaultdict[str, Tensor | float] = defaultdict(float)
        self._summed = 0
        self._drawn = time.monotonic()

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
            saves = self._step % self._schedule.checkpoint_steps == 0 and self._step < last
            if self._step % self._schedule.log_steps == 0 or self._step == last or saves:
                self._seconds += time.monotonic() - began
                began = time.monotonic()
                self._log(epoch)
            if saves:
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
        terms: Terms = model(**_to(batch, self._accelerator.device))
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


def _groups(parameters: Mapping[str, nn.Parameter], schedule: Schedule) -> list[dict[str, Any]]:
    """Parameters by rate and weight decay: norms and biases do not decay, lower layers learn more slowly."""
    depths = {name: _depth(name) for name in parameters}
    top = max((depth for depth in depths.values() if depth is not None), default=0) + 1
    groups: defaultdict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters.items():
        depth = depths[name]
        rate = schedule.rate * schedule.layer_decay ** (0 if depth is None else top - depth)
        if parameter.ndim == 0:
            rate *= schedule.scalars
        groups[rate, schedule.weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    return [{"params": list(group), "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def _depth(name: str) -> int | None:
    """0 for embeddings, 1 and up for the layers of a tower or a Hugging Face encoder, None for what is above them."""
    if found := re.search(r"\blayers?\.(\d+)\.", name):
        return int(found[1]) + 1
    return 0 if "embeddings." in name else None


def _in_words(setting: Mapping[str, Any]) -> str:
    precision = "float32" if setting["precision"] == "no" else setting["precision"]
    return f"{setting['processes']} process{'es' * (setting['processes'] != 1)} in {precision}"


def _to(value: Any, device: torch.device) -> Any:  # noqa: ANN401 - whatever is nested
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: _to(inner, device) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(inner, device) for inner in value)
    return value


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
