"""What scores are worth against human grades, and how near they are to a teacher's.

Every metric is taken for B weightings of the queries at once, `weights_BQ`: ones give the metric itself, and the counts
of a bootstrap's resamples give its distribution, exactly as if the pairs of a query drawn twice stood there twice.

    auc2, auc233       area under the ROC curve over all pairs, relevant from grade 0.5 and 0.665 (r from 2 and 2.33)
    pr_auc             average precision over all pairs, relevant from grade 0.5
    ndcg10             nDCG@10, gain 4^grade − 1, that is 2^(r − 1) − 1; mean over queries with 5 judged documents
    pairwise           share of the pairs of a query's documents with different grades that are in the right order
    calibration_error  mean over pairs of |mean probability − mean grade| of their bin (Guo et al., arXiv 1706.04599);
                       of few pairs it is too high, and a resample's higher still
    spearman           rank correlation with the teacher within a query, mean over queries with 5 judged documents
    kl                 mean divergence of the Bernoulli distributions, teacher's from the system's, in nats

Shapes: N pairs, Q queries, B weightings, G groups of equal scores, K bins, R documents of one query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from twinbert.errors import UsageError
from twinbert.training.data import Pair

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

Report = dict[str, float]

RELEVANT: Mapping[str, float] = {"auc2": 0.5, "auc233": 0.665}
MINIMUM_JUDGED = 5  # fewer documents are in order by chance too often
DEPTH = 10
BINS = 15  # of Guo et al. 2017
LOWER_IS_BETTER = frozenset({"calibration_error", "kl"})

_GRADE_ROUNDING = 1e-6  # (2.33 − 1) / 2 in float is not quite 0.665
_SMALLEST_PROBABILITY = 1e-6  # keeps the divergence from a 0 finite
_AT_ONCE = 1 << 17  # numbers in one array [B, N]: 1 MiB, which a core's cache holds


@dataclass(frozen=True, eq=False)
class Judgments:
    """Judged pairs as arrays, in the order of the pairs that they were made of.

    Attributes:
        query_N: int64, the query of each pair, from 0 in order of appearance.
        grade_N: float64, in [0, 1].
    """

    query_N: Ints
    grade_N: Doubles

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Judgments:
        """The judgments of a split's pairs.

        Raises:
            UsageError: there are none.
        """
        if not pairs:
            raise UsageError("there are no judged pairs to evaluate on; give a split that has some")
        numbers: dict[str, int] = {}
        query_N = np.array([numbers.setdefault(pair.query, len(numbers)) for pair in pairs], np.int64)
        return cls(query_N, np.array([pair.grade for pair in pairs], np.float64))

    @cached_property
    def queries(self) -> int:
        """Q, the number of queries."""
        return int(self.query_N.max()) + 1

    @cached_property
    def rows(self) -> list[Ints]:
        """The pairs of each query, Q arrays [R]."""
        order_N = np.argsort(self.query_N, kind="stable")
        return np.split(order_N, np.cumsum(np.bincount(self.query_N))[:-1])

    def relevant(self, threshold: float) -> Bools:
        """Bool [N]: which pairs have at least this grade."""
        return self.grade_N >= threshold - _GRADE_ROUNDING


def evaluate(
    scores: Sequence[float] | Floats,
    pairs: Sequence[Pair],
    teacher_scores: Sequence[float] | Floats | None = None,
    *,
    probabilities: bool = True,
) -> Report:
    """Every metric of one system's scores.

    Args:
        scores: [N], of the pairs in their order.
        pairs: the judged pairs of a split.
        teacher_scores: [N] probabilities; without them there is no fidelity.
        probabilities: whether scores are such, so that calibration and divergence mean something.

    Returns:
        Metrics by name; NaN where one is not defined, such as an AUC where every pair is relevant.

    Raises:
        UsageError: there are no pairs, or scores that are not finite, not probabilities or not as many as pairs.
    """
    judgments = Judgments.of(pairs)
    ones_1Q = np.ones((1, judgments.queries))
    measured = measure(
        np.asarray(scores, np.float32),
        judgments,
        ones_1Q,
        teacher_N=None if teacher_scores is None else np.asarray(teacher_scores, np.float32),
        probabilities=probabilities,
    )
    return {name: float(values_B[0]) for name, values_B in measured.items()}


def measure(
    scores_N: Floats,
    judgments: Judgments,
    weights_BQ: Doubles,
    *,
    teacher_N: Floats | None = None,
    probabilities: bool = True,
) -> dict[str, Doubles]:
    """Every metric [B] of one system's scores, by name; arguments and errors as of `evaluate`."""
    _check(scores_N, len(judgments.grade_N), "scores", probabilities=probabilities)
    measured = _over_all_pairs(_Ranking(scores_N, judgments), weights_BQ, len(scores_N))
    measured["ndcg10"] = mean_over_queries(ndcg(scores_N, judgments), weights_BQ)
    right_Q, ordered_Q = concordance(scores_N, judgments)
    measured["pairwise"] = _ratio(weights_BQ @ right_Q, weights_BQ @ ordered_Q)
    pairs_B = weights_BQ @ np.bincount(judgments.query_N).astype(np.float64)
    if probabilities:
        # The gap of a bin is a sum over queries, so weighing queries weighs it.
        gap_QK = np.zeros((judgments.queries, BINS))
        np.add.at(gap_QK, (judgments.query_N, _bins(scores_N)), scores_N - judgments.grade_N)
        measured["calibration_error"] = _ratio(np.abs(weights_BQ @ gap_QK).sum(1), pairs_B)
    if teacher_N is not None:
        _check(teacher_N, len(scores_N), "the teacher's scores", probabilities=True)
        measured["spearman"] = mean_over_queries(spearman(scores_N, teacher_N, judgments), weights_BQ)
    if teacher_N is not None and probabilities:
        kl_Q = np.bincount(judgments.query_N, _divergence(teacher_N, scores_N))
        measured["kl"] = _ratio(weights_BQ @ kl_Q, pairs_B)
    return measured


