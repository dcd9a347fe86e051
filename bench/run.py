"""A run of the benchmark: how much is done, what it is done with, and turns that are taken in rounds."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.driver import Driver, System, driving
from bench.findings import Findings
from bench.material import Material
from bench.serving import NotMeasuredError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is done.

    Attributes:
        warm_rounds: before those that count.
        rounds: of parts that call one at a time.
        calls: of a system in such a round.
        load_rounds: of parts that load servers.
        load_s: seconds of load in such a round.
        documents: of the large store of the part `growth`; its figure wants ten million.
        lookup_documents: of the store of the part `lookups`; its figures want a million.
    """

    warm_rounds: int
    rounds: int
    calls: int
    load_rounds: int
    load_s: float
    documents: int
    lookup_documents: int


FULL = Effort(
    warm_rounds=1,
    rounds=12,
    calls=40,
    load_rounds=5,
    load_s=12.0,
    documents=10_000_000,
    lookup_documents=1_000_000,
)
QUICK = Effort(
    warm_rounds=0,
    rounds=2,
    calls=15,
    load_rounds=2,
    load_s=2.0,
    documents=300_000,
    lookup_documents=200_000,
)


class Run:
    """What parts are given.

    Args:
        effort: how much to do.
        material: what to do it with.
        progress: is told how many rounds are done, and how many there are.
    """

    def __init__(self, effort: Effort, material: Material, progress: Callable[[int, int], None]) -> None:
        self.effort, self.material, self._progress = effort, material, progress

    @property
    def quick(self) -> bool:
        """Whether less is done than the figures are defined for."""
        return self.effort is not FULL

    @contextlib.contextmanager
    def drivers(
        self, systems: Mapping[str, Callable[[], System]], workloads: Path | Mapping[str, Path], findings: Findings
    ) -> Iterator[dict[str, Driver]]:
        """Starts systems one after another; those that do not start are noted as missing.

        Args:
            systems: what makes each; may raise NotMeasuredError.
            workloads: of all, or by the system's name.
            findings: where what is missing goes.
        """
        with contextlib.ExitStack() as stack:
            started = {}
            for name, make in systems.items():
                workload = workloads if isinstance(workloads, Path) else workloads[name]
                try:
                    started[name] = stack.enter_context(driving(make(), workload, self.material.folder))
                except NotMeasuredError as reason:
                    _say(f"not measured: {name}: {reason}")
                    findings.missing[name] = str(reason)
            yield started

    def interleaved(
        self, turns: Mapping[str, Callable[[], T]], rounds: int, findings: Findings, *, first: str | None = None
    ) -> dict[str, list[T]]:
        """Takes all turns in every round, in a new order each time.

        Args:
            turns: what each does; one that raises NotMeasuredError is noted as missing and has no more turns.
            rounds: that count.
            findings: where what is missing goes.
            first: a turn that begins every round, because others need what it finds.
        """
        results: dict[str, list[T]] = {name: [] for name in turns}
        warm = self.effort.warm_rounds
        self._progress(0, rounds + warm)
        for number in range(-warm, rounds):
            names = random.Random(number).sample([*results], len(results))
            for name in sorted(names, key=lambda name: name != first):
                try:
                    result = turns[name]()
                except NotMeasuredError as reason:
                    _say(f"not measured: {name}: {reason}")
                    findings.missing[name] = str(reason)
                    del results[name]
                    continue
                if number >= 0:
                    results[name].append(result)
            self._progress(number + warm + 1, rounds + warm)
        return results


class Progress:
    """Lines on standard error: what is being done, how fast, and when all of it should be done.

    Args:
        parts: names and expected seconds of what is to be done, in order.
    """

    def __init__(self, parts: Mapping[str, float]) -> None:
        self._parts, self._begun = dict(parts), time.monotonic()
        self._part, self._since = "", 0.0

    def expected(self) -> float:
        """Seconds that all parts should take."""
        return sum(self._parts.values())

    def begin(self, part: str) -> None:
        """A part begins."""
        self._part, self._since = part, 0.0
        done = [*self._parts].index(part) + 1
        _say(f"{part}: part {done} of {len(self._parts)}, about {_clock(self._parts[part])}; preparing")

    def round(self, done: int, rounds: int) -> None:
        """So many rounds of the part are done, 0 when they begin."""
        now = time.monotonic()
        if not done:
            self._since = now
            return
        each = (now - self._since) / done
        left = each * (rounds - done)
        names = [*self._parts]
        later = sum(self._parts[name] for name in names[names.index(self._part) + 1 :])
        _say(
            f"{self._part}: round {done} of {rounds}, {60 / max(each, 1e-9):.1f} a minute; "
            f"{_clock(left)} left of these, {_clock(left + later)} of all"
        )

    def end(self) -> None:
        """All is done."""
        _say(f"all done in {_clock(time.monotonic() - self._begun)}")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
