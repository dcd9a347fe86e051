"""Kept embeddings and scores of the tiny bundles: what a change of the model, the export or the runtime must not move.

Where one is meant to move them, `measure` gives the new content of its JSON file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinbert.bundle import TOWERS, Bundle
from twinbert.runtime import Runtime

QUERIES = ("running shoes", "remove duplicates from a list", "a")
DOCUMENTS = ("the list of shoes", "Read a CSV file!", "duplicates", "pizza pizza pizza " * 20)


def measure(bundle: Path) -> dict[str, Any]:
    """Embeddings of both towers and the scores of every pair, to 6 decimals."""
    runtime = Runtime(Bundle.open(bundle), towers=TOWERS)
    queries_QD, documents_ND = runtime.encode(QUERIES, "query"), runtime.encode(DOCUMENTS, "document")
    task_N, document_N = np.divmod(np.arange(len(QUERIES) * len(DOCUMENTS)), len(DOCUMENTS))
    scores_N = runtime.cross(queries_QD, documents_ND[document_N], task_N)
    return {
        "queries": np.round(queries_QD.astype(float), 6).tolist(),
        "documents": np.round(documents_ND.astype(float), 6).tolist(),
        "scores": np.round(scores_N.reshape(len(QUERIES), len(DOCUMENTS)).astype(float), 6).tolist(),
    }


@pytest.mark.parametrize("name", ["tiny_bundle", "other_bundle"])
def test_embeddings_and_scores_are_those_that_were_kept(name: str, request: pytest.FixtureRequest) -> None:
    """Every number is the kept one to 1e-5: more than machines differ by, less than changes a ranking."""
    kept = json.loads((Path(__file__).parent / f"{name}.json").read_bytes())
    measured = measure(request.getfixturevalue(name))
    for part, numbers in kept.items():
        np.testing.assert_allclose(measured[part], numbers, rtol=0, atol=1e-5, err_msg=part)
