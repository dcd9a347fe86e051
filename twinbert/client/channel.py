"""How a client reaches its servers: addresses, certificates and tokens, message limits, retries, and what a failed
call becomes.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from twinbert import __version__
from twinbert.errors import RemoteError, UsageError

MESSAGE_BYTES = 8 * 2**20  # the servers' default limit, both ways

# A server that goes away between two requests costs a retry and no error. The sum of the backoffs, about 0.15 s, stays
# well inside a ranker's deadline; the throttle stops retries when more than half of the calls fail, so that clients do
# not multiply the load on servers that are going down. Refresh is a stream that only its caller can start again.
# CANCELLED is what gRPC's core answers to a call that reaches a server just as it begins to drain; what the caller
# cancels is never tried again.
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [
                    {"service": "twinbert.v1.ScorerService"},
                    {"service": "twinbert.v1.EncoderService", "method": "Encode"},
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.02s",
                    "maxBackoff": "0.2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.5},
    }
)

_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    # A restarted server is found within 5 s, not gRPC's 2 minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A server that vanished without a word is noticed between calls, within 35 s; our servers allow a ping every 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # http_proxy is meant for the web; a scorer is a neighbour.
    ("grpc.enable_http_proxy", 0),
    ("grpc.primary_user_agent", f"twinbert/{__version__}"),
)

_GRPC_TARGET = re.compile(r"(dns|xds):///|unix:/|ipv[46]:")

Metadata = tuple[tuple[str, str], ...]


def tls_credentials(
    *, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> grpc.ChannelCredentials:
    """Credentials for a client, from files in PEM; they are read here, once.

    Args:
        ca: Authorities whose servers are trusted; None: those that gRPC ships.
        certificate: The client's certificate chain, where servers demand one.
        key: Its private key.

    Raises:
        UsageError: A file cannot be read, or one of certificate and key is missing.
    """
    if (certificate is None) != (key is None):
        raise UsageError("a client certificate needs its key, and a key its certificate; give both")
    return grpc.ssl_channel_credentials(_read(ca), _read(key), _read(certificate))


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


class Endpoint:
    """Where a client's servers are.

    Args:
        address: `HOST:PORT`, or several of them as a sequence or separated by commas; calls then go to each in turn.
            A single name is looked up by gRPC, which uses all of its addresses and looks again when they fail; names
            among several are looked up once, here. A gRPC target (`dns:///scorer:50051`, `unix:/run/scorer.sock`) is
            taken as it is.
        credentials: TLS, see `tls_credentials`; None: plain text. Of several addresses, each server must present a
            certificate for the first one's host.
        token: Sent with every call: a bearer token, or what gives the one of the moment. In plain text it goes to
            this host only.

    Raises:
        UsageError: An address is not `HOST:PORT`, its host is unknown, or a token would cross a network in plain text.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        credentials: grpc.ChannelCredentials | None,
        token: str | Callable[[], str] | None = None,
    ) -> None:
        if isinstance(address, str) and _GRPC_TARGET.match(address):
            addresses = [address]
        else:
            addresses = [one.strip() for one in (address.split(",") if isinstance(address, str) else address)]
            for one in addresses:
                _host_and_port(one)
        if not addresses:
            raise UsageError("address: none was given; expected HOST:PORT, e.g. 127.0.0.1:50051")
        self.name = ", ".join(addresses)
        if token is not None and credentials is None and not all(map(_is_local, addresses)):
            raise UsageError(
                f"address {self.name!r}: a token would cross the network in plain text; give TLS credentials"
            )
        self._credentials, self._token = credentials, token
        self._target = addresses[0] if len(addresses) == 1 else _literal_target(addresses)
        self._options = [*_OPTIONS]
        if len(addresses) > 1:
            self._options.append(("grpc.default_authority", addresses[0]))

    def channel(self) -> grpc.Channel:
        """A new channel for synchronous calls."""
        if self._credentials is None:
            return grpc.insecure_channel(self._target, self._options)
        return grpc.secure_channel(self._target, self._credentials, self._options)

    def aio_channel(self) -> grpc.aio.Channel:
        """A new channel for the running event loop."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, self._options)
        return grpc.aio.secure_channel(self._target, self._credentials, self._options)

    def metadata(self) -> Metadata:
        """What goes with a call."""
        if self._token is None:
            return ()
        token = self._token if isinstance(self._token, str) else self._token()
        return (("authorization", f"Bearer {token}"),)

    @contextlib.contextmanager
    def errors(self, timeout: float) -> Iterator[None]:
        """Turns what gRPC raises inside into RemoteError; `timeout`, in seconds, is what the call was given."""
        try:
            yield
        except grpc.RpcError as error:
            raise _remote_error(error, self.name, timeout) from error


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not port.isdecimal() or int(port) > 65_535 or (":" in host and not bracketed):
        raise UsageError(f"address {address!r}: expected HOST:PORT, e.g. 127.0.0.1:50051 or [::1]:50051")
    return host.strip("[]"), int(port)


def _is_local(address: str) -> bool:
    """Whether what is sent there stays on this host."""
    if address.startswith("unix:"):
        return True
    host = _GRPC_TARGET.sub("", address).rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _literal_target(addresses: Sequence[str]) -> str:
    """A target of IP addresses: gRPC takes several only in this form, and of one family."""
    found: list[dict[socket.AddressFamily, list[str]]] = []
    for address in addresses:
        host, port = _host_and_port(address)
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise UsageError(f"address {address!r}: {error.strerror}") from error
        by_family: dict[socket.AddressFamily, list[str]] = {}
        for family, _, _, _, where in entries:
            by_family.setdefault(family, []).append(
                f"[{where[0]}]:{port}" if ":" in str(where[0]) else f"{where[0]}:{port}"
            )
        found.append(by_family)
    for scheme, family in (("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6)):
        if all(family in by_family for by_family in found):
            return f"{scheme}:" + ",".join(
                dict.fromkeys(literal for by_family in found for literal in by_family[family])
            )
    raise UsageError(f"address {', '.join(addresses)!r}: several addresses must be all IPv4 or all IPv6")


def _remote_error(error: grpc.RpcError, address: str, timeout: float) -> RemoteError:
    code, message = error.code(), error.details() or ""
    metadata: dict[str, Any] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]  # pairs, whatever the stubs say
    info, retry = _details(metadata)
    if info is not None:
        if retry is not None:
            message += f"; try again in {retry.retry_delay.ToTimedelta().total_seconds():g} s"
        return RemoteError(code.name, info.reason, message, request_id=metadata.get("x-request-id", ""))
    if code is grpc.StatusCode.UNAVAILABLE:
        # Of "connections to all backends failing; last error: UNKNOWN: ipv4:…: Connection refused" the end is enough.
        cause = message.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
        message = f"no server answers at {address}: {cause}"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"{address} did not answer within {timeout:g} s"
    else:
        message = f"{address}: {message}"
    return RemoteError(code.name, code.name, message)


def _details(metadata: Mapping[str, Any]) -> tuple[ErrorInfo | None, RetryInfo | None]:
    """The google.rpc details that our servers attach; none from a proxy, or from the transport itself."""
    info = retry = None
    with contextlib.suppress(DecodeError):
        for detail in Status.FromString(metadata.get("grpc-status-details-bin", b"")).details:
            if detail.Is(ErrorInfo.DESCRIPTOR):
                info = ErrorInfo.FromString(detail.value)
            elif detail.Is(RetryInfo.DESCRIPTOR):
                retry = RetryInfo.FromString(detail.value)
    return info, retry
