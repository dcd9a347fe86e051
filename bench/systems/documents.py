"""The documents that peers cross in their caller's process: ids and embeddings, from a file.

Only numpy: callers also run in the environments of peers. Shapes: n documents, N candidates, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.workloads import Task

Floats = npt.NDArray[np.float32]
Cross = Callable[[Sequence[Task], Floats], list[list[float]]]


def crossing(path: str) -> Cross:
    """The cosines of the queries' embeddings [Q, D] and of each query's candidates; all are of length 1."""
    with np.load(Path(path)) as saved:
        row = {str(id_): number for number, id_ in enumerate(saved["ids"])}
        embeddings_nD: Floats = saved["embeddings"]

    def cross(tasks: Sequence[Task], queries_QD: Floats) -> list[list[float]]:
        return [
            (embeddings_nD[[row[id_] for id_ in ids]] @ query_D).tolist()
            for (_, ids), query_D in zip(tasks, queries_QD, strict=True)
        ]

    return cross
