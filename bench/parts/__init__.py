"""What is compared with what: a module each, with `PART`. `bench.__main__` runs them, one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.findings import Findings
from bench.run import Run

ENGINES = ("int8", "float32")
"""Our engines, the one that figures take first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name: for `--only`.
        title: of its section.
        seconds: that a full run and a quick one take, about.
        figures: the keys that it measures.
        further: keys of the report alone.
        measure: does it.
    """

    name: str
    title: str
    seconds: tuple[float, float]
    figures: tuple[str, ...]
    further: tuple[str, ...] = ()
    measure: Callable[[Run], Findings]

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all that it measures."""
        return self.figures + self.further


def p50(calls: int) -> str:
    """How latencies alone are measured, in words."""
    return f"one caller, {calls} calls of each system in turn a round; p50 of a round in ms"
