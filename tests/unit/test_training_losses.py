"""Each loss against its formula, written out slowly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twinbert.training import losses

N, QUERIES = 17, 4
GENERATOR = torch.Generator().manual_seed(2002)
STUDENT_N = torch.randn(N, generator=GENERATOR) * 3
TEACHER_N = torch.randn(N, generator=GENERATOR) * 3
GRADES_N = torch.rand(N, generator=GENERATOR)
TASK_N = torch.tensor([0] * 6 + [1] + [3] * 7 + [0] * 3)  # one query has no pair, one has one, one is in two places


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(student: float, target: float) -> float:
    p = sigmoid(student)
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def by_query() -> list[list[int]]:
    return [[n for n in range(N) if TASK_N[n] == query] for query in range(QUERIES)]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_cross_entropy(temperature: float) -> None:
    """The mean over pairs of the cross-entropy of softened probabilities, times T²."""
    expected = [
        cross_entropy(s / temperature, sigmoid(t / temperature)) * temperature**2
        for s, t in zip(STUDENT_N.tolist(), TEACHER_N.tolist(), strict=True)
    ]
    found = losses.soft_cross_entropy(STUDENT_N, TEACHER_N, temperature=temperature)
    assert found.item() == pytest.approx(sum(expected) / N, rel=1e-5)


def test_graded_cross_entropy() -> None:
    """The mean over judged pairs; 0 where none is judged, and its gradient too."""
    grades_N = GRADES_N.clone()
    grades_N[::3] = torch.nan
    judged = [n for n in range(N) if n % 3]
    expected = sum(cross_entropy(STUDENT_N[n].item(), grades_N[n].item()) for n in judged) / len(judged)
    assert losses.graded_cross_entropy(STUDENT_N, grades_N).item() == pytest.approx(expected, rel=1e-5)
    student_N = STUDENT_N.clone().requires_grad_()
    loss = losses.graded_cross_entropy(student_N, torch.full((N,), torch.nan))
    (gradient_N,) = torch.autograd.grad(loss, student_N)
    assert loss.item() == 0
    assert not gradient_N.any()


def test_margin_mse() -> None:
    """The mean over every two documents of one query of the squared difference of differences."""
    squares = [
        ((STUDENT_N[i] - STUDENT_N[j]) - (TEACHER_N[i] - TEACHER_N[j])).item() ** 2
        for rows in by_query()
        for i in rows
        for j in rows
        if i < j
    ]
    expected = sum(squares) / len(squares)
    assert losses.margin_mse(STUDENT_N, TEACHER_N, TASK_N).item() == pytest.approx(expected, rel=1e-5)
    assert losses.margin_mse(STUDENT_N, TEACHER_N, torch.arange(N)).item() == pytest.approx(0)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_listwise_kl(temperature: float) -> None:
    """The mean over queries of the divergence of the softmax over a query's documents, times T²."""
    divergences = []
    for rows in filter(None, by_query()):
        shares = [[math.exp(x[n].item() / temperature) for n in rows] for x in (TEACHER_N, STUDENT_N)]
        teacher, student = ([share / sum(side) for share in side] for side in shares)
        divergences.append(sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True)) * temperature**2)
    found = losses.listwise_kl(STUDENT_N, TEACHER_N, TASK_N, temperature=temperature)
    assert found.item() == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)


def test_in_batch_softmax() -> None:
    """The mean over relevant pairs of −log of their share among themselves and the negatives; 0 without any."""
    student_QM = torch.randn(3, 5, generator=GENERATOR)
    relevant_QM = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    negative_QM = torch.tensor([[0, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    expected = []
    for q, d in relevant_QM.nonzero().tolist():
        others = [student_QM[q, m].exp().item() for m in range(5) if negative_QM[q, m]]
        own = student_QM[q, d].exp().item()
        expected.append(-math.log(own / (own + sum(others))))
    found = losses.in_batch_softmax(student_QM, relevant_QM, negative_QM)
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert losses.in_batch_softmax(student_QM, torch.zeros_like(relevant_QM), negative_QM).item() == 0


def test_in_batch_labels() -> None:
    """Grades come before the teacher; what was found for a query that shares a document is no negative."""
    # Query 0 has documents 0 and 1, query 1 has 1, 2 and 3, query 2 has 4.
    pairs = [(0, 0, 2.0, 0.25), (0, 1, -2.0, torch.nan), (1, 1, -2.0, 0.5), (1, 2, 2.0, torch.nan)]
    pairs += [(1, 3, 0.0, torch.nan), (2, 4, 2.0, torch.nan)]
    query_P, document_P = torch.tensor([pair[:2] for pair in pairs]).T
    teacher_P, grade_P = torch.tensor([pair[2:] for pair in pairs]).T
    relevant_QM, negative_QM = losses.in_batch_labels(query_P, document_P, teacher_P, grade_P, queries=3, documents=5)
    assert relevant_QM.int().tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]
    assert negative_QM.int().tolist() == [[1, 1, 0, 0, 1], [0, 0, 0, 1, 1], [1, 1, 1, 1, 0]]


def test_pairwise_logistic() -> None:
    """RankNet's loss over every two pairs of different grades, weighted by the difference."""
    total = weight = 0.0
    for i in range(N):
        for j in range(N):
            if (better := (GRADES_N[i] - GRADES_N[j]).item()) > 0:
                total += better * math.log(1 + math.exp((STUDENT_N[j] - STUDENT_N[i]).item()))
                weight += better
    assert losses.pairwise_logistic(STUDENT_N, GRADES_N).item() == pytest.approx(total / weight, rel=1e-5)
    assert losses.pairwise_logistic(STUDENT_N, torch.ones(N)).item() == 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: losses.soft_cross_entropy(s, TEACHER_N),
        lambda s: losses.margin_mse(s, TEACHER_N, TASK_N),
        lambda s: losses.listwise_kl(s, TEACHER_N, TASK_N),
        lambda s: losses.in_batch_softmax(s[None], TEACHER_N[None] > 0, TEACHER_N[None] <= 0),
        lambda s: losses.pairwise_logistic(s, GRADES_N),
    ],
)
def test_extreme_logits_leave_gradients_finite(loss: Callable[[Tensor], Tensor]) -> None:
    """Logits of ±1,000, as a bad step may give, yield no NaN in a loss or its gradient."""
    student_N = (STUDENT_N.sign() * 1_000).requires_grad_()
    value = loss(student_N)
    (gradient_N,) = torch.autograd.grad(value, student_N)
    assert value.isfinite()
    assert gradient_N.isfinite().all()
