"""The distances between rankings and between scores, against scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kendalltau, ks_2samp

from encoder_server.rankings import kendall_tau, ks_distance, top_overlap


@pytest.mark.parametrize("values", [3, 10, 1_000_000])
@pytest.mark.parametrize("count", [2, 3, 17, 150])
def test_kendall_tau_is_scipys(count: int, values: int) -> None:
    """τ-b, with few ties, many, and almost nothing else."""
    random = np.random.default_rng(count + values)
    for _ in range(20):
        before, after = random.integers(0, values, (2, count)).astype(np.float32)
        expected = kendalltau(before, after).statistic
        if math.isnan(expected):  # scipy calls both nothing: a ranking that lost its order, and one that had none
            assert math.isnan(kendall_tau(before, after)) == (len(set(before.tolist())) == 1)
        else:
            assert kendall_tau(before, after) == pytest.approx(expected, abs=1e-12)


def test_an_order_that_is_lost_is_not_an_order_that_is_kept() -> None:
    """Equal scores after different ones are 0, the reverse is -1, and what never had an order says nothing."""
    ranked, equal = np.arange(5, dtype=np.float32), np.ones(5, dtype=np.float32)
    assert kendall_tau(ranked, equal) == 0
    assert kendall_tau(ranked, -ranked) == -1
    assert math.isnan(kendall_tau(equal, ranked))
    assert math.isnan(kendall_tau(ranked[:1], ranked[:1]))


def test_overlap_of_the_best() -> None:
    """Of many candidates the 10 best count, of few the better half."""
    scores = np.arange(100, dtype=np.float32)
    assert top_overlap(scores, scores * 3 - 7) == 1
    assert top_overlap(scores, -scores) == 0
    moved = scores.copy()
    moved[[92, 95]] = -1
    assert top_overlap(scores, moved) == 0.8
    assert top_overlap(scores[:4], np.array([9, 0, 1, 2], dtype=np.float32)) == 0.5
    assert top_overlap(scores[:2], scores[:2][::-1]) == 0


@pytest.mark.parametrize("values", [4, 1000])
def test_ks_distance_is_scipys(values: int) -> None:
    """Also where scores are tied."""
    random = np.random.default_rng(values)
    for size in (1, 10, 500):
        before, after = random.integers(0, values, size) / values, random.integers(0, 2 * values, size) / values
        assert ks_distance(before, after) == pytest.approx(ks_2samp(before, after).statistic, abs=1e-12)
