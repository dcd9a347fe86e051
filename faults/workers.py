"""SIGKILL of a worker process of `twinbert serve --workers 2` under load."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Barrier, Event

import grpc

from faults.corpora import texts
from faults.fault import Attempt, Fault, Tally, require
from tests.servers import Server, free_ports, refresh, write_documents
from twinbert.client import ScorerClient, Task
from twinbert.errors import RemoteError
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1.scorer_pb2_grpc import ScorerServiceStub

_WORKERS = 2
_CALLERS = 4
_RESTART_S = 2.0
_STEADY_S = 10.5  # who was restarted and has lived for less is restarted with a delay that grows
_AT_ONCE = 100  # calls of each client without a pause, so that some are in flight when the worker is killed
_LONG_S = 60.0  # only a hang takes this long
_DOCUMENTS = 100_000  # what a restart has to verify and map
_ANSWERED = "calls answered"
_IN_FLIGHT = "calls in flight without a retry: UNAVAILABLE"


@contextmanager
def attempts(
    folder: Path, bundle: Path, *, documents: int = _DOCUMENTS, restart_s: float = _RESTART_S
) -> Iterator[Attempt]:
    """Attempts at workers that serve so many documents, and are to be restarted in so many seconds."""
    store = folder / "store"
    refresh(bundle, store, write_documents(folder / "documents.jsonl", texts(0, documents)))
    with _supervised(bundle, store) as server:
        yield _Workers(server, restart_s).attempt


class _Workers:
    """The supervisor's log says who runs where."""

    def __init__(self, server: Server, restart_s: float) -> None:
        self._server, self._restart_s = server, restart_s
        self._pids = {one["worker"]: one["pid"] for one in (server.wait_for("worker_started") for _ in range(_WORKERS))}
        self._addresses = sorted(server.wait_for("serving")["address"] for _ in range(_WORKERS))
        self._up = dict.fromkeys(self._pids, -math.inf)  # the first time a restart is never delayed
        self._slowest = 0.0

    def attempt(self, seed: int) -> Tally:
        """Kills the worker whose turn it is, once it has lived for a while."""
        worker, stop = seed % _WORKERS, Event()
        with ExitStack() as stack:
            clients = [stack.enter_context(ScorerClient(self._addresses)) for _ in range(_CALLERS)]
            # These ask the one that is killed, again and again, so that some of their calls are in flight then.
            plain = stack.enter_context(grpc.insecure_channel(self._addresses[worker], [("grpc.enable_retries", 0)]))
            pool = stack.enter_context(ThreadPoolExecutor(2 * _CALLERS))
            stack.callback(stop.set)
            time.sleep(max(0.0, self._up[worker] + _STEADY_S - time.monotonic()))
            began = Barrier(2 * _CALLERS + 1, timeout=_LONG_S)
            calls = [pool.submit(_call, client, began, stop) for client in clients]
            calls += [pool.submit(_call_once, plain, began) for _ in range(_CALLERS)]
            began.wait()
            killed = time.monotonic()
            os.kill(self._pids[worker], signal.SIGKILL)
            self._pids[worker] = self._server.wait_for("worker_started")["pid"]
            self._server.wait_for("serving")
            lasted = time.monotonic() - killed
            self._up[worker] = time.monotonic()
            stop.set()
            outcomes = Counter[str]()
            for call in calls:
                outcomes += call.result()
        failed = {name: count for name, count in outcomes.items() if name not in (_ANSWERED, _IN_FLIGHT)}
        require(not failed, f"calls failed otherwise, or in spite of the client's retry: {failed}")
        require(outcomes[_IN_FLIGHT], "of calls to the worker that was killed none failed: was it?")
        require(lasted < self._restart_s, f"the restart took {lasted:.2f} s")
        self._slowest = max(self._slowest, lasted)
        return Tally(outcomes | Counter({"workers killed": 1}), figures={"slowest restart, s": self._slowest})


def _call(client: ScorerClient, began: Barrier, stop: Event) -> Counter[str]:
    """Calls until it is told to stop; the client tries again where a call fails."""
    counts = Counter[str]()
    while not stop.is_set():
        try:
            client.score(Task("pizza", ["d1", "d2"]), timeout=5.0)
            counts[_ANSWERED] += 1
        except RemoteError as error:
            counts[str(error)] += 1
        if counts.total() == 1:
            began.wait()
        if counts.total() > _AT_ONCE:
            time.sleep(0.01)  # the load: a ranker that asks a hundred times a second
    return counts


def _call_once(channel: grpc.Channel, began: Barrier) -> Counter[str]:
    """Calls one worker until a call fails, at most once each, and says as what."""
    score = ScorerServiceStub(channel).Score
    request = pb.ScoreRequest(tasks=[pb.ScoreTask(query="pizza", document_ids=["d1", "d2"])])
    counts = Counter[str]()
    while True:
        try:
            score(request, timeout=5.0)
            counts[_ANSWERED] += 1
        except grpc.RpcError as error:
            counts[f"calls in flight without a retry: {error.code().name}"] += 1
            return counts
        if counts.total() == 1:
            began.wait()


@contextmanager
def _supervised(bundle: Path, store: Path) -> Iterator[Server]:
    words = [sys.executable, "-m", "twinbert", "serve", "--bundle", str(bundle), "--store", str(store)]
    # Whoever is restarted comes back on its port; port 0 would be another one each time.
    words += ["--workers", str(_WORKERS), "--address", f"127.0.0.1:{free_ports(_WORKERS)}", "--metrics-port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        server = Server(process)
        try:
            yield server
        finally:
            server.stop()


WORKERS = Fault(
    name="workers",
    title="SIGKILL of a worker process under load",
    promise="the others serve; restarted in under 2 s; calls in flight fail as UNAVAILABLE, and the client's retry "
    "hides it",
    unit="kills",
    wanted=100,
    quick=2,
    prepare=attempts,
)
