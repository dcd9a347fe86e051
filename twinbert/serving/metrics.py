"""Prometheus: buckets, the RPC histogram, and the endpoint on a port of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from twinbert import __version__
from twinbert.errors import UsageError
from twinbert.serving.status import CODES

# Seconds. A Score takes from 0.5 ms (cached query) over 1 to 5 ms (a short query) to 20 ms (the paper's bound), and
# tens under load: steps of a factor 1.25 to 2 over 0.5 to 100 ms keep a quantile's error below a step where it matters;
# a few beyond catch the bad days. A stage can be far shorter than a request, hence the two below.
SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03),
    *(0.05, 0.075, 0.1, 0.25, 1.0, 5.0),
)


def new_registry() -> CollectorRegistry:
    """A registry with what every process exports: memory, descriptors, garbage collection, Python, our version."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that nothing reads
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    Gauge("twinbert_build_info", "The version of this program.", ["version"], registry=registry).labels(
        __version__
    ).set(1)
    return registry


class RpcMetrics:
    """Duration of RPCs by method and code, every series there from the start.

    Args:
        registry: where to register.
        methods: the names of the methods, e.g. "Score".
    """

    def __init__(self, registry: CollectorRegistry, methods: Iterable[str]) -> None:
        duration = Histogram(
            "twinbert_rpc_duration_seconds",
            "From the arrival of the parsed request to the response, by method and gRPC status code.",
            ["method", "code"],
            buckets=SECONDS,
            registry=registry,
        )
        in_flight = Gauge("twinbert_rpc_in_flight", "Requests being answered.", ["method"], registry=registry)
        received = Counter("twinbert_rpc_received", "Requests that arrived.", ["method"], registry=registry)
        methods = tuple(methods)
        self._answering = dict.fromkeys(methods, 0)
        self.duration = {(m, code): duration.labels(m, code.name) for m in methods for code in CODES}
        self.in_flight = {method: in_flight.labels(method) for method in methods}
        self.received = {method: received.labels(method) for method in methods}

    def busy(self) -> bool:
        """Whether a request is being answered."""
        return any(self._answering.values())

    def enter(self, method: str) -> None:
        """A request has arrived."""
        self._answering[method] += 1
        self.received[method].inc()
        self.in_flight[method].inc()

    def leave(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        """It was answered, or given up, with this code."""
        self._answering[method] -= 1
        self.in_flight[method].dec()
        self.duration[method, code].observe(seconds)


@contextlib.contextmanager
def endpoint(registry: CollectorRegistry, host: str, port: int) -> Iterator[int]:
    """Serves /metrics; yields the port, chosen by the system where `port` is 0.

    Raises:
        UsageError: the address cannot be bound.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise UsageError(
            f"metrics cannot be served on {host}:{port}: {error.strerror}; choose another --metrics-port"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
