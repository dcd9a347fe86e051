"""Calibration finds the temperature and bias that logits lack."""

from __future__ import annotations

import numpy as np
import pytest

from twinbert.errors import UsageError
from twinbert.training.calibration import fit


def test_known_temperature_and_bias_are_found() -> None:
    """Logits that are 3 times too large and shifted come back, and the calibration error all but vanishes."""
    generator = np.random.default_rng(0)
    true_N = generator.normal(0.5, 1.5, 20_000)
    grades_N = (generator.random(20_000) < 1 / (1 + np.exp(-true_N))).astype(np.float64)
    fitted = fit((3 * true_N - 2).astype(np.float32), grades_N)
    assert fitted.temperature == pytest.approx(3, rel=0.05)
    assert fitted.bias == pytest.approx(2 / 3, abs=0.05)
    assert fitted.fitted_error_after < 0.02
    assert fitted.fitted_error_before > 0.1
    assert fitted.fitted_pairs == 20_000


def test_the_fit_is_the_best_there_is() -> None:
    """On soft grades no temperature and bias near the fitted ones have a smaller cross-entropy."""
    generator = np.random.default_rng(1)
    logits_N = generator.normal(0, 2, 500).astype(np.float32)
    grades_N = np.clip(0.5 + 0.1 * logits_N + generator.normal(0, 0.2, 500), 0, 1)

    def loss(temperature: float, bias: float) -> float:
        x_N = logits_N / temperature + bias
        return float((np.logaddexp(0, x_N) - grades_N * x_N).mean())

    found = fit(logits_N, grades_N)
    best = loss(found.temperature, found.bias)
    for factor, shift in ((1.05, 0), (0.95, 0), (1, 0.05), (1, -0.05)):
        assert best < loss(found.temperature * factor, found.bias + shift)


def test_order_is_never_turned_round() -> None:
    """Logits that go against the grades keep their order: the temperature stays above 0."""
    logits_N = np.linspace(-1, 1, 50).astype(np.float32)
    assert fit(logits_N, (logits_N < 0).astype(np.float64)).temperature > 0


@pytest.mark.parametrize("logits", [[1.0, 1.0], [1.0, float("nan")]])
def test_logits_that_say_nothing_are_refused(logits: list[float]) -> None:
    """All equal, or not finite: a clear error."""
    with pytest.raises(UsageError, match="the model has learned nothing"):
        fit(np.array(logits, dtype=np.float32), np.array([0.0, 1.0]))
