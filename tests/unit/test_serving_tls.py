"""TLS of a server: what is served, to whom, and what happens when the files change."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.serving_fake import Certified, FakeEncoder, Served, encode, serve
from twinbert.errors import UsageError
from twinbert.serving.lifecycle import run
from twinbert.serving.listening import Listening
from twinbert.serving.tls import TlsFiles

LONG_AGO = datetime.datetime(2020, 1, 1)
LONG_HENCE = datetime.datetime(2100, 1, 1)

# As bundles of authorities have, which name them in their own words.
COMMENT = "# Autorité de certification, Zürich\n"


@pytest.fixture
def certified(tmp_path: Path) -> Certified:
    return Certified(tmp_path)


def channel(served: Served, ca: Path, certificate: Path | None = None, key: Path | None = None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        ca.read_bytes(), key.read_bytes() if key else None, certificate.read_bytes() if certificate else None
    )
    return grpc.secure_channel(f"localhost:{served.port}", credentials)


def presented(served: Served, certified: Certified) -> str:
    """The name in the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(certified.ca))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", served.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        described: Any = secure.getpeercert()
    return str(dict(part[0] for part in described["subject"])["commonName"])


def test_calls_are_answered_over_tls_only(certified: Certified) -> None:
    """A client that trusts the authority is answered; one in plain text, or with another authority, is not."""
    certificate, key = certified.issue("server")
    (certified.folder / "other").mkdir()
    stranger = Certified(certified.folder / "other")

    def test(served: Served) -> None:
        with channel(served, certified.ca) as trusting:
            assert encode(trusting) == "hello"
        for one in (channel(served, stranger.ca), grpc.insecure_channel(f"localhost:{served.port}")):
            with one, pytest.raises(grpc.RpcError) as caught:
                encode(one)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert served.wait_for("serving")["callers"] == "anybody, over TLS"

    serve(test, tls=TlsFiles(certificate=certificate, key=key))


def test_mutual_tls_lets_in_only_clients_of_the_authority(certified: Certified) -> None:
    """With --tls-client-ca a client without a certificate, or with a stranger's, gets no connection; comments beside
    the authority may say anything.
    """
    certified.ca.write_text(COMMENT + certified.ca.read_text())
    certificate, key = certified.issue("server")
    client = certified.issue("client")
    (certified.folder / "other").mkdir()
    stranger = Certified(certified.folder / "other").issue("client")

    def test(served: Served) -> None:
        with channel(served, certified.ca, *client) as known:
            assert encode(known) == "hello"
        for one in (channel(served, certified.ca), channel(served, certified.ca, *stranger)):
            with one, pytest.raises(grpc.RpcError) as caught:
                encode(one)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    serve(test, tls=TlsFiles(certificate=certificate, key=key, client_ca=certified.ca))


def test_changed_certificates_are_served_to_new_connections(certified: Certified) -> None:
    """A renewed certificate is taken without a restart; connections that there are go on; the metric has its expiry."""
    files = TlsFiles(certificate=certified.folder / "server.pem", key=certified.folder / "server.key")
    certified.issue("server")

    def test(served: Served) -> None:
        with channel(served, certified.ca) as old:
            assert (encode(old), presented(served, certified)) == ("hello", "server")
            renewed, its_key = certified.issue("renewed", not_after=LONG_HENCE)
            its_key.rename(files.key)
            renewed.rename(files.certificate)
            served.wait_for("reloaded")
            assert presented(served, certified) == "renewed"
            assert encode(old) == "hello"
        assert served.metric("twinbert_reloads_total", what="certificate") == 1
        expiry = served.metric("twinbert_tls_certificate_expiry_timestamp_seconds")
        assert datetime.datetime.fromtimestamp(expiry, datetime.UTC).year == 2100

    serve(test, tls=files)


def no_pem(certified: Certified) -> None:
    (certified.folder / "server.pem").write_text("nonsense")


def other_key(certified: Certified) -> None:
    _, key = certified.issue("another")
    key.rename(certified.folder / "server.key")


def expired(certified: Certified) -> None:
    certified.issue("server", not_before=LONG_AGO, not_after=LONG_AGO + datetime.timedelta(days=1))


def not_yet_valid(certified: Certified) -> None:
    certified.issue("server", not_before=LONG_HENCE - datetime.timedelta(days=1), not_after=LONG_HENCE)


def no_certificate(certified: Certified) -> None:
    (certified.folder / "server.pem").unlink()


def no_key(certified: Certified) -> None:
    (certified.folder / "server.key").write_text("nonsense")


def half_a_certificate(certified: Certified) -> None:
    path = certified.folder / "server.pem"
    path.write_bytes(path.read_bytes()[:200])


