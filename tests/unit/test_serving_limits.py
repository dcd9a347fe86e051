"""What a connection and a request are allowed: each limit holds against a client that does not keep to it."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event, RemoteSettingsChanged, StreamReset
from h2.settings import SettingCodes

from tests.serving_fake import ENCODE, REFRESH, Served, encode, serve
from twinbert.v1 import encoder_pb2 as pb

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", ENCODE),
    (":authority", "test"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


class Raw:
    """A connection that speaks HTTP/2 as the test wants it to."""

    def __init__(self, served: Served) -> None:
        self.socket = socket.create_connection(("127.0.0.1", served.port), timeout=60)
        self.http = H2Connection(H2Configuration(client_side=True))
        self.http.initiate_connection()
        self.flush()

    def flush(self) -> None:
        """Sends what is to be sent. A peer that has closed is no error: its last words are read next."""
        with contextlib.suppress(OSError):
            self.socket.sendall(self.http.data_to_send())

    def events(self) -> Iterator[Event]:
        """What the server says, until it closes the connection."""
        while content := self._receive():
            for byte in content:  # h2 takes nothing more after GOAWAY, and would lose it with what follows
                yield from self.http.receive_data(bytes([byte]))
            self.flush()

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:
            return b""

    def next(self, kind: type[Event]) -> Any:
        """The next event of a kind."""
        return next(event for event in self.events() if isinstance(event, kind))

    def open(self, path: str = ENCODE) -> int:
        """Begins a call, and sends nothing but its headers; returns its stream."""
        stream = self.http.get_next_available_stream_id()
        self.http.send_headers(
            stream, [(":path", path) if name == ":path" else (name, value) for name, value in HEADERS]
        )
        self.flush()
        return stream

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def raw(served: Served) -> Iterator[Raw]:
    with contextlib.closing(Raw(served)) as one:
        yield one


def channel(served: Served) -> grpc.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(f"127.0.0.1:{served.port}", options)


def test_a_message_is_bounded() -> None:
    """A larger one is RESOURCE_EXHAUSTED; one of the limit's size is answered."""

    def test(served: Served) -> None:
        with channel(served) as one:
            assert encode(one, "a" * 2000) == "a" * 100
            with pytest.raises(grpc.RpcError) as caught:
                encode(one, "a" * 2100)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    serve(test, message_bytes=2048)


def test_calls_on_a_connection_are_bounded() -> None:
    """The bound is announced; a client that opens more all the same has them refused, and the others go on."""

    def test(served: Served) -> None:
        with raw(served) as client:
            settings = client.next(RemoteSettingsChanged).changed_settings
            assert settings[SettingCodes.MAX_CONCURRENT_STREAMS].new_value == 2
            client.http.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 100
            client.http.remote_settings.acknowledge()
            streams = [client.open() for _ in range(3)]
            refused = client.next(StreamReset)
            assert (refused.stream_id, refused.error_code) == (streams[2], ErrorCodes.REFUSED_STREAM)

    serve(test, streams=2)


def test_connections_are_bounded() -> None:
    """One too many is closed before it has said anything; when another leaves there is room again."""

    def test(served: Served) -> None:
        with raw(served) as one, raw(served) as two:
            for client in (one, two):
                client.next(RemoteSettingsChanged)
            with raw(served) as third:
                assert list(third.events()) == []
        with channel(served) as later:
            assert encode(later, wait_for_ready=True) == "hello"

    serve(test, connections=2)


def test_a_connection_that_says_nothing_is_closed() -> None:
    """Whoever has not shaken hands when the time is over is disconnected."""

    def test(served: Served) -> None:
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as silent:
            while silent.recv(65536):
                pass

    serve(test, handshake_s=1)


def test_an_old_connection_is_closed_gently_and_its_last_calls_after_the_grace() -> None:
    """A connection of its age is told to go; a call that outlasts the grace ends as UNAVAILABLE."""

    def test(served: Served) -> None:
        with raw(served) as client:
            assert client.next(ConnectionTerminated).error_code == ErrorCodes.NO_ERROR
        with channel(served) as one:
            call = one.stream_stream(REFRESH, pb.RefreshRequest.SerializeToString, pb.RefreshResponse.FromString)
            first = pb.RefreshRequest()

            def requests() -> Iterator[pb.RefreshRequest]:
                yield first
                served.wait_for("stopped")

            with pytest.raises(grpc.RpcError) as caught:
                list(call(requests()))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    serve(test, connection_age_s=1, connection_grace_s=1)


