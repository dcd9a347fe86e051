"""EncoderService over gRPC: each handler checks that the server serves, calls, and answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc.aio

from encoder_server.compactor import Compactor
from encoder_server.current import current_manifest
from encoder_server.encodes import Encodes
from encoder_server.metrics import Metrics
from encoder_server.settings import Settings
from encoder_server.stream import Refresher
from store.store import Store
from twinbert.bundle import TOWERS, Tower
from twinbert.errors import InvalidRequestError
from twinbert.runtime import Runtime
from twinbert.serving.lifecycle import State
from twinbert.serving.rpc import Context, Edge, answered, register
from twinbert.text import is_blank
from twinbert.v1 import encoder_pb2 as pb
from twinbert.v1 import encoder_pb2_grpc

_TOWERS: dict[int, Tower] = {pb.TOWER_QUERY: "query", pb.TOWER_DOCUMENT: "document"}

_SERVICE = pb.DESCRIPTOR.services_by_name["EncoderService"]


class EncoderService(encoder_pb2_grpc.EncoderServiceServicer):
    """The service.

    Args:
        store: what Refresh refreshes.
        runtime: with both towers, and one thread a call.
        settings: bounds and limits.
        metrics: where to count.
    """

    name = _SERVICE.full_name
    writing = frozenset({"Refresh"})

    def __init__(self, store: Store, runtime: Runtime, settings: Settings, metrics: Metrics) -> None:
        self.state = State()
        self.rpc_metrics = metrics.rpc
        self._store, self._runtime, self._settings, self._metrics = store, runtime, settings, metrics
        self._refresher = Refresher(store, runtime, settings, metrics)
        self._compactor = Compactor(store, settings, metrics)
        self._encodes = Encodes(runtime, settings, metrics)

    @answered
    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        """See the contract."""
        self.state.require_serving()
        tower = self._checked(request)
        embeddings = await self._encodes.encode(list(request.texts), tower, context.time_remaining())
        bundle = self._runtime.bundle
        return pb.EncodeResponse(
            embeddings=embeddings, dimension=bundle.dimension, model=bundle.model, fingerprint=bundle.fingerprint
        )

    # A coroutine that writes its responses, not a generator: a cancelled call ends in it, wherever it is.
    @answered
    async def Refresh(  # type: ignore[override]  # the stub yields them
        self, request_iterator: AsyncIterator[pb.RefreshRequest], context: Context
    ) -> None:
        """See the contract."""
        self.state.require_serving()
        await self._refresher.answer(request_iterator, context.write)

    def register(self, server: grpc.aio.Server, edge: Edge) -> None:
        """Adds the servicer, whose calls pass the edge."""
        self.edge = edge
        register(server, self, _SERVICE)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Warms both towers, and keeps the store compact; when the server has drained, ends what still works."""
        for tower in TOWERS:
            await asyncio.to_thread(self._runtime.encode, ["warm"], tower)
        if manifest := current_manifest(self._store):
            self._metrics.set_generation(manifest)
        compacting = asyncio.ensure_future(self._compactor.watch())
        try:
            yield
        finally:
            self._store.give_up()  # a refresh that is just being opened would read the whole generation first
            compacting.cancel()
            await asyncio.wait((compacting,))
            await self._refresher.close()
            self._encodes.close()

    def _checked(self, request: pb.EncodeRequest) -> Tower:
        if request.tower not in _TOWERS:
            raise InvalidRequestError("tower", "is unspecified or unknown: give TOWER_QUERY or TOWER_DOCUMENT")
        if not 1 <= len(request.texts) <= self._settings.texts:
            raise InvalidRequestError("texts", f"{len(request.texts)} were given: give 1 to {self._settings.texts}")
        for place, text in enumerate(request.texts):
            if is_blank(text):
                raise InvalidRequestError(f"texts[{place}]", "is blank")
        return _TOWERS[request.tower]
