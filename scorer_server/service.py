"""ScorerService over gRPC: each handler checks that the server serves, calls, and answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

import grpc.aio

from scorer_server.batcher import Batcher
from scorer_server.bundles import Bundles
from scorer_server.metrics import Metrics
from scorer_server.requests import CROSSING_NUMBERS
from scorer_server.retrieval import Retriever
from scorer_server.sampling import sampling
from scorer_server.scoring import Scorer
from scorer_server.settings import Settings
from scorer_server.snapshots import Snapshot, Snapshots
from store.store import Store
from twinbert import __version__
from twinbert.serving.lifecycle import State
from twinbert.serving.rpc import Context, Edge, answered, register
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1 import scorer_pb2_grpc

_SERVICE = pb.DESCRIPTOR.services_by_name["ScorerService"]


class ScorerService(scorer_pb2_grpc.ScorerServiceServicer):
    """The service. The store is opened when the server runs, so that health and metrics answer meanwhile.

    Args:
        store: where generations come from.
        bundles: where the bundles that serve them come from.
        settings: bounds and limits.
        message_bytes: largest message, for Describe.
        metrics: where to count.
    """

    name = _SERVICE.full_name
    writing: frozenset[str] = frozenset()

    def __init__(
        self, store: Store, bundles: Bundles, settings: Settings, message_bytes: int, metrics: Metrics
    ) -> None:
        self.state = State()
        self.rpc_metrics = metrics.rpc
        self._store, self._bundles, self._settings, self._metrics = store, bundles, settings, metrics
        self._message_bytes = message_bytes
        self._snapshots: Snapshots
        self._scorer: Scorer
        self._retriever: Retriever

    @answered
    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """See the contract."""
        self.state.require_serving()
        return await self._scorer.score(request, context.time_remaining())

    @answered
    async def Retrieve(self, request: pb.RetrieveRequest, context: Context) -> pb.RetrieveResponse:
        """See the contract."""
        self.state.require_serving()
        return await self._retriever.retrieve(request, context.time_remaining())

    @answered
    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """See the contract."""
        self.state.require_serving()
        current, refusal, limits = self._snapshots.current, self._snapshots.refusal, self._settings.limits
        bundle = current.runtime.bundle
        integers = current.generation.manifest.id_type == "integer"
        return pb.DescribeResponse(
            current=_described(current),
            held=[_described(snapshot) for snapshot in self._snapshots.held],
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
            refused=pb.Refusal(name=refusal.name, reason=refusal.reason, message=refusal.message) if refusal else None,
        )

    def register(self, server: grpc.aio.Server, edge: Edge) -> None:
        """Adds the servicer, whose calls pass the edge."""
        self.edge = edge
        register(server, self, _SERVICE)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opens and warms the store and its bundle, then follows CURRENT until the server has stopped.

        Raises:
            StoreError: the store is missing, empty or damaged.
            BundleError: its bundle is.
            MismatchError: the store was made with another bundle.
            UsageError: a file to record to cannot be written.
        """
        open_store = partial(Snapshots, self._store, self._bundles, self._settings, self._metrics)
        self._snapshots = await asyncio.to_thread(open_store)
        batcher = Batcher(self._settings, self._metrics)
        self._retriever = Retriever(self._snapshots, batcher, self._settings, self._metrics)
        with sampling(self._settings, self._metrics) as samplers:
            self._scorer = Scorer(self._snapshots, batcher, self._settings, self._metrics, samplers)
            watching = asyncio.ensure_future(self._snapshots.watch())
            try:
                yield
            finally:
                watching.cancel()
                await asyncio.wait((watching,))
                for part in (batcher, self._scorer, self._retriever):
                    await asyncio.to_thread(part.close)
                await self._snapshots.close()


def _described(snapshot: Snapshot) -> pb.Generation:
    manifest = snapshot.generation.manifest
    return pb.Generation(
        name=manifest.name,
        documents=manifest.documents,
        encoding=manifest.encoding,
        created_ms=manifest.created_ms,
        watermark_ms=manifest.watermark_ms,
        model=snapshot.runtime.bundle.model,
    )
