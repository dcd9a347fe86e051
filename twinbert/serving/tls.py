"""TLS of a server: certificates that are checked before they are served, and read again when they change."""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from twinbert.errors import UsageError
from twinbert.serving.metrics import ReloadMetrics
from twinbert.serving.reloading import Reloaded

# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL.
_VALIDITY = {9: "is not valid yet", 10: "has expired"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """Where a server's certificates are, all in PEM.

    Attributes:
        certificate: the server's, followed by those of its intermediate authorities.
        key: its private key, without a passphrase.
        client_ca: authorities whose clients may connect; None: clients need no certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Certificates:
    """A server's certificates: `credentials` serve the newest good ones to every new connection.

    Args:
        files: where they are.
        metrics: where to show reloads, and when the certificate expires.

    Raises:
        UsageError: a file cannot be read, is no PEM, has expired, or the key does not fit the certificate.
    """

    def __init__(self, files: TlsFiles, metrics: ReloadMetrics) -> None:
        self._files, self._metrics = files, metrics
        paths = [files.certificate, files.key, *([files.client_ca] if files.client_ca else [])]
        self._configuration = Reloaded("certificate", paths, self._read, metrics)
        self._handed = self._configuration.value

    def look(self) -> None:
        """Reads the files again if they changed."""
        self._configuration.look()

    def credentials(self) -> grpc.ServerCredentials:
        """For a port; a client certificate is demanded where there are authorities for it."""
        return grpc.dynamic_ssl_server_credentials(
            self._handed,
            self._changed,  # type: ignore[arg-type]  # may return None, whatever the stubs say
            require_client_authentication=self._files.client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC, in a thread of its own, before each handshake; None: as it was."""
        newest = self._configuration.value
        if newest is self._handed:
            return None
        self._handed = newest
        return newest

    def _read(self, contents: Sequence[bytes]) -> grpc.ServerCertificateConfiguration:
        certificate, key, *client_ca = contents
        expiry = _check_pair(self._files, certificate, key)
        if self._files.client_ca:
            _check_authorities(self._files.client_ca, client_ca[0])
        self._metrics.certificate_expiry.set(expiry)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca[0] if client_ca else None)


def _check_pair(files: TlsFiles, certificate: bytes, key: bytes) -> float:
    """Shakes hands with itself, in memory: whatever is wrong with a certificate and its key shows then.

    Returns:
        When the certificate expires, in seconds since the Unix epoch.

    Raises:
        UsageError: see the message.
    """
    leaf = _first_certificate(files.certificate, certificate)
    if b"PRIVATE KEY-----" not in key:
        raise UsageError(f"{files.key} holds no private key in PEM; name one with --tls-key")

    def passphrase() -> str:  # without it OpenSSL would ask on the terminal
        raise UsageError(f"{files.key} has a passphrase; store the key without one, readable for this user only")

    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # names are the clients' business
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trusting the certificate itself is enough here
    try:
        with _in_memory(certificate) as certificate_path, _in_memory(key) as key_path:
            server.load_cert_chain(certificate_path, key_path, password=passphrase)
        client.load_verify_locations(cadata=leaf)
        described = _shake_hands(server, client)
    except ssl.SSLCertVerificationError as error:
        problem = _VALIDITY.get(error.verify_code, f"cannot be served: {error.verify_message}")
        raise UsageError(f"{files.certificate} {problem}; renew it") from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(
                f"{files.key} is not the key of {files.certificate}; name the two that belong together"
            ) from error
        raise UsageError(f"{files.certificate} and {files.key} cannot be used: {error.reason or error}") from error
    return ssl.cert_time_to_seconds(str(described["notAfter"]))


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, object]:
    """What the client learns of the server's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [server.wrap_bio(to_server, to_client, server_side=True), client.wrap_bio(to_client, to_server)]
    unfinished = list(ends)
    while unfinished:
        for end in list(unfinished):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                unfinished.remove(end)
    return dict(ends[1].getpeercert() or {})


def _check_authorities(path: Path, content: bytes) -> None:
    _first_certificate(path, content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cadata=_ascii(content))
    except ssl.SSLError as error:
        raise UsageError(f"{path} cannot be used: {error.reason or error}; name one with --tls-client-ca") from error
    authorities = context.get_ca_certs()
    if not authorities:
        raise UsageError(f"{path} holds no certificate of an authority; name those that sign clients' certificates")
    if all(ssl.cert_time_to_seconds(str(one["notAfter"])) < time.time() for one in authorities):
        raise UsageError(f"{path}: every certificate in it has expired; renew it")


def _first_certificate(path: Path, content: bytes) -> str:
    """The first certificate of a file in PEM."""
    _, begin, rest = _ascii(content).partition("-----BEGIN CERTIFICATE-----")
    body, end, _ = rest.partition("-----END CERTIFICATE-----")
    if not begin or not end:
        raise UsageError(f"{path} holds no certificate in PEM")
    return f"{begin}{body}{end}\n"


def _ascii(content: bytes) -> str:
    """PEM as `ssl` takes it: what is not ASCII in a comment does no harm, and spoils a certificate as it should."""
    return content.decode("ascii", "backslashreplace")


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path to these bytes: `ssl` takes keys only from files, and the bytes checked must be the bytes served."""
    descriptor = os.memfd_create("pem")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
