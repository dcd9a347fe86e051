"""A scorer as rankers meet it: a process of its own, over gRPC."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from scorer_cases import DOCUMENTS, WORDS, one_task

from tests.servers import Server, refresh, running, write_documents
from twinbert.bundle import Bundle
from twinbert.runtime import Runtime
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1 import scorer_pb2_grpc


def expected(runtime: Runtime, query: str, *ids: str) -> Any:
    documents = runtime.encode([DOCUMENTS[id_] for id_ in ids], "document")
    return runtime.cross(runtime.encode([query]), documents, np.zeros(len(ids), dtype=np.int64))


def test_scores_are_those_of_the_model(stub: Any, runtime: Runtime) -> None:
    """Each candidate gets the crossing of its own embedding with its own query, in the order asked for."""
    tasks = {"red shoe": ["d7", "d3", "d250"], "large wood table with lamp": ["d0"], "paper": ["d9", "d9", "d1"]}
    request = pb.ScoreRequest(tasks=[pb.ScoreTask(query=query, document_ids=ids) for query, ids in tasks.items()])
    response = stub.Score(request)
    for result, (query, ids) in zip(response.results, tasks.items(), strict=True):
        np.testing.assert_allclose(result.scores, expected(runtime, query, *ids), atol=1e-6)
        assert list(result.statuses) == [pb.DOCUMENT_STATUS_OK] * len(ids)


def test_a_missing_document_says_so(stub: Any, runtime: Runtime) -> None:
    """An id that is not in the generation is NOT_FOUND with NaN, and its neighbours are scored all the same."""
    result = stub.Score(one_task("blue boot", "d1", "nowhere", "d2")).results[0]
    assert list(result.statuses) == [pb.DOCUMENT_STATUS_OK, pb.DOCUMENT_STATUS_NOT_FOUND, pb.DOCUMENT_STATUS_OK]
    assert np.isnan(result.scores[1])
    np.testing.assert_allclose(np.array(result.scores)[[0, 2]], expected(runtime, "blue boot", "d1", "d2"), atol=1e-6)


def test_a_request_with_only_missing_documents_is_answered(stub: Any) -> None:
    """Nothing found is an answer, not an error."""
    result = stub.Score(one_task("blue", "x", "y")).results[0]
    assert list(result.statuses) == [pb.DOCUMENT_STATUS_NOT_FOUND] * 2


def test_a_score_does_not_depend_on_its_company(tiny_bundle: Path, store: Path) -> None:
    """A query scores the same alone, among others in a request, and among other requests at the same time."""
    with (
        running("serve", tiny_bundle, store, "--cache-bytes", "0") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        queries = [" ".join(WORDS[start : start + length]) for start in range(8) for length in (1, 3, 9)]
        ids = list(DOCUMENTS)[:20]
        alone = {query: list(stub.Score(one_task(query, *ids)).results[0].scores) for query in queries}
        together = stub.Score(pb.ScoreRequest(tasks=[pb.ScoreTask(query=q, document_ids=ids) for q in queries]))
        for query, result in zip(queries, together.results, strict=True):
            np.testing.assert_allclose(result.scores, alone[query], atol=1e-6)
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            for query, response in pool.map(lambda q: (q, stub.Score(one_task(q, *ids))), queries * 8):
                np.testing.assert_allclose(response.results[0].scores, alone[query], atol=1e-6)


def test_many_candidates_are_scored_as_few_are(stub: Any, runtime: Runtime) -> None:
    """A request beyond what the event loop does itself gives the same scores."""
    ids = [f"d{number % 300}" for number in range(3000)]
    result = stub.Score(one_task("green glass", *ids)).results[0]
    np.testing.assert_allclose(result.scores[:300], expected(runtime, "green glass", *ids[:300]), atol=1e-6)
    assert list(result.scores[:300]) == list(result.scores[2700:])


def test_the_second_time_the_query_comes_from_the_cache(stub: Any) -> None:
    """A cached query gives the same scores, and the reply says that it was cached."""
    first, second = (stub.Score(one_task("never asked before", "d1", "d2")) for _ in range(2))
    assert (first.times.cached_queries, second.times.cached_queries) == (0, 1)
    assert list(first.results[0].scores) == list(second.results[0].scores)
    assert second.times.encode_us == 0


def test_a_reply_explains_itself(stub: Any, store: Path, tiny_bundle: Path) -> None:
    """It names the generation and the model, and says where the time went."""
    response = stub.Score(one_task("a lamp that nobody asked for", "d1"))
    assert response.generation == (store / "CURRENT").read_text().strip()
    assert response.model == Bundle.open(tiny_bundle).model
    assert response.times.total_us >= response.times.encode_us > 0


def test_retrieve_finds_the_best_of_all(stub: Any, runtime: Runtime) -> None:
    """Hits are those of a full sort, best first, with the scores that Score gives."""
    queries = ["small metal chair", "paper for wood"]
    response = stub.Retrieve(pb.RetrieveRequest(queries=queries, limit=25))
    assert response.exact
    for query, result in zip(queries, response.results, strict=True):
        scores = dict(zip(DOCUMENTS, expected(runtime, query, *DOCUMENTS).tolist(), strict=True))
        best = sorted(scores.values(), reverse=True)[:25]
        np.testing.assert_allclose([hit.score for hit in result.hits], best, atol=1e-6)
        ids = [hit.document_id for hit in result.hits]
        assert len(set(ids)) == 25
        assert list(stub.Score(one_task(query, *ids)).results[0].scores) == [hit.score for hit in result.hits]


def test_retrieve_gives_what_there_is(stub: Any) -> None:
    """No limit means 10; a limit beyond the corpus gives the corpus."""
    assert len(stub.Retrieve(pb.RetrieveRequest(queries=["red"])).results[0].hits) == 10
    assert len(stub.Retrieve(pb.RetrieveRequest(queries=["red"], limit=1000)).results[0].hits) == 300


def test_describe_says_what_is_served(stub: Any, store: Path, tiny_bundle: Path) -> None:
    """Generation, model, fingerprint, crossings, sizes and limits."""
    bundle, described = Bundle.open(tiny_bundle), stub.Describe(pb.DescribeRequest())
    assert described.current.name == (store / "CURRENT").read_text().strip()
    assert (described.current.documents, described.current.encoding) == (300, "float32")
    assert (described.model, described.fingerprint) == (bundle.model, bundle.fingerprint)
    assert list(described.crossings) == [pb.CROSSING_COSINE]
    assert described.id_type == pb.ID_TYPE_STRING
    assert described.dimension == bundle.dimension
    assert (described.limits.tasks, described.limits.candidates) == (64, 10_000)
    assert not described.calibrated


def test_a_query_longer_than_the_tower_reads_is_counted(stub: Any, server: Server) -> None:
    """It is scored on what the tower reads, and the metric says so."""
    before = server.metrics()["twinbert_truncated_queries_total"]
    stub.Score(one_task("red " * 600, "d1"))
    assert server.metrics()["twinbert_truncated_queries_total"] == before + 1


def test_the_asyncio_client_meets_a_real_server(server: Server) -> None:
    """It gets what the plain client gets."""
    from twinbert.client import AsyncScorerClient, ScorerClient, Task

    async def ask() -> Any:
        async with AsyncScorerClient(server.address) as client:
            score = await client.score([Task("red shoe", ["d1", "none"])], timeout=30)
            return score, await client.retrieve("red shoe", 3, timeout=30), await client.describe()

    score, hits, described = asyncio.run(ask())
    with ScorerClient(server.address) as client:
        np.testing.assert_array_equal(
            score.results[0].scores, client.score(Task("red shoe", ["d1", "none"]), timeout=30).results[0].scores
        )
        assert hits.results[0].documents == client.retrieve("red shoe", 3, timeout=30).results[0].documents
        assert described == client.describe()


def test_integer_ids(tiny_bundle: Path, tmp_path: Path, runtime: Runtime) -> None:
    """A store of integers is asked with numbers, over all 64 bits."""
    documents = {0: "red shoe", 7: "blue boot", 2**64 - 1: "wood table"}
    refresh(tiny_bundle, tmp_path / "store", write_documents(tmp_path / "documents.jsonl", documents))
    with (
        running("serve", tiny_bundle, tmp_path / "store") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        assert stub.Describe(pb.DescribeRequest()).id_type == pb.ID_TYPE_INTEGER
        task = pb.ScoreTask(query="table", document_numbers=[2**64 - 1, 5, 0])
        result = stub.Score(pb.ScoreRequest(tasks=[task])).results[0]
        assert list(result.statuses) == [pb.DOCUMENT_STATUS_OK, pb.DOCUMENT_STATUS_NOT_FOUND, pb.DOCUMENT_STATUS_OK]
        wanted = runtime.cross(
            runtime.encode(["table"]),
            runtime.encode(["wood table", "red shoe"], "document"),
            np.zeros(2, dtype=np.int64),
        )
        np.testing.assert_allclose(np.array(result.scores)[[0, 2]], wanted, atol=1e-6)
        hits = stub.Retrieve(pb.RetrieveRequest(queries=["table"], limit=3)).results[0].hits
        assert {hit.document_number for hit in hits} == set(documents)


def test_a_client_that_is_not_ours(server: Server) -> None:
    """grpcurl finds the services by reflection and scores with JSON."""
    grpcurl = str(Path(sys.executable).with_name("grpcurl"))

    def call(*words: str) -> str:
        done = subprocess.run([grpcurl, "-plaintext", *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "twinbert.v1.ScorerService" in call(server.address, "list")
    request = {"tasks": [{"query": "red shoe", "documentIds": ["d1", "nowhere"]}]}
    reply = json.loads(call("-d", json.dumps(request), server.address, "twinbert.v1.ScorerService/Score"))
    assert reply["results"][0]["statuses"] == ["DOCUMENT_STATUS_OK", "DOCUMENT_STATUS_NOT_FOUND"]
    assert reply["results"][0]["scores"][1] == "NaN"
