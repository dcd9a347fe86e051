"""Where a server listens, whom it lets in, and what it allows a connection."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from twinbert.errors import UsageError
from twinbert.serving.tls import TlsFiles

RequestsLogged = Literal["none", "failed", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """Settings that both servers have, with their defaults.

    Attributes:
        address: "HOST:PORT" of gRPC; port 0 lets the system choose.
        metrics_host: host of /metrics, /healthz and /readyz.
        metrics_port: their port; 0 lets the system choose.
        tls: certificates; None: plain text.
        tokens: file of those who may call, see `twinbert.serving.access`; None: whoever can connect.
        insecure: listen beyond loopback although calls are plain text, or anybody may make them.
        message_bytes: largest message, either way.
        waiting_bytes: of all requests being answered; a request beyond them is refused, unless it is alone.
        connections: at a time; more are closed at once.
        streams: calls at a time on one connection.
        connection_age_s: after this a connection is closed gently, so that clients find new replicas…
        connection_grace_s: …and after this its last calls are ended.
        handshake_s: how long a connection may take to become one.
        ping_s: clients that ping more often are disconnected.
        drain_s: how long requests in flight may take once the server was told to stop.
        log_requests: which requests are logged, a line each.
        log_texts: those lines show the request, with its queries and documents.
        otlp_endpoint: where spans are sent, "http://HOST:PORT" or https; None: none are made.
        trace_share: of the requests whose caller does not say whether they are traced.
    """

    address: str
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    tls: TlsFiles | None = None
    tokens: Path | None = None
    insecure: bool = False
    message_bytes: int = 8 << 20
    waiting_bytes: int = 256 << 20
    connections: int = 1000
    streams: int = 1000
    connection_age_s: int = 300
    connection_grace_s: int = 60
    handshake_s: int = 10
    ping_s: int = 10
    drain_s: float = 20.0
    log_requests: RequestsLogged = "failed"
    log_texts: bool = False
    otlp_endpoint: str | None = None
    trace_share: float = 0.01

    def __post_init__(self) -> None:
        """Raises UsageError for what is not HOST:PORT, which the library would take for something else without a word,
        and for a server that would be open to a network.
        """
        host, colon, port = self.address.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise UsageError(f"{self.address!r} is not HOST:PORT with a port from 0 to 65535; correct --address")
        if self.otlp_endpoint is not None and not re.fullmatch(r"https?://[^/:]+(:\d+)?/?", self.otlp_endpoint):
            raise UsageError(
                f"{self.otlp_endpoint!r} is not http://HOST:PORT or https://HOST:PORT; correct --otlp-endpoint"
            )
        if not self.metrics_host:  # the library would listen on every interface
            raise UsageError("--metrics-host is empty; name a host, 127.0.0.1 for this one only")
        missing = self._missing()
        if missing and not self.insecure and not _is_loopback(host):
            raise UsageError(
                f"{self.address} is reached from other hosts, where {missing}; else listen on 127.0.0.1, "
                "or say --insecure"
            )

    def _missing(self) -> str:
        """What a server needs that other hosts can reach."""
        if self.tls is None:
            return "calls would be plain text: give --tls-cert and --tls-key"
        if self.tls.client_ca is None and self.tokens is None:
            return "anybody could call: give --tokens or --tls-client-ca"
        return ""

    def channel_options(self) -> Sequence[tuple[str, int]]:
        """As gRPC takes them."""
        return (
            # A second server on the same port is an error, not a silent share of its requests.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.message_bytes),
            ("grpc.max_send_message_length", self.message_bytes),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.max_concurrent_streams", self.streams),
            ("grpc.max_connection_age_ms", self.connection_age_s * 1000),
            ("grpc.max_connection_age_grace_ms", self.connection_grace_s * 1000),
            # The default of 120 s lets silent connections pile up.
            ("grpc.server_handshake_timeout_ms", self.handshake_s * 1000),
            # Finds clients that went away without a word.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Also between calls.
            ("grpc.http2.min_ping_interval_without_data_ms", self.ping_s * 1000),
            ("grpc.keepalive_permit_without_calls", 1),
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name, which may mean anything
        return False
