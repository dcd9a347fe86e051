"""The options that both servers have: where they listen, for whom, and what they allow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from twinbert.serving.listening import Listening

_WEEKS_S = 90 * 24 * 3600


def listening_of(
    *,
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen.")],
    metrics_port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="Where /metrics is served; 0: any free port.")
    ],
    metrics_host: Annotated[str, typer.Option(metavar="HOST", help="Where /metrics listens.")] = "127.0.0.1",
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The server's certificate chain, PEM; read again when it changes."),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, PEM, no passphrase.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Demand client certificates of these authorities, PEM.")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Demand bearer tokens: lines of name, rights (read,write), token."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback in plain text, or to anybody.")
    ] = False,
    max_message_bytes: Annotated[int, typer.Option(metavar="BYTES", min=1024, max=1 << 30, help="Largest message.")] = 8
    << 20,
    max_waiting_bytes: Annotated[
        int, typer.Option(metavar="BYTES", min=1024, max=1 << 40, help="Bytes of all requests being answered.")
    ] = 256 << 20,
    max_connections: Annotated[
        int, typer.Option(metavar="N", min=1, max=1_000_000, help="Connections at a time.")
    ] = 1000,
    max_streams: Annotated[
        int, typer.Option(metavar="N", min=1, max=1_000_000, help="Calls at a time on one connection.")
    ] = 1000,
    connection_age: Annotated[
        int, typer.Option(metavar="SECONDS", min=1, max=_WEEKS_S, help="After this a connection is closed gently…")
    ] = 300,
    connection_grace: Annotated[
        int, typer.Option(metavar="SECONDS", min=1, max=_WEEKS_S, help="…and after this its last calls are ended.")
    ] = 60,
    handshake_seconds: Annotated[
        int, typer.Option(metavar="SECONDS", min=1, max=3600, help="How long a connection may take to become one.")
    ] = 10,
    ping_seconds: Annotated[
        int, typer.Option(metavar="SECONDS", min=1, max=3600, help="Clients that ping more often are disconnected.")
    ] = 10,
    drain_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, max=86400, help="Time for requests in flight when told to stop.")
    ] = 20.0,
    log_requests: Annotated[
        Literal["none", "failed", "all"], typer.Option(help="Requests logged, a line each; of failed ones 10 a second.")
    ] = "failed",
    log_texts: Annotated[
        bool, typer.Option("--log-texts", help="Log whole requests, with queries and documents, in those lines.")
    ] = False,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send OpenTelemetry spans over gRPC, e.g. to http://127.0.0.1:4317."),
    ] = None,
    trace_share: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Of requests traced, where the caller leaves it open.")
    ] = 0.01,
) -> Listening:
    """Where and how a server listens, for `twinbert.cli.sharing.shares`."""
    from twinbert.errors import UsageError
    from twinbert.serving.listening import Listening
    from twinbert.serving.tls import TlsFiles

    tls = None
    if tls_cert and tls_key:
        tls = TlsFiles(certificate=tls_cert, key=tls_key, client_ca=tls_client_ca)
    elif tls_cert or tls_key or tls_client_ca:
        raise UsageError("TLS needs both --tls-cert and --tls-key; --tls-client-ca goes with them")
    return Listening(
        address=address,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        tls=tls,
        tokens=tokens,
        insecure=insecure,
        message_bytes=max_message_bytes,
        waiting_bytes=max_waiting_bytes,
        connections=max_connections,
        streams=max_streams,
        connection_age_s=connection_age,
        connection_grace_s=connection_grace,
        handshake_s=handshake_seconds,
        ping_s=ping_seconds,
        drain_s=drain_seconds,
        log_requests=log_requests,
        log_texts=log_texts,
        otlp_endpoint=otlp_endpoint,
        trace_share=trace_share,
    )
