"""Tri-letter bundles with both crossings, and with the residual one alone, as rankers meet them over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from torch import nn

from tests.servers import refresh, running, write_documents
from twinbert.bundle import TOWERS, Bundle
from twinbert.export import export
from twinbert.model.config import Calibration, CrossingKind, TowerConfig, TwinConfig
from twinbert.model.twin import TwinBert
from twinbert.runtime import Floats, Runtime
from twinbert.tokenizer import TriLetter, save_triletter
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1 import scorer_pb2_grpc

WORDS = "red blue green shoe boot table lamp paper glass wood größe 東京 with for".split()
DOCUMENTS = {f"d{n}": " ".join(WORDS[n * step % len(WORDS)] for step in range(1, 2 + n % 7)) for n in range(120)}
IDS = [*DOCUMENTS][:30]


def make(folder: Path, *crossings: CrossingKind) -> Path:
    """A tiny bundle of hashed trigrams whose crossings disagree, and a store of its own; returns the bundle."""
    save_triletter(folder / "tokenizer.json", letters="unicode")
    tower = TowerConfig(
        vocabulary=TriLetter.vocabulary,
        hidden=16,
        layers=1,
        heads=2,
        feed_forward=16,
        positions=12,
        projection=16,
        embedding="trigrams",
    )
    config = TwinConfig(
        query=tower, document=tower, query_max_tokens=6, document_max_tokens=12, shared=True, crossings=crossings
    )
    with torch.random.fork_rng():
        torch.manual_seed(61)
        twin = TwinBert(config)
        for module in twin.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.3)
    export(
        twin,
        folder / "bundle",
        tokenizer=folder / "tokenizer.json",
        source={"name": "tiny"},
        calibration={"residual": Calibration(temperature=1.2, bias=-0.1)},
    )
    refresh(folder / "bundle", folder / "store", write_documents(folder / "documents.jsonl", DOCUMENTS))
    return folder / "bundle"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Residual by default, and cosine."""
    return make(tmp_path_factory.mktemp("both"), "residual", "cosine")


@pytest.fixture(scope="module")
def stub(bundle: Path) -> Iterator[Any]:
    """A server of that bundle."""
    with (
        running("serve", bundle, bundle.parent / "store") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield scorer_pb2_grpc.ScorerServiceStub(channel)


def expected(bundle: Path, query: str, crossing: str, ids: list[str]) -> Floats:
    """The scores that the bundle gives without a server."""
    runtime = Runtime(Bundle.open(bundle), towers=TOWERS)
    documents_ND = runtime.encode([DOCUMENTS[id_] for id_ in ids], "document")
    return runtime.cross(runtime.encode([query]), documents_ND, np.zeros(len(ids), dtype=np.int64), crossing)


@pytest.mark.parametrize("query", ["red shoe", "Größe 東京", "???"])
def test_each_crossing_gives_its_own_scores(stub: Any, bundle: Path, query: str) -> None:
    """Score crosses as the request says, residually if it says nothing; a query without a letter has scores too."""
    scores = {}
    for crossing, name in (
        (pb.CROSSING_UNSPECIFIED, "residual"),
        (pb.CROSSING_RESIDUAL, "residual"),
        (pb.CROSSING_COSINE, "cosine"),
    ):
        task = pb.ScoreTask(query=query, document_ids=IDS)
        result = stub.Score(pb.ScoreRequest(tasks=[task], crossing=crossing)).results[0]
        assert set(result.statuses) == {pb.DOCUMENT_STATUS_OK}
        np.testing.assert_allclose(result.scores, expected(bundle, query, name, IDS), atol=1e-6)
        scores[crossing] = list(result.scores)
    assert scores[pb.CROSSING_UNSPECIFIED] == scores[pb.CROSSING_RESIDUAL]
    assert np.argsort(scores[pb.CROSSING_RESIDUAL]).tolist() != np.argsort(scores[pb.CROSSING_COSINE]).tolist()


@pytest.mark.parametrize("crossing", ["residual", "cosine"])
def test_company_does_not_change_a_score(bundle: Path, crossing: str) -> None:
    """Either crossing gives a pair the same score, bit for bit, alone, among a few and among a thousand."""
    runtime, random = Runtime(Bundle.open(bundle)), np.random.default_rng(9)
    queries_QD = random.standard_normal((7, 16), dtype=np.float32)
    documents_ND = random.standard_normal((1003, 16), dtype=np.float32)
    task_N = random.integers(0, 7, len(documents_ND))
    together_N = runtime.cross(queries_QD, documents_ND, task_N, crossing)
    for count in (1, 2, 3, 5, 6, 7, 12, 13, 100):
        for n in range(0, len(documents_ND) - count, 131):
            few = slice(n, n + count)
            assert runtime.cross(queries_QD, documents_ND[few], task_N[few], crossing).tolist() == (
                together_N[few].tolist()
            )
        alone_N = runtime.cross(queries_QD[3:4], documents_ND[task_N == 3][:count], np.zeros(count, np.int64), crossing)
        assert alone_N.tolist() == together_N[task_N == 3][:count].tolist()


def test_describe_tells_of_both(stub: Any) -> None:
    """Describe names both crossings, the default, and that the default is calibrated."""
    described = stub.Describe(pb.DescribeRequest())
    assert list(described.crossings) == [pb.CROSSING_COSINE, pb.CROSSING_RESIDUAL]
    assert described.default_crossing == pb.CROSSING_RESIDUAL
    assert described.calibrated
    assert described.query_max_tokens == 6


def test_retrieve_goes_by_the_cosine(stub: Any, bundle: Path) -> None:
    """Although scoring is residual by default, hits are those of a full sort by the cosine's scores."""
    hits = stub.Retrieve(pb.RetrieveRequest(queries=["green glass lamp"], limit=10)).results[0].hits
    scores = expected(bundle, "green glass lamp", "cosine", [*DOCUMENTS])
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:10], atol=1e-6)


def test_without_a_cosine_retrieve_is_not_there(tmp_path: Path) -> None:
    """A bundle with the residual crossing alone scores; Retrieve is UNIMPLEMENTED and says what it needs."""
    bundle = make(tmp_path, "residual")
    with running("serve", bundle, tmp_path / "store") as server, grpc.insecure_channel(server.address) as channel:
        stub: Any = scorer_pb2_grpc.ScorerServiceStub(channel)
        result = stub.Score(pb.ScoreRequest(tasks=[pb.ScoreTask(query="wood table", document_ids=IDS)])).results[0]
        np.testing.assert_allclose(result.scores, expected(bundle, "wood table", "residual", IDS), atol=1e-6)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Retrieve(pb.RetrieveRequest(queries=["wood table"]))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "needs a bundle with a cosine crossing" in error.details()
