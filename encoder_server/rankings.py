"""How far two rankings, or two distributions of scores, are apart.

Shapes: N candidates that both score.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating[Any]]

_TOP = 10


def kendall_tau(before_N: Scores, after_N: Scores) -> float:
    """Kendall's τ-b (Kendall 1945): 1 for the same order, -1 for the reverse.

    A ranking that lost its order, in which all scores are equal, is 0; NaN where there was none to lose.
    """
    first, second = np.triu_indices(len(before_N), 1)
    order_before = np.sign(before_N[first] - before_N[second])
    order_after = np.sign(after_N[first] - after_N[second])
    ordered = np.count_nonzero(order_before), np.count_nonzero(order_after)
    if not ordered[0]:
        return math.nan
    agreeing = int((order_before * order_after).sum())  # less those that disagree
    return agreeing / math.sqrt(ordered[0] * ordered[1]) if ordered[1] else 0.0


def top_overlap(before_N: Scores, after_N: Scores) -> float:
    """Share of the 10 best that stay among the 10 best, in [0, 1]; of fewer than 20 candidates the better half counts,
    since 10 of 10 would always stay.
    """
    top = max(1, min(_TOP, len(before_N) // 2))
    best = [set(np.argsort(-scores_N, kind="stable")[:top].tolist()) for scores_N in (before_N, after_N)]
    return len(best[0] & best[1]) / top


def ks_distance(before_N: Scores, after_N: Scores) -> float:
    """The largest difference between the two distribution functions (Kolmogorov-Smirnov), in [0, 1]."""
    at = np.concatenate([before_N, after_N])
    shares = [np.searchsorted(np.sort(scores_N), at, side="right") / len(scores_N) for scores_N in (before_N, after_N)]
    return float(np.abs(shares[0] - shares[1]).max())