def ndcg(scores_N: Floats, judgments: Judgments, depth: int = DEPTH) -> Doubles:
    """nDCG@depth [Q] with gain 4^grade − 1 (Järvelin & Kekäläinen 2002); NaN for a query with too few judged documents.

    Documents of equal scores take the mean of their places' discounts (McSherry & Najork 2008), so that no order of the
    input is rewarded. A query whose grades are all 0 counts as 0.
    """
    gains_N = 4.0**judgments.grade_N - 1
    longest = max(map(len, judgments.rows))
    discounts_R = np.where(np.arange(longest) < depth, 1 / np.log2(np.arange(longest) + 2), 0)

    def dcg(gains_R: Doubles, keys_R: npt.NDArray[np.floating]) -> float:
        _, group_R, counts_G = np.unique(-keys_R, return_inverse=True, return_counts=True)
        discount_G = np.add.reduceat(discounts_R[: len(keys_R)], np.cumsum(counts_G) - counts_G) / counts_G
        return float(gains_R @ discount_G[group_R])

    ndcg_Q = np.full(judgments.queries, np.nan)
    for query, rows_R in enumerate(judgments.rows):
        if len(rows_R) >= MINIMUM_JUDGED:
            gains_R = gains_N[rows_R]
            ideal = dcg(gains_R, gains_R)
            ndcg_Q[query] = dcg(gains_R, scores_N[rows_R]) / ideal if ideal > 0 else 0
    return ndcg_Q


def concordance(scores_N: Floats, judgments: Judgments) -> tuple[Doubles, Doubles]:
    """Pairs of a query's documents scored in the order of their grades (equal scores are a half), of how many; [Q]."""
    right_Q, ordered_Q = np.zeros(judgments.queries), np.zeros(judgments.queries)
    for query, rows_R in enumerate(judgments.rows):
        grades_R, scores_R = judgments.grade_N[rows_R], scores_N[rows_R]
        better_RR = grades_R[:, None] > grades_R
        agreement_RR = 0.5 + 0.5 * np.sign(scores_R[:, None] - scores_R)
        right_Q[query], ordered_Q[query] = agreement_RR[better_RR].sum(), better_RR.sum()
    return right_Q, ordered_Q


def spearman(scores_N: Floats, teacher_N: Floats, judgments: Judgments) -> Doubles:
    """Rank correlation [Q] with the teacher; NaN for a query with too few documents, or whose teacher scores are equal.

    A system that gives a query's documents one score has no correlation, 0.
    """
    spearman_Q = np.full(judgments.queries, np.nan)
    for query, rows_R in enumerate(judgments.rows):
        if len(rows_R) < MINIMUM_JUDGED:
            continue
        ranks_R, teacher_R = (_ranks(side[rows_R]) for side in (scores_N, teacher_N))
        if (spread := np.sqrt((ranks_R**2).sum() * (teacher_R**2).sum())) > 0:
            spearman_Q[query] = ranks_R @ teacher_R / spread
        elif teacher_R.any():
            spearman_Q[query] = 0
    return spearman_Q


def recall(retrieved: Sequence[Sequence[str]], relevant: Sequence[frozenset[str]], depth: int) -> Doubles:
    """Share [Q] of a query's relevant documents among the first `depth` retrieved; NaN for a query without any."""
    return np.array(
        [
            len(wanted.intersection(found[:depth])) / len(wanted) if wanted else np.nan
            for found, wanted in zip(retrieved, relevant, strict=True)
        ]
    )


def mean_over_queries(values_Q: Doubles, weights_BQ: Doubles) -> Doubles:
    """Weighted means [B] over the queries that have a value."""
    defined_Q = ~np.isnan(values_Q)
    return _ratio(weights_BQ @ np.where(defined_Q, values_Q, 0), weights_BQ @ defined_Q.astype(np.float64))


