"""What was run so far: `docs/reliability.json`, to which every run adds itself, and of which the page is made."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from store.files import replace_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run of one fault.

    Attributes:
        fault: its name.
        date: of its beginning, YYYY-MM-DD.
        commit: of the checkout, with "-dirty" where it had changes.
        seeds: the first, and the one after the last.
        seconds: how long it took.
        done: what it adds to the fault's count.
        counts: by outcome.
        figures: what was measured.
        not_run: why nothing could be done.
    """

    fault: str
    date: str
    commit: str
    seeds: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    done: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    not_run: str | None = None


class Ledger:
    """The runs in a file.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def runs(self, fault: str) -> list[Run]:
        """The runs of a fault, oldest first."""
        return [run for run in self._read() if run.fault == fault]

    def add(self, run: Run) -> None:
        """Adds a run; others may be adding theirs."""
        with self._alone():
            lines = [json.dumps(asdict(one), ensure_ascii=False) for one in [*self._read(), run]]
            replace_file(self._path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())

    def _read(self) -> list[Run]:
        entries: list[dict[str, Any]] = json.loads(self._path.read_bytes()) if self._path.exists() else []
        return [Run(**entry | {"seeds": tuple(entry["seeds"])}) for entry in entries]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def done(runs: list[Run]) -> int:
    """What runs of one fault add up to."""
    return sum(run.done for run in runs)


def longest(runs: list[Run]) -> int:
    """What the longest run of one fault alone has done."""
    return max((run.done for run in runs), default=0)


def counts(runs: list[Run]) -> Counter[str]:
    """Their outcomes."""
    total: Counter[str] = Counter()
    for run in runs:
        total.update(run.counts)
    return total


def next_seed(runs: list[Run]) -> int:
    """The first seed that none of them has used."""
    return max((run.seeds[1] for run in runs), default=0)
