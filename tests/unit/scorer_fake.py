"""A scorer behind the real interface, on a real port: its scores are easily foreseen, and it fails when told to."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1.scorer_pb2_grpc import ScorerServiceServicer, add_ScorerServiceServicer_to_server

GENERATION = "000012-9f3c01ab"
MODEL = "8d" * 32
FINGERPRINT = "fe" * 32
TIMES = pb.StageTimes(
    queue_us=1, tokenize_us=20, encode_us=3000, lookup_us=40, cross_us=5, total_us=3200, cached_queries=1
)


class Failure:
    """What the next call is answered with instead: a status with google.rpc details."""

    def __init__(self, code: grpc.StatusCode, message: str, *details: Message) -> None:
        self.code, self.message = code, message
        status = status_pb2.Status(code=code.value[0], message=message)
        for detail in details:
            status.details.add().Pack(detail)
        self.metadata = (("grpc-status-details-bin", status.SerializeToString()),) if details else ()


def generation_not_held() -> Failure:
    """As a scorer refuses a request that is pinned to a generation that it let go."""
    info = error_details_pb2.ErrorInfo(reason="GENERATION_NOT_HELD", domain="twinbert")
    return Failure(grpc.StatusCode.NOT_FOUND, "generation 000001-00000000 is not held", info)


class FakeScorer(ScorerServiceServicer):
    """Holds `documents`: the first scores 1, the second 1/2, the third 1/3 …, whatever the query.

    Attributes:
        failures: Answers the next calls, one each.
        requests: Every request that arrived.
        deadlines: The seconds that each one had left.
        waiting: Set when a call about the query "wait" has arrived.
        held: That call is answered when this is set.
    """

    def __init__(self, documents: Sequence[str] | Sequence[int]) -> None:
        self.scores = {document: 1 / rank for rank, document in enumerate(documents, 1)}
        self.integers = isinstance(documents[0], int)
        self.failures: deque[Failure] = deque()
        self.requests: list[Any] = []
        self.deadlines: list[float] = []
        self.waiting = threading.Event()
        self.held = threading.Event()

    def Score(self, request: pb.ScoreRequest, context: grpc.ServicerContext) -> pb.ScoreResponse:
        """Scores by `scores`; the query "wait" waits, and "late" is not reached where `allow_partial` permits."""
        self._arrived(request, context)
        response = pb.ScoreResponse(generation=request.generation or GENERATION, model=MODEL, times=TIMES)
        for task in request.tasks:
            if task.query == "wait":
                self.waiting.set()
                self.held.wait()
            result = response.results.add()
            for document in task.document_numbers if self.integers else task.document_ids:
                status, score = pb.DOCUMENT_STATUS_NOT_FOUND, float("nan")
                if request.allow_partial and task.query == "late":
                    status = pb.DOCUMENT_STATUS_NOT_SCORED
                elif document in self.scores:
                    status, score = pb.DOCUMENT_STATUS_OK, self.scores[document]
                result.scores.append(score)
                result.statuses.append(status)
        return response

    def Retrieve(self, request: pb.RetrieveRequest, context: grpc.ServicerContext) -> pb.RetrieveResponse:
        """The first documents."""
        self._arrived(request, context)
        response = pb.RetrieveResponse(generation=GENERATION, model=MODEL, times=TIMES, exact=True)
        for _ in request.queries:
            result = response.results.add()
            for document, score in [*self.scores.items()][: request.limit]:
                key = {"document_number": document} if self.integers else {"document_id": document}
                result.hits.add(score=score, **key)
        return response

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeResponse:
        """What the constants of this module say."""
        self._arrived(request, context)
        current = pb.Generation(name=GENERATION, documents=len(self.scores), encoding="float16", created_ms=1_700_000)
        return pb.DescribeResponse(
            current=current,
            held=[current],
            model=MODEL,
            fingerprint=FINGERPRINT,
            crossings=[pb.CROSSING_COSINE, 7],  # type: ignore[list-item]  # 7: a crossing layer of the future
            default_crossing=pb.CROSSING_COSINE,
            calibrated=True,
            dimension=384,
            id_type=pb.ID_TYPE_INTEGER if self.integers else pb.ID_TYPE_STRING,
            query_max_tokens=32,
            limits=pb.Limits(
                tasks=64, candidates=10_000, message_bytes=8 << 20, id_bytes=511, query_bytes=4096, hits=1000
            ),
            server_version="0.1.0",
        )

    def _arrived(self, request: Message, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.deadlines.append(context.time_remaining())
        if self.failures:
            failure = self.failures.popleft()
            context.set_trailing_metadata(failure.metadata)
            context.abort(failure.code, failure.message)


@contextlib.contextmanager
def serving(servicer: FakeScorer) -> Iterator[str]:
    """Serves on a free port and gives its address."""
    server = grpc.server(ThreadPoolExecutor(8))
    add_ScorerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        servicer.held.set()
        server.stop(None).wait()
