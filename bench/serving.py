"""A server under test, as a process: it runs while it is measured, and is stopped while others are."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_SAID = 300  # characters of a log that say why


class NotMeasuredError(Exception):
    """A system cannot take part; the text says why."""


class Server:
    """A process, and its children, that can be stopped and continued. Made by `started`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log
        self._lock, self._users = threading.Lock(), 1

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Lets the server run for as long as somebody needs it."""
        self._use(1)
        try:
            yield
        finally:
            self._use(-1)

    def settle(self) -> None:
        """It has started: from now on it runs only while somebody needs it."""
        self._use(-1)

    def _use(self, change: int) -> None:
        with self._lock:
            before, self._users = self._users, self._users + change
            if bool(before) != bool(self._users) and self.process.poll() is None:
                self.send_signal(signal.SIGCONT if self._users else signal.SIGSTOP)

    def send_signal(self, number: signal.Signals) -> None:
        """To its process group, and to those of children that lead one of their own, as our workers do."""
        pid = self.process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except FileNotFoundError:  # it has ended
            children = []
        for group in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)

    def reason(self) -> str:
        """The end of its log."""
        return last_words(self._log.read_text(errors="replace"))


@contextlib.contextmanager
def started(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Starts a server; it runs until `Server.settle` is called, and is killed in the end, with its children."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=surroundings(environment or {}),
            start_new_session=True,
        )
    server = Server(process, log)
    try:
        yield server
    finally:
        server.send_signal(signal.SIGKILL)
        process.wait()


def surroundings(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of what is measured: without a number of threads that is meant for something else."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | dict(more)


def free_ports(count: int) -> int:
    """The first of some consecutive ports that nobody listens on."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            first = 0
            for number in range(count):
                listening = stack.enter_context(socket.socket())
                listening.bind(("127.0.0.1", first + number if first else 0))
                first = first or int(listening.getsockname()[1])
            return first


def require_listener(address: str) -> None:
    """Raises NotMeasuredError unless somebody listens there."""
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError as error:
        raise NotMeasuredError(f"{address}: {error.strerror}") from error


def last_words(output: str) -> str:
    """What a program said last, in one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip(" \t│╰╯─╭╮")]
    return " ".join(lines[-3:])[-_SAID:] or "it said nothing"
