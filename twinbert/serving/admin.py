"""The port for those who look after a server, over HTTP: /metrics, and its health for probes that are no gRPC clients.

/healthz answers 200 while the event loop turns, so while the process is worth keeping; /readyz while it takes
requests as well, which twinbert_serving says to Prometheus.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app

from twinbert.errors import UsageError
from twinbert.serving.log import event

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# A loop that has no turn in so long hangs: its longest steps take milliseconds.
_HANGS_S = 5.0
_BEAT_S = 1.0

# Each has a thread. Those who look after a server are few.
_CONNECTIONS = 32

# All that a connection has: an answer takes milliseconds, and Prometheus itself does not wait longer.
_CONNECTION_S = 10.0


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401  those of the base class
        self._ends: dict[socket.socket, float] = {}  # of the connections, each removed by its own thread
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  as the base class has it
        if len(self._ends) >= _CONNECTIONS:
            self.shutdown_request(request)
            return
        self._ends[request] = time.monotonic() + _CONNECTION_S
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            del self._ends[request]
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  as the base class has it
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._ends[request]

    def service_actions(self) -> None:
        """Twice a second: ends what took too long, also one who sends a byte now and then."""
        for request, end in list(self._ends.items()):
            if time.monotonic() > end:
                with contextlib.suppress(OSError):  # it has just ended by itself
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  as the base class has it
        """Says nothing of clients that go away; the base class would write a trace into the log for each."""
        error = sys.exception()
        if not isinstance(error, OSError):
            event("admin_failed", level=logging.ERROR, error=error)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
        """Says nothing: probes come every few seconds."""


@contextlib.contextmanager
def endpoint(registry: CollectorRegistry, host: str, port: int, ready: Callable[[], bool]) -> Iterator[int]:
    """Serves them from inside the running event loop; yields the port, chosen by the system where `port` is 0.

    Raises:
        UsageError: the address cannot be bound.
    """
    loop = asyncio.get_running_loop()
    metrics: WSGIApplication = make_wsgi_app(registry)
    turned = 0.0

    def beat() -> None:
        nonlocal turned
        turned = time.monotonic()
        loop.call_later(_BEAT_S, beat)

    def alive() -> bool:
        return time.monotonic() - turned < _HANGS_S

    def serving() -> bool:
        return ready() and alive()

    beat()
    taking = Gauge("twinbert_serving", "1 while requests are taken, as /readyz says, else 0.", registry=registry)
    taking.set_function(serving)
    probes = {"/healthz": alive, "/readyz": serving}

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        probe = probes.get(environ["PATH_INFO"])
        if probe is None:
            return metrics(environ, start_response)
        status = "200 OK" if probe() else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain")])
        return [f"{status}\n".encode()]

    try:
        server = make_server(host, port, answer, _Server, _Handler)
    except OSError as error:
        raise UsageError(
            f"metrics cannot be served on {host}:{port}: {error.strerror}; "
            "choose another --metrics-host or --metrics-port"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="admin", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
