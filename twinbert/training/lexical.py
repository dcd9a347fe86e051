"""The lexical part of a teacher: a small network that grades a pair by how the query's words stand in the document.

Some ten thousand grades teach a cross-encoder little about spelling, numbers and compounds, which its word pieces hide;
`features` say them outright, for some seconds of training. What the network says is added to the cross-encoders' logits
with weights fitted on dev, which is stacking (Wolpert, Neural Networks 5, 1992).

Shapes: N pairs, B pairs of a batch, K features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from store.files import replace_file
from twinbert.errors import BundleError, UsageError
from twinbert.training.calibration import Blend, blend
from twinbert.training.data import Split
from twinbert.training.devices import new_accelerator
from twinbert.training.features import FEATURES, features
from twinbert.training.loop import Task, fit
from twinbert.training.report import Report, Silent
from twinbert.training.runs import Run, locked
from twinbert.training.schedule import Schedule
from twinbert.training.teacher import Floats, TextPair, digest_of, watch

_FARTHEST = 4.0  # standard deviations from the mean: what is farther counts as that far
_FILE = "lexical.safetensors"


@dataclass(frozen=True, kw_only=True)
class LexicalConfig:
    """The network and its training.

    Raises:
        UsageError: a value is out of range.
    """

    hidden: int = 64
    """Units of each of its two layers."""
    dropout: float = 0.1
    """Share of units that a step leaves out."""
    batch: int = 512
    """Pairs of a step."""
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=20, rate=2e-3, log_steps=100))
    """Steps and rates."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.batch < 1 or not 0 <= self.dropout < 1:
            raise UsageError("lexical: hidden and batch must be at least 1, dropout at least 0 and below 1")


class Network(nn.Module):
    """Features → a logit whose sigmoid is the grade: standardised, then two hidden layers.

    Args:
        config: its sizes.
    """

    def __init__(self, config: LexicalConfig) -> None:
        super().__init__()
        self.register_buffer("mean_K", torch.zeros(len(FEATURES)))
        self.register_buffer("spread_K", torch.ones(len(FEATURES)))
        layers: list[nn.Module] = []
        width = len(FEATURES)
        for _ in range(2):
            layers += [nn.Linear(width, config.hidden), nn.GELU(), nn.Dropout(config.dropout)]
            width = config.hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def logits(self, features_NK: Tensor) -> Tensor:
        """float32 [N] of features float32 [N, K]."""
        with torch.autocast(features_NK.device.type, enabled=False):
            standard_NK = (features_NK - self.get_buffer("mean_K")) / self.get_buffer("spread_K")
            logits_N: Tensor = self.layers(standard_NK.clamp(-_FARTHEST, _FARTHEST)).squeeze(-1)
        return logits_N

    def forward(self, features_BK: Tensor, grades_B: Tensor) -> dict[str, Tensor]:
        """Binary cross-entropy with the grade as a soft target."""
        return {"loss": functional.binary_cross_entropy_with_logits(self.logits(features_BK), grades_B)}


class Lexical:
    """A trained network, and what weight it has beside cross-encoders.

    Args:
        network: it.
        weights: of the cross-encoders' logit and its own.
        digest: what names it in caches.
    """

    def __init__(self, network: Network, weights: Blend, digest: str) -> None:
        self.network, self.weights, self.digest = network.eval(), weights, digest

    def score(self, pairs: Sequence[TextPair]) -> Floats:
        """Its own logits of (query, document) pairs, float32 [N]; their sigmoid is the grade that words alone give."""
        return _logits(self.network, _table(pairs))

    def add(self, others_N: Floats, own_N: Floats) -> Floats:
        """The teacher's logits, float32 [N]: those of its cross-encoders and those of `score`, weighted."""
        return self.weights.apply(np.stack([others_N, own_N], axis=1))


def train(
    config: LexicalConfig,
    train_split: Split,
    dev: Split,
    others: Callable[[], Floats],
    *,
    named: str,
    output: Path,
    seed: int,
    report: Report | None = None,
) -> Lexical:
    """Trains a network on grades, and weighs it against cross-encoders on dev.

    Args:
        config: how.
        train_split: what is learned.
        dev: what is measured after each epoch, and what the weights are fitted on.
        others: asked once, gives the cross-encoders' logits of dev's pairs, float32 [N].
        named: what names these cross-encoders.
        output: folder of the run; a network that is there is loaded.
        seed: of everything random.
        report: what is told.

    Raises:
        UsageError: `output` holds another run, or the cross-encoders tell no pair from another.
    """
    report = report or Silent()
    accelerator = new_accelerator()
    described = {"lexical": dataclasses.asdict(config), "cross_encoders": named, "data": digest_of(train_split, dev)}
    run = Run(output, described | {"features": FEATURES, "seed": seed}, writes=accelerator.is_main_process)
    with locked(output, report, writes=accelerator.is_main_process):
        accelerator.wait_for_everyone()  # or some would look for it before another process has made it
        if not (output / _FILE).exists():
            _fit(config, train_split, dev, others, run=run, seed=seed, report=report, accelerator=accelerator)
        accelerator.wait_for_everyone()
    return load(output)


