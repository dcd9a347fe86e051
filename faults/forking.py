"""The `twinbert` command a thousand times: a process that has imported what the command needs forks one for each run.

Runs end by themselves, before a step of their own, or when they are killed from outside; they can be given a limit on
the size of files. Nothing of a model or a store is open in the process that forks.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from faults import ROOT
from faults.steps import kill_at
from twinbert.cli import main


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        code: its exit code, or the negative number of the signal that ended it.
        output: what it wrote to standard output and error.
        step: name of the step before which it killed itself, if it did.
        steps: how many it took, if it came to its end.
    """

    code: int
    output: str
    step: str | None
    steps: int


class Run:
    """A run that has begun."""

    def __init__(self, pid: int, replies: Iterator[str]) -> None:
        self.pid, self._replies = pid, replies

    def wait(self) -> Ended:
        """Its end."""
        return Ended(**json.loads(next(self._replies)))


class Forks:
    """Starts runs, one at a time.

    Args:
        process: `python -m faults.forking`.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._requests, self._replies = process.stdin, iter(process.stdout)

    def start(self, words: Sequence[str], *, kill_step: int | None = None, file_bytes: int | None = None) -> Run:
        """Begins `twinbert` with these words.

        Args:
            words: what follows the program's name.
            kill_step: it kills itself before this step of its own, from 1.
            file_bytes: no file of it can be larger.
        """
        self._requests.write(json.dumps({"words": words, "kill_step": kill_step, "file_bytes": file_bytes}) + "\n")
        self._requests.flush()
        return Run(int(next(self._replies)), self._replies)


@contextmanager
def forks(*prefix: str) -> Iterator[Forks]:
    """The process that forks, started by a prefix such as `unshare`."""
    words = [*prefix, sys.executable, "-m", "faults.forking"]
    # Threads do not survive a fork.
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT, env=environment
    ) as process:
        try:
            yield Forks(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def _serve() -> None:
    # Imported once for all runs.
    for module in ("onnxruntime", "encoder_server.command", "store.compaction"):
        importlib.import_module(module)
    for line in sys.stdin:
        output, outputs = os.pipe()
        told, telling = os.pipe()
        pid = os.fork()
        if not pid:
            os.dup2(outputs, 1)
            os.dup2(outputs, 2)
            _become(json.loads(line), telling)
        os.close(outputs)
        os.close(telling)
        print(pid, flush=True)
        text, word = _all(output), _all(told)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        steps = int(word) if word.isdecimal() else 0
        ended = Ended(code=code, output=text, step=word if word and not steps else None, steps=steps)
        print(json.dumps(asdict(ended)), flush=True)


def _become(request: dict[str, Any], telling: int) -> NoReturn:
    """Turns this process into a run, which tells how many steps it took, or before which it killed itself."""
    steps = kill_at(request["kill_step"], lambda name: os.write(telling, name.encode()))
    if request["file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"], resource.RLIM_INFINITY))
    code = main(request["words"])
    os.write(telling, str(steps()).encode())
    os._exit(code)


def _all(descriptor: int) -> str:
    with os.fdopen(descriptor, "rb") as file:
        return file.read().decode(errors="replace")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # nobody waits for the last run any more
        _serve()
