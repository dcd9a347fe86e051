"""Ours: `twinbert serve`, called over gRPC as a ranker calls it, without retries."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio

from bench.driver import System
from bench.load import Call, CallError
from bench.workloads import Task
from twinbert.client.scorer import SCORE_TIMEOUT_S
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1.scorer_pb2_grpc import ScorerServiceStub

if TYPE_CHECKING:
    from twinbert.v1.scorer_pb2_grpc import ScorerServiceAsyncStub

# A server that is starting is found at once.
OPTIONS = (
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
)

COMMAND = (sys.executable, "-m", "twinbert")


def system(
    title: str,
    bundle: Path,
    store: Path,
    *,
    engine: str = "",
    crossing: str = "",
    cached: bool = False,
    workers: int = 1,
    options: Sequence[str] = (),
) -> System:
    """A scorer in its default configuration, but for the query cache, which is off unless `cached`.

    Args:
        title: in the report.
        bundle: what it serves.
        store: what it serves.
        engine: as of `twinbert serve`; empty: the default, float32.
        crossing: of the requests; empty: the bundle's default.
        cached: leave the query cache on.
        workers: processes; calls go to each in turn.
        options: further ones of `twinbert serve`.
    """
    files = ("--bundle", str(bundle), "--store", str(store))
    address = ("--address", "127.0.0.1:{port}", "--metrics-port", "{other_port}")
    words = [*COMMAND, "serve", *files, *address, *(() if cached else ("--cache-bytes", "0")), *options]
    return System(
        title=title,
        client=__name__,
        arguments={"crossing": crossing},
        server=[*words, "--workers", str(workers), *(("--engine", engine) if engine else ())],
        ports=workers,
    )


async def connect(address: str, crossing: str = "") -> Call:
    """`Score`, for any number of callers."""
    stub = cast("ScorerServiceAsyncStub", ScorerServiceStub(grpc.aio.insecure_channel(f"ipv4:{address}", OPTIONS)))

    async def score(tasks: Sequence[Task]) -> list[list[float]]:
        try:
            return _scores(await stub.Score(_request(tasks, crossing), timeout=SCORE_TIMEOUT_S))
        except grpc.aio.AioRpcError as error:
            raise CallError(error.code().name) from error

    return score


def blocking(address: str, crossing: str = "") -> Call:
    """`Score`, for one caller."""
    stub = ScorerServiceStub(grpc.insecure_channel(f"ipv4:{address}", OPTIONS))

    async def score(tasks: Sequence[Task]) -> list[list[float]]:
        try:
            return _scores(stub.Score(_request(tasks, crossing), timeout=SCORE_TIMEOUT_S))
        except grpc.RpcError as error:
            raise CallError(error.code().name) from error

    return score


def _request(tasks: Sequence[Task], crossing: str) -> pb.ScoreRequest:
    asked = [pb.ScoreTask(query=query, document_ids=ids) for query, ids in tasks]
    return pb.ScoreRequest(tasks=asked, crossing=f"CROSSING_{crossing.upper() or 'UNSPECIFIED'}")


def _scores(reply: pb.ScoreResponse) -> list[list[float]]:
    return [list(result.scores) for result in reply.results]