def reliability(probabilities_N: Floats, grade_N: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Mean probability, mean grade and share of the pairs in each of `BINS` bins of equal width, [K]; NaN if empty."""
    bin_N = _bins(probabilities_N)
    count_K = np.bincount(bin_N, minlength=BINS).astype(np.float64)
    sums = (np.bincount(bin_N, values_N, BINS).astype(np.float64) for values_N in (probabilities_N, grade_N))
    probability_K, grade_K = (_ratio(sum_K, count_K) for sum_K in sums)
    return probability_K, grade_K, count_K / len(bin_N)


def expected_calibration_error(probabilities_N: Floats, grade_N: Doubles) -> float:
    """`calibration_error` alone, of probabilities in [0, 1]."""
    gap_K = np.bincount(_bins(probabilities_N), probabilities_N - grade_N, BINS)
    return float(np.abs(gap_K).sum() / len(grade_N))


def _over_all_pairs(ranking: _Ranking, weights_BQ: Doubles, pairs: int) -> dict[str, Doubles]:
    step = max(1, _AT_ONCE // pairs)
    parts = [ranking.measure(weights_BQ[start : start + step]) for start in range(0, len(weights_BQ), step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Ranking:
    """All pairs in ascending order of their scores, those of equal scores in one group: what pooled metrics need."""

    def __init__(self, scores_N: Floats, judgments: Judgments) -> None:
        order_N = np.argsort(scores_N, kind="stable")
        sorted_N = scores_N[order_N]
        self._query_N = judgments.query_N[order_N]
        self._relevant_N = {name: judgments.relevant(threshold)[order_N] for name, threshold in RELEVANT.items()}
        self._starts_G = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])

    def measure(self, weights_BQ: Doubles) -> dict[str, Doubles]:
        """auc2, auc233 and pr_auc, [B]."""
        weights_BN = weights_BQ[:, self._query_N]
        all_BG = self._groups(weights_BN)
        relevant = {name: self._groups(weights_BN * relevant_N) for name, relevant_N in self._relevant_N.items()}
        measured = {name: _roc_auc(relevant_BG, all_BG - relevant_BG) for name, relevant_BG in relevant.items()}
        return measured | {"pr_auc": _average_precision(relevant["auc2"], all_BG)}

    def _groups(self, values_BN: Doubles) -> Doubles:
        """The sum of each group, [B, G]."""
        if len(self._starts_G) == values_BN.shape[1]:
            return values_BN
        sums_BG: Doubles = np.add.reduceat(values_BN, self._starts_G, axis=1)
        return sums_BG


def _roc_auc(relevant_BG: Doubles, other_BG: Doubles) -> Doubles:
    """Probability that a relevant pair scores above another; equal scores are a half."""
    below_BG = np.cumsum(other_BG, axis=1)
    others_B = below_BG[:, -1].copy()
    below_BG -= other_BG / 2
    return _ratio(np.einsum("bg,bg->b", relevant_BG, below_BG), relevant_BG.sum(1) * others_B)


def _average_precision(relevant_BG: Doubles, all_BG: Doubles) -> Doubles:
    """Σ (recall step) × (precision there), best scores first."""
    found_BG, taken_BG = (np.cumsum(side[:, ::-1], axis=1) for side in (relevant_BG, all_BG))
    np.maximum(taken_BG, 1, out=taken_BG)  # 0 only where nothing is found either
    precision_BG = np.divide(found_BG, taken_BG, out=taken_BG)
    return _ratio(np.einsum("bg,bg->b", relevant_BG[:, ::-1], precision_BG), found_BG[:, -1])


def _ranks(scores_R: Floats) -> Doubles:
    """Ranks around 0, equal scores sharing the mean of theirs."""
    sorted_R = np.sort(scores_R)
    below_R, up_to_R = (np.searchsorted(sorted_R, scores_R, side) for side in ("left", "right"))
    ranks_R: Doubles = (below_R + up_to_R - len(scores_R)) / 2
    return ranks_R


def _divergence(teacher_N: Floats, scores_N: Floats) -> Doubles:
    """KL(teacher ‖ system) of each pair, in nats."""
    t_N, p_N = (
        np.clip(side.astype(np.float64), _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
        for side in (teacher_N, scores_N)
    )
    divergence_N: Doubles = t_N * np.log(t_N / p_N) + (1 - t_N) * np.log((1 - t_N) / (1 - p_N))
    return divergence_N


def _bins(probabilities_N: Floats) -> Ints:
    bin_N: Ints = np.minimum((probabilities_N * BINS).astype(np.int64), BINS - 1)
    return bin_N


def _ratio(numerator: Doubles, denominator: Doubles) -> Doubles:
    """NaN where there is nothing to divide by."""
    ratio: Doubles = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
    return ratio


def _check(scores_N: Floats, pairs: int, what: str, *, probabilities: bool) -> None:
    if scores_N.shape != (pairs,):
        raise UsageError(f"{what} have shape {scores_N.shape} for {pairs:,} pairs; there must be one for each")
    if not np.isfinite(scores_N).all():
        raise UsageError(f"{what} have a value that is not finite at pair {int(np.argmin(np.isfinite(scores_N)))}")
    if probabilities and not ((scores_N >= 0) & (scores_N <= 1)).all():
        raise UsageError(f"{what} leave [0, 1], so they are no probabilities; say so, or apply the crossing's sigmoid")
