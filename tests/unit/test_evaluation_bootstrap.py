"""Intervals: they cover, they follow queries, and paired ones are narrower."""

from __future__ import annotations

import math

import numpy as np
import pytest

from twinbert.errors import UsageError
from twinbert.training import bootstrap
from twinbert.training.metrics import Doubles, Floats, Judgments, measure


def judged(seed: int, *, queries: int, documents: int, shared: float) -> tuple[Judgments, Floats]:
    """Queries with mostly relevant or mostly other documents, whose scores err together, by `shared`, and alone."""
    random = np.random.default_rng(seed)
    query_N = np.repeat(np.arange(queries), documents)
    likely_Q = random.choice((0.2, 0.8), queries)
    grade_N = (random.random(len(query_N)) < likely_Q[query_N]).astype(np.float64)
    noise_N = shared * random.normal(size=queries)[query_N] + random.normal(size=len(query_N))
    return Judgments(query_N, grade_N), (1 / (1 + np.exp(-(grade_N + noise_N)))).astype(np.float32)


def areas(judgments: Judgments, scores_N: Floats, *, resamples: int = 300) -> Doubles:
    """auc2 under each resample."""
    return measure(scores_N, judgments, bootstrap.resample(judgments.queries, resamples))["auc2"]


def test_resamples_draw_as_many_queries_and_come_again() -> None:
    """The first weights are ones, every other adds up to the number of queries, and a seed gives them again."""
    weights_BQ = bootstrap.resample(30, 50, seed=3)
    assert weights_BQ.shape == (51, 30)
    assert (weights_BQ[0] == 1).all()
    assert (weights_BQ.sum(axis=1) == 30).all()
    assert (weights_BQ == bootstrap.resample(30, 50, seed=3)).all()
    assert (weights_BQ[1:] != bootstrap.resample(30, 50, seed=4)[1:]).any()


def test_intervals_cover_the_true_value() -> None:
    """Of 40 data sets whose area is known from a large one, about 95 % have it in their interval."""
    true = areas(*judged(0, queries=5_000, documents=5, shared=1.0), resamples=2)[0]
    estimates = [bootstrap.estimate(areas(*judged(seed, queries=80, documents=5, shared=1.0))) for seed in range(1, 41)]
    covered = sum(one.low <= true <= one.high for one in estimates)
    assert covered >= 33  # 99.9 % of binomials


def test_intervals_follow_queries_and_not_pairs() -> None:
    """Where errors are shared within a query, the interval is wider than if each pair were a query of its own."""
    judgments, scores_N = judged(1, queries=100, documents=10, shared=2.0)
    apart = Judgments(np.arange(len(scores_N)), judgments.grade_N)
    by_query, by_pair = (bootstrap.estimate(areas(j, scores_N)) for j in (judgments, apart))
    assert by_query.value == by_pair.value
    assert by_query.high - by_query.low > 1.2 * (by_pair.high - by_pair.low)


def test_paired_differences_are_narrower_than_either_interval() -> None:
    """A small difference between two systems that err alike is certain, though their intervals overlap."""
    judgments, scores_N = judged(2, queries=100, documents=10, shared=2.0)
    worse_N = np.clip(scores_N + np.random.default_rng(3).normal(0, 0.05, len(scores_N)), 0, 1).astype(np.float32)
    better_B, worse_B = areas(judgments, scores_N), areas(judgments, worse_N)
    better, worse = bootstrap.estimate(better_B), bootstrap.estimate(worse_B)
    gap = bootstrap.difference(better_B, worse_B)
    assert gap.value == pytest.approx(better.value - worse.value)
    assert gap.high - gap.low < 0.5 * (better.high - better.low)
    assert worse.high > better.low
    assert gap.certain


def test_a_system_does_not_differ_from_itself() -> None:
    """The paired difference of equal scores is exactly 0, and not certain."""
    values_B = areas(*judged(4, queries=20, documents=4, shared=1.0))
    gap = bootstrap.difference(values_B, values_B)
    assert (gap.value, gap.low, gap.high, gap.certain) == (0, 0, 0, False)


def test_resamples_without_a_value_are_left_out() -> None:
    """A resample that drew no relevant pair does not spoil the interval; no value at all gives NaN."""
    assert bootstrap.estimate(np.array([0.5, np.nan, 0.4, 0.6])).low == pytest.approx(0.405)
    assert math.isnan(bootstrap.estimate(np.array([np.nan, 0.4, 0.6])).low)
    assert math.isnan(bootstrap.estimate(np.array([0.5, np.nan])).value)


def test_too_few_resamples_are_refused() -> None:
    """One resample makes no interval."""
    with pytest.raises(UsageError, match="no interval"):
        bootstrap.resample(10, 1)
