"""Real servers as real processes, for the tests."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("twinbert"))

_LONG = 60.0  # seconds; only a hang takes this long


class Server:
    """A running server. Its log events can be waited for, in the order in which they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            event = json.loads(line) if line.startswith("{") else {"event": "", "line": line}
            self.log.append(event)
            self._events.put(event)
        self._events.put(None)

    def wait_for(self, name: str) -> dict[str, Any]:
        """The next event of this name."""
        while (event := self._events.get(timeout=_LONG)) is not None:
            if event["event"] == name:
                return event
        raise AssertionError(f"the server ended without {name!r}: {self.log}")

    def exposition(self) -> str:
        """/metrics, as it is."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=_LONG) as response:
            text: str = response.read().decode()
        return text

    def metrics(self) -> dict[str, float]:
        """/metrics, by series."""
        series = (line.rpartition(" ") for line in self.exposition().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in series}

    def started(self) -> None:
        """Waits until it serves."""
        event = self.wait_for("serving")
        self.address: str = event["address"]
        self.metrics_port: int = event["metrics_port"]

    def stop(self) -> int:
        """SIGTERM, and its exit code; then all of its log is there."""
        self.process.terminate()
        code = self.process.wait(timeout=_LONG)
        self._reader.join(timeout=_LONG)
        return code


@contextlib.contextmanager
def running(
    command: str, bundle: Path | None, store: Path, *options: str, program: Sequence[str] = (COMMAND,)
) -> Iterator[Server]:
    """`twinbert serve` or `twinbert encoder` on free ports; without a bundle the options say where there are some."""
    words = [*program, command, "--store", str(store), "--address", "127.0.0.1:0", "--metrics-port", "0", *options]
    words += ["--bundle", str(bundle)] if bundle else []
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    server = Server(process)
    try:
        server.started()
        yield server
    finally:
        process.kill()
        process.wait(timeout=_LONG)
        server._reader.join(timeout=_LONG)
        assert process.stderr is not None
        process.stderr.close()


def twinbert(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [COMMAND, *words], capture_output=True, text=True, timeout=_LONG, check=False, env=os.environ | environment
    )


def refresh(bundle: Path, store: Path, documents: Path, *options: str) -> str:
    """`twinbert refresh`; returns the name of the generation that is current then."""
    files = ("--bundle", str(bundle), "--store", str(store), "--documents", str(documents))
    done = twinbert("refresh", *files, *options)
    assert done.returncode == 0, done.stderr
    return (store / "CURRENT").read_text().strip()


def write_documents(path: Path, documents: dict[Any, str]) -> Path:
    """Documents as JSON Lines."""
    path.write_text("".join(json.dumps({"id": id_, "text": text}) + "\n" for id_, text in documents.items()))
    return path


def free_ports(count: int) -> int:
    """The first of as many consecutive ports that nobody listens on."""
    while True:
        with contextlib.ExitStack() as sockets:
            first = sockets.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for number in range(1, count):
                    sockets.enter_context(socket.create_server(("127.0.0.1", first + number)))
            except (OSError, OverflowError):
                continue
            return int(first)
