"""What every request gets: an id, a line in the log where it is wanted, and no word of its texts."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from tests.serving_fake import ENCODE, Served, encode, serve
from twinbert.v1 import encoder_pb2 as pb

TEXT = "a text that nobody may read"


def channel(served: Served) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{served.port}")


def answered(one: grpc.Channel, text: str = TEXT, **options: Any) -> tuple[grpc.StatusCode, str]:
    """Code of a call of Encode, and the request id in the trailing metadata."""
    method: Any = one.unary_unary(ENCODE, pb.EncodeRequest.SerializeToString)
    call = method.future(pb.EncodeRequest(texts=[text]), timeout=60, **options)
    return call.code(), dict(call.trailing_metadata())["x-request-id"]


@pytest.mark.parametrize("given", ["order:17/a.b_c+d=e@f", "x" * 128])
def test_a_request_keeps_its_id(given: str) -> None:
    """The caller's id comes back, stands in the log, and is kept when the call fails."""

    def test(served: Served) -> None:
        with channel(served) as one:
            assert answered(one, metadata=(("x-request-id", given),)) == (grpc.StatusCode.OK, given)
            assert served.wait_for("rpc")["request_id"] == given
            assert answered(one, "break", metadata=(("x-request-id", given),)) == (grpc.StatusCode.INTERNAL, given)
            assert served.wait_for("rpc_failed")["request_id"] == given

    serve(test, log_requests="all")


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "{}"])
def test_an_id_that_could_spoil_a_log_is_replaced(given: str) -> None:
    """Too long, empty, or with characters that a log or a shell reads otherwise: a new id is made."""

    def test(served: Served) -> None:
        with channel(served) as one:
            _, made = answered(one, metadata=(("x-request-id", given),))
            assert made != given
            assert len(made) == 16
            assert answered(one)[1] != made

    serve(test)


def test_only_failures_are_logged_by_default() -> None:
    """A line has method, code, duration, peer and message."""

    def test(served: Served) -> None:
        with channel(served) as one:
            answered(one)
            _, request_id = answered(one, "break")
            line = served.wait_for("rpc")
        assert (line["method"], line["code"], line["request_id"]) == ("Encode", "INTERNAL", request_id)
        assert line["seconds"] > 0
        assert line["peer"].startswith("ipv4:127.0.0.1")
        assert "internal error" in line["message"]

    served = serve(test)
    assert sum(event["event"] == "rpc" for event in served.log) == 1


def test_failures_do_not_flood_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of failed requests ten a second are logged, and the next line says how many were left out."""
    now = 1000.0
    held = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr("twinbert.serving.rpc.time", held)

    def test(served: Served) -> None:
        nonlocal now
        with channel(served) as one:
            for _ in range(30):
                answered(one, "break")
            now += 0.9
            answered(one, "break")
            now += 0.1
            for _ in range(2):
                answered(one, "break")

    lines = [event for event in serve(test).log if event["event"] == "rpc"]
    assert [line.get("left_out") for line in lines] == [None] * 10 + [21, None]


@pytest.mark.parametrize("which", ["none", "failed", "all"])
def test_no_text_is_logged_unless_asked_for(which: str) -> None:
    """Whatever is logged of requests, answered and failed, it is not what they ask."""

    def test(served: Served) -> None:
        with channel(served) as one:
            answered(one)
            answered(one, "break")

    assert TEXT not in str(serve(test, log_requests=which).log)


def test_texts_are_logged_when_asked_for() -> None:
    """With --log-texts a request's line has the whole request."""

    def test(served: Served) -> None:
        with channel(served) as one:
            answered(one)
            assert served.wait_for("rpc")["request"] == {"texts": [TEXT]}

    serve(test, log_requests="all", log_texts=True)


def test_the_request_of_a_bug_has_its_trace_in_the_log_only() -> None:
    """INTERNAL says nothing to the caller; the log has the trace, under the request's id."""

    def test(served: Served) -> None:
        with channel(served) as one, pytest.raises(grpc.RpcError) as caught:
            encode(one, "break")
        assert "a bug" not in str(caught.value.details())
        assert served.wait_for("rpc_failed")["method"] == "Encode"

    serve(test)


def test_probes_over_http_follow_the_life_of_the_server() -> None:
    """/healthz and /readyz answer 200 while it serves; /metrics is beside them; draining is not ready, but alive."""

    def test(served: Served) -> None:
        assert served.http("/healthz") == (200, "200 OK\n")
        assert served.http("/readyz") == (200, "200 OK\n")
        assert "\ntwinbert_serving 1.0\n" in served.http("/metrics")[1]
        served.service.state.set("draining")
        assert served.http("/readyz") == (503, "503 Service Unavailable\n")
        assert "\ntwinbert_serving 0.0\n" in served.http("/metrics")[1]
        assert served.http("/healthz")[0] == 200

    serve(test)


def test_an_event_loop_that_hangs_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """/healthz and /readyz answer 503 while the loop does not turn, although HTTP is served by a thread beside it, and
    twinbert_serving is 0.
    """
    monkeypatch.setattr("twinbert.serving.admin._HANGS_S", 0.2)
    monkeypatch.setattr("twinbert.serving.admin._BEAT_S", 0.01)

    def test(served: Served) -> None:
        served.wait_for("serving")
        hung, go_on = threading.Event(), threading.Event()

        def hang() -> None:
            hung.set()
            go_on.wait(60)

        served.loop.call_soon_threadsafe(hang)
        hung.wait(60)
        try:
            while served.http("/healthz")[0] == 200:
                pass
            assert served.http("/readyz")[0] == 503
            assert served.metric("twinbert_serving") == 0
        finally:
            go_on.set()
        while served.http("/readyz")[0] == 503:
            pass

    serve(test)


def test_every_refusal_has_its_series_from_the_start() -> None:
    """Whatever a method can be refused for is there at zero."""

    def test(served: Served) -> None:
        served.wait_for("serving")
        for reason in ("queries", "candidates", "retrievals", "encodes", "bytes", "deadline", "unauthenticated"):
            assert served.metric("twinbert_rpc_refused_total", method="Encode", reason=reason) == 0

    serve(test)
