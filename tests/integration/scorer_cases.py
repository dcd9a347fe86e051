"""Documents for a scorer, and what it is asked."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from twinbert.v1 import scorer_pb2 as pb

WORDS = "red blue green small large shoe boot table chair lamp paper glass metal wood for with and without".split()
DOCUMENTS = {
    f"d{number}": " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 2 + number % 9))
    for number in range(300)
}


def one_task(query: str, *ids: str) -> pb.ScoreRequest:
    return pb.ScoreRequest(tasks=[pb.ScoreTask(query=query, document_ids=ids)])


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
