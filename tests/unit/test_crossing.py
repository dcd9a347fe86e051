"""The residual crossing against its formula written out, and calibration of both kinds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from twinbert.errors import UsageError
from twinbert.model.config import Calibration, CrossingKind, ResidualConfig, ResidualStart, TowerConfig, TwinConfig
from twinbert.model.crossing import CosineCrossing, ResidualCrossing, make_crossing
from twinbert.model.twin import TwinBert

D, BOTTLENECK = 6, 4
TOWER = TowerConfig(vocabulary=50, hidden=D, layers=1, heads=2, feed_forward=8, positions=12)
TWIN = TwinConfig(
    query=TOWER, document=TOWER, query_max_tokens=8, document_max_tokens=12, crossings=("residual", "cosine")
)


def residual(start: ResidualStart, scale: float = 1.0) -> ResidualCrossing:
    """A layer with random parameters, so that nothing is zero."""
    torch.manual_seed(11)
    crossing = ResidualCrossing(ResidualConfig(bottleneck=BOTTLENECK, start=start), D, scale)
    with torch.no_grad():
        for parameter in crossing.parameters():
            nn.init.normal_(parameter) if parameter.ndim else parameter.fill_(-1.5)
    return crossing


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Three queries, five documents, and whose candidates these are."""
    torch.manual_seed(12)
    return torch.randn(3, D), torch.randn(5, D), torch.tensor([2, 0, 0, 1, 2])


def logit_by_hand(crossing: ResidualCrossing, query: list[float], document: list[float]) -> float:
    """The formula number by number: x = max(q, d), y = relu(W₂ relu(W₁ x) + x), s · w · y + b."""

    def linear(layer: nn.Linear, values: list[float]) -> list[float]:
        bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
        return [
            sum(weight * value for weight, value in zip(row, values, strict=True)) + add
            for row, add in zip(layer.weight.tolist(), bias, strict=True)
        ]

    x = [max(q, d) for q, d in zip(query, document, strict=True)]
    narrow = [max(0.0, value) for value in linear(crossing.down, x)]
    y = [max(0.0, value + at) for value, at in zip(linear(crossing.up, narrow), x, strict=True)]
    (weighted,) = linear(crossing.output, [crossing.scale * value for value in y])
    if crossing.cosine is None:
        return weighted
    product = sum(q * d for q, d in zip(query, document, strict=True))
    cosine = product / math.hypot(*query) / math.hypot(*document)
    return weighted + crossing.cosine.a.item() * cosine + crossing.cosine.b.item()


@pytest.mark.parametrize("start", ["plain", "cosine"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_residual_crossing_is_its_formula(start: ResidualStart, scale: float) -> None:
    """Logits and probabilities of each document with the query that its task names are those computed by hand."""
    crossing, (queries_QD, documents_ND, task_N) = residual(start, scale), pairs()
    logits = [
        logit_by_hand(crossing, queries_QD[task].tolist(), document_D.tolist())
        for task, document_D in zip(task_N.tolist(), documents_ND, strict=True)
    ]
    torch.testing.assert_close(crossing.logits(queries_QD, documents_ND, task_N), torch.tensor(logits))
    scores = [1 / (1 + math.exp(-logit)) for logit in logits]
    torch.testing.assert_close(crossing(queries_QD, documents_ND, task_N), torch.tensor(scores))


def test_with_a_cosine_it_starts_as_one_and_learns() -> None:
    """Until trained, one with a cosine start is a cosine crossing; its branch gets gradients from the first step."""
    torch.manual_seed(13)
    new, vectors = ResidualCrossing(ResidualConfig(), D), pairs()
    logits_N = new.logits(*vectors)
    torch.testing.assert_close(logits_N, CosineCrossing().logits(*vectors))
    logits_N.sum().backward()
    assert new.output.weight.grad is not None
    assert new.output.weight.grad.abs().max() > 0
    assert new.output.bias is None  # the cosine has one


def test_the_plain_form_is_a_choice() -> None:
    """A configuration chooses bottleneck and start; embeddings of length 1 are scaled up to parts of about 1."""
    plain = make_crossing("residual", replace(TWIN, residual=ResidualConfig(bottleneck=3, start="plain")))
    assert isinstance(plain, ResidualCrossing)
    assert (plain.cosine, plain.scale, plain.down.weight.shape) == (None, 1.0, (3, D))
    unit = replace(TOWER, normalisation="l2")
    scaled = make_crossing("residual", replace(TWIN, query=unit, document=unit))
    assert isinstance(scaled, ResidualCrossing)
    assert scaled.scale == math.sqrt(D)
    assert scaled.cosine is not None


def test_a_model_has_several_crossings_and_a_default() -> None:
    """Both heads are over the same embeddings; the first that the configuration names is the default."""
    twin = TwinBert(TWIN).eval()
    vectors = pairs()
    with torch.no_grad():
        for kind in TWIN.crossings:
            torch.testing.assert_close(
                twin.crossing(kind)(*vectors), torch.sigmoid(twin.crossing(kind).logits(*vectors))
            )
    assert [*twin.crossings] == ["residual", "cosine"]


@pytest.mark.parametrize("kind", ["cosine", "plain", "residual"])
def test_calibration_becomes_part_of_the_layer(kind: str) -> None:
    """After `calibrate` the logits are the earlier ones divided by the temperature, plus the bias."""
    crossing = (
        CosineCrossing(7.0, -2.0) if kind == "cosine" else residual("plain" if kind == "plain" else "cosine", 2.0)
    )
    vectors = pairs()
    with torch.no_grad():
        before_N = crossing.logits(*vectors)
        crossing.calibrate(Calibration(temperature=1.7, bias=-0.3))
        torch.testing.assert_close(crossing.logits(*vectors), before_N / 1.7 - 0.3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: ResidualConfig(bottleneck=0), "bottleneck is 0; it must be at least 1"),
        (lambda: ResidualConfig(start="warm"), "start is 'warm'; there are cosine and plain"),
        (lambda: Calibration(temperature=0.0), "temperature is 0.0 and bias 0.0"),
        (lambda: Calibration(temperature=math.inf), "temperature is inf"),
        (lambda: Calibration(bias=math.nan), "bias nan"),
        (lambda: replace(TWIN, crossings=("cosine", "cosine")), "cosine, cosine names one twice"),
        (lambda: replace(TWIN, crossings=("dot",)), "'dot' is none; there are cosine and residual"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Callable[[], object], words: str) -> None:
    """A configuration of crossings is checked when it is made, and the message names the value."""
    with pytest.raises(UsageError, match=words):
        wrong()


def test_descriptions_tell_what_was_learned() -> None:
    """bundle.json gets a and b of a cosine, and the configuration of a residual crossing."""
    kinds: dict[CrossingKind, object] = {kind: TwinBert(TWIN).crossing(kind).description() for kind in TWIN.crossings}
    assert kinds["cosine"] == {"a": 10.0, "b": -5.0}
    assert kinds["residual"] == {"architecture": {"bottleneck": 64, "start": "cosine"}, "a": 10.0, "b": -5.0}
    assert residual("plain").description() == {"architecture": {"bottleneck": BOTTLENECK, "start": "plain"}}
