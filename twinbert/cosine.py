"""The cosine crossing without its graph, which for a hundred candidates takes three times as long to run.

Shapes: Q queries, N pairs, D dimension.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# As in the exported graph: a shorter vector counts as zero, whose cosine with anything is 0.
_SHORTEST = np.float32(1e-12)

# e to the power of more than this is no float32.
_LARGEST = np.float32(88)


class Crossing(Protocol):
    """A crossing layer at work."""

    def __call__(self, queries_QD: Floats, documents_ND: Floats, task_N: Ints) -> Floats:
        """Probabilities [N] of documents, each for the query that its task names."""


class Cosine:
    """p = σ(a · cos(q, d) + b).

    Every pair's products are summed by themselves, so its score has the same bits in any company; a matrix product
    would sum the last rows otherwise than the others, and be no faster.

    Args:
        a: learned scale.
        b: learned offset.
    """

    def __init__(self, a: float, b: float) -> None:
        self._a, self._b = np.float32(a), np.float32(b)

    def __call__(self, queries_QD: Floats, documents_ND: Floats, task_N: Ints) -> Floats:
        """Probabilities [N] of documents, each for the query that its task names."""
        # What would be done to each pair is done to its query: negated too, as 1 / (1 + e^-x) needs it.
        directions_QD = queries_QD * (-self._a / _lengths(queries_QD))[:, None]
        alone = len(directions_QD) == 1
        x_N = np.vecdot(documents_ND, directions_QD if alone else directions_QD.take(task_N, axis=0))
        x_N /= _lengths(documents_ND)
        x_N -= self._b
        np.minimum(x_N, _LARGEST, out=x_N)
        np.exp(x_N, out=x_N)
        x_N += np.float32(1)
        scores_N: Floats = np.reciprocal(x_N, out=x_N)
        return scores_N

    def proved(self, graph: Crossing, dimension: int) -> bool:
        """Whether an exported graph computes the same, to within rounding: on random vectors, equal and opposite ones
        and a zero.
        """
        random = np.random.default_rng(0)
        queries_QD = random.standard_normal((2, dimension), dtype=np.float32)
        documents_ND = random.standard_normal((8, dimension), dtype=np.float32)
        documents_ND[:3] = queries_QD[0], -2 * queries_QD[1], np.zeros(dimension)
        task_N = np.arange(8) % 2
        differences_N = np.abs(self(queries_QD, documents_ND, task_N) - graph(queries_QD, documents_ND, task_N))
        return bool(differences_N.max() <= 1e-6 * max(1.0, abs(float(self._a))))


def _lengths(vectors_ND: Floats) -> Floats:
    lengths_N: Floats = np.sqrt(np.vecdot(vectors_ND, vectors_ND))
    return np.maximum(lengths_N, _SHORTEST, out=lengths_N)
