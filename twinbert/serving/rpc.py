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

from twinbert.serving.log import event
from twinbert.serving.metrics import RpcMetrics
from twinbert.serving.status import DETAILS_KEY, Failure, failure

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]


class Edged(Protocol):
    """A servicer whose methods are decorated with `unary`."""

    rpc_metrics: RpcMetrics


Servicer = TypeVar("Servicer", bound=Edged)
Method = Callable[[Servicer, Request, Context], Awaitable[Response]]


def unary(method: Method[Servicer, Request, Response]) -> Method[Servicer, Request, Response]:
    """Decorates a unary method of a servicer that has `rpc_metrics`."""
    name = method.__name__

    @functools.wraps(method)
    async def answered(self: Servicer, request: Request, context: Context) -> Response:
        metrics, started, code = self.rpc_metrics, time.perf_counter(), grpc.StatusCode.OK
        metrics.received[name].inc()
        metrics.in_flight[name].inc()
        try:
            return await method(self, request, context)
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            expired = remaining is not None and remaining <= 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            failed = log_failure(name, error)
            code = failed.code
            await context.abort(failed.code, failed.message, ((DETAILS_KEY, failed.details),))
            raise AssertionError("abort raises") from error
        finally:
            metrics.in_flight[name].dec()
            metrics.duration[name, code].observe(time.perf_counter() - started)

    return answered


def log_failure(name: str, error: Exception) -> Failure:
    """The status of an error of a method; one that the table does not know is logged with its trace."""
    failed = failure(error)
    if not failed.expected:
        event("rpc_failed", level=logging.ERROR, error=error, method=name)
    return failed
