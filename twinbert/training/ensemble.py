"""A recipe's teacher whole: voices that each grade pairs by themselves, weighed against each other on dev.

Cross-encoders err alike where twins and words do not, so together they err less, and what errs less teaches better
(Hofstätter et al., arXiv 2010.02666). Weights fitted on dev are stacking (Wolpert, Neural Networks 5, 1992).

    RUN/blend/configuration.json    the voices, by digest, and the digest of dev
    RUN/blend/weights.json          what was fitted, and what each voice and all of them give on dev

Shapes: N pairs, V voices.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np

from twinbert.bundle import Bundle
from twinbert.errors import UsageError
from twinbert.training import student
from twinbert.training.calibration import Blend, blend
from twinbert.training.data import Split
from twinbert.training.devices import Precision, cache_name, new_accelerator, precision_of
from twinbert.training.report import Report
from twinbert.training.runs import Run, locked, replace_text
from twinbert.training.teacher import Floats, TextPair, digest_of, watch

CROSS_ENCODERS = "cross-encoders"
WORDS = "words"
REMEDY = "make it with `twinbert train teacher`"

_FILE = "weights.json"


class Grader(Protocol):
    """Something that grades pairs."""

    digest: str
    """What names it: with equal digests, equal scores in one precision."""

    def score(self, pairs: Sequence[TextPair], *, precision: Precision = "float32") -> Floats:
        """Logits float32 [N] of (query, document) pairs; their sigmoid is the expected grade."""


class Voice(Grader, Protocol):
    """One that speaks in an ensemble."""

    def cache_name(self, precision: Precision) -> str:
        """What names a cache of its scores."""

    def order(self, query: str, document: str) -> tuple[int, str]:
        """Pairs whose orders are neighbours are scored together at the least cost."""


class CrossEncoders:
    """Cross-encoders that speak with one voice, the mean of their logits.

    Args:
        members: at least one.
    """

    def __init__(self, members: Sequence[Grader]) -> None:
        self._members = members
        digests = [member.digest for member in members]
        self.digest = digests[0] if len(digests) == 1 else sha256(" ".join(digests).encode()).hexdigest()

    def score(self, pairs: Sequence[TextPair], *, precision: Precision = "float32") -> Floats:
        """See `Voice`."""
        logits_N: Floats = np.mean([member.score(pairs, precision=precision) for member in self._members], axis=0)
        return logits_N

    def cache_name(self, precision: Precision) -> str:
        """See `Voice`."""
        return cache_name(self.digest, precision)

    def order(self, query: str, document: str) -> tuple[int, str]:
        """Of like length, so that a batch has little padding."""
        return len(query) + len(document), ""


class TwinVoice:
    """A twin, by its first crossing.

    Args:
        path: its bundle.
    """

    def __init__(self, path: Path) -> None:
        self._student = student.load(path)
        self.digest = Bundle.open(path).model

    def score(self, pairs: Sequence[TextPair], *, precision: Precision = "float32") -> Floats:
        """See `Voice`."""
        return self._student.logits(pairs, precision=precision)

    def cache_name(self, precision: Precision) -> str:
        """See `Voice`."""
        return cache_name(self.digest, precision)

    def order(self, _query: str, document: str) -> tuple[int, str]:
        """Of one document, which is then encoded once."""
        return len(document), document


class Ensemble:
    """Voices and their weights.

    Args:
        voices: by name, at least one.
        weights: in their order; None: there is one voice.
    """

    def __init__(self, voices: Mapping[str, Voice], weights: Blend | None = None) -> None:
        self.voices, self.weights = voices, weights

    def score(self, pairs: Sequence[TextPair], *, precision: Precision = "float32") -> Floats:
        """The teacher's logits, float32 [N]; their sigmoid is the expected grade."""
        return self.combine([voice.score(pairs, precision=precision) for voice in self.voices.values()])

    def combine(self, logits_VN: Sequence[Floats]) -> Floats:
        """The teacher's logits, float32 [N], of what each voice said: float32 [N], in the order of the voices."""
        return logits_VN[0] if self.weights is None else self.weights.apply(np.stack(logits_VN, axis=1))


def weigh(voices: Mapping[str, Voice], dev: Split, *, output: Path, report: Report) -> Ensemble:
    """Weighs voices against each other on dev, once.

    Args:
        voices: by name; the first is never silenced.
        dev: what none of them has learned from.
        output: folder of the weights; those that are there are taken.
        report: what is told.

    Raises:
        UsageError: the first voice tells no pair from another, or `output` has the weights of other voices.
    """
    if len(voices) == 1:
        return Ensemble(voices)
    accelerator = new_accelerator()
    main = accelerator.is_main_process
    named = {name: voice.digest for name, voice in voices.items()}
    run = Run(output, {"voices": named, "dev": digest_of(dev)}, writes=main)
    with locked(output, report, writes=main):
        accelerator.wait_for_everyone()  # or some would look for them before another process has made them
        if not (output / _FILE).exists() and main:
            report.event("weighing", f"blend: {', '.join(voices)} are weighed on {len(dev.pairs):,} pairs of dev")
            precision = precision_of(accelerator)
            logits_NV = np.stack([voice.score(dev.texts(), precision=precision) for voice in voices.values()], axis=1)
            weights = blend(logits_NV, np.array([pair.grade for pair in dev.pairs]))
            told = {name: watch(logits_N, dev) for name, logits_N in zip(voices, logits_NV.T, strict=True)}
            told["together"] = watch(weights.apply(logits_NV), dev)
            kept = dataclasses.asdict(weights) | {"dev": told}
            replace_text(run.path / _FILE, json.dumps(kept, indent=2) + "\n")
            shown = ", ".join(f"{name} {found['auc2']:.4f}" for name, found in told.items())
            shares = dict(zip(voices, (round(weight, 4) for weight in weights.weights), strict=True))
            report.event("weighed", f"blend: auc2 on dev: {shown}", weights=shares, **told["together"])
        accelerator.wait_for_everyone()
    return load(voices, output)


def load(voices: Mapping[str, Voice], folder: Path) -> Ensemble:
    """Voices with the weights that they have in a run.

    Raises:
        UsageError: they were not weighed yet.
    """
    if len(voices) == 1:
        return Ensemble(voices)
    if not (folder / _FILE).exists():
        raise UsageError(f"{folder}: the voices of the teacher were not weighed yet; {REMEDY}")
    try:
        kept = json.loads((folder / _FILE).read_bytes())
        return Ensemble(voices, Blend(tuple(kept["weights"]), kept["bias"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / _FILE}: is damaged ({error}); remove {folder}, and {REMEDY}") from error
