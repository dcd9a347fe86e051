"""OpenTelemetry spans, as a collector receives them over gRPC."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.servers import refresh, running, write_documents
from tests.serving_fake import Served, encode, serve
from twinbert.client import ScorerClient, Task

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
NOT_SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)


class Collector(TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.came = threading.Condition()
        self.address = ""

    def Export(self, request: Any, context: Any) -> Any:
        """Takes spans."""
        with self.came:
            self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
            self.came.notify_all()
        return otlp.ExportTraceServiceResponse()

    def wait_for(self, name: str) -> Any:
        """The first span of this name."""
        with self.came:
            assert self.came.wait_for(lambda: any(span.name == name for span in self.spans), 60), self.spans
            return next(span for span in self.spans if span.name == name)


@pytest.fixture
def collector() -> Iterator[Collector]:
    servicer, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(servicer, server)
    servicer.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(None).wait()


def channel(served: Served) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{served.port}")


def test_a_request_is_a_span_under_the_callers(collector: Collector) -> None:
    """It continues the trace of `traceparent`, has the request's id and status, and the log has the trace's id."""

    def test(served: Served) -> None:
        with channel(served) as one:
            encode(one, "secret text", metadata=(*SAMPLED, ("x-request-id", "order-7")))
        assert served.wait_for("rpc")["trace_id"] == TRACE

    serve(test, otlp_endpoint=collector.address, trace_share=0, log_requests="all")
    span = collector.wait_for("twinbert.v1.EncoderService/Encode")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    attributes = {one.key: one.value for one in span.attributes}
    assert attributes["twinbert.request_id"].string_value == "order-7"
    assert attributes["rpc.grpc.status_code"].int_value == 0
    parse = collector.wait_for("parse")
    assert parse.parent_span_id == span.span_id
    assert span.start_time_unix_nano == parse.start_time_unix_nano < parse.end_time_unix_nano < span.end_time_unix_nano
    assert "secret" not in str(collector.spans)


def test_who_is_traced_is_the_callers_to_say(collector: Collector) -> None:
    """A caller that does not sample is not traced, whatever the share; of the others the share is."""

    def test(served: Served) -> None:
        with channel(served) as one:
            encode(one, metadata=NOT_SAMPLED)
            encode(one, metadata=(("x-request-id", "mine"),))
            encode(one, metadata=(("traceparent", "nonsense"),))

    serve(test, otlp_endpoint=collector.address, trace_share=1)
    roots = [span for span in collector.spans if "Encode" in span.name]
    assert len(roots) == 2
    assert TRACE not in {span.trace_id.hex() for span in roots}
    assert not any(span.parent_span_id for span in roots)


def test_a_failed_request_is_a_failed_span(collector: Collector) -> None:
    """A bug marks its span as an error, without what the bug said."""

    def test(served: Served) -> None:
        with channel(served) as one, pytest.raises(grpc.RpcError):
            encode(one, "break", metadata=SAMPLED)

    serve(test, otlp_endpoint=collector.address)
    span = collector.wait_for("twinbert.v1.EncoderService/Encode")
    assert (span.status.code, span.status.message) == (2, "")


def test_a_collector_that_is_away_changes_nothing() -> None:
    """Requests are answered, and the server stops."""

    def test(served: Served) -> None:
        with channel(served) as one:
            assert encode(one, metadata=SAMPLED) == "hello"

    serve(test, otlp_endpoint="http://127.0.0.1:1")


def test_a_score_shows_its_stages(tiny_bundle: Path, tmp_path: Path, collector: Collector) -> None:
    """parse, cache, queue, tokenize, encode, lookup and cross, in the span of the request; from the cache only what
    is left to do.
    """
    store = tmp_path / "store"
    refresh(tiny_bundle, store, write_documents(tmp_path / "documents.jsonl", {"a": "red shoe", "b": "blue boot"}))
    with running("serve", tiny_bundle, store, "--otlp-endpoint", collector.address, "--trace-share", "1") as server:
        with ScorerClient(server.address) as client:
            for _ in range(2):
                client.score(Task("shoe", ["a", "b"]), timeout=30)
        assert server.stop() == 0
    first, second = (span for span in collector.spans if span.name.endswith("/Score"))

    def stages(root: Any) -> set[str]:
        return {span.name for span in collector.spans if span.parent_span_id == root.span_id}

    assert stages(first) == {"parse", "cache", "queue", "tokenize", "encode", "lookup", "cross"}
    assert stages(second) == {"parse", "cache", "lookup", "cross"}
    for span in collector.spans:
        if span.parent_span_id == first.span_id:
            assert first.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= first.end_time_unix_nano
    assert "shoe" not in str(collector.spans)


def test_without_it_nothing_of_opentelemetry_is_imported() -> None:
    """A server that makes no spans has none of the library in its process."""
    code = (
        "import sys, scorer_server.server, encoder_server.server;"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
