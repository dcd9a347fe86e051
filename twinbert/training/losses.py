"""What a student learns from its teacher: losses over the pairs of a block.

Shapes: N pairs, Q queries, M documents of a block. Logits and grades are float32; `task_N`, int64, is the query of each
pair. Every loss is a scalar, a mean, so that weights between losses do not depend on the size of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_RELEVANT = 0.5  # grade
_NEVER = -1e9  # as a logit; of only −∞ the gradient of logsumexp is NaN


def soft_cross_entropy(student_N: Tensor, teacher_N: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The student's probability against the teacher's, pair by pair: the loss of TwinBERT (arXiv 2002.06275).

    mean of −T² [t log p + (1 − t) log(1 − p)],  t = σ(teacher / T),  p = σ(student / T)

    T² keeps the gradient's size the same at every temperature (Hinton et al., arXiv 1503.02531).

    Args:
        student_N: logits.
        teacher_N: logits.
        temperature: T above 0; the higher, the more the teacher's doubts count.
    """
    soft_N = torch.sigmoid(teacher_N / temperature)
    return functional.binary_cross_entropy_with_logits(student_N / temperature, soft_N) * temperature**2


def graded_cross_entropy(student_N: Tensor, grades_N: Tensor) -> Tensor:
    """The student's probability against human grades in [0, 1]; pairs without one, NaN, are left out.

    mean over judged pairs of −[g log p + (1 − g) log(1 − p)],  p = σ(student); 0 where no pair is judged
    """
    judged_N = ~torch.isnan(grades_N)
    losses_N = functional.binary_cross_entropy_with_logits(student_N, grades_N.nan_to_num(), reduction="none")
    return (losses_N * judged_N).sum() / judged_N.sum().clamp_min(1)


def margin_mse(student_N: Tensor, teacher_N: Tensor, task_N: Tensor) -> Tensor:
    """Differences between two documents of a query, as the teacher has them (Hofstätter et al., arXiv 2010.02666).

    mean over i < j of the same query of [(studentᵢ − studentⱼ) − (teacherᵢ − teacherⱼ)]²; 0 where there are none

    The published form has one relevant and one irrelevant document a query; this takes every two. With n pairs of a
    query and errors eᵢ = studentᵢ − teacherᵢ, Σ_{i<j} (eᵢ − eⱼ)² = n Σ eᵢ² − (Σ eᵢ)²: nothing of size N × N is made.
    """
    errors_N = student_N - teacher_N
    queries = int(task_N.max()) + 1
    counts_Q = _sums(torch.ones_like(errors_N), task_N, queries)
    sums_Q = _sums(errors_N, task_N, queries)
    # Deviations from the query's mean: the difference of two large sums would lose digits.
    deviations_N = errors_N - (sums_Q / counts_Q.clamp_min(1))[task_N]
    squares_Q = counts_Q * _sums(deviations_N.square(), task_N, queries)
    couples_Q = counts_Q * (counts_Q - 1) / 2
    return squares_Q.sum() / couples_Q.sum().clamp_min(1)


def listwise_kl(student_N: Tensor, teacher_N: Tensor, task_N: Tensor, *, temperature: float = 1.0) -> Tensor:
    """How the teacher ranks a query's documents: the top-one probabilities of ListNet (Cao et al., ICML 2007).

    mean over queries of T² Σᵢ tᵢ (log tᵢ − log pᵢ),  t = softmaxᵢ(teacherᵢ / T),  p = softmaxᵢ(studentᵢ / T)

    KL between the two distributions over the documents of one query that are in the block; a query with one document
    adds 0. T² as in `soft_cross_entropy`. RocketQAv2 distils so (Ren et al., arXiv 2110.07367).
    """
    queries = int(task_N.max()) + 1
    log_teacher_N = _log_softmax(teacher_N / temperature, task_N, queries)
    log_student_N = _log_softmax(student_N / temperature, task_N, queries)
    divergences_N = log_teacher_N.exp() * (log_teacher_N - log_student_N)
    present_Q = torch.bincount(task_N, minlength=queries) > 0
    return divergences_N.sum() / present_Q.sum() * temperature**2


