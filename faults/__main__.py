"""Runs faults, until their counts are reached, time is over, or a promise is broken.

python -m faults [--fault NAME] [--quick] [--seed N] [--seconds N]
"""

from __future__ import annotations

import argparse
import datetime
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

from faults.catalogue import FAULTS
from faults.fault import Attempt, Fault, NotRunError
from faults.ledger import Ledger, Run, next_seed
from faults.page import page
from twinbert.bundle import BUNDLE_JSON

_ROOT = Path(__file__).resolve().parent.parent
_DOCS, _DEMO = _ROOT / "docs", _ROOT / ".demo"
_SHOWN_EVERY_S = 10.0  # where nobody sees a line change


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m faults", description="Brings faults about.")
    parser.add_argument("--fault", choices=[fault.name for fault in FAULTS], help="only this one")
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument("--seed", type=int, help="this attempt alone; it is not counted")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most so long a fault")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ledger = Ledger(_DOCS / "reliability.json")
    code = 0
    for fault in FAULTS:
        if chosen.fault in (None, fault.name):
            code = _run(fault, ledger, quick=chosen.quick, seed=chosen.seed, seconds=chosen.seconds)
            if code:
                break
    if chosen.seed is None:
        (_DOCS / "reliability.md").write_text(page(FAULTS, ledger))
    return code


def _run(fault: Fault, ledger: Ledger, *, quick: bool, seed: int | None, seconds: float) -> int:
    """Runs one fault and writes down what came of it; returns the exit code."""
    first = next_seed(ledger.runs(fault.name)) if seed is None else seed
    running = _Running(fault, first, wanted=1 if seed is not None else fault.quick if quick else fault.wanted)
    code = 0
    try:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder, fault.prepare(Path(folder), _bundle()) as attempt:
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
        print(f"{fault.name}: broken by seed {at}; again: make faults FAULT={fault.name} SEED={at}", file=sys.stderr)
        code = 1
    running.show(last=True)
    if seed is None and (running.run.done or running.run.not_run):
        ledger.add(running.run)
    return code


def _bundle() -> Path:
    """The tiny bundle, made if it is not there: seconds of torch."""
    if not (_DEMO / "tiny" / BUNDLE_JSON).exists():
        from tests.bundles import write_tiny

        _DEMO.mkdir(exist_ok=True)
        write_tiny(_DEMO)
    return _DEMO / "tiny"


class _Running:
    """A run as it grows, and what is shown of it."""

    def __init__(self, fault: Fault, first: int, wanted: int) -> None:
        self._fault, self._wanted = fault, wanted
        date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        self.run = Run(fault=fault.name, date=date, commit=_commit(), seeds=(first, first))
        self._counts: Counter[str] = Counter()
        self._terminal = sys.stderr.isatty()
        self.begin()

    def begin(self) -> None:
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
    words = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "an unknown commit"


if __name__ == "__main__":
    sys.exit(main())
