"""Calibration: after training, probabilities that mean what they say, so that a threshold survives a change of model.

Platt scaling (Platt 1999; the temperature scaling of Guo et al., arXiv 1706.04599, with a bias): p = σ(x / T + c) of a
crossing's logit x. T and c go into the crossing's own weights, so what serves is still one sigmoid.

Shapes: N pairs.
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


def fit(logits_N: Floats, grades_N: Doubles) -> Fitted:
    """T and c of the smallest cross-entropy with the grades, by L-BFGS; the problem is convex in 1 / T and c.

    Args:
        logits_N: of a crossing.
        grades_N: human grades in [0, 1], of pairs that were not trained on.

    Raises:
        UsageError: the logits are all equal, or not finite.
    """
    from scipy.optimize import minimize

    x_N = logits_N.astype(np.float64)
    if not np.isfinite(x_N).all() or x_N.std() == 0:
        raise UsageError("calibration: the logits are all the same, or not finite; the model has learned nothing")
    centre, spread = x_N.mean(), x_N.std()
    z_N = (x_N - centre) / spread  # standardised, so that one starting point suits every model

    def loss(parameters: Doubles) -> tuple[float, Doubles]:
        logit_N = parameters[0] * z_N + parameters[1]
        error_N = _sigmoid(logit_N) - grades_N
        value = np.logaddexp(0, logit_N).mean() - (grades_N * logit_N).mean()
        return float(value), np.array([(error_N * z_N).mean(), error_N.mean()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(_FLATTEST, None), (None, None)])
    slope = float(found.x[0] / spread)
    bias = float(found.x[1] - slope * centre)
    calibrated_N = slope * x_N + bias
    return Fitted(
        temperature=1 / slope,
        bias=bias,
        fitted_pairs=len(x_N),
        fitted_error_before=expected_calibration_error(_sigmoid(x_N).astype(np.float32), grades_N),
        fitted_error_after=expected_calibration_error(_sigmoid(calibrated_N).astype(np.float32), grades_N),
    )


def _sigmoid(logit_N: Doubles) -> Doubles:
    probability_N: Doubles = 0.5 * (1 + np.tanh(logit_N / 2))  # never overflows
    return probability_N
