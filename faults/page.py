"""`docs/reliability.md`, made from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from faults import ledger
from faults.fault import Fault
from faults.ledger import Run

_HEAD = """\
# Reliability

What was broken on purpose, how often, and what held. `make faults` brings all of it about and writes this page from
`docs/reliability.json`; `make faults FAULT=name` one of it, `QUICK=1` a little of each, `SECONDS=n` for so long; an
interrupted run keeps its counts. A run stops at the first promise that is broken and prints the command to repeat it.
Every run takes new seeds and adds to what is here. The suite runs a few fixed seeds of each (`tests/faults/`).

*Done* counts only attempts after which the promise held, of a soak those of the longest run; where it is less than
*wanted*, more has not been run yet.
"""


def page(faults: Sequence[Fault], book: ledger.Ledger) -> str:
    """The whole page."""
    sections = [(fault, book.runs(fault.name)) for fault in faults]
    rows = [_row(fault, runs) for fault, runs in sections]
    table = ["| fault | promise | wanted | done |", "| --- | --- | --- | --- |", *rows]
    return "\n".join([_HEAD, *table, "", *(line for fault, runs in sections for line in _section(fault, runs))])


def _row(fault: Fault, runs: list[Run]) -> str:
    total = ledger.longest(runs) if fault.one_run else ledger.done(runs)
    done = f"{total:,}" if total >= fault.wanted else f"**{total:,}**"
    return f"| [{fault.title}](#{fault.name}) | {fault.promise} | {fault.wanted:,} {fault.unit} | {done} |"


def _section(fault: Fault, runs: list[Run]) -> list[str]:
    lines = [f"## {fault.name}", ""]
    made = [run for run in runs if run.done]
    if made:
        seeds = ", ".join(_span(run.seeds) for run in _joined(made))
        days = sorted({run.date for run in made})
        commits = ", ".join(dict.fromkeys(run.commit for run in made))
        lines += [f"Seeds {seeds}; {' to '.join(dict.fromkeys((days[0], days[-1])))}, at {commits}.", ""]
        lines += ["| outcome | times |", "| --- | --- |"]
        lines += [f"| {outcome} | {count:,} |" for outcome, count in sorted(ledger.counts(made).items())]
        lines += ["", *_figures(made)]
    if made and fault.one_run:
        lines += [f"Longest run, {fault.unit.removesuffix(' in one run')}: {ledger.longest(made):,}.", ""]
    if runs and (why := runs[-1].not_run):
        lines += [f"Last not run: {why}.", ""]
    if not runs:
        lines += ["Not run yet.", ""]
    return lines


def _figures(runs: list[Run]) -> list[str]:
    names = dict.fromkeys(name for run in runs for name in run.figures)
    if not names:
        return []
    lines = ["| measured | median of runs | lowest | highest | runs |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        values = [run.figures[name] for run in runs if name in run.figures]
        cells = " | ".join(f"{value:,.2f}" for value in (median(values), min(values), max(values)))
        lines.append(f"| {name} | {cells} | {len(values)} |")
    return [*lines, ""]


def _joined(runs: list[Run]) -> list[Run]:
    """Runs whose seeds follow each other as one."""
    joined: list[Run] = []
    for run in runs:
        if joined and joined[-1].seeds[1] == run.seeds[0]:
            joined[-1] = Run(
                fault=run.fault, date=run.date, commit=run.commit, seeds=(joined[-1].seeds[0], run.seeds[1])
            )
        else:
            joined.append(run)
    return joined


def _span(seeds: tuple[int, int]) -> str:
    first, last = seeds[0], seeds[1] - 1
    return f"{first}" if first == last else f"{first} to {last}"
