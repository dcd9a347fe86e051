"""How far a measured quality can be trusted: percentile bootstrap over queries (Efron 1979).

Queries are resampled, not pairs: the pairs of a query share its difficulty, and as many independent pairs would give
intervals that are too narrow. Two systems are compared on the same resamples: what is hard for both cancels out.

Shapes: Q queries, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinbert.errors import UsageError
from twinbert.training.metrics import Doubles

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval at `LEVEL`; all NaN where the value is not defined."""

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval lies wholly on one side of 0: for a difference, whether it is one."""
        return self.low > 0 or self.high < 0


def resample(queries: int, resamples: int = RESAMPLES, *, seed: int = 0) -> Doubles:
    """Weights float64 [1 + B, Q]: first ones, for the value itself, then how often each resample drew each query.

    Raises:
        UsageError: fewer than 2 resamples.
    """
    if resamples < 2:
        raise UsageError(f"{resamples} resamples make no interval; take {RESAMPLES}")
    drawn_BQ = np.random.default_rng(seed).multinomial(queries, np.full(queries, 1 / queries), resamples)
    return np.concatenate([np.ones((1, queries)), drawn_BQ.astype(np.float64)])


def estimate(values_B: Doubles) -> Estimate:
    """The estimate from a metric of `resample`'s weights, [1 + B]. Resamples that do not define it are left out."""
    drawn_B = values_B[1:][~np.isnan(values_B[1:])]
    if np.isnan(values_B[0]) or not len(drawn_B):
        return Estimate(np.nan, np.nan, np.nan)
    low, high = np.quantile(drawn_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values_B[0]), float(low), float(high))


def difference(left_B: Doubles, right_B: Doubles) -> Estimate:
    """The estimate of left − right from two systems' metrics [1 + B] of the same weights: the paired bootstrap."""
    return estimate(left_B - right_B)
