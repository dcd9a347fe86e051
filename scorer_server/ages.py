"""How old the embeddings are that requests are answered with: a histogram over every document scored.

A hundred documents a request are too many to observe one by one, which would cost more than scoring them: a request's
ages are counted at once, in a few numpy calls, and Prometheus is shown the sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400

# Seconds: from what deltas promise to what nobody refreshes any more.
BUCKETS = (
    *(_MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR),
    *(_DAY, 2 * _DAY, 4 * _DAY, 7 * _DAY, 14 * _DAY, 30 * _DAY, 90 * _DAY, 365 * _DAY),
)

# A source that says nonsense must not make the sum overflow, and so fall.
_OLDEST_MS = 100 * 365 * _DAY * 1000


class Ages(Collector):
    """The histogram `twinbert_document_age_seconds`. Written by one thread; any thread may collect it."""

    def __init__(self) -> None:
        self._bounds_ms = np.array(BUCKETS, dtype=np.int64) * 1000
        self._youngest_ms, self._oldest_ms = np.int64(0), np.int64(_OLDEST_MS)
        # One reference, replaced whole: whoever collects sees counts and sum of the same requests.
        self._counted: tuple[npt.NDArray[np.int64], int] = (np.zeros(len(BUCKETS) + 1, dtype=np.int64), 0)

    def observe(self, times_F: npt.NDArray[np.int64], now_ms: int) -> None:
        """Counts documents by their source times, in milliseconds since the Unix epoch; the future counts as now."""
        ages_F = np.minimum(np.maximum(now_ms - times_F, self._youngest_ms), self._oldest_ms)
        places_F = self._bounds_ms.searchsorted(ages_F)
        counts, total_ms = self._counted
        self._counted = counts + np.bincount(places_F, minlength=len(counts)), total_ms + int(ages_F.sum())

    def collect(self) -> Iterable[Metric]:
        """The histogram as Prometheus takes it."""
        counts, total_ms = self._counted
        bounds = map(floatToGoString, (*BUCKETS, math.inf))
        yield HistogramMetricFamily(
            "twinbert_document_age_seconds",
            "Age of the embeddings that were scored, by their documents' source times.",
            buckets=list(zip(bounds, accumulate(counts.tolist()), strict=True)),
            sum_value=total_ms / 1000,
        )
