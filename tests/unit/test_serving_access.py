"""Bearer tokens: who may call what, and what happens when the file changes."""

from __future__ import annotations

import asyncio
import hmac
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.serving_fake import REFRESH, FakeEncoder, Served, encode, serve
from twinbert.errors import UsageError
from twinbert.serving import access
from twinbert.serving.access import Tokens
from twinbert.serving.lifecycle import run
from twinbert.serving.listening import Listening
from twinbert.serving.metrics import ReloadMetrics, new_registry
from twinbert.v1 import encoder_pb2 as pb

READER, NEXT_READER, WRITER, BOTH = "r" * 32, "s" * 32, "w" * 32, "b" * 43 + "="
FILE = f"""
# name    rights      token
ranker    read        {READER}
ranker    read        {NEXT_READER}

loader    write       {WRITER}
nightly   read,write  {BOTH}
"""


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(FILE)
    return path


def bearing(token: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {token}"),)}


def refresh(channel: grpc.Channel, **options: Any) -> int:
    """Calls Refresh with three requests; returns how many were answered."""
    call = channel.stream_stream(REFRESH, pb.RefreshRequest.SerializeToString, pb.RefreshResponse.FromString)
    return len(list(call(iter([pb.RefreshRequest()] * 3), timeout=60, **options)))


def refusal(call: Any, *arguments: Any, **options: Any) -> tuple[str, str, str]:
    """Code, reason and message of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    error: Any = caught.value
    details = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]).details
    info = error_details_pb2.ErrorInfo()
    assert details[0].Unpack(info)
    return error.code().name, info.reason, error.details()


def test_each_token_may_do_what_its_rights_say(tokens: Path) -> None:
    """`read` lets a token encode, `write` refresh; anything else is PERMISSION_DENIED and says which right it lacks."""

    def test(served: Served) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            for token in (READER, NEXT_READER, BOTH):
                assert encode(channel, **bearing(token)) == "hello"
            for token in (WRITER, BOTH):
                assert refresh(channel, **bearing(token)) == 3
            assert refusal(refresh, channel, **bearing(READER)) == (
                *("PERMISSION_DENIED", "PERMISSION_DENIED"),
                "the token of ranker lacks the right to write, which Refresh needs",
            )
            assert refusal(encode, channel, **bearing(WRITER))[0] == "PERMISSION_DENIED"
        assert served.metric("twinbert_rpc_refused_total", method="Refresh", reason="forbidden") == 1
        assert served.metric("twinbert_rpc_duration_seconds_count", method="Encode", code="PERMISSION_DENIED") == 1

    serve(test, tokens=tokens)


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {READER[:-1]}"),),
        (("authorization", f"Bearer {READER}x"),),
        (("authorization", f"Basic {READER}"),),
        (("authorization", READER),),
        (("authorization", f"Bearer {READER}"), ("authorization", f"Bearer {BOTH}")),
        (("authorization", "Bearer ranker"),),
        (("x-token", f"Bearer {READER}"),),
    ],
)
def test_without_a_known_token_nothing_is_done(tokens: Path, metadata: Any) -> None:
    """No token, a wrong one, another scheme, two tokens: UNAUTHENTICATED, counted, and no word of the token back."""

    def test(served: Served) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            for call in (encode, refresh):
                code, reason, message = refusal(call, channel, metadata=metadata)
                assert (code, reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
                assert READER[:8] not in message
        for method in ("Encode", "Refresh"):
            assert served.metric("twinbert_rpc_refused_total", method=method, reason="unauthenticated") == 1
        assert not any(READER[:8] in str(event) for event in served.log)

    serve(test, tokens=tokens)


def test_a_stranger_is_refused_before_its_message_is_read(tokens: Path) -> None:
    """A stranger that sends only headers is answered at once: no message is waited for."""

    def test(served: Served) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            silent: Any = channel.stream_unary("/twinbert.v1.EncoderService/Encode")
            requests: Any = iter(lambda: served.wait_for("stopped"), None)  # sends nothing for as long as it serves
            with pytest.raises(grpc.RpcError) as caught:
                silent(requests)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    serve(test, tokens=tokens)


def test_health_is_open_and_reflection_is_not(tokens: Path) -> None:
    """Probes have no token; what the server offers is told to callers that may read."""

    def test(served: Served) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            check = health.Check(health_pb2.HealthCheckRequest(), timeout=60)
            assert check.status == health_pb2.HealthCheckResponse.SERVING
            ask: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            assert list(ask(iter([request]), **bearing(READER)))
            assert refusal(lambda: list(ask(iter([request]))))[0] == "UNAUTHENTICATED"
            unknown: Any = channel.unary_unary("/twinbert.v1.EncoderService/Delete")
            assert refusal(unknown, b"", metadata=())[0] == "UNAUTHENTICATED"
            with pytest.raises(grpc.RpcError) as caught:
                unknown(b"", **bearing(READER))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    serve(test, tokens=tokens)


def test_changed_tokens_count_at_once(tokens: Path) -> None:
    """A new token is let in and a removed one refused without a restart; a bad new file keeps the old ones."""

    def test(served: Served) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            tokens.write_text(f"ranker read {'n' * 32}\n")
            served.wait_for("reloaded")
            assert encode(channel, **bearing("n" * 32)) == "hello"
            assert refusal(encode, channel, **bearing(READER))[0] == "UNAUTHENTICATED"
            tokens.write_text("")
            assert "no token" in served.wait_for("reload_failed")["why"]
            assert encode(channel, **bearing("n" * 32)) == "hello"
        assert served.metric("twinbert_reload_failed", what="tokens") == 1
        assert served.metric("twinbert_reload_failed", what="certificate") == 0

    serve(test, tokens=tokens)


def test_the_log_names_the_caller_and_never_a_token(tokens: Path) -> None:
    """A request's line says whose token it had."""

    def test(served: Served) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            encode(channel, **bearing(BOTH))
        assert served.wait_for("rpc")["caller"] == "nightly"
        assert not any(BOTH[:8] in str(event) for event in served.log)

    serve(test, tokens=tokens, log_requests="all")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no token"),
        ("# ranker read " + READER, "holds no token"),
        ("ranker " + READER, "line 1: has 2 columns"),
        (f"\nranker read {READER} extra", "line 2: has 4 columns"),
        ("ranker admin " + READER, "line 1: rights are read, write, or read,write; found 'admin'"),
        ("ranker read, " + READER, "found 'read,'"),
        ("ranker read short", "line 1: a token has 16 or more"),
        (f"ranker read {'ü' * 32}", "line 1: a token has 16 or more"),
        (f"a read {READER}\nb read {READER}", "line 2: this token stands in the file before"),
    ],
)
def test_a_bad_file_of_tokens_is_refused_at_the_start(tokens: Path, content: str, message: str) -> None:
    """The message names the line, and never the token."""
    tokens.write_text(content)
    service = FakeEncoder()
    with pytest.raises(UsageError, match=message) as caught:
        asyncio.run(run(service, Listening(address="127.0.0.1:0", tokens=tokens), service.registry))
    assert READER not in str(caught.value)


def test_a_token_is_compared_with_every_known_one_in_constant_time(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long it takes depends neither on where a token stands in the file nor on how much of it is right."""
    compared: list[tuple[bytes, bytes]] = []

    class Spy:
        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            compared.append((one, other))
            return hmac.compare_digest(one, other)

    monkeypatch.setattr(access, "hmac", Spy)
    known = Tokens(tokens, ReloadMetrics(new_registry()))
    for token in (READER, BOTH, "x" * 32, ""):
        compared.clear()
        known.caller(token)
        assert [len(one) for one, _ in compared] == [32] * 4
