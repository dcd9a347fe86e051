"""How much of its engine's maximum a saturated scorer reaches, and what is left of its peak when it is overloaded.

Requests are of 8 queries × 100 candidates, so that a refusal, which costs both sides about a millisecond, is cheap
beside an answer.
"""

from __future__ import annotations

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

_SCORE = "Score, MiniLM float32"


def measure(run: Run) -> Findings:
    """See the module."""
    material, seconds, engines = run.material, run.effort.load_s, default_engines()
    bundle = material.minilm
    findings = Findings(
        setting=f"MiniLM float32, query cache off, requests of {QUERIES} queries × 100 candidates; {_CALLERS} callers "
        f"for {seconds:.0f} s a round saturate the scorer. Its engine's maximum: {engines} threads that do nothing but "
        f"encode batches, in a process of its own, and the best of several sizes in each round. Overload: Poisson "
        f"arrivals at {_OVERLOAD} times the rate at saturation of the same round."
    )
    systems = {_SCORE: lambda: scorer.system(_SCORE, bundle, material.minilm_store)}
    systems |= {
        f"engine, batches of {batch}": partial(limits.encode, f"engine, batches of {batch}", bundle, parallel=engines)
        for batch in _BATCHES
    }
    sizes = {_SCORE: QUERIES} | {f"engine, batches of {batch}": batch for batch in _BATCHES}
    workloads = {name: material.workload("corpus", tasks=size) for name, size in sizes.items()}
    peaks: list[float] = []
    with run.drivers(systems, workloads, findings) as drivers:
        turns = {name: partial(_queries, driver, engines, sizes[name], seconds / 2) for name, driver in drivers.items()}
        if _SCORE in drivers:
            turns[_SCORE] = partial(_saturate, drivers[_SCORE], seconds, peaks)
            turns["overload"] = partial(_overload, drivers[_SCORE], seconds, peaks)
        results = run.interleaved(turns, run.effort.load_rounds, findings, together=True)
    _report(findings, results, [name for name in systems if name != _SCORE])
    return findings


def _queries(driver: Driver, engines: int, size: int, seconds: float) -> tuple[float, Calls]:
    """Queries a second of the engine, with as many callers as threads."""
    done = driver.closed(clients=engines, seconds=seconds)
    return done.rate() * size, done


def _saturate(driver: Driver, seconds: float, peaks: list[float]) -> tuple[float, Calls]:
    done = driver.closed(clients=_CALLERS, seconds=seconds)
    peaks.append(done.rate(_SETTLE_S, seconds))
    return peaks[-1] * QUERIES, done


def _overload(driver: Driver, seconds: float, peaks: list[float]) -> tuple[float, Calls]:
    """Queries a second that are answered in time."""
    done = driver.open_loop(rate=_OVERLOAD * peaks[-1], seconds=seconds, seed=len(peaks))
    return done.rate(_SETTLE_S, seconds) * QUERIES, done


def _report(findings: Findings, results: dict[str, list[tuple[float, Calls]]], engines: list[str]) -> None:
    rates = {name: [rate for rate, _ in values] for name, values in results.items()}
    table = Table(title="Queries a second", header=["what", "median (quartiles) over rounds"])
    for name, values in rates.items():
        table.add(f"goodput at {_OVERLOAD} × overload" if name == "overload" else name, values)
    findings.tables.append(table)
    engines = [name for name in engines if name in rates]
    if _SCORE in rates and engines:
        most = np.max([rates[name] for name in engines], axis=0).tolist()
        findings.figure(
            "throughput_over_engine", ratios(rates[_SCORE], most), f"queries/s: {_SCORE} ÷ the best size of batches"
        )
    if "overload" in rates:
        findings.figure(
            "goodput_3x_over_peak",
            ratios(rates["overload"], rates[_SCORE]),
            f"queries/s answered: at {_OVERLOAD} × overload ÷ at saturation",
        )
        ends = Table(title="What became of requests under overload", header=["outcome", "share", "p50 ms", "p99 ms"])
        outcomes = np.concatenate([calls.outcome_C for _, calls in results["overload"]])
        latencies = np.concatenate([calls.latency_C for _, calls in results["overload"]])
        for outcome in np.unique(outcomes).tolist():
            these = latencies[outcomes == outcome] * 1e3
            ends.add(outcome, f"{np.mean(outcomes == outcome):.0%}", *np.percentile(these, (50, 99)).tolist())
        late = np.concatenate([calls.late_C for _, calls in results["overload"]])
        ends.add("(lateness of the generator)", "", *(1e3 * np.percentile(late, (50, 99))).tolist())
        findings.tables.append(ends)


PART = Part(
    name="throughput",
    title="Saturation and overload",
    seconds=(270, 35),
    figures=("throughput_over_engine", "goodput_3x_over_peak"),
    measure=measure,
)
