"""What a scorer refuses: the code, what the message says, and the details for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from scorer_cases import WORDS, error_of, one_task

from tests.servers import Server, running
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1 import scorer_pb2_grpc

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
        pb.ScoreRequest(tasks=[pb.ScoreTask(query="q", document_ids=["d1"])], crossing=7),  # type: ignore[arg-type]  # of the future
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
