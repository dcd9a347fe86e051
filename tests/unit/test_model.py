"""Towers, crossing layers and their configuration, in torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from twinbert.errors import UsageError
from twinbert.model.config import TowerConfig, TwinConfig
from twinbert.model.crossing import CosineCrossing
from twinbert.model.tower import Attention, Layer, Tower
from twinbert.model.twin import TwinBert

TOWER = TowerConfig(vocabulary=50, hidden=16, layers=2, heads=4, feed_forward=24, positions=12)
TWIN = TwinConfig(query=TOWER, document=TOWER, query_max_tokens=8, document_max_tokens=12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 3}, "3 heads do not divide a hidden width of 16"),
        ({"layers": 0}, "layers is 0"),
        ({"projection": 0}, "projection is 0"),
        ({"pooling": "max"}, "pooling is 'max'; there are cls and weighted"),
        ({"normalisation": "l1"}, "normalisation is 'l1'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm_epsilon": 0.0}, "norm_epsilon is 0.0"),
    ],
)
def test_a_tower_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    """A configuration is checked when it is made, and the message names the value."""
    with pytest.raises(UsageError, match=words):
        replace(TOWER, **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query_max_tokens": 13}, "query tower: max_tokens is 13; it must be 3 to 12"),
        ({"document_max_tokens": 2}, "document tower: max_tokens is 2"),
        ({"query": replace(TOWER, projection=8)}, "dimension is 8 and 16"),
        ({"query": replace(TOWER, pooling="cls")}, "pooling is cls and weighted"),
        ({"query": replace(TOWER, layers=1), "shared": True}, "cannot share weights"),
        ({"crossings": ()}, "at least one is needed"),
    ],
)
def test_towers_that_do_not_go_together_are_refused(change: dict[str, Any], words: str) -> None:
    """Two towers have one kind of embedding, and share weights only where they are alike."""
    with pytest.raises(UsageError, match=words):
        replace(TWIN, **change)


@pytest.fixture
def tower() -> Tower:
    """A tower whose pooling weighs tokens unevenly."""
    torch.manual_seed(3)
    tower = Tower(TOWER).eval()
    torch.nn.init.normal_(tower.pooling.get_parameter("score.weight"))
    return tower


@torch.no_grad()
def test_padding_changes_nothing(tower: Tower) -> None:
    """A text has the same embedding alone as among longer ones, whatever ids its padding has."""
    ids_BL = torch.randint(1, 50, (3, 12))
    alone_1D = tower(ids_BL[1:2, :4], torch.ones(1, 4, dtype=torch.int64))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 4:] = 0
    assert torch.allclose(tower(ids_BL, mask_BL)[1:2], alone_1D, atol=1e-6)


def projected(linear: torch.nn.Linear, state_H: list[float]) -> list[float]:
    """A linear layer by its formula."""
    rows, bias = linear.weight.tolist(), linear.bias.tolist()
    return [sum(w * x for w, x in zip(row, state_H, strict=True)) + b for row, b in zip(rows, bias, strict=True)]


def attended(attention: Attention, states_LH: list[list[float]]) -> list[list[float]]:
    """Multi-head self-attention of one text by its formula, number by number."""
    width = len(states_LH[0]) // attention.heads
    queries, keys, values = (
        [projected(linear, state) for state in states_LH]
        for linear in (attention.query, attention.key, attention.value)
    )
    outputs = []
    for query in queries:
        mixed = []
        for start in range(0, width * attention.heads, width):
            head = range(start, start + width)
            shares = [math.exp(sum(query[k] * key[k] for k in head) / math.sqrt(width)) for key in keys]
            mixed += [sum(s * v[k] for s, v in zip(shares, values, strict=True)) / sum(shares) for k in head]
        outputs.append(projected(attention.output, mixed))
    return outputs


def normed(norm: torch.nn.LayerNorm, state_H: list[float]) -> list[float]:
    """A layer norm by its formula."""
    mean = sum(state_H) / len(state_H)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in state_H) / len(state_H) + norm.eps)
    scale, bias = norm.weight.tolist(), norm.bias.tolist()
    return [(x - mean) / deviation * s + b for x, s, b in zip(state_H, scale, bias, strict=True)]


@torch.no_grad()
def test_a_layer_computes_the_formulas_of_bert() -> None:
    """Attention and a whole layer, of a full and a padded text, are what loops over single numbers give."""
    torch.manual_seed(8)
    layer = Layer(TOWER).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    states_BLH = torch.randn(2, 5, 16)
    lengths = (5, 3)
    mask_B11L = torch.zeros(2, 1, 1, 5)
    mask_B11L[1, ..., 3:] = torch.finfo(torch.float32).min
    found_BLH = layer.attention(states_BLH, mask_B11L), layer(states_BLH, mask_B11L)
    for text, length in enumerate(lengths):
        states_LH = states_BLH[text, :length].tolist()
        attention_LH = attended(layer.attention, states_LH)
        layer_LH = []
        for state, taken in zip(states_LH, attention_LH, strict=True):
            middle = normed(layer.attention_norm, [x + y for x, y in zip(state, taken, strict=True)])
            active = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in projected(layer.up, middle)]
            down = projected(layer.down, active)
            layer_LH.append(normed(layer.down_norm, [x + y for x, y in zip(middle, down, strict=True)]))
        for found, expected in zip(found_BLH, (attention_LH, layer_LH), strict=True):
            np.testing.assert_allclose(found[text, :length].numpy(), expected, atol=2e-5)


@torch.no_grad()
def test_weighted_pooling_starts_as_the_mean(tower: Tower) -> None:
    """With w = 0 and b = 0 the embedding is the mean of the real tokens' states; trained, it is their weighted sum."""
    ids_BL, mask_BL = torch.randint(1, 50, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    states_BLH = tower.states(ids_BL, mask_BL)
    weight, bias = tower.pooling.get_parameter("score.weight"), tower.pooling.get_parameter("score.bias")
    alpha_L = (states_BLH[1, :4] @ weight[0] + bias).softmax(0)
    assert torch.allclose(tower(ids_BL, mask_BL)[1], alpha_L @ states_BLH[1, :4], atol=1e-6)
    weight.zero_()
    assert torch.allclose(tower(ids_BL, mask_BL)[1], states_BLH[1, :4].mean(0), atol=1e-6)


@torch.no_grad()
def test_cls_pooling_projection_and_normalisation() -> None:
    """`cls` takes the first state; a projection ends in tanh; l2 makes every embedding's length 1."""
    torch.manual_seed(4)
    tower = Tower(replace(TOWER, pooling="cls", projection=8, normalisation="l2")).eval()
    ids_BL = torch.randint(1, 50, (2, 6))
    mask_BL = torch.ones_like(ids_BL)
    assert tower.projection is not None
    expected_BD = torch.tanh(tower.projection(tower.states(ids_BL, mask_BL)[:, 0]))
    assert torch.allclose(tower(ids_BL, mask_BL), expected_BD / expected_BD.norm(dim=-1, keepdim=True), atol=1e-6)
    assert (tower.config.dimension, tower.config.activation) == (8, "tanh")


def test_cosine_crossing_is_the_sigmoid_of_a_scaled_cosine() -> None:
    """Each document meets the query that its task names; a zero vector has cosine 0, and its gradient is finite."""
    random = np.random.default_rng(5)
    queries_QD, documents_ND = random.standard_normal((2, 6)), 3 * random.standard_normal((4, 6))
    documents_ND[3] = 0
    task_N = np.array([1, 0, 1, 0])
    cosine_N = (queries_QD[task_N] * documents_ND).sum(1) / np.linalg.norm(queries_QD[task_N], axis=1)
    cosine_N[:3] /= np.linalg.norm(documents_ND[:3], axis=1)
    documents = torch.from_numpy(documents_ND).float().requires_grad_()
    scores_N = CosineCrossing(a=7.0, b=-2.0)(torch.from_numpy(queries_QD).float(), documents, torch.from_numpy(task_N))
    np.testing.assert_allclose(scores_N.detach().numpy(), 1 / (1 + np.exp(2 - 7 * cosine_N)), atol=1e-6)
    scores_N.sum().backward()
    assert documents.grad is not None
    assert documents.grad.isfinite().all()


@torch.no_grad()
def test_a_twin_scores_pairs_with_its_parts() -> None:
    """A TwinBERT's score is its crossing of its towers' embeddings; shared towers are one set of parameters."""
    torch.manual_seed(6)
    apart, shared = TwinBert(TWIN).eval(), TwinBert(replace(TWIN, shared=True)).eval()
    query, document = ((ids, torch.ones_like(ids)) for ids in (torch.randint(50, (2, 5)), torch.randint(50, (3, 7))))
    task_N = torch.tensor([0, 1, 1])
    expected_N = apart.crossing("cosine")(apart.query(*query), apart.document(*document), task_N)
    assert torch.equal(apart(query, document, task_N, "cosine"), expected_N)
    count = sum(parameter.numel() for parameter in shared.document.parameters())
    assert sum(parameter.numel() for parameter in shared.parameters()) == count + 2
    assert sum(parameter.numel() for parameter in apart.parameters()) == 2 * count + 2
