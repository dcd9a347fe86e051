"""The scorer's clients against a real gRPC server."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from scorer_fake import GENERATION, MODEL, Failure, FakeScorer, generation_not_held, serving

from twinbert.client import AsyncScorerClient, ScorerClient, ScoreReply, StageTimes, Status, Task
from twinbert.client.channel import MESSAGE_BYTES
from twinbert.errors import InvalidRequestError, RemoteError, UsageError
from twinbert.v1 import scorer_pb2 as pb


@pytest.fixture
def scorer() -> FakeScorer:
    """The server's side."""
    return FakeScorer(["a", "b", "c", "d"])


@pytest.fixture
def address(scorer: FakeScorer) -> Iterator[str]:
    """Where `scorer` is served."""
    with serving(scorer) as where:
        yield where


@pytest.fixture
def client(address: str) -> Iterator[ScorerClient]:
    """A client of `scorer`, over a real port."""
    with ScorerClient(address) as connected:
        yield connected


def test_scores_are_parallel_to_the_candidates(client: ScorerClient) -> None:
    """Each task's scores and statuses come as arrays in the order of its candidates, NaN where there is no document."""
    reply = client.score([Task("shoes", ["d", "nowhere", "a"]), Task("socks", ["b"])])

    shoes, socks = reply.results
    assert shoes.scores.dtype == np.float32
    assert shoes.statuses.dtype == np.uint8
    np.testing.assert_array_equal(shoes.scores, np.array([0.25, np.nan, 1.0], np.float32))
    assert shoes.statuses.tolist() == [Status.OK, Status.NOT_FOUND, Status.OK]
    assert shoes.found.tolist() == [True, False, True]
    assert socks.scores.tolist() == [0.5]
    assert (reply.generation, reply.model) == (GENERATION, MODEL)
    assert reply.times == StageTimes(1, 20, 3000, 40, 5, 3200, 1)


def test_one_task_needs_no_list(client: ScorerClient) -> None:
    """A task by itself is scored as a list of that one task."""
    assert client.score(Task("shoes", ["b"])).results[0].scores.tolist() == [0.5]


def test_status_numbers_are_those_of_the_contract() -> None:
    """`Status` has the names and the numbers of the contract's DocumentStatus."""
    assert {f"DOCUMENT_STATUS_{status.name}": status.value for status in Status} == dict(pb.DocumentStatus.items())


def test_partial_answers_keep_tasks_that_were_not_reached(client: ScorerClient) -> None:
    """With `allow_partial` the candidates of a task that was not reached are NOT_SCORED, and not found."""
    late, shoes = client.score([Task("late", ["a"]), Task("shoes", ["a"])], allow_partial=True).results
    assert late.statuses.tolist() == [Status.NOT_SCORED]
    assert not late.found.any()
    assert shoes.found.all()


@pytest.mark.parametrize("documents", [[7, 2**64 - 1], np.array([7, 2**64 - 1], np.uint64)], ids=["list", "array"])
def test_integer_ids_travel_as_numbers(documents: list[int]) -> None:
    """Integers, in a list or an array, are sent as document numbers, up to the largest one."""
    servicer = FakeScorer([2**64 - 1, 7])
    with serving(servicer) as address, ScorerClient(address) as client:
        assert client.score(Task("shoes", documents)).results[0].scores.tolist() == [0.5, 1.0]
        assert client.retrieve("shoes").results[0].documents == (2**64 - 1, 7)
    assert not servicer.requests[0].tasks[0].document_ids


def test_an_array_of_strings_is_an_array_of_ids(client: ScorerClient) -> None:
    """A numpy array of strings is sent as string ids."""
    assert client.score(Task("shoes", np.array(["b", "a"]))).results[0].scores.tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("query", "documents"),
    [("q", "abc"), ("q", [-1]), ("q", [2**64]), ("q", ["a", 1]), ("q", [1.5]), (7, ["a"])],
    ids=["one string", "negative", "over 64 bits", "mixed", "float", "query"],
)
def test_what_the_request_cannot_hold_is_refused_here(
    client: ScorerClient, scorer: FakeScorer, query: str, documents: list[str]
) -> None:
    """A value that the message cannot hold raises InvalidRequestError that names the task, and nothing is sent."""
    with pytest.raises(InvalidRequestError, match=r"tasks\[1\]"):
        client.score([Task("q", ["a"]), Task(query, documents)])
    assert not scorer.requests


def test_an_unknown_crossing_is_refused_here(client: ScorerClient) -> None:
    """A crossing layer that does not exist raises InvalidRequestError."""
    with pytest.raises(InvalidRequestError, match="crossing: 'euclid'"):
        client.score(Task("q", ["a"]), crossing="euclid")  # type: ignore[arg-type]  # not a name of one


