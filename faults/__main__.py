"""Runs faults, until their counts are reached, time is over, or a promise is broken.

python -m faults [--fault NAME] [--quick] [--seed N] [--seconds N]
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from pathlib import Path

from faults import ROOT
from faults.catalogue import FAULTS
from faults.ledger import Ledger
from faults.page import page
from faults.runner import run
from twinbert.bundle import BUNDLE_JSON

_DOCS, _DEMO = ROOT / "docs", ROOT / ".demo"


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m faults", description="Brings faults about.")
    parser.add_argument("--fault", choices=[fault.name for fault in FAULTS], help="only this one")
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument("--seed", type=int, help="this attempt alone; it is not counted")
    parser.add_argument("--seconds", type=float, default=math.inf, help="at most so long a fault")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ledger, bundle, code = Ledger(_DOCS / "reliability.json"), _tiny_bundle(), 0
    for fault in FAULTS:
        if chosen.fault in (None, fault.name) and not code:
            code = run(fault, ledger, bundle, quick=chosen.quick, seed=chosen.seed, seconds=chosen.seconds)
    (_DOCS / "reliability.md").write_text(page(FAULTS, ledger))
    return code


def _tiny_bundle() -> Path:
    """The tiny bundle of the tests, made if it is not there: seconds of torch."""
    if not (_DEMO / "tiny" / BUNDLE_JSON).exists():
        from tests.bundles import write_tiny

        _DEMO.mkdir(exist_ok=True)
        write_tiny(_DEMO)
    return _DEMO / "tiny"


if __name__ == "__main__":
    sys.exit(main())
