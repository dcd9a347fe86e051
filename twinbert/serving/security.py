"""What guards a port: certificates and tokens, looked at again and again while the server runs."""

from __future__ import annotations

import asyncio
import logging

import grpc.aio
from prometheus_client import CollectorRegistry

from twinbert.serving.access import Tokens
from twinbert.serving.listening import Listening
from twinbert.serving.log import event
from twinbert.serving.metrics import ReloadMetrics
from twinbert.serving.tls import Certificates

_LOOK_SECONDS = 1.0


class Security:
    """A port's certificates and tokens.

    Args:
        listening: where they are.
        registry: where to show reloads.

    Attributes:
        tokens: None where whoever can connect may call.

    Raises:
        UsageError: a file is no good.
    """

    def __init__(self, listening: Listening, registry: CollectorRegistry) -> None:
        metrics = ReloadMetrics(registry)
        self._certificates = Certificates(listening.tls, metrics) if listening.tls else None
        self._has_client_ca = listening.tls is not None and listening.tls.client_ca is not None
        self.tokens = Tokens(listening.tokens, metrics) if listening.tokens else None

    def callers(self) -> str:
        """Who may call, in words."""
        ways = ["a client certificate"] * self._has_client_ca + ["a token"] * (self.tokens is not None)
        over = "TLS" if self._certificates else "plain text"
        return f"{' and '.join(ways) or 'anybody'}, over {over}"

    def bind(self, server: grpc.aio.Server, address: str) -> int:
        """Adds the port; returns its number.

        Raises:
            RuntimeError: the address cannot be bound.
        """
        if self._certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._certificates.credentials())

    async def watch(self) -> None:
        """Looks at the files until cancelled."""
        watched = [one for one in (self._certificates, self.tokens) if one]
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for one in watched:
                try:
                    await asyncio.to_thread(one.look)
                except Exception as error:  # noqa: BLE001  the edge of a task: nothing may end it while the server serves
                    event("reload_broke", level=logging.ERROR, error=error)