def test_settings_of_a_request_reach_the_server(client: ScorerClient, scorer: FakeScorer) -> None:
    """Generation, crossing and allow_partial are sent as given."""
    client.score(Task("q", ["a"]), generation="000001-00000000", crossing="residual", allow_partial=True)
    request = scorer.requests[0]
    assert (request.generation, request.crossing, request.allow_partial) == (
        "000001-00000000",
        pb.CROSSING_RESIDUAL,
        True,
    )


def test_retrieve_gives_ids_and_scores_best_first(client: ScorerClient, scorer: FakeScorer) -> None:
    """Retrieve returns, for each query, ids and a score array of the length asked for."""
    reply = client.retrieve(["shoes", "socks"], 2)
    assert [hits.documents for hits in reply.results] == [("a", "b"), ("a", "b")]
    assert reply.results[0].scores.dtype == np.float32
    assert reply.results[0].scores.tolist() == [1.0, 0.5]
    assert reply.exact
    assert client.retrieve("shoes").results[0].documents == ("a", "b", "c", "d")
    assert scorer.requests[-1].limit == 10


@pytest.mark.parametrize("limit", [-1, 2**32], ids=["negative", "over 32 bits"])
def test_a_limit_that_the_request_cannot_hold_is_refused_here(client: ScorerClient, limit: int) -> None:
    """A limit outside 32 bits raises InvalidRequestError."""
    with pytest.raises(InvalidRequestError, match="limit"):
        client.retrieve("shoes", limit)


def test_describe_names_what_is_served(client: ScorerClient) -> None:
    """Describe gives short names, and the bare number for an enum value that only a newer server knows."""
    served = client.describe()
    assert served.current == served.held[0]
    assert (served.current.name, served.current.documents, served.current.encoding) == (GENERATION, 4, "float16")
    assert served.crossings == ("cosine", "7")
    assert (served.default_crossing, served.id_type, served.calibrated) == ("cosine", "string", True)
    assert (served.limits.candidates, served.limits.hits, served.query_max_tokens) == (10_000, 1000, 32)


def test_every_call_has_a_deadline(client: ScorerClient, scorer: FakeScorer) -> None:
    """Without `timeout` a call still carries its documented deadline, and with it the one given."""
    client.score(Task("q", ["a"]))
    client.retrieve("q")
    client.describe()
    client.score(Task("q", ["a"]), timeout=500)
    limits = [1.01, 10.1, 5.05, 505]  # the wire rounds up
    assert all(0 < left <= limit for left, limit in zip(scorer.deadlines, limits, strict=True))


def test_a_missed_deadline_is_said_with_address_and_time(client: ScorerClient, address: str) -> None:
    """A server that does not answer in time raises RemoteError DEADLINE_EXCEEDED that names server and deadline."""
    with pytest.raises(RemoteError, match=f"{address} did not answer within 0.05 s") as caught:
        client.score(Task("wait", ["a"]), timeout=0.05)
    assert caught.value.code == "DEADLINE_EXCEEDED"


def unavailable() -> Failure:
    """As a server answers that is going down."""
    return Failure(grpc.StatusCode.UNAVAILABLE, "draining")


def test_a_call_that_finds_the_server_unavailable_is_tried_again(client: ScorerClient, scorer: FakeScorer) -> None:
    """Two UNAVAILABLE answers cost two retries and no error; the caller sees the third answer."""
    scorer.failures.extend([unavailable(), unavailable()])
    assert client.score(Task("shoes", ["b"])).results[0].scores.tolist() == [0.5]
    assert len(scorer.requests) == 3


def test_retries_are_bounded(client: ScorerClient, scorer: FakeScorer) -> None:
    """A server that stays UNAVAILABLE is asked four times, then the caller is told what it said."""
    scorer.failures.extend(unavailable() for _ in range(9))
    with pytest.raises(RemoteError, match="draining") as caught:
        client.describe()
    assert caught.value.code == "UNAVAILABLE"
    assert len(scorer.requests) == 4


def test_other_errors_are_not_tried_again(client: ScorerClient, scorer: FakeScorer) -> None:
    """Only UNAVAILABLE is worth a retry: an INTERNAL error is raised at once."""
    scorer.failures.append(Failure(grpc.StatusCode.INTERNAL, "a bug"))
    with pytest.raises(RemoteError, match="a bug") as caught:
        client.retrieve("shoes")
    assert (caught.value.code, caught.value.reason) == ("INTERNAL", "INTERNAL")
    assert len(scorer.requests) == 1


def test_error_details_become_reason_message_and_hint(client: ScorerClient, scorer: FakeScorer) -> None:
    """ErrorInfo's reason, the server's words and RetryInfo's delay are all in the RemoteError."""
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(50)
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="twinbert")
    scorer.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "1,024 queries are waiting", retry, info))
    with pytest.raises(RemoteError) as caught:
        client.score(Task("q", ["a"]))
    assert str(caught.value) == "1,024 queries are waiting; try again in 0.05 s"
    assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")


