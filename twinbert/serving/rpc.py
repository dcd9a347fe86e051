"""The edge of every RPC: names it, counts it, times it, logs it, and turns an error into a status."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from twinbert.errors import (
    BusyError,
    ForbiddenError,
    InvalidRequestError,
    QueueFullError,
    UnauthenticatedError,
    UnavailableError,
)
from twinbert.serving import log
from twinbert.serving.listening import Listening
from twinbert.serving.metrics import RpcMetrics
from twinbert.serving.status import DETAILS_KEY, Failure, failure
from twinbert.serving.tracing import Tracing

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]

REQUEST_ID = "x-request-id"
_SANE_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)

# A client's deadline and the server's view of it differ by the way between them.
_EXPIRY_SLACK_S = 0.01

# An overloaded server refuses thousands of calls a second: it has better to do than to write each of them down.
_FAILURES_LOGGED_A_SECOND = 10

# When the message of the running task's request came, and its bytes.
_ARRIVED: ContextVar[tuple[float, int] | None] = ContextVar("arrived", default=None)


class Edged(Protocol):
    """A servicer whose methods are decorated with `answered`."""

    edge: Edge


Servicer = TypeVar("Servicer", bound=Edged)
Method = Callable[[Servicer, Request, Context], Awaitable[Response]]


class Edge:
    """What every call of a server passes.

    Args:
        metrics: where to count.
        listening: which calls are logged, and how many bytes may be waiting.
        tracing: makes spans; None: none are made.
    """

    def __init__(self, metrics: RpcMetrics, listening: Listening, tracing: Tracing | None = None) -> None:
        self._metrics, self._tracing = metrics, tracing
        self._bytes, self._most_bytes = 0, listening.waiting_bytes
        self._log = _RequestLog(listening)

    async def answer(
        self,
        name: str,
        method: Callable[[Request, Context], Awaitable[Response]],
        request: Request | DecodeError,
        context: Context,
    ) -> Response:
        """Answers a call of the method `name` by `method`, and sees that it ends with a response or a status."""
        arrived, size = _ARRIVED.get() or (time.perf_counter(), 0)
        metadata = dict(context.invocation_metadata() or ())
        request_id = _request_id(metadata)
        log.bind(request_id=request_id)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        trace = self._tracing and self._tracing.begin(name, metadata, arrived, request_id)
        if trace:
            trace.stage("parse", arrived, time.perf_counter())

        def left(code: grpc.StatusCode, failed: Failure | None = None) -> None:
            seconds = time.perf_counter() - arrived
            self._metrics.leave(name, code, seconds)
            message = failed.message if failed else ""
            self._log.write(name, code, seconds=seconds, message=message, request=request, context=context)
            if trace:
                trace.end(code)

        self._metrics.enter(name)
        try:
            with self._room(size):
                response = await method(parsed(request), context)
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            expired = remaining is not None and remaining <= _EXPIRY_SLACK_S
            left(grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED)
            raise
        except Exception as error:
            failed = failure(error)
            if not failed.expected:
                log.event("rpc_failed", level=logging.ERROR, error=error, method=name)
            if why := _refusal(error):
                self._metrics.refused[name, why].inc()
            left(failed.code, failed)  # before the client can know of it
            trailing = ((DETAILS_KEY, failed.details), (REQUEST_ID, request_id))
            await context.abort(failed.code, failed.message, trailing)
            raise AssertionError("abort raises") from error
        left(grpc.StatusCode.OK)
        return response

    async def refuse(self, name: str, error: Exception, context: Context) -> None:
        """Answers a call with an error. What is no method of the service is not counted: its names have no bound."""

        async def refusing(_request: None, _context: Context) -> None:
            raise error

        if name in self._metrics.methods:
            await self.answer(name, refusing, None, context)
        else:
            failed = failure(error)
            await context.abort(failed.code, failed.message, ((DETAILS_KEY, failed.details),))

    @contextlib.contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Room for a request's message among those being answered."""
        if self._bytes and self._bytes + size > self._most_bytes:
            raise QueueFullError(
                f"requests of {self._bytes:,} bytes are being answered, {self._most_bytes:,} may be; "
                "try again, or another replica",
                0.05,
                what="bytes",
            )
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size


def answered(method: Method[Servicer, Request, Response]) -> Method[Servicer, Request, Response]:
    """Decorates a method of a servicer that has an `edge`: what goes in is parsed or refused, what comes out is a
    response or a status, and both are counted. A streaming method parses its requests itself, with `parsed`.
    """

    @functools.wraps(method)
    async def edge(self: Servicer, request: Request | DecodeError, context: Context) -> Response:
        return await self.edge.answer(method.__name__, functools.partial(method, self), request, context)

    return edge


def parsed(request: Request | DecodeError) -> Request:
    """The request, if it was one.

    Raises:
        InvalidRequestError: its bytes are not a message of the contract.
    """
    if isinstance(request, DecodeError):
        raise InvalidRequestError("request", f"cannot be parsed: {request}") from request
    return request


def register(server: grpc.aio.Server, servicer: object, service: ServiceDescriptor) -> None:
    """Adds a servicer. Bytes that do not parse reach its edge as the error that they cause, instead of ending the call
    inside the library, uncounted and with the wrong status.
    """
    handlers = {}
    for method in service.methods:
        streaming = method.client_streaming and method.server_streaming
        kind = grpc.stream_stream_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = kind(
            getattr(servicer, method.name),
            request_deserializer=functools.partial(_parse, GetMessageClass(method.input_type)),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def _parse(kind: type[Message], content: bytes) -> Message | DecodeError:
    _ARRIVED.set((time.perf_counter(), len(content)))
    try:
        return kind.FromString(content)
    except DecodeError as error:
        return error


def _request_id(metadata: dict[str, str | bytes]) -> str:
    """The caller's, if it can stand in a log; else a new one."""
    given = metadata.get(REQUEST_ID)
    return given if isinstance(given, str) and _SANE_ID.fullmatch(given) else secrets.token_hex(8)


def _refusal(error: Exception) -> str | None:
    """Why a call was refused without work, one of `serving.metrics.REFUSALS`; None: it was not."""
    match error:
        case BusyError():
            return error.what
        case UnavailableError():
            return "not_serving"
        case UnauthenticatedError():
            return "unauthenticated"
        case ForbiddenError():
            return "forbidden"
    return None


class _RequestLog:
    """Writes calls into the log, those that failed at most so many a second."""

    def __init__(self, listening: Listening) -> None:
        self._which, self._texts = listening.log_requests, listening.log_texts
        self._second, self._written, self._left_out = 0, 0, 0

    def write(
        self, name: str, code: grpc.StatusCode, *, seconds: float, message: str, request: object, context: Context
    ) -> None:
        ok = code is grpc.StatusCode.OK
        if self._which == "none" or (self._which == "failed" and (ok or not self._may_write())):
            return
        fields: dict[str, Any] = {"method": name, "code": code.name, "seconds": round(seconds, 6)}
        fields["peer"] = context.peer()
        if message:
            fields["message"] = message
        if self._texts and isinstance(request, Message):
            fields["request"] = MessageToDict(request)
        if self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        log.event("rpc", level=logging.INFO if ok else logging.WARNING, **fields)

    def _may_write(self) -> bool:
        now = int(time.monotonic())
        if now != self._second:
            self._second, self._written = now, 0
        self._written += 1
        self._left_out += self._written > _FAILURES_LOGGED_A_SECOND
        return self._written <= _FAILURES_LOGGED_A_SECOND
