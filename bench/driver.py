"""The parent's end of a load generator, and how a system is started, asked until it answers, and stopped.

Shapes: C calls of a command.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from bench.load import MICRO, OK
from bench.serving import ROOT, NotMeasuredError, Server, free_ports, require_listener, started, surroundings

_START_S = 180.0
_STARTED_CALLS = 8  # that are answered in turn by every process of a server
_WARM_CALLS = 5  # after a server was stopped: its caches are cold


@dataclass(frozen=True, kw_only=True)
class System:
    """Something to measure.

    Attributes:
        title: in the report.
        client: the module whose `connect` the load generator calls.
        arguments: of `connect`; `address` is added where there is a server.
        server: its command; `{port}` and `{other_port}` stand for free ones. None: it works in the generator's process.
        ports: that the server listens on, from `{port}` on.
        python: the interpreter of the load generator.
        environment: of server and generator, added to ours.
    """

    title: str
    client: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    server: Sequence[str] | None = None
    ports: int = 1
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one command, in the order of their ends: seconds f64 [C], and outcomes [C]."""

    due_C: npt.NDArray[np.float64]
    latency_C: npt.NDArray[np.float64]
    late_C: npt.NDArray[np.float64]
    outcome_C: npt.NDArray[np.str_]

    @property
    def ok(self) -> npt.NDArray[np.bool_]:
        """Which were answered, bool [C]."""
        return cast("npt.NDArray[np.bool_]", self.outcome_C == OK)

    def milliseconds(self, percent: float) -> float:
        """A percentile of the latencies of those that were answered."""
        return float(np.percentile(self.latency_C[self.ok], percent)) * 1e3

    def rate(self, start_s: float = 0.0, stop_s: float | None = None) -> float:
        """Answers a second between two moments; by default until the last one."""
        ends = (self.due_C + self.latency_C)[self.ok]
        stop_s = float(ends.max(initial=start_s)) if stop_s is None else stop_s
        return float(((ends > start_s) & (ends <= stop_s)).sum() / max(stop_s - start_s, 1e-9))

    def outcomes(self) -> dict[str, int]:
        """How many calls ended how."""
        names, counts = np.unique(self.outcome_C, return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))


class Driver:
    """A load generator and the server that it calls. Made by `driving`.

    Attributes:
        title: the system's.
        address: the server's, if there is one; several are separated by commas.
        server: the server, if there is one.
    """

    def __init__(
        self, process: subprocess.Popen[str], title: str, address: str, server: Server | None, log: Path
    ) -> None:
        self._process, self.title, self.address, self.server, self._log = process, title, address, server, log
        self._awake = contextlib.ExitStack()

    def awake(self) -> contextlib.AbstractContextManager[None]:
        """Lets the server run, for whoever else calls it."""
        return self.server.awake() if self.server else contextlib.nullcontext()

    def closed(self, *, clients: int = 1, calls: int = 1_000_000_000, seconds: float = 1e9, warm: bool = True) -> Calls:
        """See `bench.load.closed`; `warm` makes a few calls before that are not measured."""
        self.begin({"do": "closed", "clients": clients, "calls": calls, "seconds": seconds}, warm=warm)
        return self.end()

    def open_loop(self, *, rate: float, seconds: float, seed: int) -> Calls:
        """See `bench.load.open_loop`."""
        self.begin({"do": "open", "rate": rate, "seconds": seconds, "seed": seed})
        return self.end()

    def scores(self, requests: int) -> list[list[list[float]]]:
        """What the system answers to the first requests: scores by request, task and candidate."""
        with self.awake():
            return cast("list[list[list[float]]]", self._ask({"do": "scores", "requests": requests})["scores"])

    def begin(self, command: Mapping[str, Any], *, warm: bool = True) -> None:
        """Wakes the server and begins a command; `end` waits for its end."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.awake())
            if warm:
                self._ask({"do": "closed", "clients": 1, "calls": _WARM_CALLS, "seconds": 2.0})
            self._send(command)
            self._awake = stack.pop_all()

    def end(self) -> Calls:
        """The calls of the command that was begun.

        Raises:
            NotMeasuredError: the system broke, or answered none of the calls.
        """
        with self._awake:
            answer = self._receive()
        due, latency, late = (np.array(answer[name], float) / MICRO for name in ("due", "latency", "late"))
        calls = Calls(due, latency, late, np.array(answer["outcome"]))
        if not calls.ok.any():
            raise NotMeasuredError(f"no call was answered: {calls.outcomes()}")
        return calls

    def wait_until_answered(self) -> None:
        """Returns once calls are answered; raises NotMeasuredError if they never are, or the server ends."""
        deadline = time.monotonic() + _START_S
        while True:
            try:
                for one in filter(None, self.address.split(",")):
                    require_listener(one)
                self._ask({"do": "scores", "requests": _STARTED_CALLS if self.server else 1})
                return
            except NotMeasuredError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                if self.server and self.server.process.poll() is not None:
                    raise NotMeasuredError(f"its server ended: {self.server.reason()}") from error
            time.sleep(0.2)

    def _ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        self._send(command)
        return self._receive()

    def _send(self, command: Mapping[str, Any]) -> None:
        try:
            _pipe(self._process.stdin).write(json.dumps(command) + "\n")
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _receive(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NotMeasuredError(answer["error"])
        return answer

    def _ended(self) -> NotMeasuredError:
        self._process.wait()
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return NotMeasuredError(said[-1] if said else "its load generator ended")


@contextlib.contextmanager
def driving(system: System, workload: Path, folder: Path) -> Iterator[Driver]:
    """Starts a system and a load generator for it; once it has answered, its server runs only while it is called.

    Args:
        system: what to start.
        workload: the file of what is asked.
        folder: for logs.

    Raises:
        NotMeasuredError: it does not start, or does not answer.
    """
    log, address = folder / f"{time.monotonic_ns()}", ""
    with contextlib.ExitStack() as stack:
        server = None
        if system.server is not None:
            port, other_port = free_ports(system.ports), free_ports(system.ports)
            command = [word.format(port=port, other_port=other_port) for word in system.server]
            address = ",".join(f"127.0.0.1:{port + number}" for number in range(system.ports))
            server = stack.enter_context(started(command, log.with_suffix(".server"), system.environment))
        driver = stack.enter_context(attached(system, workload, log.with_suffix(".client"), address, server))
        driver.wait_until_answered()
        if server is not None:
            server.settle()
        yield driver


@contextlib.contextmanager
def attached(system: System, workload: Path, log: Path, address: str, server: Server | None) -> Iterator[Driver]:
    """A load generator for a server that runs already, or for none."""
    arguments = dict(system.arguments) | ({"address": address} if address else {})
    words = [system.python, "-m", "bench.generator", system.client, json.dumps(arguments), str(workload)]
    environment = surroundings({"PYTHONPATH": str(ROOT)} | dict(system.environment))
    with log.open("w") as errors:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment
        )
    try:
        yield Driver(process, system.title, address, server, log)
    finally:
        process.kill()
        process.communicate()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
