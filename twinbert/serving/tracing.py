"""OpenTelemetry spans: one a request, under the caller's, and one a stage. Nothing of the library is imported, and a
stage costs one look at a context variable, where no spans are made.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

import grpc

from twinbert import __version__
from twinbert.serving import log

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

# A collector that takes longer loses the spans: a server that stops waits for the last ones.
_EXPORT_S = 2


class Tracing:
    """Makes spans and sends them away.

    Args:
        service: the service's full name.
        exporter: where they go.
        share: of the requests whose caller does not say whether they are traced.
    """

    def __init__(self, service: str, exporter: SpanExporter, share: float) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": service, "service.version": __version__})
        self._provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("twinbert", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._service = service

    @classmethod
    def over_otlp(cls, service: str, endpoint: str, share: float) -> Tracing:
        """Sends them to an OpenTelemetry collector over gRPC; `endpoint` is "http://HOST:PORT", or https for TLS."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return cls(service, OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_S), share)

    def begin(self, method: str, metadata: Mapping[str, str | bytes], arrived: float, request_id: str) -> Trace | None:
        """The trace of a request that came at `arrived` (perf_counter); None where it is not sampled."""
        from opentelemetry.trace import SpanKind

        caller = {name: value for name in ("traceparent", "tracestate") if isinstance(value := metadata.get(name), str)}
        # What spans take is nanoseconds since the epoch.
        epoch = time.time_ns() - int(time.perf_counter() * 1e9)
        span = self._tracer.start_span(
            f"{self._service}/{method}",
            context=self._propagator.extract(caller),
            kind=SpanKind.SERVER,
            start_time=epoch + int(arrived * 1e9),
            attributes={
                "rpc.system": "grpc",
                "rpc.service": self._service,
                "rpc.method": method,
                "twinbert.request_id": request_id,
            },
        )
        if not span.is_recording():
            return None
        log.bind(trace_id=f"{span.get_span_context().trace_id:032x}")
        trace = Trace(self._tracer, span, epoch)
        _CURRENT.set(trace)
        return trace

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


class Trace:
    """The spans of one request."""

    def __init__(self, tracer: Tracer, span: Span, epoch: int) -> None:
        self._tracer, self._span, self._epoch = tracer, span, epoch

    def stage(self, name: str, begun: float, ended: float) -> None:
        """Adds a stage that lasted from `begun` to `ended` (perf_counter)."""
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(
            name, context=set_span_in_context(self._span), start_time=self._epoch + int(begun * 1e9)
        )
        span.end(self._epoch + int(ended * 1e9))

    def end(self, code: grpc.StatusCode) -> None:
        """The request was answered."""
        from opentelemetry.trace import StatusCode

        number: int = code.value[0]
        self._span.set_attribute("rpc.grpc.status_code", number)
        if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE):
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


_CURRENT: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current_trace() -> Trace | None:
    """The running request's trace, if it has one."""
    return _CURRENT.get()
