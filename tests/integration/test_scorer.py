"""A scorer as rankers meet it: a process of its own, over gRPC."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.servers import Server, refresh, running, twinbert, write_documents
from twinbert.bundle import Bundle
from twinbert.runtime import Runtime
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1 import scorer_pb2_grpc

WORDS = "red blue green small large shoe boot table chair lamp paper glass metal wood for with and without".split()
DOCUMENTS = {
    f"d{number}": " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 2 + number % 9))
    for number in range(300)
}


@pytest.fixture(scope="module")
def store(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorer")
    refresh(tiny_bundle, folder / "store", write_documents(folder / "documents.jsonl", DOCUMENTS))
    return folder / "store"


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, store: Path) -> Iterator[Server]:
    with running("serve", tiny_bundle, store) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[scorer_pb2_grpc.ScorerServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield scorer_pb2_grpc.ScorerServiceStub(channel)


def one_task(query: str, *ids: str) -> pb.ScoreRequest:
    return pb.ScoreRequest(tasks=[pb.ScoreTask(query=query, document_ids=ids)])


def expected(runtime: Runtime, query: str, *ids: str) -> Any:
    documents = runtime.encode([DOCUMENTS[id_] for id_ in ids], "document")
    return runtime.cross(runtime.encode([query]), documents, np.zeros(len(ids), dtype=np.int64))


def error_of(call: Any, request: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    """Code, message, and the details by type."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    error: Any = caught.value
    trailing = dict(error.trailing_metadata())
    details = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    found: dict[str, Any] = {}
    for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
        for packed in details.details:
            message = kind()
            if packed.Unpack(message):
                found[kind.__name__] = message
    return error.code(), error.details(), found


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


LONG_ID = "ü" * 256

