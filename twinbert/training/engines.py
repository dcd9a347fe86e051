"""What a bundle's int8 query tower costs on labelled pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from twinbert.bundle import TOWERS, Bundle
from twinbert.runtime import Runtime
from twinbert.training.baselines import numbered
from twinbert.training.data import Split
from twinbert.training.metrics import evaluate


def engine_areas(bundle: Bundle, split: Split) -> dict[str, Any]:
    """auc2 of both engines by the default crossing, on the same document embeddings.

    Raises:
        UsageError: the split has no pairs.
        BundleError: the bundle has no int8 query tower.
    """
    exact, quantised = Runtime(bundle, towers=TOWERS), Runtime(bundle, engine="int8")
    queries, query_N = numbered([pair.query for pair in split.pairs])
    documents, document_N = numbered([pair.document for pair in split.pairs])
    documents_ND = exact.encode(documents, "document")[document_N]
    float32, int8 = (
        evaluate(exact.cross(runtime.encode(queries), documents_ND, query_N), split.pairs)["auc2"]
        for runtime in (exact, quantised)
    )
    return {
        "split": split.name,
        "pairs": len(split.pairs),
        "queries": len(queries),
        "auc2_float32": round(float32, 4),
        "auc2_int8": round(int8, 4),
        "auc2_loss": float(np.round(float32 - int8, 5)),
    }
