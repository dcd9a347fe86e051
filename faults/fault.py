"""What a fault is, to the runner and to the suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path


class BrokenPromiseError(Exception):
    """What a fault must not do happened; the message says what."""


class NotRunError(Exception):
    """The fault cannot be brought about here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What one attempt saw while the promise held.

    Attributes:
        counts: how often each outcome came.
        done: what the attempt adds to the fault's count.
        figures: what it measured, by name and unit; of a run the last word counts, so they may sum up all of it.
    """

    counts: Mapping[str, int]
    done: int = 1
    figures: Mapping[str, float] = field(default_factory=dict)


Attempt = Callable[[int], Tally]
"""Brings the fault about in the way that a seed says, and raises BrokenPromiseError."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A way in which a system breaks, and what ours does then.

    Attributes:
        name: what `make faults FAULT=…` calls it.
        title: what happens.
        promise: what holds all the same.
        unit: what is counted.
        wanted: how many.
        quick: how many with QUICK=1.
        one_run: whether one run has to reach what is wanted, and not several together.
        prepare: makes what attempts need, in an empty folder, with a tiny bundle; raises NotRunError where that cannot
            be had.
    """

    name: str
    title: str
    promise: str
    unit: str
    wanted: int
    quick: int
    prepare: Callable[[Path, Path], AbstractContextManager[Attempt]]
    one_run: bool = False


def require(holds: object, broken: str) -> None:
    """Raises BrokenPromiseError with these words unless something holds."""
    if not holds:
        raise BrokenPromiseError(broken)
