"""What both servers export to Prometheus, and the buckets of all histograms of time."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from twinbert import __version__
from twinbert.serving.status import CODES

# Seconds. A Score takes from 0.5 ms (cached query) over 1 to 5 ms (a short query) to 20 ms (the paper's bound), and
# tens under load: steps of a factor 1.25 to 2 over 0.5 to 100 ms keep a quantile's error below a step where it matters;
# a few beyond catch the bad days. A stage can be far shorter than a request, hence the two below.
SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03),
    *(0.05, 0.075, 0.1, 0.25, 1.0, 5.0),
)

RELOADED = ("certificate", "tokens")

# What a call can be refused for without work: scarce things, the caller's deadline, and the caller.
REFUSALS = (
    *("queries", "candidates", "retrievals", "encodes", "bytes", "deadline"),
    *("not_serving", "unauthenticated", "forbidden"),
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
            "From the arrival of the request's message to the response, by method and gRPC status code.",
            ["method", "code"],
            buckets=SECONDS,
            registry=registry,
        )
        in_flight = Gauge("twinbert_rpc_in_flight", "Requests being answered.", ["method"], registry=registry)
        received = Counter("twinbert_rpc_received", "Requests that arrived.", ["method"], registry=registry)
        refused = Counter(
            "twinbert_rpc_refused",
            "Requests refused without work, by reason: something scarce, the caller's deadline, or the caller.",
            ["method", "reason"],
            registry=registry,
        )
        self.methods = methods = tuple(methods)
        self.refused = {(m, reason): refused.labels(m, reason) for m in methods for reason in REFUSALS}
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


class ReloadMetrics:
    """What became of files that are read again when they change; every series there from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        failed = Gauge(
            "twinbert_reload_failed",
            "1 while the newest content of these files cannot be used and an older one is, else 0.",
            ["what"],
            registry=registry,
        )
        done = Counter("twinbert_reloads", "Times that changed files were taken over.", ["what"], registry=registry)
        self.failed = {what: failed.labels(what) for what in RELOADED}
        self.done = {what: done.labels(what) for what in RELOADED}
        self.certificate_expiry = Gauge(
            "twinbert_tls_certificate_expiry_timestamp_seconds",
            "When the certificate that is served expires; 0 without TLS.",
            registry=registry,
        )