def broken_base64(certified: Certified) -> None:
    path = certified.folder / "server.pem"
    path.write_text(path.read_text().replace("MII", "!!!"))


def key_with_a_passphrase(certified: Certified) -> None:
    from cryptography.hazmat.primitives import serialization as forms

    path = certified.folder / "server.key"
    key = forms.load_pem_private_key(path.read_bytes(), None)
    sealed = forms.BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, sealed))


def no_authority(certified: Certified) -> None:
    certified.ca.write_bytes((certified.folder / "server.pem").read_bytes())


def authority_not_in_ascii(certified: Certified) -> None:
    certified.ca.write_text(certified.ca.read_text().replace("MII", "MÜI"))


def enormous(certified: Certified) -> None:
    (certified.folder / "server.pem").write_bytes(b"\0" * (2 << 20))


BAD: dict[Callable[[Certified], None], str] = {
    no_pem: "server.pem holds no certificate in PEM",
    half_a_certificate: "server.pem holds no certificate in PEM",
    broken_base64: "cannot be used",
    other_key: "server.key is not the key of .*server.pem",
    expired: "server.pem has expired; renew it",
    not_yet_valid: "server.pem is not valid yet",
    no_certificate: "server.pem cannot be read: No such file",
    no_key: "server.key holds no private key in PEM",
    key_with_a_passphrase: "server.key has a passphrase",
    no_authority: "ca.pem holds no certificate of an authority",
    authority_not_in_ascii: "ca.pem cannot be used",
    enormous: "server.pem has over 1,048,576 bytes",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_bad_files_are_refused_at_the_start(certified: Certified, spoil: Callable[[Certified], None]) -> None:
    """Each is told in a sentence that names the file, and nothing is bound."""
    certificate, key = certified.issue("server")
    spoil(certified)
    service = FakeEncoder.__new__(FakeEncoder)

    async def main() -> None:
        service.__init__()  # type: ignore[misc]  # its loop runs only here
        tls = TlsFiles(certificate=certificate, key=key, client_ca=certified.ca)
        await run(service, Listening(address="127.0.0.1:0", tls=tls), service.registry)

    with pytest.raises(UsageError, match=BAD[spoil]):
        asyncio.run(main())
    assert not hasattr(service, "edge")


@pytest.mark.parametrize("spoil", [no_certificate, other_key, expired], ids=lambda spoil: spoil.__name__)
def test_bad_new_files_keep_the_old_ones(certified: Certified, spoil: Callable[[Certified], None]) -> None:
    """Log and metric say so, new connections get the old certificate, and mended files are taken."""
    certificate, key = certified.issue("server")
    client = certified.issue("client")
    before = {path: path.read_bytes() for path in (certificate, key, certified.ca)}
    ca = certified.folder / "trusted.pem"
    ca.write_bytes(certified.ca.read_bytes())

    def test(served: Served) -> None:
        served.wait_for("serving")
        spoil(certified)
        assert served.wait_for("reload_failed")["kept"]
        assert served.metric("twinbert_reload_failed", what="certificate") == 1
        with channel(served, ca, *client) as new:
            assert encode(new) == "hello"
        for path, content in before.items():
            path.write_bytes(content)
        served.wait_for("reloaded")
        assert served.metric("twinbert_reload_failed", what="certificate") == 0

    serve(test, tls=TlsFiles(certificate=certificate, key=key, client_ca=certified.ca))


def test_new_files_that_break_what_judges_them_keep_the_old_ones(
    certified: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody foresaw is told like what is no good, with its trace; files that it can judge are taken, whatever the
    comment beside the authorities.
    """
    certificate, key = certified.issue("server")
    client, trusted = certified.issue("client"), certified.folder / "trusted.pem"
    trusted.write_bytes(certified.ca.read_bytes())

    def break_down(*_: object) -> None:
        raise TypeError("a bug")

    def test(served: Served) -> None:
        served.wait_for("serving")
        with monkeypatch.context() as patched:
            patched.setattr("twinbert.serving.tls._check_authorities", break_down)
            certified.ca.write_text(COMMENT + trusted.read_text())
            assert served.wait_for("reload_failed")["why"] == "a bug"
        assert served.metric("twinbert_reload_failed", what="certificate") == 1
        certificate.write_text(COMMENT + certificate.read_text())
        served.wait_for("reloaded")
        assert served.metric("twinbert_reload_failed", what="certificate") == 0
        with channel(served, trusted, *client) as new:
            assert encode(new) == "hello"

    serve(test, tls=TlsFiles(certificate=certificate, key=key, client_ca=certified.ca))
