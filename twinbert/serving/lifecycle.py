"""The life of a server: bind, warm up, serve, drain. Health and reflection come with it.

starting ──► serving ──SIGTERM──► draining ──► stopped
health: NOT_SERVING   SERVING      NOT_SERVING
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from twinbert import __version__
from twinbert.errors import UnavailableError, UsageError
from twinbert.serving.access import Guard
from twinbert.serving.admin import endpoint
from twinbert.serving.listening import Listening
from twinbert.serving.log import event
from twinbert.serving.metrics import RpcMetrics
from twinbert.serving.rpc import Edge
from twinbert.serving.security import Security
from twinbert.serving.tracing import Tracing

# Between two looks whether requests are still being answered.
_SETTLE_SECONDS = 0.05
# What the last answers have to reach their clients.
_LAST_BYTES_SECONDS = 1.0


class State:
    """Whether a server takes requests."""

    def __init__(self) -> None:
        self._now = "starting"

    def require_serving(self) -> None:
        """Raises UnavailableError unless the server is serving."""
        if self._now != "serving":
            raise UnavailableError(f"the server is {self._now}; try again, or another replica")

    def is_serving(self) -> bool:
        """Whether it does."""
        return self._now == "serving"

    def set(self, now: str) -> None:
        """To "starting", "serving" or "draining"."""
        self._now = now


class Service(Protocol):
    """What a server has to offer to be run; `writing` are the methods that need the right to write."""

    name: str
    writing: frozenset[str]
    state: State
    rpc_metrics: RpcMetrics

    def register(self, server: grpc.aio.Server, edge: Edge) -> None:
        """Adds the servicer, whose calls pass the edge."""

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Warms up on entry, and stops background work on exit."""


async def run(
    service: Service,
    listening: Listening,
    registry: CollectorRegistry,
) -> None:
    """Runs a server until SIGTERM or SIGINT; a second signal ends it without waiting for requests in flight.

    Args:
        service: what to serve.
        listening: where, and for whom.
        registry: what /metrics shows.

    Raises:
        UsageError: an address cannot be bound, or certificates or tokens are no good.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    security, state = Security(listening, registry), service.state
    with (
        _tracing(service, listening) as tracing,
        endpoint(registry, listening.metrics_host, listening.metrics_port, state.is_serving) as metrics_port,
    ):
        edge = Edge(service.rpc_metrics, listening, tracing)
        async with _serving(service, listening, security, edge) as (port, server, checks), service.running():
            await _set_health(checks, service, health_pb2.HealthCheckResponse.SERVING)
            state.set("serving")
            address = f"{listening.address.rpartition(':')[0]}:{port}"
            event(
                "serving",
                service=service.name,
                address=address,
                metrics_port=metrics_port,
                callers=security.callers(),
                version=__version__,
            )
            await stop.wait()
            stop.clear()
            event("draining", service=service.name, seconds=listening.drain_s)
            state.set("draining")
            await _set_health(checks, service, health_pb2.HealthCheckResponse.NOT_SERVING)
            await _drain(server, service, listening.drain_s, stop)
    event("stopped", service=service.name)


@contextlib.asynccontextmanager
async def _serving(
    service: Service, listening: Listening, security: Security, edge: Edge
) -> AsyncIterator[tuple[int, grpc.aio.Server, health.aio.HealthServicer]]:
    guards = [Guard(security.tokens, service.name, service.writing, edge)] if security.tokens else []
    server = grpc.aio.server(options=listening.channel_options(), interceptors=guards)
    service.register(server, edge)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((service.name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    await _set_health(checks, service, health_pb2.HealthCheckResponse.NOT_SERVING)
    try:
        port = security.bind(server, listening.address)
    except RuntimeError as error:
        raise UsageError(
            f"{listening.address} cannot be bound: it is in use, or not of this host; choose another --address"
        ) from error
    await server.start()
    watching = asyncio.ensure_future(security.watch())
    try:
        yield port, server, checks
    finally:
        watching.cancel()
        await server.stop(grace=None)


@contextlib.contextmanager
def _tracing(service: Service, listening: Listening) -> Iterator[Tracing | None]:
    if listening.otlp_endpoint is None:
        yield None
        return
    tracing = Tracing.over_otlp(service.name, listening.otlp_endpoint, listening.trace_share)
    try:
        yield tracing
    finally:
        tracing.close()


async def _drain(server: grpc.aio.Server, service: Service, seconds: float, again: asyncio.Event) -> None:
    """Lets requests in flight end, for `seconds` at most or until `again` is set; a health watch is not waited for."""
    stopping = asyncio.ensure_future(server.stop(grace=seconds))
    deadline = time.monotonic() + seconds
    await asyncio.sleep(_SETTLE_SECONDS)
    while service.rpc_metrics.busy() and time.monotonic() < deadline and not again.is_set():
        await asyncio.sleep(_SETTLE_SECONDS)
    await server.stop(grace=None if again.is_set() else _LAST_BYTES_SECONDS)
    await stopping


async def _set_health(checks: health.aio.HealthServicer, service: Service, status: int) -> None:
    """Sets the health of the service and of the server as a whole (the empty name)."""
    for name in (service.name, ""):
        await checks.set(name, status)
