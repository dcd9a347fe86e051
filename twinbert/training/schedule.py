"""How a model is optimised."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from twinbert.errors import UsageError


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
    """Steps between checkpoints at most, what a kill loses; where steps take long there is one every five minutes."""
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


def groups_of(parameters: Mapping[str, nn.Parameter], schedule: Schedule) -> list[dict[str, Any]]:
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