BAD_REQUESTS = {
    "no tasks": (pb.ScoreRequest(), "tasks", "1 to 64"),
    "too many tasks": (pb.ScoreRequest(tasks=[pb.ScoreTask(query="q", document_ids=["d1"])] * 65), "tasks", "64"),
    "empty query": (one_task("", "d1"), "tasks[0].query", "blank"),
    "blank query": (one_task(" \t\n", "d1"), "tasks[0].query", "blank"),
    "long query": (one_task("a" * 5000, "d1"), "tasks[0].query", "4,096"),
    "no candidates": (one_task("q"), "tasks[0]", "no candidates"),
    "empty id": (one_task("q", "d1", ""), "tasks[0].document_ids[1]", "1 to 511"),
    "long id": (one_task("q", "d1", LONG_ID), "tasks[0].document_ids[1]", "511"),
    "both ids": (
        pb.ScoreRequest(tasks=[pb.ScoreTask(query="q", document_ids=["d1"], document_numbers=[1])]),
        "tasks[0]",
        "document_ids and document_numbers",
    ),
    "mixed tasks": (
        pb.ScoreRequest(
            tasks=[pb.ScoreTask(query="q", document_ids=["d1"]), pb.ScoreTask(query="q", document_numbers=[1])]
        ),
        "tasks",
        "one id type",
    ),
    "too many candidates": (one_task("q", *["d1"] * 10_001), "tasks", "10,000"),
    "unknown crossing": (
        pb.ScoreRequest(tasks=[pb.ScoreTask(query="q", document_ids=["d1"])], crossing=7),  # type: ignore[arg-type]
        "crossing",
        "7",
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_names_the_field_and_what_would_do(stub: Any, case: str) -> None:
    """INVALID_ARGUMENT, BadRequest with the field's path, and a message that says the limit."""
    request, field, said = BAD_REQUESTS[case]
    code, message, details = error_of(stub.Score, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in message
    assert details["ErrorInfo"].reason == "INVALID_REQUEST"
    assert details["BadRequest"].field_violations[0].field == field


def test_bad_retrieve_requests(stub: Any) -> None:
    """No queries, a blank one, and too many hits are refused."""
    for request, field in (
        (pb.RetrieveRequest(), "queries"),
        (pb.RetrieveRequest(queries=["a", " "]), "queries[1]"),
        (pb.RetrieveRequest(queries=["a"], limit=1001), "limit"),
    ):
        code, _, details = error_of(stub.Retrieve, request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details["BadRequest"].field_violations[0].field == field


def test_ids_of_the_wrong_type_are_refused(stub: Any) -> None:
    """Integer ids for a store of strings: INVALID_ARGUMENT that says what the store has."""
    request = pb.ScoreRequest(tasks=[pb.ScoreTask(query="q", document_numbers=[1])])
    code, message, details = error_of(stub.Score, request)
    assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ID_TYPE")
    assert "strings" in message


def test_a_generation_that_is_not_held_is_not_found(stub: Any, store: Path) -> None:
    """NOT_FOUND, and the message names those that are held."""
    request = one_task("q", "d1")
    request.generation = "000099-00000000"
    code, message, details = error_of(stub.Score, request)
    assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.NOT_FOUND, "GENERATION_NOT_HELD")
    assert (store / "CURRENT").read_text().strip() in message


def test_a_crossing_that_the_bundle_lacks_is_refused(stub: Any) -> None:
    """FAILED_PRECONDITION, and the message names those that it has."""
    request = one_task("q", "d1")
    request.crossing = pb.CROSSING_RESIDUAL
    code, message, _ = error_of(stub.Score, request)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "cosine" in message


def test_a_query_longer_than_the_tower_reads_is_counted(stub: Any, server: Server) -> None:
    """It is scored on what the tower reads, and the metric says so."""
    before = server.metrics()["twinbert_truncated_queries_total"]
    stub.Score(one_task("red " * 600, "d1"))
    assert server.metrics()["twinbert_truncated_queries_total"] == before + 1


@pytest.mark.parametrize("text", ["\u200b", "\0", "\ufeff \n", "\u200b\u200d"])
def test_a_query_of_nothing_but_invisible_characters_is_blank(stub: Any, text: str) -> None:
    """What leaves the tower no token is refused as an empty query is."""
    code, _, details = error_of(stub.Score, one_task(text, "d1"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details["BadRequest"].field_violations[0].field == "tasks[0].query"


@pytest.mark.parametrize("method", ["Score", "Retrieve"])
def test_bytes_that_are_no_request_are_refused_and_counted(server: Server, method: str) -> None:
    """INVALID_ARGUMENT with details, and no trace in the log."""
    counted = f'twinbert_rpc_duration_seconds_count{{code="INVALID_ARGUMENT",method="{method}"}}'
    before = server.metrics()[counted]
    with grpc.insecure_channel(server.address) as channel:
        code, message, details = error_of(channel.unary_unary(f"/twinbert.v1.ScorerService/{method}"), b"\x0a\xff\xff")
    assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "cannot be parsed" in message
    assert server.metrics()[counted] == before + 1
    assert not any("trace" in event for event in server.log)


def test_a_long_generation_name_does_not_break_the_status(stub: Any) -> None:
    """A message that quotes a request is clipped: statuses travel in headers, which are bounded."""
    request = one_task("q", "d1")
    request.generation = "g" * 50_000
    code, message, _ = error_of(stub.Score, request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert len(message) < 1100


def test_too_many_candidates_at_a_time_are_refused_with_a_time_to_retry(tiny_bundle: Path, store: Path) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo while others are answered, who are answered in full."""
    with (
        running("serve", tiny_bundle, store, "--max-candidates-waiting", "6000") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        request = one_task("red", *["d1"] * 5000)
        calls = [stub.Score.future(request) for _ in range(30)]
        codes = [call.code() for call in calls]
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert grpc.StatusCode.OK in codes
        refused = next((call for call in calls if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED), None)
        if refused is not None:
            status = status_pb2.Status.FromString(dict(refused.trailing_metadata())["grpc-status-details-bin"])
            assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
        assert server.metrics()['twinbert_rpc_in_flight{method="Score"}'] == 0


def test_a_deadline_is_a_deadline(tiny_bundle: Path, store: Path) -> None:
    """A call whose time is up ends as DEADLINE_EXCEEDED; with allow_partial the same call is answered."""
    with (
        running("serve", tiny_bundle, store, "--cache-bytes", "0") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        tasks = [pb.ScoreTask(query=f"{' '.join(WORDS)} {number}", document_ids=["d1"]) for number in range(64)]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Score(pb.ScoreRequest(tasks=tasks), timeout=0.001)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        whole = stub.Score(pb.ScoreRequest(tasks=tasks, allow_partial=True), timeout=60)
        assert all(list(result.statuses) == [pb.DOCUMENT_STATUS_OK] for result in whole.results)


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


def test_every_series_is_there_from_the_start(tiny_bundle: Path, store: Path) -> None:
    """Before the first request, /metrics has every method, code, stage and status, at zero."""
    with running("serve", tiny_bundle, store) as server:
        metrics = server.metrics()
    for method in ("Score", "Retrieve", "Describe"):
        for code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL"):
            assert metrics[f'twinbert_rpc_duration_seconds_count{{code="{code}",method="{method}"}}'] == 0
    for stage in ("queue", "tokenize", "encode", "lookup", "cross"):
        assert metrics[f'twinbert_stage_duration_seconds_count{{stage="{stage}"}}'] == 0
    for status in ("ok", "not_found", "not_scored"):
        assert metrics[f'twinbert_candidates_total{{status="{status}"}}'] == 0
    for name in ("queries_total", "query_cache_hits_total", "batch_queries_count", "queue_depth"):
        assert metrics[f"twinbert_{name}"] == 0
    for reason in ("unverified", "bundle", "mismatch", "documents_lost", "error"):
        assert metrics[f'twinbert_generation_refused{{reason="{reason}"}}'] == 0
    assert metrics["twinbert_documents"] == 300
    assert metrics["twinbert_generation_age_seconds"] >= 0
    assert sum(name.startswith("twinbert_generation_info{") for name in metrics) == 1


def test_requests_are_counted(tiny_bundle: Path, store: Path) -> None:
    """RPCs by code, stages, queries, candidates by status, batches and cache hits."""
    with (
        running("serve", tiny_bundle, store) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        stub.Score(one_task("red", "d1", "nowhere"))
        stub.Score(one_task("red", "d1"))
        error_of(stub.Score, one_task("", "d1"))
        metrics = server.metrics()
    assert metrics['twinbert_rpc_duration_seconds_count{code="OK",method="Score"}'] == 2
    assert metrics['twinbert_rpc_duration_seconds_count{code="INVALID_ARGUMENT",method="Score"}'] == 1
    assert metrics['twinbert_candidates_total{status="ok"}'] == 2
    assert metrics['twinbert_candidates_total{status="not_found"}'] == 1
    assert (metrics["twinbert_queries_total"], metrics["twinbert_query_cache_hits_total"]) == (2, 1)
    assert (
        metrics["twinbert_batch_queries_count"] == metrics['twinbert_stage_duration_seconds_count{stage="encode"}'] == 1
    )


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_of(server: Server) -> None:
    """Names, types and help texts are as Prometheus wants them."""
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as response:
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=response.read(), capture_output=True, check=False
        )
    ours = [line for line in (checked.stdout + checked.stderr).decode().splitlines() if "twinbert" in line]
    assert ours == []


def test_health_is_told_for_each_service(server: Server) -> None:
    """The service by name, and the server as a whole."""
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "twinbert.v1.ScorerService"):
            status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
            assert status == health_pb2.HealthCheckResponse.SERVING


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


def test_a_new_generation_is_picked_up(tiny_bundle: Path, tmp_path: Path) -> None:
    """After a publish requests see the new documents; one that names the old generation keeps the old bits."""
    store = tmp_path / "store"
    first = refresh(tiny_bundle, store, write_documents(tmp_path / "a.jsonl", {"a": "red shoe", "b": "blue boot"}))
    with running("serve", tiny_bundle, store) as server, grpc.insecure_channel(server.address) as channel:
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        before = stub.Score(one_task("shoe", "a", "c"))
        assert before.generation == first
        documents = {"a": "a green lamp", "c": "glass table"}
        second = refresh(tiny_bundle, store, write_documents(tmp_path / "b.jsonl", documents))
        server.wait_for("generation_swapped")
        after = stub.Score(one_task("shoe", "a", "c"))
        assert after.generation == second
        assert list(after.results[0].statuses) == [pb.DOCUMENT_STATUS_OK] * 2
        assert after.results[0].scores[0] != before.results[0].scores[0]
        pinned = one_task("shoe", "a", "c")
        pinned.generation = first
        again = stub.Score(pinned)
        assert again.generation == first
        assert again.results[0].scores[0] == before.results[0].scores[0]
        assert [one.name for one in stub.Describe(pb.DescribeRequest()).held] == [second, first]
        twinbert("store", "rollback", "--store", str(store))
        server.wait_for("generation_swapped")
        assert stub.Score(one_task("shoe", "a")).generation == first


def test_no_request_fails_while_generations_change(tiny_bundle: Path, tmp_path: Path) -> None:
    """Under load, through several publishes, every response is whole and from one generation."""
    store = tmp_path / "store"

    def documents(version: int) -> Path:
        return write_documents(tmp_path / "d.jsonl", {f"d{n}": WORDS[(n + version) % len(WORDS)] for n in range(50)})

    scores: dict[str, tuple[float, ...]] = {}
    refresh(tiny_bundle, store, documents(0))
    with running("serve", tiny_bundle, store) as server, grpc.insecure_channel(server.address) as channel:
        stub, stop = scorer_pb2_grpc.ScorerServiceStub(channel), threading.Event()
        request = one_task("shoe", *(f"d{n}" for n in range(50)))

        def load() -> int:
            count = 0
            while not stop.is_set():
                response = stub.Score(request)
                row = tuple(response.results[0].scores)
                assert scores.setdefault(response.generation, row) == row
                count += 1
            return count

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            loads = [pool.submit(load) for _ in range(3)]
            try:
                for version in range(1, 4):
                    refresh(tiny_bundle, store, documents(version))
                    server.wait_for("generation_swapped")
            finally:
                stop.set()
            assert all(one.result() > 0 for one in loads)
    assert len(scores) == 4


@pytest.mark.parametrize("damage", ["segment cut", "segment flipped", "manifest flipped", "current garbage", "other"])
def test_a_generation_that_cannot_be_served_is_refused(
    tiny_bundle: Path, other_bundle: Path, tmp_path: Path, damage: str
) -> None:
    """The server says so in metric and log, keeps the generation that it has, and goes on when the store is mended."""
    store = tmp_path / "store"
    first = refresh(tiny_bundle, store, write_documents(tmp_path / "a.jsonl", {"a": "red shoe"}))
    with running("serve", tiny_bundle, store) as server, grpc.insecure_channel(server.address) as channel:
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        published_by(other_bundle if damage == "other" else tiny_bundle, store, tmp_path, damage)
        event = server.wait_for("generation_refused")
        assert event["serving"] == first
        assert stub.Score(one_task("shoe", "a")).generation == first
        reason = "mismatch" if damage == "other" else "unverified"
        series = f'twinbert_generation_refused{{reason="{reason}"}}'
        assert (event["reason"], server.metrics()[series]) == (reason, 1)
        refused = stub.Describe(pb.DescribeRequest()).refused
        assert (refused.name, refused.reason, refused.message) == (event["refused"], reason, event["why"])
        (store / "CURRENT").write_text(f"{first}\n")
        mended = refresh(tiny_bundle, store, write_documents(tmp_path / "c.jsonl", {"a": "wood"}))
        server.wait_for("generation_swapped")
        assert stub.Score(one_task("shoe", "a")).generation == mended
        assert server.metrics()[series] == 0
        assert not stub.Describe(pb.DescribeRequest()).HasField("refused")


def published_by(bundle: Path, store: Path, folder: Path, damage: str) -> None:
    """Publishes a generation that is damaged before the server can see it."""
    aside = folder / "aside"
    shutil.copytree(store, aside)
    name = refresh(bundle, aside, write_documents(folder / "b.jsonl", {"a": "blue boot", "b": "lamp"}))
    manifest = aside / "generations" / f"{name}.json"
    (segment,) = json.loads(manifest.read_text())["segments"]
    data = aside / "segments" / segment["id"] / "data.mdb"
    match damage:
        case "segment cut":
            data.write_bytes(data.read_bytes()[:-4096])
        case "segment flipped":
            content = bytearray(data.read_bytes())
            content[len(content) // 2] ^= 1
            data.write_bytes(content)
        case "manifest flipped":
            manifest.write_bytes(manifest.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    shutil.copytree(data.parent, store / "segments" / segment["id"])
    shutil.copy(manifest, store / "generations")
    (store / "CURRENT").write_text("nonsense" if damage == "current garbage" else f"{name}\n")


def test_sigterm_drains(tiny_bundle: Path, store: Path) -> None:
    """Requests in flight are answered, and the exit code is 0."""
    with running("serve", tiny_bundle, store) as server, grpc.insecure_channel(server.address) as channel:
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        stub.Score(one_task("red", "d1"))
        ids = [f"d{number % 300}" for number in range(10_000)]
        request = pb.ScoreRequest(tasks=[pb.ScoreTask(query=f"q{n}", document_ids=ids[:150]) for n in range(60)])
        calls = [stub.Score.future(request) for _ in range(10)]
        while server.metrics()['twinbert_rpc_received_total{method="Score"}'] < 11:
            pass
        assert server.stop() == 0
        assert all(len(call.result().results) == 60 for call in calls)


def test_draining_does_not_wait_for_a_health_watch(tiny_bundle: Path, store: Path) -> None:
    """A client that watches health is told NOT_SERVING, and the server stops without waiting for it to leave."""
    with (
        running("serve", tiny_bundle, store, "--drain-seconds", "3600") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert server.stop() == 0
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def fails_to_start(bundle: Path, store: Path, *options: str) -> str:
    """The one line that it says."""
    ports = ("--address", "127.0.0.1:0", "--metrics-port", "0")
    done = twinbert("serve", "--bundle", str(bundle), "--store", str(store), *ports, *options)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_it_refuses_to_start_on_what_it_cannot_serve(
    tiny_bundle: Path, other_bundle: Path, store: Path, tmp_path: Path
) -> None:
    """No store, no CURRENT, another bundle's store, a damaged segment: one line and exit code 2."""
    assert "is not a store" in fails_to_start(tiny_bundle, tmp_path / "none")
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    (copy / "CURRENT").unlink()
    assert "no current generation" in fails_to_start(tiny_bundle, copy)
    shutil.copy(store / "CURRENT", copy)
    other = fails_to_start(other_bundle, copy)
    assert Bundle.open(tiny_bundle).fingerprint in other
    assert Bundle.open(other_bundle).fingerprint in other
    (data,) = copy.glob("segments/*/data.mdb")
    content = bytearray(data.read_bytes())
    content[-5000] ^= 4
    data.write_bytes(content)
    assert str(data) in fails_to_start(tiny_bundle, copy)
    assert "no bundle" in fails_to_start(tmp_path, store)
    assert "either --bundle, or --bundles" in fails_to_start(tiny_bundle, store, "--bundles", str(tmp_path))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:99999", ":50051", "unix:/tmp/x", "127.0.0.1:http"])
def test_an_address_that_is_none_is_said(tiny_bundle: Path, store: Path, address: str) -> None:
    """It does not listen somewhere else instead."""
    assert "is not HOST:PORT" in fails_to_start(tiny_bundle, store, "--address", address)


def test_a_port_in_use_is_said(tiny_bundle: Path, store: Path, server: Server) -> None:
    """The gRPC port and the metrics port: one line that names the address."""
    assert server.address in fails_to_start(tiny_bundle, store, "--address", server.address)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = fails_to_start(tiny_bundle, store, "--address", "127.0.0.1:0", "--metrics-port", str(port))
    assert str(port) in line
