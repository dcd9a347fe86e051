"""What no scorer on this machine can undercut, without any network: the engine, its ONNX session alone, one `take`.

Shapes: Q queries, N rows, D dimension.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from bench.driver import System
from bench.load import Call
from bench.workloads import Task
from twinbert.bundle import Bundle
from twinbert.runtime import Runtime

_TAKE_ROWS, _TAKE_DIMENSION = 1_000_000, 128


def encode(title: str, bundle: Path, *, parallel: int = 1) -> System:
    """`Runtime.encode` of a request's queries, float32, one thread a call, so many calls at a time."""
    return System(title=title, client=__name__, arguments={"what": "encode", "bundle": str(bundle), "calls": parallel})


def session(title: str, bundle: Path) -> System:
    """The query tower's ONNX session, of queries that are tokenised already."""
    return System(title=title, client=__name__, arguments={"what": "session", "bundle": str(bundle)})


def take(title: str) -> System:
    """Numpy's `take` of 100 random rows of a million, float32."""
    return System(title=title, client=__name__, arguments={"what": "take"})


async def connect(what: str, bundle: str = "", calls: int = 1) -> Call:
    """Each works in this process and answers no scores."""
    if what == "take":
        return _take()
    runtime = Runtime(Bundle.open(bundle), towers=("query",), threads=1)
    if what == "session":
        return _session(runtime)
    executor, loop = ThreadPoolExecutor(calls), asyncio.get_running_loop()

    async def alone(tasks: Sequence[Task]) -> list[list[float]]:
        runtime.encode([query for query, _ in tasks])
        return []

    async def parallel(tasks: Sequence[Task]) -> list[list[float]]:
        await loop.run_in_executor(executor, runtime.encode, [query for query, _ in tasks])
        return []

    return alone if calls == 1 else parallel


def _session(runtime: Runtime) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    bundle = runtime.bundle
    path = os.fspath(bundle.file(bundle.towers["query"].file))
    opened = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds: dict[str, dict[str, object]] = {}

    async def call(tasks: Sequence[Task]) -> list[list[float]]:
        for query, _ in tasks:
            if query not in feeds:
                ids, mask_QL = runtime.tokenize([query]).padded()
                feeds[query] = {"input_ids": ids, "attention_mask": mask_QL}
            opened.run(["embeddings"], feeds[query])
        return []

    return call


def _take() -> Call:
    random = np.random.default_rng(0)
    rows_ND = random.random((_TAKE_ROWS, _TAKE_DIMENSION), np.float32)
    wanted = random.integers(0, _TAKE_ROWS, (1000, 100))
    turn = iter(range(10**12))

    async def call(_tasks: Sequence[Task]) -> list[list[float]]:
        rows_ND.take(wanted[next(turn) % len(wanted)], axis=0)
        return []

    return call