def test_details_that_are_no_status_are_ignored(client: ScorerClient, scorer: FakeScorer) -> None:
    """Bytes in the details that are not google.rpc.Status leave code and message as they are."""
    failure = Failure(grpc.StatusCode.INTERNAL, "a bug")
    failure.metadata = (("grpc-status-details-bin", b"\xff\xff"),)
    scorer.failures.append(failure)
    with pytest.raises(RemoteError, match="a bug"):
        client.describe()


def test_a_refused_connection_names_the_address() -> None:
    """Where nothing listens, the error is UNAVAILABLE and says which address was tried."""
    with serving(FakeScorer(["a"])) as address:
        pass
    with ScorerClient(address) as client, pytest.raises(RemoteError, match=f"no server answers at {address}") as caught:
        client.describe()
    assert caught.value.code == "UNAVAILABLE"


def test_messages_up_to_the_servers_limit_pass(client: ScorerClient) -> None:
    """A response over gRPC's own 4 MiB but under 8 MiB arrives; a request over 8 MiB is refused on this side."""
    assert client.score(Task("q", ["b"] * 900_000), timeout=60).results[0].scores.sum() == 450_000
    with pytest.raises(RemoteError) as caught:
        client.score(Task("q" * MESSAGE_BYTES, ["a"]))
    assert caught.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("form", ["{0},{1}", "localhost:{2},{1}"], ids=["addresses", "names"])
def test_several_addresses_share_the_calls(form: str) -> None:
    """Calls go to every address in turn, and to the one that is left when a server stops."""
    first, second = FakeScorer(["a"]), FakeScorer(["a"])
    with serving(first) as one:
        with serving(second) as two:
            client = ScorerClient(form.format(one, two, one.rpartition(":")[2]))
            while not (first.requests and second.requests):  # until both are connected
                client.describe()
        seen = len(first.requests)
        for _ in range(5):
            client.describe()
        assert len(first.requests) == seen + 5
        client.close()


@pytest.mark.parametrize(
    "address", ["", [], "localhost", "localhost:", ":50051", "localhost:http", "::1:50051", "a:1,b", "localhost:99999"]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """Anything that is not HOST:PORT raises UsageError that says what an address looks like."""
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        ScorerClient(address)


def test_an_unknown_host_among_several_is_named() -> None:
    """Names in a list are looked up at once, and the one without an address is named."""
    with pytest.raises(UsageError, match=r"'scorer\.invalid:1'"):
        ScorerClient(["127.0.0.1:1", "scorer.invalid:1"])


def same(one: ScoreReply, other: ScoreReply) -> bool:
    """Whether two replies are equal, bit for bit."""
    return (one.generation, one.model, one.times) == (other.generation, other.model, other.times) and all(
        np.array_equal(left.scores, right.scores, equal_nan=True) and np.array_equal(left.statuses, right.statuses)
        for left, right in zip(one.results, other.results, strict=True)
    )


def test_asyncio_gives_what_sync_gives(client: ScorerClient, address: str, scorer: FakeScorer) -> None:
    """Both clients send equal requests, return equal values and raise equal errors."""
    tasks = [Task("shoes", ["d", "nowhere", "a"]), Task("socks", ["b"])]

    async def ask() -> tuple[ScoreReply, object, object, RemoteError]:
        async with AsyncScorerClient(address) as one:
            scorer.failures.append(unavailable())
            scored = await one.score(tasks)
            hits, served = await one.retrieve("shoes", 3), await one.describe()
            scorer.failures.append(generation_not_held())
            with pytest.raises(RemoteError) as caught:
                await one.score(tasks)
            return scored, hits.results[0].documents, served, caught.value

    scored, documents, served, refused = asyncio.run(ask())
    sent = [*scorer.requests]
    scorer.requests.clear()

    scorer.failures.append(unavailable())
    assert same(client.score(tasks), scored)
    assert client.retrieve("shoes", 3).results[0].documents == documents
    assert client.describe() == served
    scorer.failures.append(generation_not_held())
    with pytest.raises(RemoteError) as caught:
        client.score(tasks)
    assert (caught.value.code, caught.value.reason, str(caught.value)) == (refused.code, refused.reason, str(refused))
    assert refused.reason == "GENERATION_NOT_HELD"
    assert scorer.requests == sent


def test_asyncio_misses_deadlines_alike(address: str) -> None:
    """The asyncio client's missed deadline is the same RemoteError."""

    async def ask() -> None:
        async with AsyncScorerClient(address) as client:
            await client.score(Task("wait", ["a"]), timeout=0.05)

    with pytest.raises(RemoteError, match=f"{address} did not answer within 0.05 s"):
        asyncio.run(ask())


@pytest.mark.parametrize("method", ["__init__", "score", "retrieve", "describe", "close"])
def test_both_clients_have_one_interface(method: str) -> None:
    """Parameters, defaults and results of every method are the same, sync and asyncio."""
    assert inspect.signature(getattr(ScorerClient, method)) == inspect.signature(getattr(AsyncScorerClient, method))
