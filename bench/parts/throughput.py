"""How much of its engine's maximum a saturated scorer reaches, and what is left of its peak when it is overloaded.

Requests are of 8 queries × 100 candidates, so that a refusal, which costs both sides about a millisecond, is cheap
beside an answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.driver import Calls, Driver
from bench.findings import Findings, Table, ratios
from bench.parts import Part
from bench.run import Run
from bench.systems import limits, scorer
from scorer_server.settings import default_engines

QUERIES = 8

_CALLERS = 12
_BATCHES = (8, 32, 128)
_OVERLOAD = 3
_SETTLE_S = 1.0  # of a load, before it counts: what is answered then was not queued behind all the others

_SCORE, _OVERLOADED = "Score, MiniLM float32", f"goodput at {_OVERLOAD} × overload"


@dataclass(frozen=True, slots=True)
class _Turn:
    """What became of a turn's calls: queries answered a second, and where it matters what they could have been."""

    rate: float
    calls: Calls
    peak: float = math.nan


def measure(run: Run) -> Findings:
    """See the module."""
    material, seconds, engines = run.material, run.effort.load_s, default_engines()
    bundle = material.minilm
    findings = Findings(
        setting=f"MiniLM float32, query cache off, requests of {QUERIES} queries × 100 candidates; {_CALLERS} callers "
        f"for {seconds:.0f} s a round saturate the scorer. Its engine's maximum: {engines} threads that do nothing but "
        f"encode batches, in a process of its own, and the best of several sizes in each round. Overload: Poisson "
        f"arrivals at {_OVERLOAD} times what was answered at saturation just before; its peak is the mean of what was "
        "answered at saturation just before and just after, since this machine's speed changes within a minute; "
        f"{material.asked(material.workload('corpus', tasks=QUERIES))}."
    )
    systems = {_SCORE: lambda: scorer.system(_SCORE, bundle, material.minilm_store)}
    systems |= {
        f"engine, batches of {batch}": partial(limits.encode, f"engine, batches of {batch}", bundle, parallel=engines)
        for batch in _BATCHES
    }
    sizes = {_SCORE: QUERIES} | {f"engine, batches of {batch}": batch for batch in _BATCHES}
    workloads = {name: material.workload("corpus", tasks=size) for name, size in sizes.items()}
    with run.drivers(systems, workloads, findings) as drivers:
        turns = {name: partial(_closed, driver, engines, sizes[name], seconds / 2) for name, driver in drivers.items()}
        if _SCORE in drivers:
            turns[_SCORE] = partial(_closed, drivers[_SCORE], _CALLERS, QUERIES, seconds)
            turns[_OVERLOADED] = partial(_overload, drivers[_SCORE], seconds, iter(range(10**6)))
        results = run.interleaved(turns, run.effort.load_rounds, findings)
    _report(findings, results, [name for name in systems if name != _SCORE])
    return findings


def _closed(driver: Driver, callers: int, size: int, seconds: float) -> _Turn:
    """So many callers, each of which asks again when it is answered."""
    calls = driver.closed(clients=callers, seconds=seconds)
    return _Turn(calls.rate(min(_SETTLE_S, seconds / 2), seconds) * size, calls)


def _overload(driver: Driver, seconds: float, seeds: Iterator[int]) -> _Turn:
    """More than it can do; before and after, what it can."""
    saturate = partial(_closed, driver, _CALLERS, QUERIES, seconds / 2)
    before = saturate().rate
    calls = driver.open_loop(rate=_OVERLOAD * before / QUERIES, seconds=seconds, seed=next(seeds))
    return _Turn(calls.rate(_SETTLE_S, seconds) * QUERIES, calls, (before + saturate().rate) / 2)


def _report(findings: Findings, results: dict[str, list[_Turn]], engines: list[str]) -> None:
    rates = {name: [turn.rate for turn in turns] for name, turns in results.items()}
    table = Table(title="Queries a second", header=["what", "median (quartiles) over rounds"])
    for name, values in rates.items():
        table.add(name, values)
    findings.tables.append(table)
    engines = [name for name in engines if name in rates]
    if _SCORE in rates and engines:
        most = np.max([rates[name] for name in engines], axis=0).tolist()
        findings.figure(
            "throughput_over_engine", ratios(rates[_SCORE], most), f"queries/s: {_SCORE} ÷ the best size of batches"
        )
    if turns := results.get(_OVERLOADED):
        findings.figure(
            "goodput_3x_over_peak",
            ratios(rates[_OVERLOADED], [turn.peak for turn in turns]),
            f"queries/s answered: at {_OVERLOAD} × overload ÷ at saturation just before and after",
        )
        findings.tables.append(_ends([turn.calls for turn in turns]))


def _ends(overloaded: Sequence[Calls]) -> Table:
    ends = Table(title="What became of requests under overload", header=["outcome", "share", "p50 ms", "p99 ms"])
    outcomes = np.concatenate([calls.outcome_C for calls in overloaded])
    latencies = np.concatenate([calls.latency_C for calls in overloaded])
    for outcome in np.unique(outcomes).tolist():
        these = latencies[outcomes == outcome] * 1e3
        ends.add(outcome, f"{np.mean(outcomes == outcome):.0%}", *np.percentile(these, (50, 99)).tolist())
    late = np.concatenate([calls.late_C for calls in overloaded])
    ends.add("(lateness of the generator)", "", *(1e3 * np.percentile(late, (50, 99))).tolist())
    return ends


PART = Part(
    name="throughput",
    title="Saturation and overload",
    seconds=(330, 40),
    figures=("throughput_over_engine", "goodput_3x_over_peak"),
    measure=measure,
)
