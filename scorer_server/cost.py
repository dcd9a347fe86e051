"""What encoding a batch costs, and how much later than that answers are: both learned from those before."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# Of the weight of what was learned, with each batch: some twenty batches count.
_KEPT = 0.95

# Half of the batches take longer than expected.
CAUTION = 1.25
_MOST = math.log(4 / CAUTION)

# Of the answers, this share may be later than the estimate times the factor; how fast that is learned, and forgotten.
_LATE = 0.05
_STEP = 0.1
_HALVED_S = 5.0


class BatchCost:
    """Seconds of a batch = fixed + per token × tokens, fitted by least squares to the latest batches.

    A model of seconds a token alone would be wrong by the ratio of a small batch to a large one, just when a queue
    forms: a run costs as much as a dozen tokens.

    Attributes:
        fixed_s: seconds a batch; 0 while nothing is known.
        token_s: seconds a token.
    """

    def __init__(self) -> None:
        self.fixed_s = self.token_s = 0.0
        self._weight = self._tokens = self._seconds = self._tokens_squared = self._product = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch of so many tokens took so long."""
        self._weight = _KEPT * self._weight + 1
        self._tokens = _KEPT * self._tokens + tokens
        self._seconds = _KEPT * self._seconds + seconds
        self._tokens_squared = _KEPT * self._tokens_squared + tokens * tokens
        self._product = _KEPT * self._product + tokens * seconds
        mean_tokens, mean_s = self._tokens / self._weight, self._seconds / self._weight
        variance = self._tokens_squared / self._weight - mean_tokens**2
        covariance = self._product / self._weight - mean_tokens * mean_s
        # Where all batches are alike nothing is known of the slope: the least that larger ones can cost is assumed.
        slope = covariance / variance if variance > 0.01 * mean_tokens**2 else 0.0
        self.token_s = min(max(0.0, slope), mean_s / mean_tokens)
        self.fixed_s = mean_s - self.token_s * mean_tokens

    def seconds(self, tokens: int, batch_tokens: int) -> float:
        """What so many tokens cost in batches of at most `batch_tokens`."""
        return math.ceil(tokens / batch_tokens) * self.fixed_s + tokens * self.token_s


class Lateness:
    """By what factor answers are later than estimated: all but one in twenty are within it.

    Batches take longer while others, refusals and callers want the same cores. A quantile by stochastic approximation
    (Robbins and Monro, 1951), in logarithms: one that is late raises the factor as much as nineteen that are not lower
    it. It is forgotten with time too: where the factor keeps all from waiting, there is nothing to learn from.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._learned, self._at = 0.0, clock()  # the logarithm of factor ÷ CAUTION, and when it was that

    @property
    def factor(self) -> float:
        """Between `CAUTION` and 4."""
        return CAUTION * math.exp(self._remembered())

    def observe(self, expected_s: float, passed_s: float) -> None:
        """An answer that was expected after so many seconds took so many."""
        late = passed_s > self.factor * expected_s
        learned = self._remembered() + _STEP * ((1 - _LATE) if late else -_LATE)
        self._learned, self._at = min(max(0.0, learned), _MOST), self._clock()

    def _remembered(self) -> float:
        return self._learned * math.exp2((self._at - self._clock()) / _HALVED_S)
