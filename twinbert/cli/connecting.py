"""The options of commands that ask a server: where it is, and how a client proves who it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from twinbert.cli.sharing import shares
from twinbert.errors import UsageError


def _server(
    *,
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the server is.")],
    tls: Annotated[bool, typer.Option("--tls", help="Trust servers that a public authority vouches for.")] = False,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trust servers of these authorities, PEM; implies --tls.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The client's certificate chain, PEM; implies --tls.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, PEM.")] = None,
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="A file with the bearer token.")] = None,
) -> dict[str, Any]:
    from twinbert.client import tls_credentials

    secure = tls or tls_ca or tls_cert or tls_key
    credentials = tls_credentials(ca=tls_ca, certificate=tls_cert, key=tls_key) if secure else None
    return {"address": address, "credentials": credentials, "token": token_file and _token(token_file)}


asks = partial(shares, {"server": _server})


def _token(path: Path) -> str:
    try:
        words = path.read_text("utf-8", "replace").split()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(words) != 1 or not words[0].isascii():
        raise UsageError(f"{path} is to hold one token and nothing else; it has {len(words)} words")
    return words[0]
