"""ScorerService over gRPC: each handler checks that the server serves, calls, and answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc.aio

from scorer_server.batcher import Batcher
from scorer_server.metrics import Metrics
from scorer_server.requests import CROSSING_NUMBERS
from scorer_server.retrieval import Retriever
from scorer_server.scoring import Scorer
from scorer_server.settings import Settings
from scorer_server.snapshots import Snapshots
from store.reader import Generation
from twinbert import __version__
from twinbert.runtime import Runtime
from twinbert.serving.lifecycle import State
from twinbert.serving.rpc import Context, unary
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1 import scorer_pb2_grpc

# What warms the engine: lengths from one word to a long query.
_WARM_QUERIES = tuple(" ".join(["warm"] * words) for words in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))


class ScorerService(scorer_pb2_grpc.ScorerServiceServicer):
    """The service. Made on the event loop that serves it.

    Args:
        snapshots: the generations.
        runtime: the bundle.
        settings: bounds and limits.
        message_bytes: largest message, for Describe.
        metrics: where to count.
    """

    name = pb.DESCRIPTOR.services_by_name["ScorerService"].full_name

    def __init__(
        self, snapshots: Snapshots, runtime: Runtime, settings: Settings, message_bytes: int, metrics: Metrics
    ) -> None:
        self.state = State()
        self.rpc_metrics = metrics.rpc
        self._snapshots, self._runtime, self._settings = snapshots, runtime, settings
        self._message_bytes = message_bytes
        self._batcher = Batcher(runtime, settings, metrics)
        self._scorer = Scorer(snapshots, self._batcher, runtime, settings.limits, metrics)
        self._retriever = Retriever(snapshots, self._batcher, runtime, settings, metrics)

    @unary
    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """See the contract."""
        self.state.require_serving()
        return await self._scorer.score(request, context.time_remaining())

    @unary
    async def Retrieve(self, request: pb.RetrieveRequest, context: Context) -> pb.RetrieveResponse:
        """See the contract."""
        self.state.require_serving()
        return await self._retriever.retrieve(request)

    @unary
    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """See the contract."""
        self.state.require_serving()
        bundle, limits = self._runtime.bundle, self._settings.limits
        current = self._snapshots.current.generation
        integers = current.manifest.id_type == "integer"
        return pb.DescribeResponse(
            current=_described(current),
            held=[_described(snapshot.generation) for snapshot in self._snapshots.held],
            model=bundle.model,
            fingerprint=bundle.fingerprint,
            crossings=[CROSSING_NUMBERS[name] for name in sorted(bundle.crossings)],
            default_crossing=CROSSING_NUMBERS[bundle.default_crossing],
            calibrated=bundle.calibrated,
            dimension=bundle.dimension,
            id_type=pb.ID_TYPE_INTEGER if integers else pb.ID_TYPE_STRING,
            query_max_tokens=bundle.max_tokens("query"),
            limits=pb.Limits(
                tasks=limits.tasks,
                candidates=limits.candidates,
                message_bytes=self._message_bytes,
                id_bytes=limits.id_bytes,
                query_bytes=limits.query_bytes,
                hits=limits.hits,
            ),
            server_version=__version__,
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer."""
        scorer_pb2_grpc.add_ScorerServiceServicer_to_server(self, server)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Warms the engine, then follows CURRENT until the server has stopped."""
        for query in _WARM_QUERIES:
            await asyncio.to_thread(self._runtime.encode, [query])
        watching = asyncio.ensure_future(self._snapshots.watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait((watching,))
            self._batcher.close()
            self._scorer.close()
            self._retriever.close()
            await self._snapshots.close()


def _described(generation: Generation) -> pb.Generation:
    manifest = generation.manifest
    return pb.Generation(
        name=generation.name,
        documents=manifest.documents,
        encoding=manifest.encoding,
        created_ms=manifest.created_ms,
        watermark_ms=manifest.watermark_ms,
    )
