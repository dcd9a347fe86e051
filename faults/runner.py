"""Runs one fault: attempt after attempt, with new seeds, showing how far it is."""

from __future__ import annotations

import datetime
import math
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

from faults import ROOT
from faults.fault import Attempt, Fault, NotRunError
from faults.ledger import Ledger, Run, next_seed

_SHOWN_EVERY_S = 10.0  # where nobody sees a line change


def run(
    fault: Fault,
    ledger: Ledger,
    bundle: Path,
    *,
    quick: bool = False,
    seed: int | None = None,
    seconds: float = math.inf,
) -> int:
    """Runs one fault and writes down what came of it.

    Args:
        fault: which.
        ledger: where to; it also says which seeds are new.
        bundle: a tiny one.
        quick: only a few.
        seed: this attempt alone; it is not written down.
        seconds: at most so long.

    Returns:
        The exit code: 0, 1 where a promise was broken, 130 where it was interrupted.
    """
    first = next_seed(ledger.runs(fault.name)) if seed is None else seed
    running = _Running(fault, first, wanted=1 if seed is not None else fault.quick if quick else fault.wanted)
    code = 0
    try:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder, fault.prepare(Path(folder), bundle) as attempt:
            running.begin()
            while not running.enough(seconds):
                running.add(attempt)
                if seed is not None:
                    break
    except NotRunError as missing:
        running.run = replace(running.run, not_run=str(missing))
        print(f"{fault.name}: not run: {missing}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except Exception:  # noqa: BLE001  the edge of an attempt: whatever it is, it is what was found
        traceback.print_exc()
        at = running.run.seeds[1]
        told = f"broken by seed {at}; again: make faults FAULT={fault.name} SEED={at}"
        print(f"{fault.name}: {told if running.begun else 'could not be prepared'}", file=sys.stderr)
        code = 1
    running.show(last=True)
    if seed is None and (running.run.done or running.run.not_run):
        ledger.add(running.run)
    return code


class _Running:
    """A run as it grows, and what is shown of it."""

    def __init__(self, fault: Fault, first: int, wanted: int) -> None:
        self._fault, self._wanted = fault, wanted
        date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        self.run = Run(fault=fault.name, date=date, commit=_commit(), seeds=(first, first))
        self._counts: Counter[str] = Counter()
        self._terminal = sys.stderr.isatty()
        self.begun = False
        self._began = self._shown = time.monotonic()

    def begin(self) -> None:
        """What the attempts need is there."""
        self.begun = True
        self._began = self._shown = time.monotonic()

    def enough(self, seconds: float) -> bool:
        return self.run.done >= self._wanted or time.monotonic() - self._began > seconds

    def add(self, attempt: Attempt) -> None:
        first, seed = self.run.seeds
        tally = attempt(seed)
        self._counts.update(tally.counts)
        self.run = replace(
            self.run,
            seeds=(first, seed + 1),
            seconds=round(time.monotonic() - self._began, 1),
            done=self.run.done + tally.done,
            counts=dict(self._counts),
            figures={**self.run.figures, **tally.figures},
        )
        if self._terminal or time.monotonic() - self._shown > _SHOWN_EVERY_S:
            self.show()

    def show(self, *, last: bool = False) -> None:
        """Count, rate and what is left; at the end also outcomes and figures."""
        self._shown = now = time.monotonic()
        done, unit = self.run.done, self._fault.unit
        rate = done / max(now - self._began, 1e-9)
        left = f"{(self._wanted - done) / rate:,.0f} s left" if rate and done < self._wanted else "done"
        text = f"{self._fault.name}: {done:,} of {self._wanted:,} {unit}, {rate:,.1f}/s, {left}"
        print(
            f"\r{text}\033[K" if self._terminal else text,
            end="" if self._terminal and not last else "\n",
            file=sys.stderr,
        )
        if last:
            for name, value in [*sorted(self._counts.items()), *self.run.figures.items()]:
                print(f"    {name}: {value:,.10g}", file=sys.stderr)


def _commit() -> str:
    """What is run; what runs have written down does not make it dirty."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/reliability.*")
    return f"{commit}-dirty" if commit and changed else commit or "an unknown commit"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
