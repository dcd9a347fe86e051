"""SIGKILL of a worker process of `twinbert serve --workers 2` under load."""

from __future__ import annotations

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
from threading import Event

from faults.corpora import texts
from faults.fault import Attempt, Fault, Tally, require
from tests.servers import Server, free_ports, refresh, write_documents
from twinbert.client import ScorerClient, Task
from twinbert.errors import RemoteError

_WORKERS = 2
_CALLERS = 4
_RESTART_S = 2.0
_STEADY_S = 10.5  # who has lived for less is restarted with a delay that grows


@contextmanager
def _prepared(folder: Path, bundle: Path) -> Iterator[Attempt]:
    store = folder / "store"
    refresh(bundle, store, write_documents(folder / "documents.jsonl", texts(0, 90)))
    with _supervised(bundle, store) as workers:
        yield workers.attempt


class _Workers:
    """The supervisor's log says who runs where."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pids = {one["worker"]: one["pid"] for one in (server.wait_for("worker_started") for _ in range(_WORKERS))}
        self._addresses = sorted(server.wait_for("serving")["address"] for _ in range(_WORKERS))
        self._up = dict.fromkeys(self._pids, time.monotonic())
        self._slowest = 0.0

    def attempt(self, seed: int) -> Tally:
        """Kills the worker whose turn it is, once it has lived for a while."""
        worker, stop = seed % _WORKERS, Event()
        with ExitStack() as stack:
            clients = [stack.enter_context(ScorerClient(self._addresses)) for _ in range(_CALLERS)]
            pool = stack.enter_context(ThreadPoolExecutor(_CALLERS))
            stack.callback(stop.set)
            time.sleep(max(0.0, self._up[worker] + _STEADY_S - time.monotonic()))
            calls = [pool.submit(_call, client, stop) for client in clients]
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
        failed = {name: count for name, count in outcomes.items() if name != "calls answered"}
        require(not failed, f"calls failed in spite of the client's retry: {failed}")
        require(lasted < _RESTART_S, f"the restart took {lasted:.2f} s")
        self._slowest = max(self._slowest, lasted)
        return Tally(outcomes | Counter({"workers killed": 1}), figures={"slowest restart, s": self._slowest})


def _call(client: ScorerClient, stop: Event) -> Counter[str]:
    counts = Counter[str]()
    while not stop.is_set():
        try:
            client.score(Task("pizza", ["d1", "d2"]), timeout=5.0)
            counts["calls answered"] += 1
        except RemoteError as error:
            counts[str(error)] += 1
        time.sleep(0.01)  # the load: a ranker that asks a hundred times a second
    return counts


@contextmanager
def _supervised(bundle: Path, store: Path) -> Iterator[_Workers]:
    words = [sys.executable, "-m", "twinbert", "serve", "--bundle", str(bundle), "--store", str(store)]
    # Whoever is restarted comes back on its port; port 0 would be another one each time.
    words += ["--workers", str(_WORKERS), "--address", f"127.0.0.1:{free_ports(_WORKERS)}", "--metrics-port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        server = Server(process)
        try:
            yield _Workers(server)
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
    prepare=_prepared,
)
