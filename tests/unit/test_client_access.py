"""Clients that prove who they are: TLS, client certificates and tokens, from Python and from the command line."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from scorer_fake import FakeScorer

from tests.serving_fake import Certified, Served, serve
from twinbert.cli import main
from twinbert.client import AsyncScorerClient, EncoderClient, ScorerClient, tls_credentials
from twinbert.errors import RemoteError, UsageError
from twinbert.serving.tls import TlsFiles

TOKEN = "t" * 32


@pytest.fixture
def certified(tmp_path: Path) -> Certified:
    return Certified(tmp_path)


@pytest.fixture
def guarded(certified: Certified) -> dict[str, Any]:
    """A server that wants a client certificate and a token."""
    certificate, key = certified.issue("server")
    tokens = certified.folder / "tokens"
    tokens.write_text(f"test read,write {TOKEN}\n")
    return {"tls": TlsFiles(certificate=certificate, key=key, client_ca=certified.ca), "tokens": tokens}


def test_a_client_with_certificate_and_token_is_let_in(certified: Certified, guarded: dict[str, Any]) -> None:
    """Encode and Refresh carry both; without the token the error says UNAUTHENTICATED and which request it was."""
    certificate, key = certified.issue("client")

    def test(served: Served) -> None:
        where = f"localhost:{served.port}"
        credentials = tls_credentials(ca=certified.ca, certificate=certificate, key=key)
        with EncoderClient(where, credentials=credentials, token=TOKEN) as client:
            assert client.encode(["hello"], "query").model == "hello"
            assert [progress.received for progress in client.refresh([])] == [1, 1]
        with EncoderClient(where, credentials=credentials) as client, pytest.raises(RemoteError) as caught:
            client.encode(["hello"], "query")
        assert caught.value.code == "UNAUTHENTICATED"
        assert caught.value.request_id == served.wait_for("rpc")["request_id"]
        with EncoderClient(where, credentials=tls_credentials(ca=certified.ca), token=TOKEN) as client:
            with pytest.raises(RemoteError) as caught:
                client.encode(["hello"], "query")
            assert caught.value.code == "UNAVAILABLE"

    serve(test, **guarded)


def test_a_token_may_change_between_calls(certified: Certified, guarded: dict[str, Any]) -> None:
    """A function is asked for the token of the moment at every call."""
    tokens = iter(["x" * 32, TOKEN])

    def test(served: Served) -> None:
        credentials = tls_credentials(ca=certified.ca, certificate=certificate, key=key)
        with EncoderClient(f"localhost:{served.port}", credentials=credentials, token=lambda: next(tokens)) as client:
            with pytest.raises(RemoteError, match="not one that the server knows"):
                client.encode(["hello"], "query")
            assert client.encode(["hello"], "query").model == "hello"

    certificate, key = certified.issue("client")
    serve(test, **guarded)


class SeenMetadata(FakeScorer):
    """Remembers the authorization of each call."""

    def __init__(self) -> None:
        super().__init__(["a"])
        self.seen: list[str | None] = []

    def _arrived(self, request: Any, context: grpc.ServicerContext) -> None:
        self.seen.append(dict(context.invocation_metadata()).get("authorization"))  # type: ignore[arg-type]  # pairs, whatever the stubs say
        super()._arrived(request, context)


@pytest.mark.parametrize("token", [None, TOKEN])
def test_every_call_carries_the_token(token: str | None) -> None:
    """Score, Retrieve and Describe, sync and asyncio; without a token there is no such metadata."""
    from scorer_fake import serving

    servicer = SeenMetadata()

    async def ask(address: str) -> None:
        async with AsyncScorerClient(address, token=token) as client:
            await client.score([])
            await client.retrieve("q")
            await client.describe()

    with serving(servicer) as address:
        with ScorerClient(address, token=token) as client:
            client.score([])
            client.retrieve("q")
            client.describe()
        asyncio.run(ask(address))
    assert servicer.seen == [token and f"Bearer {token}"] * 6


@pytest.mark.parametrize(
    "address", ["scorer:50051", "10.0.0.1:50051", "dns:///scorer:50051", ["127.0.0.1:1", "10.0.0.1:1"]]
)
def test_a_token_never_crosses_a_network_in_plain_text(address: Any) -> None:
    """Without TLS a token is sent to this host only."""
    with pytest.raises(UsageError, match="plain text"):
        ScorerClient(address, token=TOKEN)


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "localhost:50051", "[::1]:50051", "unix:/run/scorer.sock"])
def test_a_token_may_go_to_this_host_in_plain_text(address: str) -> None:
    """There it crosses no network."""
    ScorerClient(address, token=TOKEN).close()


@pytest.mark.parametrize(
    ("files", "message"),
    [({"ca": Path("none.pem")}, "none.pem cannot be read"), ({"key": Path("a.key")}, "needs its key")],
)
def test_files_that_cannot_be_used_are_named(files: dict[str, Path], message: str) -> None:
    """A missing file, and a key without its certificate."""
    with pytest.raises(UsageError, match=message):
        tls_credentials(**files)


def test_the_command_takes_certificates_and_token(
    certified: Certified, guarded: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """`twinbert retrieve` gets through to a guarded server: what refuses it then is the fake, not the guard."""
    certificate, key = certified.issue("client")
    token = certified.folder / "token"
    token.write_text(f"{TOKEN}\n")
    codes: list[int] = []

    def test(served: Served) -> None:
        words = ["retrieve", "q", "--address", f"localhost:{served.port}", "--tls-ca", str(certified.ca)]
        words += ["--tls-cert", str(certificate), "--tls-key", str(key)]
        codes.append(main(words))
        codes.append(main([*words, "--token-file", str(token)]))

    serve(test, **guarded)
    refused, passed = capsys.readouterr().err.splitlines()
    assert codes == [2, 2]
    assert "a token is needed" in refused
    assert "Method not found" in passed


@pytest.mark.parametrize("content", ["", "two words", "töken"])
def test_a_file_that_is_no_token_is_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, which does not quote it, and exit code 2."""
    path = tmp_path / "token"
    path.write_text(content)
    assert main(["retrieve", "q", "--token-file", str(path)]) == 2
    complaint = capsys.readouterr().err
    assert "one token" in complaint
    assert "words" not in content or "two words" not in complaint