def in_batch_softmax(student_QM: Tensor, relevant_QM: Tensor, negative_QM: Tensor) -> Tensor:
    """A query's relevant documents among the block's (Henderson et al., arXiv 1705.00652; the scale is in the logits).

    mean over relevant (q, d) of −log [ exp s(q, d) / (exp s(q, d) + Σ_{d′ negative for q} exp s(q, d′)) ]

    What is neither is left out of the sum: other relevant documents are no mistakes, and others may be.

    Args:
        student_QM: logits of every query with every document.
        relevant_QM: bool.
        negative_QM: bool.

    Returns:
        0 where nothing is relevant.
    """
    against_Q1 = student_QM.masked_fill(~negative_QM, _NEVER).logsumexp(dim=1, keepdim=True)
    losses_QM = torch.logaddexp(student_QM, against_Q1) - student_QM
    return losses_QM.masked_fill(~relevant_QM, 0.0).sum() / relevant_QM.sum().clamp_min(1)


def in_batch_labels(
    query_P: Tensor, document_P: Tensor, teacher_P: Tensor, grade_P: Tensor, *, queries: int, documents: int
) -> tuple[Tensor, Tensor]:
    """Which documents of a block are relevant to each query, and which count against it, for `in_batch_softmax`.

    Of a query's own pairs those are relevant whose grade is at least 0.5, or where no human has judged the teacher's
    probability above 0.5; the others are negative. A document of other queries is negative unless one of them shares
    a document with this query: they ask for like things, and what was found for one may well suit the other.

    Args:
        query_P: int64, of the pairs.
        document_P: int64, likewise.
        teacher_P: float32 logits.
        grade_P: float32, NaN where there is none.
        queries: Q.
        documents: M.

    Returns:
        relevant and negative, bool [Q, M], never both.
    """
    paired_QM = torch.zeros(queries, documents, device=query_P.device)
    paired_QM[query_P, document_P] = 1.0
    relevant_QM = torch.zeros_like(paired_QM, dtype=torch.bool)
    relevant_QM[query_P, document_P] = torch.where(grade_P.isnan(), teacher_P > 0, grade_P >= _RELEVANT)
    alike_QQ = (paired_QM @ paired_QM.T > 0).float()
    strange_QM = alike_QQ @ paired_QM == 0
    return relevant_QM, strange_QM | (paired_QM.bool() & ~relevant_QM)


def pairwise_logistic(student_N: Tensor, grades_N: Tensor) -> Tensor:
    """The better of any two documents first: RankNet (Burges et al., ICML 2005), weighted by how much better.

    Σ_{gᵢ > gⱼ} (gᵢ − gⱼ) log(1 + exp(studentⱼ − studentᵢ)) / Σ_{gᵢ > gⱼ} (gᵢ − gⱼ); 0 where all are equal

    Any two of the batch, of whatever query: what the area under the ROC curve counts.
    """
    better_NN = (grades_N[:, None] - grades_N[None, :]).clamp_min(0)
    losses_NN = functional.softplus(student_N[None, :] - student_N[:, None])
    return (better_NN * losses_NN).sum() / better_NN.sum().clamp_min(torch.finfo(torch.float32).tiny)


def _sums(values_N: Tensor, task_N: Tensor, queries: int) -> Tensor:
    return values_N.new_zeros(queries).index_add(0, task_N, values_N)  # [Q]


def _log_softmax(logits_N: Tensor, task_N: Tensor, queries: int) -> Tensor:
    """Within each query, [N]."""
    largest_Q = logits_N.new_full((queries,), -torch.inf).scatter_reduce(0, task_N, logits_N.detach(), "amax")
    shifted_N = logits_N - largest_Q[task_N]
    totals_Q = _sums(shifted_N.exp(), task_N, queries)
    return shifted_N - totals_Q.clamp_min(torch.finfo(torch.float32).tiny).log()[task_N]
