"""Calibration: after training, probabilities that mean what they say, so that a threshold survives a change of model.

Platt scaling (Platt 1999; the temperature scaling of Guo et al., arXiv 1706.04599, with a bias): p = σ(x / T + c) of a
crossing's logit x. T and c go into the crossing's own weights, so what serves is still one sigmoid.

Several models of one thing are weighed against each other likewise: p = σ(Σₖ wₖ xₖ + c), which is stacking (Wolpert,
Neural Networks 5, 1992).

Shapes: N pairs, K models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twinbert.errors import UsageError
from twinbert.model.config import Calibration
from twinbert.training.metrics import expected_calibration_error

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_FLATTEST = 0.01  # slope of standardised logits: one that is negative would turn the model's order round


@dataclass(frozen=True, kw_only=True)
class Fitted(Calibration):
    """A calibration, with what it does on the very pairs that it was fitted on."""

    fitted_pairs: int
    """How many they are."""
    fitted_error_before: float
    """The expected calibration error on them without it."""
    fitted_error_after: float
    """With it; on other pairs it is larger, as a rule."""


@dataclass(frozen=True)
class Blend:
    """Weights of several logits that become one."""

    weights: tuple[float, ...]
    """wₖ, none below 0."""
    bias: float
    """c."""

    def apply(self, logits_NK: Floats) -> Floats:
        """Σₖ wₖ xₖ + c, float32 [N] of float32 [N, K]."""
        blended_N: Floats = (logits_NK @ np.array(self.weights) + self.bias).astype(np.float32)
        return blended_N


def fit(logits_N: Floats, grades_N: Doubles) -> Fitted:
    """T and c of the smallest cross-entropy with the grades, by L-BFGS; the problem is convex in 1 / T and c.

    Args:
        logits_N: of a crossing.
        grades_N: human grades in [0, 1], of pairs that were not trained on.

    Raises:
        UsageError: the logits are all equal, or not finite.
    """
    (slope,), bias = _fit(logits_N[:, None], grades_N, [_FLATTEST])
    x_N = logits_N.astype(np.float64)
    calibrated_N = slope * x_N + bias
    return Fitted(
        temperature=1 / slope,
        bias=bias,
        fitted_pairs=len(x_N),
        fitted_error_before=expected_calibration_error(_sigmoid(x_N).astype(np.float32), grades_N),
        fitted_error_after=expected_calibration_error(_sigmoid(calibrated_N).astype(np.float32), grades_N),
    )


def blend(logits_NK: Floats, grades_N: Doubles) -> Blend:
    """The weights of the smallest cross-entropy with the grades; one that only misleads gets 0, the first never.

    Args:
        logits_NK: of K models, the one that has to have a say first.
        grades_N: human grades in [0, 1], of pairs that none of them was trained on.

    Raises:
        UsageError: the first model's logits are all equal, or any are not finite.
    """
    telling = [0, *(k for k in range(1, logits_NK.shape[1]) if np.ptp(logits_NK[:, k]) != 0)]  # one that is flat gets 0
    slopes, bias = _fit(logits_NK[:, telling], grades_N, [_FLATTEST] + [0.0] * (len(telling) - 1))
    weights = dict(zip(telling, slopes, strict=True))
    return Blend(tuple(weights.get(k, 0.0) for k in range(logits_NK.shape[1])), bias)


def _fit(logits_NK: Floats, grades_N: Doubles, least: list[float]) -> tuple[list[float], float]:
    """wₖ, of standardised logits at least `least`, and c."""
    from scipy.optimize import minimize

    x_NK = logits_NK.astype(np.float64)
    if not np.isfinite(x_NK).all() or (np.ptp(x_NK, axis=0) == 0).any():
        raise UsageError("calibration: the logits are all the same, or not finite; the model has learned nothing")
    centre_K, spread_K = x_NK.mean(0), x_NK.std(0)
    z_NK = (x_NK - centre_K) / spread_K  # standardised, so that one starting point suits every model

    def loss(parameters: Doubles) -> tuple[float, Doubles]:
        logit_N = z_NK @ parameters[:-1] + parameters[-1]
        error_N = _sigmoid(logit_N) - grades_N
        value = np.logaddexp(0, logit_N).mean() - (grades_N * logit_N).mean()
        return float(value), np.append((error_N[:, None] * z_NK).mean(0), error_N.mean())

    start = np.append(np.ones(len(least)), 0.0)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[*((low, None) for low in least), (None, None)])
    slopes_K = found.x[:-1] / spread_K
    return slopes_K.tolist(), float(found.x[-1] - slopes_K @ centre_K)


def _sigmoid(logit_N: Doubles) -> Doubles:
    probability_N: Doubles = 0.5 * (1 + np.tanh(logit_N / 2))  # never overflows
    return probability_N
