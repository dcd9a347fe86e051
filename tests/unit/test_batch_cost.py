"""What batches cost, and how late answers are, as learned from those before."""

from __future__ import annotations

import random

import pytest

from scorer_server.cost import CAUTION, BatchCost, Lateness

BATCH = 1024


def test_nothing_is_known_at_first() -> None:
    """Before the first batch an estimate is zero: nobody is refused on a guess."""
    assert BatchCost().seconds(10_000, BATCH) == 0


def test_a_fixed_and_a_growing_part_are_told_apart() -> None:
    """From noisy batches of various sizes a queue of several batches is estimated within a tenth."""
    cost, noise = BatchCost(), random.Random(5)
    for _ in range(200):
        tokens = noise.randint(3, 300)
        cost.observe(tokens, (0.0025 + 0.0002 * tokens) * noise.uniform(0.95, 1.05))
    assert cost.seconds(3000, BATCH) == pytest.approx(3 * 0.0025 + 3000 * 0.0002, rel=0.1)
    assert cost.seconds(6, BATCH) == pytest.approx(0.0025 + 6 * 0.0002, rel=0.5)


def test_batches_that_are_all_alike_say_nothing_of_larger_ones() -> None:
    """Then a large batch is taken to cost no more: a request is refused only for what was seen."""
    cost = BatchCost()
    for _ in range(50):
        cost.observe(8, 0.004)
    assert cost.seconds(8, BATCH) == pytest.approx(0.004)
    assert cost.seconds(BATCH, BATCH) == pytest.approx(0.004)
    assert cost.seconds(3 * BATCH, BATCH) == pytest.approx(0.012)


def test_the_latest_batches_count() -> None:
    """A machine that became ten times slower is known to be after some fifty batches."""
    cost, sizes = BatchCost(), random.Random(5)
    for slow in (1, 10):
        for _ in range(60):
            tokens = sizes.randint(3, 300)
            cost.observe(tokens, slow * (0.002 + 0.0002 * tokens))
    assert cost.seconds(1000, BATCH) == pytest.approx(10 * 0.202, rel=0.2)


def test_an_estimate_is_never_negative() -> None:
    """Whatever noise makes of the fit, neither part of it falls below zero."""
    cost = BatchCost()
    for tokens, seconds in ((10, 5.0), (100, 0.1), (1000, 0.01), (5, 9.0)):
        cost.observe(tokens, seconds)
        assert cost.fixed_s >= 0
        assert cost.token_s >= 0


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_estimate_is_stretched_until_nineteen_answers_of_twenty_are_within_it() -> None:
    """Answers that come between once and thrice after what was expected are expected after nearly three times it."""
    lateness, noise = Lateness(Clock()), random.Random(5)
    factors = []
    for _ in range(3000):
        lateness.observe(0.1, 0.1 * noise.uniform(1, 3))
        factors.append(lateness.factor)
    assert 2.7 < sum(factors[1000:]) / 2000 < 3.0


def test_answers_in_time_bring_the_caution_back() -> None:
    """However late answers were, the factor stays bounded, and returns when a few hundred were in time."""
    lateness = Lateness(Clock())
    for _ in range(100):
        lateness.observe(0.1, 100.0)
    assert lateness.factor == pytest.approx(4)
    for _ in range(300):
        lateness.observe(0.1, 0.1)
    assert lateness.factor == CAUTION


def test_lateness_is_forgotten_where_nothing_is_learned() -> None:
    """When all are refused nobody is late, and nobody in time: after half a minute it is as if nobody had been."""
    clock = Clock()
    lateness = Lateness(clock)
    for _ in range(100):
        lateness.observe(0.1, 100.0)
    factors = [lateness.factor]
    for clock.now in (5.0, 10.0, 30.0):
        factors.append(lateness.factor)
    assert factors == sorted(factors, reverse=True)
    assert factors[1] == pytest.approx((4 * CAUTION) ** 0.5)
    assert factors[-1] == pytest.approx(CAUTION, rel=0.02)
