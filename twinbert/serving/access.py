"""Who may call what: bearer tokens with rights, from a file that is read again when it changes.

# name     rights      token
ranker     read        vN3kq0b2…
ranker     read        7Qx1fZpd…    ← a second token of one name: how tokens are changed without a gap
nightly    read,write  9sTq7LmW…
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health

from twinbert.errors import ForbiddenError, TwinbertError, UnauthenticatedError, UsageError
from twinbert.serving.log import bind
from twinbert.serving.metrics import ReloadMetrics
from twinbert.serving.reloading import Reloaded
from twinbert.serving.rpc import Context, Edge

RIGHTS = frozenset({"read", "write"})

# What RFC 6750 allows in a bearer token. Shorter ones could be guessed: 16 characters of 64 kinds are 96 bits.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")


@dataclass(frozen=True, slots=True)
class _Caller:
    name: str
    rights: frozenset[str]


class Tokens:
    """The tokens that a server accepts. Only their digests are kept.

    Args:
        path: one token a line: name, rights (`read`, `write` or both with a comma between) and the token; lines that
            begin with # are comments.
        metrics: where to show reloads.

    Raises:
        UsageError: the file cannot be read, holds no token, or a line that is none.
    """

    def __init__(self, path: Path, metrics: ReloadMetrics) -> None:
        self._path = path
        self._callers = Reloaded("tokens", [path], self._read, metrics)

    def look(self) -> None:
        """Reads the file again if it changed."""
        self._callers.look()

    def caller(self, token: str) -> _Caller | None:
        """Whose token it is. Takes as long for a token that is nearly right as for any other."""
        presented, found = _digest(token), None
        for digest, caller in self._callers.value.items():
            if hmac.compare_digest(digest, presented):
                found = caller
        return found

    def _read(self, contents: Sequence[bytes]) -> dict[bytes, _Caller]:
        callers: dict[bytes, _Caller] = {}
        for number, line in enumerate(contents[0].decode("utf-8", "replace").splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            # Neither here nor anywhere else is a token quoted.
            where = f"{self._path}, line {number}"
            if len(words) != 3:
                raise UsageError(f"{where}: has {len(words)} columns; expected: name, rights, token")
            name, rights, token = words[0], frozenset(words[1].split(",")), words[2]
            if not rights <= RIGHTS:
                raise UsageError(f"{where}: rights are read, write, or read,write; found {words[1]!r}")
            if not _TOKEN.fullmatch(token):
                raise UsageError(
                    f"{where}: a token has 16 or more characters of A-Z a-z 0-9 . _ ~ + / -; "
                    "`openssl rand -base64 32` makes one"
                )
            if _digest(token) in callers:
                raise UsageError(f"{where}: this token stands in the file before; give each line a token of its own")
            callers[_digest(token)] = _Caller(name, rights)
        if not callers:
            raise UsageError(
                f"{self._path} holds no token, so nobody could call; expected lines of name, rights, token"
            )
        return callers


class Guard(grpc.aio.ServerInterceptor):
    """Refuses calls without a token that has the right, before their messages are read. Health checks need none.

    Args:
        tokens: who may call.
        service: full name of the service; what else a server offers, but for health, needs the right to read.
        writing: its methods that need the right to write.
        edge: answers what is refused.
    """

    def __init__(self, tokens: Tokens, service: str, writing: frozenset[str], edge: Edge) -> None:
        self._tokens, self._prefix, self._writing, self._edge = tokens, f"/{service}/", writing, edge

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Lets a call pass, or answers it in place of its method."""
        if not handler_call_details.method.startswith(f"/{health.SERVICE_NAME}/"):
            try:
                self._check(handler_call_details)
            except TwinbertError as error:
                return self._refusing(handler_call_details.method, error)
        return await continuation(handler_call_details)

    def _refusing(self, method: str, error: TwinbertError) -> grpc.RpcMethodHandler[Any, Any]:
        async def refuse(_requests: object, context: Context) -> None:
            await self._edge.refuse(method.removeprefix(self._prefix), error, context)

        # Of all kinds this one does not wait for a message.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _check(self, details: grpc.HandlerCallDetails) -> None:
        caller = self._tokens.caller(_bearer(details.invocation_metadata or ()))
        if caller is None:
            raise UnauthenticatedError("this token is not one that the server knows; ask its operator for one")
        bind(caller=caller.name)
        method = details.method.removeprefix(self._prefix)
        right = "write" if method in self._writing else "read"
        if right not in caller.rights:
            raise ForbiddenError(f"the token of {caller.name} lacks the right to {right}, which {method} needs")


def _bearer(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    """The token of `authorization: Bearer TOKEN`."""
    given = [value for key, value in metadata if key == "authorization"]
    scheme, _, token = str(given[0]).partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() != "bearer":
        raise UnauthenticatedError("a token is needed: send it as metadata, authorization: Bearer TOKEN")
    return token.strip()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
