"""What a scorer records of its requests: some whole, to try the next generation on, and the candidates it missed.

The event loop only decides whether a request is recorded; all else happens in the recorders' threads.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scorer_server.metrics import Metrics
from scorer_server.recording import Recorder
from scorer_server.settings import Settings
from twinbert.recorded import MissReason
from twinbert.v1 import scorer_pb2 as pb

# Of one request. More would let few large requests displace many small ones from a file of bounded size.
_CANDIDATES = 200
# Missing ids that are remembered, so that each is recorded once in a while and not with every request.
_REMEMBERED = 10_000
# Requests a second whose misses are recorded, and ids of each: a corpus that is gone must not keep the thread busy.
_MISSES_RATE = 10.0
_MISSES = 100


class _Pace:
    """Lets requests through at random moments, `rate` a second on average however many come."""

    def __init__(self, rate: float) -> None:
        self._mean_s, self._next = 1 / rate, 0.0
        self._random = np.random.default_rng()

    def admits(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._random.exponential(self._mean_s)
        return True


@dataclass(frozen=True, slots=True)
class Misses:
    """Candidates of a request that were not found: ids, their tasks' numbers, and why, each [M]."""

    ids: Sequence[str] | npt.NDArray[np.uint64]
    tasks: npt.NDArray[np.int64]
    reasons: Sequence[MissReason]


class RequestSampler:
    """Records requests, one task of each, with its query and up to 200 of its candidates.

    Args:
        recorder: where to.
        rate: requests a second at most, on average.
    """

    def __init__(self, recorder: Recorder, rate: float) -> None:
        self._recorder, self._pace = recorder, _Pace(rate)

    def offer(self, request: pb.ScoreRequest, crossing: str) -> None:
        """Shows it a request that was answered."""
        if self._pace.admits():
            self._recorder.offer(partial(_request_line, request, crossing))


class MissSampler:
    """Records candidates that were not found: their ids, each once among the last 10,000 for either reason.

    Args:
        recorder: where to.
        queries: whether the query is recorded too.
    """

    def __init__(self, recorder: Recorder, *, queries: bool) -> None:
        self._recorder, self._queries, self._pace = recorder, queries, _Pace(_MISSES_RATE)
        self._seen: OrderedDict[tuple[str | int, MissReason], None] = OrderedDict()

    def offer(self, request: pb.ScoreRequest, misses: Misses, generation: str) -> None:
        """Shows it the misses of a request that was answered from this generation."""
        if self._pace.admits():
            self._recorder.offer(partial(self._lines, request, misses, generation))

    def _lines(self, request: pb.ScoreRequest, misses: Misses, generation: str) -> Iterator[dict[str, Any]]:
        now_ms = time.time_ns() // 1_000_000
        ids: list[Any] = misses.ids.tolist() if isinstance(misses.ids, np.ndarray) else list(misses.ids)
        for id_, task, reason in islice(zip(ids, misses.tasks.tolist(), misses.reasons, strict=True), _MISSES):
            if (seen := (id_, reason)) in self._seen:
                self._seen.move_to_end(seen)
                continue
            self._seen[seen] = None
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            line = {"time_ms": now_ms, "id": id_, "reason": reason, "generation": generation}
            yield line | {"query": request.tasks[task].query} if self._queries else line


@dataclass(frozen=True, slots=True)
class Samplers:
    """What is recorded; None: it is not."""

    requests: RequestSampler | None = None
    misses: MissSampler | None = None


@contextlib.contextmanager
def sampling(settings: Settings, metrics: Metrics) -> Iterator[Samplers]:
    """The samplers that the settings ask for, until the server stops.

    Raises:
        UsageError: a file cannot be written.
    """
    with contextlib.ExitStack() as stack:

        def recorder(path: Path, limit: int, name: str) -> Recorder:
            made = Recorder(path, limit, metrics.recorded[name], metrics.dropped_recordings[name])
            stack.callback(made.close)
            return made

        requests = misses = None
        if settings.requests_file is not None:
            to = recorder(settings.requests_file, settings.requests_bytes, "requests")
            requests = RequestSampler(to, settings.requests_rate)
        if settings.misses_file is not None:
            to = recorder(settings.misses_file, settings.misses_bytes, "misses")
            misses = MissSampler(to, queries=settings.misses_queries)
        yield Samplers(requests, misses)


def _request_line(request: pb.ScoreRequest, crossing: str) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng()
    task = request.tasks[int(random.integers(len(request.tasks)))]
    ids = _ids(task)
    if len(ids) > _CANDIDATES:
        ids = [ids[place] for place in np.sort(random.choice(len(ids), _CANDIDATES, replace=False)).tolist()]
    now_ms = time.time_ns() // 1_000_000
    yield {"time_ms": now_ms, "query": task.query, "ids": ids, "crossing": crossing}


def _ids(task: pb.ScoreTask) -> list[Any]:
    return list(task.document_ids or task.document_numbers)
