"""`Score` beside what people use, and beside its limits: `make bench`, `make bench QUICK=1`.

    python -m bench [--quick] [--only PART[,PART…]] [--fresh]

Parts that are done are kept in `.bench/`, so a run that was interrupted goes on with the others, if the code is a clean
commit and still the same. The report is written when all are done: a full run's to `bench/results/`, a quick one's to
`.bench/`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import figures, report
from bench.environments import CACHE
from bench.findings import Findings
from bench.kept import Kept
from bench.material import Material
from bench.parts import Part, beside, cross_encoders, floor, growth, load, lookups, peers, throughput
from bench.report import RESULTS
from bench.run import FULL, QUICK, Progress, Run
from bench.serving import ROOT, NotMeasuredError

PARTS: tuple[Part, ...] = (
    cross_encoders.PART,
    floor.PART,
    peers.PART,
    throughput.PART,
    load.PART,
    beside.PART,
    lookups.PART,
    growth.PART,
)


def main() -> None:
    """Runs the benchmark; see the module."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description="Score beside what people use, and beside its limits.")
    parser.add_argument("--quick", action="store_true", help="a few minutes; too few rounds to rely on")
    parser.add_argument("--only", metavar="PART[,PART…]", help=f"run these again: {', '.join(names)}")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted run has done")
    arguments = parser.parse_args()
    only = arguments.only.split(",") if arguments.only else None
    if unknown := sorted({*(only or ())} - {*names}):
        parser.error(f"--only: no part is called {unknown[0]}; there are {', '.join(names)}")
    kept = Kept(CACHE / ("parts-quick" if arguments.quick else "parts"))
    commit = report.commit()
    if kept.begin(commit, fresh=arguments.fresh):
        print(f"{commit}: begins afresh; parts are kept for the same clean commit on as many cores", file=sys.stderr)
    chosen = [part for part in PARTS if (part.name in only if only else part.name not in kept.found())]
    _measure(chosen, kept, quick=arguments.quick)
    found = kept.found()
    if only:
        print(figures.as_markdown(PARTS, {name: found[name] for name in names if name in only}, quick=arguments.quick))
    if found.keys() != {*names}:
        print(f"kept in {CACHE.name}/; not done yet: {', '.join(name for name in names if name not in found)}")
        return
    path = figures.write(CACHE / "quick" if arguments.quick else RESULTS, PARTS, found, quick=arguments.quick)
    if not only:
        print(path.read_text())
        kept.forget()
    print(f"written to {path.relative_to(ROOT)} and {path.with_suffix('.json').name}")


def _measure(parts: Sequence[Part], kept: Kept, *, quick: bool) -> None:
    """Runs parts, each with a folder of its own for what it makes."""
    progress = Progress({part.name: part.seconds[quick] for part in parts})
    minutes = progress.expected() / 60
    print(
        f"{len(parts)} of {len(PARTS)} parts, about {minutes:.0f} minutes, and what is to be installed", file=sys.stderr
    )
    with tempfile.TemporaryDirectory(prefix="twinbert-bench-") as folder:
        material = Material(Path(folder))
        for part in parts:
            progress.begin(part.name)
            run = Run(QUICK if quick else FULL, material, progress.round)
            try:
                findings = part.measure(run)
            except NotMeasuredError as reason:
                findings = Findings(setting="Not measured.", missing={part.title: str(reason)})
            kept.keep(part.name, findings)
    progress.end()


if __name__ == "__main__":
    main()
