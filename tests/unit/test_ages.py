"""The histogram of the ages of what was scored."""

from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry, Histogram

from scorer_server.ages import BUCKETS, Ages

NOW_MS = 1_800_000_000_000
NAME = "twinbert_document_age_seconds"


def shown(ages: Ages) -> dict[str, float]:
    """What Prometheus sees: buckets by bound, count and sum."""
    registry = CollectorRegistry()
    registry.register(ages)
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    return {sample.labels.get("le", sample.name.removeprefix(NAME)): sample.value for sample in samples}


def test_it_counts_as_a_histogram_does() -> None:
    """Buckets, count and sum are those of Prometheus' own histogram that observed each document, bounds included."""
    random = np.random.default_rng(7)
    seconds = np.concatenate([random.integers(0, 2 * BUCKETS[-1], 3000), BUCKETS, np.array(BUCKETS) + 1])
    ours, theirs = Ages(), Histogram(NAME, "", buckets=BUCKETS, registry=None)
    for part in np.array_split(seconds, 17):
        ours.observe(NOW_MS - 1000 * part, NOW_MS)
    for age in seconds.tolist():
        theirs.observe(age)
    expected = [sample for metric in theirs.collect() for sample in metric.samples if "created" not in sample.name]
    assert shown(ours) == {one.labels.get("le", one.name.removeprefix(NAME)): one.value for one in expected}


def test_it_is_there_before_the_first_request_and_after_an_empty_one() -> None:
    """Every bucket is shown, at zero."""
    ages = Ages()
    ages.observe(np.empty(0, dtype=np.int64), NOW_MS)
    assert set(shown(ages).values()) == {0}
    assert len(shown(ages)) == len(BUCKETS) + 3


def test_a_clock_that_jumps_changes_no_sign() -> None:
    """A source time in the future counts as now, one from before all history as very old; the sum never falls."""
    ages = Ages()
    ages.observe(np.array([NOW_MS + 3_600_000, NOW_MS], dtype=np.int64), NOW_MS)
    assert (shown(ages)["60.0"], shown(ages)["_sum"]) == (2, 0)
    extremes = np.array([np.iinfo(np.int64).min + NOW_MS + 1] * 4000, dtype=np.int64)
    ages.observe(extremes, NOW_MS)
    assert (shown(ages)["3.1536e+07"], shown(ages)["+Inf"]) == (2, 4002)
    assert shown(ages)["_sum"] > 0
