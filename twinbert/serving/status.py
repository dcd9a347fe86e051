"""Errors → gRPC status: the one table, and the status details that clients read.

A status carries `google.rpc.ErrorInfo` (domain "twinbert", the error's `reason`), `BadRequest` where a field of the
request is at fault, and `RetryInfo` where trying again can help. What is not in the table is INTERNAL: its trace goes
to the log, never to the client.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from store import errors as store
from twinbert import errors as ours

DOMAIN = "twinbert"
DETAILS_KEY = "grpc-status-details-bin"

_CODES: dict[type[BaseException], grpc.StatusCode] = {
    ours.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    ours.UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    store.IdTypeError: grpc.StatusCode.INVALID_ARGUMENT,
    store.GenerationNotFoundError: grpc.StatusCode.NOT_FOUND,
    ours.BundleError: grpc.StatusCode.FAILED_PRECONDITION,
    ours.CrossingMissingError: grpc.StatusCode.FAILED_PRECONDITION,
    ours.MismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    ours.DriftError: grpc.StatusCode.FAILED_PRECONDITION,
    store.StoreError: grpc.StatusCode.FAILED_PRECONDITION,
    store.VectorsError: grpc.StatusCode.INTERNAL,
    ours.BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ours.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    store.StoreFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ours.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    ours.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    ours.ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    ours.UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    TimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    asyncio.CancelledError: grpc.StatusCode.CANCELLED,
}

CODES = (
    grpc.StatusCode.OK,
    grpc.StatusCode.INTERNAL,
    *sorted(set(_CODES.values()) - {grpc.StatusCode.INTERNAL}, key=str),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a client sees it."""

    code: grpc.StatusCode
    message: str
    details: bytes

    @property
    def expected(self) -> bool:
        """Whether the table knows the error; the others are bugs."""
        return self.code is not grpc.StatusCode.INTERNAL


def failure(error: BaseException) -> Failure:
    """Maps an error by its type, the nearest ancestor first."""
    code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), grpc.StatusCode.INTERNAL)
    if code is grpc.StatusCode.INTERNAL:
        text, reason = "internal error; the server's log has the details", "INTERNAL"
    else:
        text, reason = _clipped(str(error)) or code.value[1], getattr(error, "reason", code.name)
    details: list[message.Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)]
    if isinstance(error, ours.InvalidRequestError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=_clipped(error.description)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, ours.BusyError):
        delay = duration_pb2.Duration(
            nanos=int(error.retry_after_s * 1e9) % 1_000_000_000, seconds=int(error.retry_after_s)
        )
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code.value[0], message=text, details=[_packed(detail) for detail in details])
    return Failure(code, text, status.SerializeToString())


def _clipped(text: str) -> str:
    """Status travels in headers, which clients bound to 8 KiB: a message that quotes a request may be far longer."""
    return text if len(text) <= 1000 else f"{text[:1000]}…"


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
