"""The edge of every RPC: counts it, times it, and turns an error into a status."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from twinbert.errors import InvalidRequestError
from twinbert.serving.log import event
from twinbert.serving.metrics import RpcMetrics
from twinbert.serving.status import DETAILS_KEY, Failure, failure

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]


class Edged(Protocol):
    """A servicer whose methods are decorated with `answered`."""

    rpc_metrics: RpcMetrics


Servicer = TypeVar("Servicer", bound=Edged)
Method = Callable[[Servicer, Request, Context], Awaitable[Response]]

# A client's deadline and the server's view of it differ by the way between them.
_EXPIRY_SLACK_S = 0.01


def answered(method: Method[Servicer, Request, Response]) -> Method[Servicer, Request, Response]:
    """Decorates a method of a servicer that has `rpc_metrics`: what goes in is parsed or refused, what comes out is
    a response or a status, and both are counted. A streaming method parses its requests itself, with `parsed`.
    """
    name = method.__name__

    @functools.wraps(method)
    async def edge(self: Servicer, request: Request | DecodeError, context: Context) -> Response:
        metrics, started = self.rpc_metrics, time.perf_counter()

        def count(code: grpc.StatusCode) -> None:
            metrics.leave(name, code, time.perf_counter() - started)

        metrics.enter(name)
        try:
            response = await method(self, parsed(request), context)
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            expired = remaining is not None and remaining <= _EXPIRY_SLACK_S
            count(grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED)
            raise
        except Exception as error:
            failed = log_failure(name, error)
            count(failed.code)  # before the client can know of it
            await context.abort(failed.code, failed.message, ((DETAILS_KEY, failed.details),))
            raise AssertionError("abort raises") from error
        count(grpc.StatusCode.OK)
        return response

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
    try:
        return kind.FromString(content)
    except DecodeError as error:
        return error


def log_failure(name: str, error: Exception) -> Failure:
    """The status of an error of a method; one that the table does not know is logged with its trace."""
    failed = failure(error)
    if not failed.expected:
        event("rpc_failed", level=logging.ERROR, error=error, method=name)
    return failed
