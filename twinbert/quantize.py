"""Bundle → bundle with query towers for packed texts too, in float32 and int8, and a certificate of what int8 costs.

Documents are encoded as before, so the fingerprint stays: a store serves both bundles. The model is another.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twinbert.bundle import BUNDLE_JSON, ENGINES, TOWERS, Bundle, Engine, describe_file, to_json
from twinbert.errors import ExportError, UsageError
from twinbert.export import PARITY_LIMIT, building
from twinbert.model.checkpoint import open_twin
from twinbert.model.packed import packed_graph
from twinbert.quality import engine_costs, rounded
from twinbert.runtime import Runtime
from twinbert.samples import DOCUMENTS, QUERIES

FILES: Mapping[Engine, str] = {engine: f"query.{engine}.onnx" for engine in ENGINES}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much the int8 query tower may cost; a bundle beyond them is not written."""

    score_largest: float = 0.1
    """Largest difference of a score."""
    score_mean: float = 0.01
    """Mean difference of a score."""
    cosine_smallest: float = 0.97
    """Smallest cosine between a query's embeddings in int8 and in float32."""
    top10_overlap: float = 0.95
    """Share of a query's ten best documents that stay, in the mean."""
    auc2_loss: float = 0.002
    """Area lost on labelled pairs."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What the cost is measured over: every query with every document."""

    source: str = "built-in samples"
    """What they are, for the certificate."""
    queries: Sequence[str] = QUERIES
    documents: Sequence[str] = DOCUMENTS


def quantize(
    bundle: Bundle,
    output: Path,
    *,
    texts: Texts | None = None,
    labelled: Callable[[Bundle], Mapping[str, Any]] | None = None,
    limits: Limits | None = None,
) -> Bundle:
    """Writes a copy of a bundle with packed query towers: all of it appears at `output` in one step, or nothing does.

    Args:
        bundle: with its model.safetensors. Packed query towers that it has already are made anew.
        output: the new bundle's directory, which must not exist yet.
        texts: what the cost is measured over; None: the built-in samples.
        labelled: measures a bundle's engines on labelled pairs: `auc2_loss`, and what else is to be in the
            certificate; None: it has null there, and the limit of `auc2_loss` says nothing.
        limits: what the int8 query tower may cost.

    Raises:
        UsageError: `output` exists, or there are no texts.
        BundleError: the bundle comes without model.safetensors, or it does not fit.
        ExportError: the new bundle cannot be written, int8 costs more than the limits or depends on a query's company,
            or packed texts differ from padded ones in float32.
    """
    texts, limits = texts or Texts(), limits or Limits()
    if not (texts.queries and texts.documents):
        raise UsageError(f"{texts.source}: has no text; give at least one query and one document")
    with building(output) as directory:
        for name in bundle.configuration["files"]:
            if (bundle.path / name).exists():
                shutil.copy2(bundle.path / name, directory / name)
        tower = open_twin(bundle).query
        for engine, name in FILES.items():
            (directory / name).write_bytes(packed_graph(tower, engine))
        files = {name: describe_file(directory / name) for name in FILES.values()}
        configuration = {
            **bundle.configuration,
            "files": bundle.configuration["files"] | files,
            "packed": {engine: {"file": name} for engine, name in FILES.items()},
        }
        # The runtimes that measure need a bundle: this one is rewritten with its certificate.
        (directory / BUNDLE_JSON).write_bytes(to_json(configuration))
        opened = Bundle.open(directory)
        certificate = _certificate(opened, texts) | {"limits": asdict(limits)}
        certificate["labelled"] = None if labelled is None else dict(labelled(opened))
        _check(certificate, limits)
        configuration["quality"] = {**bundle.quality, "int8": certificate, "packed": _parity(opened, texts.queries)}
        (directory / BUNDLE_JSON).write_bytes(to_json(configuration))
    return Bundle.open(output)


def _certificate(bundle: Bundle, texts: Texts) -> dict[str, Any]:
    exact, runtime = _padded(bundle), Runtime(bundle, engine="int8")
    return {
        "texts": texts.source,
        "queries": len(texts.queries),
        "documents": len(texts.documents),
        **engine_costs(runtime, exact, texts.queries, texts.documents),
    }


def _parity(bundle: Bundle, queries: Sequence[str]) -> dict[str, float]:
    """Largest difference between float32 embeddings of packed and of padded texts; raises where it is too large."""
    difference = float(np.abs(Runtime(bundle).encode(queries) - _padded(bundle).encode(queries)).max())
    if not difference <= PARITY_LIMIT:  # also where it is NaN
        raise ExportError(
            f"packed texts have embeddings that differ from padded ones' by {difference}, more than {PARITY_LIMIT}; "
            "this version of onnxruntime does not compute the graph as it is meant"
        )
    return {"embeddings": rounded(difference), "limit": PARITY_LIMIT}


def _padded(bundle: Bundle) -> Runtime:
    """Both towers as they were exported."""
    return Runtime(replace(bundle, packed={}), towers=TOWERS)


def _check(certificate: Mapping[str, Any], limits: Limits) -> None:
    """Raises ExportError with all that is past its limit; what is not a number is."""
    most = {"company": 0.0, **asdict(limits)}
    least = {what: most.pop(what) for what in ("cosine_smallest", "top10_overlap")}
    if certificate["labelled"] is None:
        del most["auc2_loss"]
    measured = {**certificate, **(certificate["labelled"] or {})}
    past = [
        *(
            f"{what} is {measured[what]}, at least {limit}"
            for what, limit in least.items()
            if not measured[what] >= limit
        ),
        *(
            f"{what} is {measured[what]}, at most {limit}"
            for what, limit in most.items()
            if not measured[what] <= limit
        ),
    ]
    if past:
        raise ExportError(
            f"the int8 query tower costs more than is allowed: {'; '.join(past)}; serve it in float32, or allow more"
        )
