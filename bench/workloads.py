"""What is asked, the same of every system: requests of queries and drawn candidates, in a file.

Only the standard library: load generators read this in the environments of peers.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CANDIDATES = 100
LISTS = 64
"""Of candidates: enough that rows do not stay in a core's cache."""

Task = tuple[str, list[str]]
"""A query and the ids of its candidates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A sequence of requests, repeated without end.

    Attributes:
        queries: texts.
        candidates: lists of document ids.
        sequence: requests, each some pairs of a query's and a list's number.
    """

    queries: list[str]
    candidates: list[list[str]]
    sequence: list[list[tuple[int, int]]]

    def requests(self) -> Iterator[list[Task]]:
        """The requests, again and again."""
        for request in itertools.cycle(self.sequence):
            yield [(self.queries[query], self.candidates[number]) for query, number in request]

    def save(self, path: Path) -> Path:
        """Writes it as JSON."""
        fields = {"queries": self.queries, "candidates": self.candidates, "sequence": self.sequence}
        path.write_text(json.dumps(fields))
        return path

    @classmethod
    def load(cls, path: Path) -> Workload:
        """Reads what `save` wrote."""
        return cls(**json.loads(path.read_text()))


def uniform(
    queries: Sequence[str], ids: Sequence[str] | int, *, tasks: int = 1, lists: int = LISTS, seed: int = 0
) -> Workload:
    """Requests of so many different queries each, every query as often, each task with its own list of candidates.

    Args:
        queries: texts.
        ids: of documents, or how many documents a store has whose ids are as `number_id` says.
        tasks: of a request.
        lists: of candidates, which come round again.
        seed: of what is drawn.
    """
    drawn = random.Random(seed)
    candidates = _candidates(ids, lists, drawn)
    numbers: list[int] = []
    while len(numbers) < lists * tasks:
        numbers += drawn.sample(range(len(queries)), len(queries))
    pairs = [(number, place % lists) for place, number in enumerate(numbers)]
    sequence = [pairs[start : start + tasks] for start in range(0, len(pairs) - tasks + 1, tasks)]
    return Workload(queries=[*queries], candidates=candidates, sequence=sequence)


def zipf(
    queries: Sequence[str], ids: Sequence[str], *, requests: int, exponent: float = 1.0, seed: int = 0
) -> Workload:
    """Requests of one query each; the one of rank r is drawn with probability proportional to r^-exponent."""
    drawn = random.Random(seed)
    candidates = _candidates(ids, LISTS, drawn)
    weights = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(len(queries))))
    numbers = drawn.choices(range(len(queries)), cum_weights=weights, k=requests)
    return Workload(
        queries=[*queries], candidates=candidates, sequence=[[(n, i % LISTS)] for i, n in enumerate(numbers)]
    )


def number_id(number: int) -> str:
    """The id of a document of a random store."""
    return f"document-{number}"


def _candidates(ids: Sequence[str] | int, lists: int, drawn: random.Random) -> list[list[str]]:
    if isinstance(ids, int):
        return [[number_id(number) for number in drawn.sample(range(ids), CANDIDATES)] for _ in range(lists)]
    return [drawn.sample(ids, CANDIDATES) for _ in range(lists)]
