"""The parity report: what quality is lost on the way from the teacher to a live scorer, and where.

    teacher → torch → onnx → stored float32, float16, uint8 → live float32, float16, uint8

`torch` is the student as it was trained, `onnx` its bundle, `stored` the bundle over document embeddings that went
through a store's encoding, `live` a `Score` request to a scorer over a store that `refresh` filled. `live float32` is
compared with `torch` too, from one end of the way to the other.

Shapes: N pairs, D dimension.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from store.encoding import ENCODINGS, codec
from twinbert.bundle import TOWERS, Bundle, Tower
from twinbert.client import CrossingName
from twinbert.errors import ExportError
from twinbert.model.checkpoint import open_twin
from twinbert.model.config import CrossingKind
from twinbert.model.twin import TwinBert
from twinbert.runtime import Floats, Ints, Runtime
from twinbert.training.baselines import numbered
from twinbert.training.data import Split
from twinbert.training.evaluation import Scorer, defined
from twinbert.training.live import live_scorer
from twinbert.training.metrics import evaluate

LIMIT = 1e-4
"""Of a score's difference where nothing is rounded to fewer bits than float32 has."""

_TORCH_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One stage, and what it lost against the one before it.

    Attributes:
        name: of the stage.
        before: the stage it is compared with, mostly the one before it; empty for the first.
        auc2: quality here.
        ndcg10: likewise.
        auc2_lost: quality there minus here; NaN for the first.
        ndcg10_lost: likewise.
        largest: absolute difference of a pair's score; NaN for the student against its teacher, another model.
        mean: likewise.
        exact: whether nothing is rounded between the two, so that `LIMIT` holds.
    """

    name: str
    before: str
    auc2: float
    ndcg10: float
    auc2_lost: float
    ndcg10_lost: float
    largest: float
    mean: float
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The hops of every crossing layer of a bundle."""

    model: str
    pairs: int
    crossings: Mapping[str, Sequence[Hop]]

    def check(self) -> None:
        """Refuses a bundle whose float32 way does not lead to the model's scores.

        Raises:
            ExportError: a hop differs by more than `LIMIT`; the message names the worst.
        """
        for kind, hops in self.crossings.items():
            for hop in hops:
                if hop.exact and not hop.largest <= LIMIT:  # also where it is NaN
                    raise ExportError(
                        f"parity: {kind} scores of {hop.name} differ from those of {hop.before} by {hop.largest:.1e}, "
                        f"more than {LIMIT:g}; export the bundle again, and if that does not help, "
                        "these versions of torch and onnxruntime do not agree"
                    )

    def to_json(self) -> str:
        """All numbers, for programs; what is not defined is null."""
        return json.dumps(defined({**asdict(self), "limit": LIMIT}), indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """A table for each crossing layer."""
        lines = [f"model {self.model[:16]}, {self.pairs:,} pairs; float32 hops may differ by {LIMIT:g}."]
        for kind, hops in self.crossings.items():
            lines += ["", f"| {kind} | against | auc2 | lost | ndcg10 | lost | largest difference | mean |"]
            lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
            lines += [f"| {' | '.join(_cells(hop))} |" for hop in hops]
        return "\n".join(lines) + "\n"


def parity(
    path: Path, split: Split, *, folder: Path, teacher: Scorer | None = None, encodings: Sequence[str] = ENCODINGS
) -> Parity:
    """Measures every hop; see the module.

    Args:
        path: the bundle's directory, with model.safetensors in it.
        split: judged pairs; every document is encoded once by torch, once by onnx and once for each live encoding.
        folder: an existing and empty one, for the stores.
        teacher: its probabilities, where it is at hand.
        encodings: how documents are stored; float32 is the one that `Parity.check` looks at.

    Raises:
        BundleError: the bundle is damaged, or without the weights that torch needs.
        UnavailableError: a store could not be made, or not served.
    """
    bundle = Bundle.open(path)
    runtime = Runtime(bundle, towers=TOWERS, threads=os.cpu_count() or 1)
    pairs = split.texts()
    queries, query_N = numbered([query for query, _ in pairs])
    documents, document_N = numbered([document for _, document in pairs])
    weights = open_twin(bundle).eval()
    by_torch = _embed(weights, runtime, queries, "query"), _embed(weights, runtime, documents, "document")
    by_onnx = runtime.encode(queries, "query"), runtime.encode(documents, "document")
    chains = {kind: _Chain(split) for kind in bundle.crossings}
    taught_N = None if teacher is None else teacher(pairs)
    for kind, chain in chains.items():
        if taught_N is not None:
            chain.add("teacher", "", taught_N, exact=False)
        with torch.inference_mode():
            crossed = [torch.from_numpy(side) for side in (by_torch[0], by_torch[1][document_N], query_N)]
            torch_N = weights.crossing(cast(CrossingKind, kind))(*crossed).numpy()
        chain.add("torch", "teacher" if teacher is not None else "", torch_N, exact=False)
        chain.add("onnx", "torch", runtime.cross(by_onnx[0], by_onnx[1][document_N], query_N, kind), exact=True)
    for encoding in encodings:
        stored = codec(encoding, bundle.dimension, fixed_step=bundle.fixed_step)
        stored_ND = stored.decode(*stored.encode(by_onnx[1]))[document_N]
        exact = encoding == "float32"
        (place := folder / encoding).mkdir()
        with live_scorer(path, documents, encoding=encoding, folder=place) as live:
            for kind, chain in chains.items():
                stored_N = runtime.cross(by_onnx[0], stored_ND, query_N, kind)
                chain.add(f"stored {encoding}", "onnx", stored_N, exact=exact)
                live_N = live.score(pairs, cast(CrossingName, kind))
                chain.add(f"live {encoding}", f"stored {encoding}", live_N, exact=exact)
                if exact:  # small differences could add up on the way
                    chain.add(f"live {encoding}", "torch", live_N, exact=exact)
    return Parity(model=bundle.model, pairs=len(pairs), crossings={kind: chain.hops for kind, chain in chains.items()})


class _Chain:
    """The hops of one crossing layer as they are measured."""

    def __init__(self, split: Split) -> None:
        self.hops: list[Hop] = []
        self._split = split
        self._scores: dict[str, Floats] = {}
        self._quality: dict[str, tuple[float, float]] = {}

    def add(self, name: str, before: str, scores_N: Floats, *, exact: bool) -> None:
        report = evaluate(scores_N, self._split.pairs)
        self._scores[name] = scores_N
        self._quality[name] = auc2, ndcg10 = report["auc2"], report["ndcg10"]
        auc2_before, ndcg10_before = self._quality.get(before, (math.nan, math.nan))
        same_model = before not in ("", "teacher")
        difference_N = np.abs(scores_N - self._scores[before]) if same_model else np.array([np.nan])
        self.hops.append(
            Hop(
                name=name,
                before=before,
                auc2=auc2,
                ndcg10=ndcg10,
                auc2_lost=auc2_before - auc2,
                ndcg10_lost=ndcg10_before - ndcg10,
                largest=float(difference_N.max()),
                mean=float(difference_N.mean()),
                exact=exact,
            )
        )


@torch.inference_mode()
def _embed(weights: TwinBert, runtime: Runtime, texts: Sequence[str], tower: Tower) -> Floats:
    """Embeddings [N, D] by torch, in batches of texts of like length."""
    tokens = runtime.tokenize(texts, tower)
    order: Ints = np.argsort(tokens.lengths, kind="stable")
    embed = weights.query if tower == "query" else weights.document
    embeddings_ND = np.empty((len(texts), runtime.bundle.dimension), np.float32)
    for start in range(0, len(texts), _TORCH_BATCH):
        rows = order[start : start + _TORCH_BATCH]
        inputs = tokens.take(rows).padded()
        embeddings_ND[rows] = embed(*map(torch.from_numpy, inputs)).numpy()
    return embeddings_ND


def _cells(hop: Hop) -> list[str]:
    def number(value: float, style: str) -> str:
        return "–" if math.isnan(value) else format(value, style).replace("-0.0000", "+0.0000")

    return [
        hop.name,
        hop.before or "–",
        number(hop.auc2, ".4f"),
        number(hop.auc2_lost, "+.4f"),
        number(hop.ndcg10, ".4f"),
        number(hop.ndcg10_lost, "+.4f"),
        number(hop.largest, ".1e"),
        number(hop.mean, ".1e"),
    ]
