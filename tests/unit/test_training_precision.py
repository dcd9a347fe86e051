"""In what precision students, teachers and bi-encoders compute where training is mixed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinbert.importing import import_twin
from twinbert.model.config import ResidualConfig
from twinbert.training import initial, losses, recipe, space, student, synthetic, teacher, teaching
from twinbert.training.blocks import Blocks
from twinbert.training.devices import Precision, new_accelerator
from twinbert.training.distillation import Distillation, LossWeights
from twinbert.training.ensemble import CROSS_ENCODERS, CrossEncoders, Ensemble
from twinbert.training.pairs import Pairs, judged
from twinbert.training.report import Silent

DATASET = synthetic.dataset(queries=40)
TINY = recipe.load("tiny")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The synthetic BERT."""
    synthetic.save_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def scored() -> Pairs:
    """The judged pairs, scored by a teacher that knows the grades."""
    pairs = judged(DATASET)
    return dataclasses.replace(pairs, teacher_P=(4 * pairs.grade_P - 2).astype(np.float32))


def test_losses_have_float32_logits_where_towers_are_in_bf16(
    checkpoint: Path, scored: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every crossing gives float32, the plain residual too, of pairs and of every query with every document."""
    changes = {"checkpoint": str(checkpoint), "residual": ResidualConfig(start="plain")}
    config = dataclasses.replace(TINY.students["wordpiece"], **changes)
    twin, tokenizer = initial.build(config, tmp_path, scored, seed=1)
    one = student.Student(twin, tokenizer)
    tokens = one.tokenizers["query"].encode(scored.queries), one.tokenizers["document"].encode(scored.documents)
    blocks = Blocks(scored, *tokens, documents=24, group=2, together=8, seed=0)
    given: list[torch.dtype] = []

    def loss(logits: torch.Tensor, *_: torch.Tensor, **__: float) -> torch.Tensor:
        given.append(logits.dtype)
        return logits.mean()

    for name in ("soft_cross_entropy", "in_batch_softmax"):
        monkeypatch.setattr(losses, name, loss)
    with torch.autocast("cpu", torch.bfloat16):
        Distillation(twin, LossWeights(in_batch_softmax=1))(**blocks.collate(blocks.batches(0)[0]))
    assert given == [torch.float32] * 4


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_is_computed_for_training_is_in_its_precision(
    precision: Precision, checkpoint: Path, scored: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher scores and a bi-encoder embeds in what the process trains in; the name of a cache tells float32."""
    new_accelerator(precision)
    suffix = "-float32" if precision == "float32" else ""
    voice = CrossEncoders([teacher.open_checkpoint(checkpoint, max_tokens=24)])
    scorer = Ensemble({CROSS_ENCODERS: voice})
    found = teaching.score_pairs(TINY, DATASET, scorer, tmp_path / "scores", Silent())
    off_P = np.abs(found.teacher_P - scorer.score(found.texts()))
    assert (off_P.max() < 1e-5) == (precision == "float32")
    assert [path.name for path in (tmp_path / "scores").glob("*.scores")] == [f"{voice.digest}{suffix}.scores"]

    class LearnsError(Exception):
        """Ends a first stage where it begins."""

    def fit_space(*_: object, **given: Any) -> None:
        raise LearnsError(given["texts"], given["vectors_NH"])

    monkeypatch.setattr(space, "_fit", fit_space)
    config = TINY.students["triletter"]
    assert config.space is not None
    config = dataclasses.replace(config, space=dataclasses.replace(config.space, teacher=str(checkpoint)))
    with pytest.raises(LearnsError) as caught:
        student.train(config, DATASET, scored, output=tmp_path, seed=1)
    texts, vectors_NH = caught.value.args
    imported = import_twin(str(checkpoint))
    off_NH = np.abs(vectors_NH - student.Student(imported.twin, imported.tokenizer).embed(texts, "document"))
    assert (off_NH.max() < 1e-5) == (precision == "float32")
    [path] = (tmp_path / "vectors").glob("*.f32")
    assert path.stem.removesuffix("-float32") + suffix == path.stem
