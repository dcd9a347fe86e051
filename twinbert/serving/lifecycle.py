"""The life of a server: bind, warm up, serve, drain. Health and reflection come with it.

starting ──► serving ──SIGTERM──► draining ──► stopped
health: NOT_SERVING   SERVING      NOT_SERVING
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from twinbert import __version__
from twinbert.errors import UnavailableError, UsageError
from twinbert.serving.log import event
from twinbert.serving.metrics import RpcMetrics, endpoint

_Status = health_pb2.HealthCheckResponse.ServingStatus


# Between two looks whether requests are still being answered.
_SETTLE_SECONDS = 0.05
# What the last answers have to reach their clients.
_LAST_BYTES_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """Where a server listens, and what it allows a connection.

    Attributes:
        address: "HOST:PORT" of gRPC; port 0 lets the system choose.
        metrics_host: host of /metrics.
        metrics_port: port of /metrics; 0 lets the system choose.
        message_bytes: largest message, either way.
        streams: calls at a time on one connection.
        connection_age_s: after this a connection is closed gently, so that clients find new replicas.
        drain_s: how long requests in flight may take once the server was told to stop.
    """

    address: str
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    message_bytes: int = 8 << 20
    streams: int = 1000
    connection_age_s: int = 300
    drain_s: float = 20.0

    def __post_init__(self) -> None:
        """Raises UsageError for what is not HOST:PORT: the library would listen elsewhere without a word."""
        host, colon, port = self.address.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise UsageError(f"{self.address!r} is not HOST:PORT with a port from 0 to 65535; correct --address")


class State:
    """Whether a server takes requests."""

    def __init__(self) -> None:
        self._now = "starting"

    def require_serving(self) -> None:
        """Raises UnavailableError unless the server is serving."""
        if self._now != "serving":
            raise UnavailableError(f"the server is {self._now}; try again, or another replica")

    def set(self, now: str) -> None:
        """To "starting", "serving" or "draining"."""
        self._now = now


class Service(Protocol):
    """What a server has to offer to be run."""

    name: str
    state: State
    rpc_metrics: RpcMetrics

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer."""

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
        listening: where.
        registry: what /metrics shows.

    Raises:
        UsageError: an address cannot be bound.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with endpoint(registry, listening.metrics_host, listening.metrics_port) as metrics_port:
        async with _serving(service, listening) as (port, server, checks), service.running():
            await _set_health(checks, service, health_pb2.HealthCheckResponse.SERVING)
            service.state.set("serving")
            host = listening.address.rpartition(":")[0]
            address = f"{host}:{port}"
            event("serving", service=service.name, address=address, metrics_port=metrics_port, version=__version__)
            await stop.wait()
            stop.clear()
            event("draining", service=service.name, seconds=listening.drain_s)
            service.state.set("draining")
            await _set_health(checks, service, health_pb2.HealthCheckResponse.NOT_SERVING)
            await _drain(server, service, listening.drain_s, stop)
    event("stopped", service=service.name)


@contextlib.asynccontextmanager
async def _serving(
    service: Service, listening: Listening
) -> AsyncIterator[tuple[int, grpc.aio.Server, health.aio.HealthServicer]]:
    server = grpc.aio.server(options=_options(listening))
    service.register(server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((service.name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    await _set_health(checks, service, health_pb2.HealthCheckResponse.NOT_SERVING)
    try:
        port = server.add_insecure_port(listening.address)
    except RuntimeError as error:
        raise UsageError(
            f"{listening.address} cannot be bound: it is in use, or not of this host; choose another --address"
        ) from error
    await server.start()
    try:
        yield port, server, checks
    finally:
        await server.stop(grace=None)


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


def _options(listening: Listening) -> Sequence[tuple[str, int]]:
    return (
        # A second server on the same port is an error, not a silent share of its requests.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", listening.message_bytes),
        ("grpc.max_send_message_length", listening.message_bytes),
        ("grpc.max_concurrent_streams", listening.streams),
        ("grpc.max_connection_age_ms", listening.connection_age_s * 1000),
        ("grpc.max_connection_age_grace_ms", 60_000),
        # The default of 120 s lets silent connections pile up.
        ("grpc.server_handshake_timeout_ms", 10_000),
        # Finds clients that went away without a word.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Clients may ping as often as every 10 s, also between calls.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    )
