"""A real store behind a real scorer, made as users make them: by the command, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from twinbert.client import CrossingName, ScorerClient, Task
from twinbert.errors import UnavailableError
from twinbert.runtime import Floats, Ints
from twinbert.training.baselines import numbered

_COMMAND = str(Path(sys.executable).with_name("twinbert"))
_Part = tuple[int, Ints]  # a query and the rows of its pairs

_START_SECONDS = 120.0
_STOP_SECONDS = 30.0
_LOOK_SECONDS = 0.1
_SCORE_SECONDS = 60.0


class LiveScorer:
    """A running scorer over documents whose ids are their positions; see `live_scorer`."""

    def __init__(self, client: ScorerClient, documents: Sequence[str]) -> None:
        self._client = client
        self._limits = client.describe().limits
        self._id = {document: position for position, document in enumerate(documents)}

    def score(self, pairs: Sequence[tuple[str, str]], crossing: CrossingName | None = None) -> Floats:
        """Probabilities [N] by `Score`, as many tasks a request as the server takes.

        Raises:
            UnavailableError: the store lacks a document that it was given.
            RemoteError: the server refused or failed.
        """
        queries, query_N = numbered([query for query, _ in pairs])
        id_N = np.array([self._id[document] for _, document in pairs], np.int64)
        order_N = np.argsort(query_N, kind="stable")
        of_query = np.split(order_N, np.cumsum(np.bincount(query_N))[:-1])
        step = self._limits.candidates
        parts = [
            (query, rows[at : at + step]) for query, rows in enumerate(of_query) for at in range(0, len(rows), step)
        ]
        scores_N = np.empty(len(pairs), np.float32)
        for request in self._requests(parts):
            tasks = [Task(queries[query], id_N[rows]) for query, rows in request]
            reply = self._client.score(tasks, crossing=crossing, timeout=_SCORE_SECONDS)
            for (_, rows), result in zip(request, reply.results, strict=True):
                if not result.found.all():
                    raise UnavailableError("the store lacks documents that it was given; look at what refresh rejected")
                scores_N[rows] = result.scores
        return scores_N

    def _requests(self, parts: Sequence[_Part]) -> Iterator[list[_Part]]:
        """Parts in requests within the server's limits."""
        request: list[_Part] = []
        candidates = 0
        for part in parts:
            full = len(request) == self._limits.tasks or candidates + len(part[1]) > self._limits.candidates
            if request and full:
                yield request
                request, candidates = [], 0
            request.append(part)
            candidates += len(part[1])
        if request:
            yield request


@contextmanager
def live_scorer(bundle: Path, documents: Sequence[str], *, encoding: str, folder: Path) -> Iterator[LiveScorer]:
    """Encodes documents into a store and serves it on free ports while the context lasts.

    Args:
        bundle: the bundle's directory.
        documents: distinct texts.
        encoding: how the store keeps embeddings.
        folder: an existing one, for the store, the documents and the logs.

    Raises:
        UnavailableError: `twinbert refresh` or `twinbert serve` failed; the message has its last line.
    """
    file, store = folder / "documents.jsonl", folder / "store"
    lines = (json.dumps({"id": position, "text": text}) + "\n" for position, text in enumerate(documents))
    file.write_text("".join(lines), encoding="utf-8")
    where = ("--bundle", str(bundle), "--store", str(store))
    _run("refresh", *where, "--documents", str(file), "--id-type", "integer", "--encoding", encoding)
    log = folder / "serve.log"
    with log.open("wb") as output:
        # As the reference, whatever engine this host has been tuned to.
        words = [_COMMAND, "serve", *where, "--engine", "float32", "--address", "127.0.0.1:0", "--metrics-port", "0"]
        process = subprocess.Popen(words, stderr=output, stdout=subprocess.DEVNULL, env=_environment())  # noqa: S603 - our own command
    try:
        with ScorerClient(_address(process, log)) as client:
            yield LiveScorer(client, documents)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:  # what was measured stands all the same
            process.kill()
            process.wait()


def _run(*words: str) -> None:
    done = subprocess.run([_COMMAND, *words], capture_output=True, text=True, check=False, env=_environment())  # noqa: S603 - our own command
    if done.returncode:
        raise UnavailableError(f"`twinbert {words[0]}` failed: {_last_line(done.stderr)}")


def _environment() -> dict[str, str]:
    """This process's, without what would set options of the commands."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TWINBERT_")}


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the server listens, once it says so."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
            if event.get("event") == "serving":
                return str(event["address"])
        try:
            process.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        break
    raise UnavailableError(f"`twinbert serve` did not start: {_last_line(log.read_text())}")


def _last_line(text: str) -> str:
    return (text.strip() or "it said nothing").splitlines()[-1]
