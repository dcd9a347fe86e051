"""Errors → gRPC status."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from store import errors as store
from twinbert import errors as ours
from twinbert.serving.status import CODES, failure

EXPECTED = {
    ours.InvalidRequestError("tasks[0].query", "is blank"): ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    ours.UsageError("x"): ("INVALID_ARGUMENT", "INVALID_SETTING"),
    ours.BundleError("x"): ("FAILED_PRECONDITION", "BUNDLE_INVALID"),
    ours.ExportError("x"): ("FAILED_PRECONDITION", "EXPORT_FAILED"),
    ours.CrossingMissingError("x"): ("FAILED_PRECONDITION", "CROSSING_MISSING"),
    ours.MismatchError("x"): ("FAILED_PRECONDITION", "FINGERPRINT_MISMATCH"),
    ours.UnavailableError("x"): ("UNAVAILABLE", "UNAVAILABLE"),
    ours.QueueFullError("x", 1.25, what="queries"): ("RESOURCE_EXHAUSTED", "QUEUE_FULL"),
    ours.DeadlineError("x", 1.25, what="deadline"): ("DEADLINE_EXCEEDED", "DEADLINE_UNREACHABLE"),
    ours.UnauthenticatedError("x"): ("UNAUTHENTICATED", "UNAUTHENTICATED"),
    ours.ForbiddenError("x"): ("PERMISSION_DENIED", "PERMISSION_DENIED"),
    ours.UnsupportedError("x"): ("UNIMPLEMENTED", "UNSUPPORTED"),
    store.GenerationNotFoundError("x"): ("NOT_FOUND", "GENERATION_NOT_HELD"),
    store.StoreLockedError("x"): ("FAILED_PRECONDITION", "STORE_LOCKED"),
    store.StoreFullError("x"): ("RESOURCE_EXHAUSTED", "STORE_FULL"),
    store.IdTypeError("x"): ("INVALID_ARGUMENT", "ID_TYPE"),
    store.CorruptError("x"): ("FAILED_PRECONDITION", "STORE_CORRUPT"),
    TimeoutError("x"): ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
}


@pytest.mark.parametrize("error", EXPECTED, ids=lambda error: type(error).__name__)
def test_each_error_has_its_code_and_reason(error: Exception) -> None:
    """The code comes from the error's type or its nearest ancestor, the reason from the error itself."""
    failed = failure(error)
    status = status_pb2.Status.FromString(failed.details)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (failed.code.name, info.reason) == EXPECTED[error]
    assert (info.domain, status.code, status.message) == ("twinbert", failed.code.value[0], str(error))
    assert failed.code in CODES


def test_what_is_not_in_the_table_is_internal_and_says_nothing() -> None:
    """A bug's message and trace stay in the server's log."""
    failed = failure(KeyError("/secret/path"))
    assert failed.code is grpc.StatusCode.INTERNAL
    assert not failed.expected
    assert b"secret" not in failed.details
    assert "secret" not in failed.message


def test_details_name_the_field_and_when_to_try_again() -> None:
    """BadRequest for a field, RetryInfo for a full queue."""
    status = status_pb2.Status.FromString(failure(ours.InvalidRequestError("tasks[0].query", "is blank")).details)
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    violation = bad.field_violations[0]
    assert (violation.field, violation.description) == ("tasks[0].query", "is blank")

    status = status_pb2.Status.FromString(failure(ours.QueueFullError("full", 1.25, what="queries")).details)
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 250_000_000)


def test_every_error_of_the_trees_has_a_code() -> None:
    """No error of ours reaches a client as INTERNAL by oversight."""

    def leaves(kind: type[Exception]) -> list[type[Exception]]:
        return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]

    for kind in (*leaves(ours.TwinbertError), *leaves(store.StoreError)):
        if kind in (ours.TwinbertError, ours.RemoteError, store.VectorsError):
            continue  # the root is never raised, the second is the client's, the third is a broken model
        error = kind.__new__(kind)
        error.__dict__ |= {"field": "", "description": "", "retry_after_s": 1.0}
        assert failure(error).code is not grpc.StatusCode.INTERNAL, kind
