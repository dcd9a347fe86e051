"""A service behind the real interface, run by the real lifecycle on a real port: for what every server has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import trustme

from twinbert.serving.lifecycle import State, run
from twinbert.serving.listening import Listening
from twinbert.serving.metrics import RpcMetrics, new_registry
from twinbert.serving.rpc import Context, Edge, answered, register
from twinbert.v1 import encoder_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["EncoderService"]

ENCODE, REFRESH = "/twinbert.v1.EncoderService/Encode", "/twinbert.v1.EncoderService/Refresh"


class FakeEncoder:
    """Encode answers with its first text as the model; Refresh answers each request as it comes.

    Attributes:
        registry: of its metrics.
        waiting: how many calls about the text "wait" have come.
        released: they are answered when this is set.
    """

    name = _SERVICE.full_name
    writing = frozenset({"Refresh"})
    edge: Edge

    def __init__(self) -> None:
        self.registry = new_registry()
        self.rpc_metrics = RpcMetrics(self.registry, ("Encode", "Refresh"))
        self.state = State()
        self.waiting = 0
        self.released = asyncio.Event()

    @answered
    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        """The first text; "wait" waits and "break" breaks."""
        self.state.require_serving()
        if request.texts[0].startswith("wait"):
            self.waiting += 1
            await self.released.wait()
        if request.texts[0] == "break":
            raise RuntimeError("a bug")
        return pb.EncodeResponse(model=request.texts[0][:100], dimension=1, embeddings=bytes(4 * len(request.texts)))

    @answered
    async def Refresh(self, requests: AsyncIterator[Any], context: Context) -> None:
        """One response a request."""
        async for _ in requests:
            await context.write(pb.RefreshResponse(received=1))

    def register(self, server: grpc.aio.Server, edge: Edge) -> None:
        """Adds the servicer."""
        self.edge = edge
        register(server, self, _SERVICE)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Nothing to warm up."""
        yield


class Served:
    """A running server. Its methods may be called from any thread.

    Attributes:
        service: what is served.
        loop: on which it is served.
        log: its events, with their fields.
    """

    def __init__(self, service: Any) -> None:
        self.service = service
        self.loop = asyncio.get_running_loop()
        self.log: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._changed:
            self.log.append({"event": record.getMessage(), **getattr(record, "fields", {})})
            self._changed.notify_all()

    def wait_for(self, name: str, count: int = 1) -> dict[str, Any]:
        """The `count`-th event of this name."""

        def found() -> list[dict[str, Any]]:
            return [event for event in self.log if event["event"] == name]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, 60), self.log
            return found()[count - 1]

    @property
    def port(self) -> int:
        """Of gRPC."""
        return int(self.wait_for("serving")["address"].rpartition(":")[2])

    def http(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the metrics port."""
        url = f"http://127.0.0.1:{self.wait_for('serving')['metrics_port']}{path}"
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, series: str, **labels: str) -> float:
        """A series, by name and labels."""
        value = self.service.registry.get_sample_value(series, labels)
        assert value is not None, series
        return value


def serve(test: Callable[[Served], Any], service: Callable[[], Any] = FakeEncoder, **listening: Any) -> Served:
    """Runs a test against a server, in a thread of its own; the server runs in this one, which gets the signals.

    A `service` other than the fake has its attributes `registry` and `released`.
    """

    async def main() -> Served:
        served = Served(service())
        handler = logging.Handler()
        handler.emit = served.emit  # type: ignore[method-assign]  # in place of a subclass
        logger = logging.getLogger("twinbert")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            options: dict[str, Any] = {"address": "127.0.0.1:0", "drain_s": 0} | listening
            settings = Listening(**options)
            running = asyncio.ensure_future(run(served.service, settings, served.service.registry))
            testing = asyncio.ensure_future(asyncio.to_thread(test, served))
            await asyncio.wait((running, testing), return_when=asyncio.FIRST_COMPLETED)
            if running.done():  # it refused to start
                running.result()
            served.service.released.set()
            signal.raise_signal(signal.SIGTERM)
            await running
            await testing
        finally:
            logger.removeHandler(handler)
        return served

    return asyncio.run(main())


def encode(channel: grpc.Channel, text: str = "hello", **options: Any) -> str:
    """Calls Encode."""
    call = channel.unary_unary(ENCODE, pb.EncodeRequest.SerializeToString, pb.EncodeResponse.FromString)
    response: pb.EncodeResponse = call(pb.EncodeRequest(texts=[text]), **({"timeout": 60} | options))
    return response.model


class Certified:
    """An authority, and files with certificates of its own."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.folder = folder
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *hosts: str, **options: Any) -> tuple[Path, Path]:
        """Writes, or replaces, `name`.pem and `name`.key; returns their paths."""
        issued = self.authority.issue_cert(*(hosts or ("localhost", "127.0.0.1")), common_name=name, **options)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        issued.private_key_pem.write_to_path(str(key))
        certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        return certificate, key
