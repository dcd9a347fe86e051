"""What can go wrong outside the store. Each error says what is wrong, where, and what to do.

    TwinbertError
    ├── UsageError            a setting or a file from the user is wrong
    ├── InvalidRequestError   a request breaks the contract; names the field
    ├── BundleError           a bundle is missing, damaged or of another format
    │   └── ExportError       a bundle could not be made, or differs from its model
    ├── CrossingMissingError  the bundle lacks the crossing layer asked for
    ├── MismatchError         two things that must not be mixed
    ├── DriftError            a generation differs from the one in service by more than is allowed
    ├── UnavailableError      not now: starting, draining
    ├── BusyError             not now
    │   ├── QueueFullError    too much is waiting
    │   └── DeadlineError     what is waiting takes longer than the caller waits
    ├── UnauthenticatedError  the caller does not say who it is
    ├── ForbiddenError        the caller lacks the right
    ├── UnsupportedError      this version, or this bundle, cannot
    └── RemoteError           (client) the server answered with an error

`reason` is the `ErrorInfo.reason` that travels over gRPC: `twinbert.serving.status` maps types to codes.
"""

from __future__ import annotations


class TwinbertError(Exception):
    """Root of the tree."""

    reason = "INTERNAL"


class UsageError(TwinbertError):
    """A setting or a file from the user is wrong."""

    reason = "INVALID_SETTING"


class InvalidRequestError(TwinbertError):
    """A request breaks the contract; `field` is the path of the field, e.g. `tasks[0].query`."""

    reason = "INVALID_REQUEST"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.description = message


class BundleError(TwinbertError):
    """A bundle is missing, damaged or of another format."""

    reason = "BUNDLE_INVALID"


class ExportError(BundleError):
    """A bundle could not be made from a model, or differs from it by more than is allowed."""

    reason = "EXPORT_FAILED"


class CrossingMissingError(TwinbertError):
    """The bundle lacks the crossing layer asked for."""

    reason = "CROSSING_MISSING"


class MismatchError(TwinbertError):
    """Embeddings, bundle or store do not belong together."""

    reason = "FINGERPRINT_MISMATCH"


class DriftError(TwinbertError):
    """A generation lost documents, or scores otherwise than the one in service, by more than a limit."""

    reason = "GENERATION_DRIFT"


class UnavailableError(TwinbertError):
    """The server is starting or draining."""

    reason = "UNAVAILABLE"


class BusyError(TwinbertError):
    """Not now: `what` is scarce, for the metric of refusals; `retry_after_s` is when to try again, in seconds."""

    reason = "BUSY"

    def __init__(self, message: str, retry_after_s: float, *, what: str) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.what = what


class QueueFullError(BusyError):
    """Too much is waiting."""

    reason = "QUEUE_FULL"


class DeadlineError(BusyError):
    """The caller's time would run out before the answer is there."""

    reason = "DEADLINE_UNREACHABLE"


class UnauthenticatedError(TwinbertError):
    """The caller shows no token, or one that the server does not know."""

    reason = "UNAUTHENTICATED"


class ForbiddenError(TwinbertError):
    """The caller is known, and lacks the right to do this."""

    reason = "PERMISSION_DENIED"


class UnsupportedError(TwinbertError):
    """This version, or this bundle, cannot do what was asked for."""

    reason = "UNSUPPORTED"


class RemoteError(TwinbertError):
    """A server answered with an error.

    Attributes:
        code: the gRPC status code's name.
        reason: from `ErrorInfo`, else the code.
        request_id: by which the server's log knows the request; empty where the server was not reached.
    """

    def __init__(self, code: str, reason: str, message: str, *, request_id: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.request_id = request_id