def test_a_client_that_pings_too_often_is_disconnected() -> None:
    """A flood of pings ends with GOAWAY, ENHANCE_YOUR_CALM."""

    def test(served: Served) -> None:
        with raw(served) as client:
            client.next(RemoteSettingsChanged)
            for _ in range(10):
                client.http.ping(b"\0" * 8)
                client.flush()
            assert client.next(ConnectionTerminated).error_code == ErrorCodes.ENHANCE_YOUR_CALM

    serve(test, ping_s=3600)


def test_the_bytes_of_what_waits_are_bounded() -> None:
    """A request that does not fit beside those being answered is refused with a time to retry; alone it is taken."""
    large = "wait" + "a" * 3000

    def test(served: Served) -> None:
        with channel(served) as one, ThreadPoolExecutor(1) as pool:
            first = pool.submit(encode, one, large)
            while not served.service.waiting:
                pass
            assert encode(one, "small") == "small"
            with pytest.raises(grpc.RpcError) as caught:
                encode(one, "b" * 3000)
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            details = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]).details
            assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details)
            assert served.metric("twinbert_rpc_refused_total", method="Encode", reason="bytes") == 1
            release(served)
            assert first.result() == large[:100]
            assert encode(one, "b" * 3000) == "b" * 100

    serve(test, waiting_bytes=4096)


def release(served: Served) -> None:
    """Lets what waits be answered."""
    served.loop.call_soon_threadsafe(served.service.released.set)


def admin_connection(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.wait_for("serving")["metrics_port"]), timeout=10)


def test_connections_of_the_metrics_port_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is closed at once, without an answer; when another leaves there is room again."""
    monkeypatch.setattr("twinbert.serving.admin._CONNECTIONS", 2)
    monkeypatch.setattr("twinbert.serving.admin._CONNECTION_S", 3600)

    def test(served: Served) -> None:
        with admin_connection(served), admin_connection(served), admin_connection(served) as third:
            assert third.recv(1) == b""
        for _ in range(1000):  # their threads have yet to see that they left
            with contextlib.suppress(OSError):
                assert served.http("/healthz") == (200, "200 OK\n")
                return
        raise AssertionError("there is no room again")

    serve(test)


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\n", b"x"])
def test_who_is_slow_holds_no_thread_of_the_metrics_port(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """Whoever sends nothing, half a request, or a byte again and again is disconnected."""
    monkeypatch.setattr("twinbert.serving.admin._CONNECTION_S", 0.1)

    def test(served: Served) -> None:
        # Closed with bytes in it that nobody read, a connection is reset.
        with admin_connection(served) as slow, contextlib.suppress(ConnectionError):
            slow.sendall(sent)
            slow.settimeout(0.01)
            while True:
                try:
                    assert slow.recv(1) == b""
                    break
                except TimeoutError:
                    slow.sendall(b"x" * (sent == b"x"))

    serve(test)


def test_who_leaves_the_metrics_port_leaves_nothing_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    """A connection that is reset is no error of the server: no event, and no trace beside them."""

    def test(served: Served) -> None:
        with admin_connection(served) as client:
            client.sendall(b"GET")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not closed
        assert served.http("/healthz") == (200, "200 OK\n")

    assert [event["event"] for event in serve(test).log] == ["serving", "draining", "stopped"]
    assert "Traceback" not in capfd.readouterr().err


def test_header_only_calls_lock_nobody_out() -> None:
    """While one client holds all the calls that its connection allows open, another is answered."""

    def test(served: Served) -> None:
        with raw(served) as slow, channel(served) as one:
            slow.next(RemoteSettingsChanged)
            for _ in range(100):
                slow.open()
            assert encode(one) == "hello"

    serve(test, streams=100)