def load(folder: Path) -> Lexical:
    """A trained network.

    Raises:
        UsageError: `folder` holds none.
        BundleError: it is damaged, or of another version's features.
    """
    path = folder / _FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{folder}: has no trained lexical network yet ({error.strerror}); train its run") from error
    try:
        with safetensors.safe_open(path, "pt") as file:
            kept = json.loads(file.metadata()["lexical"])
        network = Network(LexicalConfig(hidden=kept["hidden"]))
        network.load_state_dict(safetensors.torch.load(content))
        weights = Blend(tuple(kept["weights"]), kept["bias"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise BundleError(f"{path}: is damaged ({error}); remove {folder} and train it again") from error
    if kept["features"] != list(FEATURES):
        raise BundleError(f"{path}: knows other features than this version; remove {folder} and train it again")
    return Lexical(network, weights, hashlib.sha256(content).hexdigest())


def _fit(
    config: LexicalConfig,
    train_split: Split,
    dev: Split,
    others: Callable[[], Floats],
    *,
    run: Run,
    seed: int,
    report: Report,
    accelerator: accelerate.Accelerator,
) -> None:
    torch.manual_seed(seed)
    network = Network(config)
    features_NK = _table([(pair.query, pair.document) for pair in train_split.pairs])
    network.get_buffer("mean_K").copy_(torch.from_numpy(features_NK.mean(0)))
    network.get_buffer("spread_K").copy_(torch.from_numpy(features_NK.std(0)).clamp_min(1e-6))
    data = _Rows(features_NK, train_split, config.batch, seed)
    dev_NK = _table([(pair.query, pair.document) for pair in dev.pairs])
    task = Task(
        name="lexical",
        module=network,
        batches=data.batches,
        collate=data.collate,
        validate=lambda: watch(_logits(network, dev_NK), dev),
    )
    fit(task, config.schedule, run=run, seed=seed, report=report, accelerator=accelerator)
    if accelerator.is_main_process:
        report.event("weighing", f"lexical: is weighed against the cross-encoders on {len(dev.pairs):,} pairs of dev")
        logits_N2 = np.stack([others(), _logits(network, dev_NK)], axis=1)
        weights = blend(logits_N2, np.array([pair.grade for pair in dev.pairs]))
        _save(network, weights, config, run.path / _FILE)
        run.drop_checkpoint()
        found = watch(weights.apply(logits_N2), dev)
        run.log(**{f"blended {name}": value for name, value in found.items()})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        shares = " and ".join(f"{weight:.2f}" for weight in weights.weights)
        report.event("weighed", f"lexical: weights {shares}; together {shown}", **found)


def _save(network: Network, weights: Blend, config: LexicalConfig, path: Path) -> None:
    kept = {"hidden": config.hidden, "features": FEATURES, "weights": weights.weights, "bias": weights.bias}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    replace_file(path, safetensors.torch.save(tensors, {"lexical": json.dumps(kept)}))


class _Rows:
    """The train split as batches."""

    def __init__(self, features_NK: Floats, split: Split, batch: int, seed: int) -> None:
        self._features_NK = torch.from_numpy(features_NK)
        self._grades_N = torch.tensor([pair.grade for pair in split.pairs], dtype=torch.float32)
        self._batch, self._seed = batch, seed

    def batches(self, epoch: int) -> list[list[int]]:
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._grades_N)).tolist()
        return [order[start : start + self._batch] for start in range(0, len(order), self._batch)]

    def collate(self, rows: list[int]) -> Mapping[str, Any]:
        return {"features_BK": self._features_NK[rows], "grades_B": self._grades_N[rows]}


def _table(pairs: Sequence[TextPair]) -> Floats:
    """Features float32 [N, K] of pairs."""
    return np.array([features(*pair) for pair in pairs], dtype=np.float32).reshape(len(pairs), len(FEATURES))


@torch.inference_mode()
def _logits(network: Network, features_NK: npt.NDArray[np.float32]) -> Floats:
    device = next(network.parameters()).device
    logits_N: Floats = network.logits(torch.from_numpy(features_NK).to(device)).cpu().numpy()
    return logits_N
