"""Several scorers as processes of their own: one a core scores more than one process with as many threads.

Each is executed anew, since gRPC does not survive a fork; listens on the next port, since a port that several share
balances connections and not requests; and maps the same files, so that the store is in memory once. A client that is
given all addresses sends each request to the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from twinbert.errors import UsageError
from twinbert.serving import log
from twinbert.serving.log import event

_HEALTHY_SECONDS = 10.0  # who lived so long has not failed to start
_FIRST_DELAY_SECONDS = 1.0
_LONGEST_DELAY_SECONDS = 30.0
_BAD_INPUT = 2  # the exit code of what a restart does not mend
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@dataclass(frozen=True, slots=True)
class Ports:
    """Where one worker listens."""

    address: str
    metrics_port: int


def consecutive(address: str, metrics_port: int, workers: int) -> list[Ports]:
    """Ports from the ones given upwards; 0 stays 0, any free one.

    Raises:
        UsageError: they end before the last worker.
    """
    host, _, first = address.rpartition(":")
    for name, port in (("address", int(first)), ("metrics-port", metrics_port)):
        if port and port + workers - 1 > 65535:
            raise UsageError(f"--{name}: {workers} workers from port {port} need ports beyond 65535; give a lower one")
    return [
        Ports(f"{host}:{int(first) + n if int(first) else 0}", metrics_port + n if metrics_port else 0)
        for n in range(workers)
    ]


def supervise(command: Callable[[int, Ports], Sequence[str]], ports: Sequence[Ports]) -> int:
    """Runs one process for each of `ports` until SIGTERM or SIGINT, passed on as SIGTERM; restarts those that die.

    A worker that dies is started again at once; one that does not live for 10 s, after a second, two, four, at most 30.
    Where one refuses its settings at its first start, all are ended: the others have the same.

    Args:
        command: gives the one of a worker, from its number and its ports.
        ports: of the workers.

    Returns:
        The exit code: 0, or of a worker that ended with another one.
    """
    log.configure()
    return _Supervisor([_Worker(number, command(number, place)) for number, place in enumerate(ports)]).run()


@dataclass(slots=True)
class _Worker:
    number: int
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    starts: int = 0
    failures: int = 0
    """Starts in a row that did not last."""
    due: float = 0.0
    """When it is started, by the monotonic clock."""

    def start(self) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - this program, with the options that it was given
            self.command,
            # Of a terminal's Ctrl-C a worker hears through the supervisor alone: a second signal is "stop at once".
            process_group=0,
            preexec_fn=partial(_end_with, os.getpid()),  # noqa: PLW1509 - no threads here, and nothing else sets it
        )
        self.started = time.monotonic()
        self.starts += 1
        event("worker_started", worker=self.number, pid=self.process.pid, start=self.starts)

    def died(self, code: int) -> None:
        now = time.monotonic()
        self.failures = 0 if now - self.started >= _HEALTHY_SECONDS else self.failures + 1
        delay = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** (self.failures - 2)) if self.failures > 1 else 0
        self.process, self.due = None, now + delay
        event("worker_died", level=logging.ERROR, worker=self.number, code=code, restart_in_s=delay)


class _Supervisor:
    def __init__(self, workers: list[_Worker]) -> None:
        self._workers = workers
        self._stops = 0
        self._code = 0

    def run(self) -> int:
        with _signals() as wait:
            try:
                passed_on = 0
                while True:
                    self._reap()
                    if self._stops > passed_on:
                        self._pass_on()
                        passed_on = self._stops
                    due = self._start_due()
                    if all(worker.process is None for worker in self._workers) and self._stops:
                        return self._code
                    self._stops += wait(due)
            finally:
                self._kill()

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.process is None or (code := worker.process.poll()) is None:
                continue
            if self._stops:
                worker.process = None
                # One that had not yet set up its own handling of the signal has been ended by it: as it should be.
                self._code = self._code or (0 if code == -signal.SIGTERM else abs(code))
            elif code == _BAD_INPUT and worker.starts == 1:
                worker.process = None
                self._code, self._stops = code, 1
            else:
                worker.died(code)

    def _start_due(self) -> float | None:
        """Starts who is due; returns the seconds until the next one is, None: nobody is."""
        if self._stops:
            return None
        for worker in self._workers:
            if worker.process is None and worker.due <= time.monotonic():
                worker.start()
        waiting = [worker.due for worker in self._workers if worker.process is None]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _pass_on(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()
                worker.process.wait()


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[float | None], int]]:
    """Waits for signals, or for so many seconds; returns how often it was told to stop. None is lost between waits."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stopping = (signal.SIGTERM, signal.SIGINT)
    # A handler of one's own, even an idle one, is what has a signal written to the pipe.
    before = {number: signal.signal(number, lambda *_: None) for number in (*stopping, signal.SIGCHLD)}
    woken_before = signal.set_wakeup_fd(writer)

    def wait(seconds: float | None) -> int:
        if not select.select([reader], [], [], seconds)[0]:
            return 0
        return sum(number in stopping for number in os.read(reader, 4096))

    try:
        yield wait
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _end_with(supervisor: int) -> None:
    """Has the system end a worker whose supervisor was killed: nobody would restart it, or know of it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the supervisor's own handling would lose it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:  # killed before the system was told
        os._exit(1)
