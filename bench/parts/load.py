"""Latency at half of saturation, open loop: alone, by Zipf's law with the query cache, and by k6, another generator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bench import k6
from bench.driver import Calls, Driver
from bench.findings import Findings, Table, ratios
from bench.parts import Part
from bench.run import Run
from bench.systems import scorer

_CALLERS = 16
_SATURATED = f"{_CALLERS} callers"
_OFF, _ZIPF = "half of saturation, Poisson", "the same, query cache on, queries by Zipf's law"
_K6 = "k6"


def measure(run: Run) -> Findings:
    """See the module."""
    material, seconds = run.material, run.effort.load_s
    bundle, store = material.minilm, material.minilm_store
    workloads = {_OFF: material.workload("corpus"), _ZIPF: material.zipf_workload}
    findings = Findings(
        setting=f"MiniLM float32, 1 query × 100 candidates. Each round: {_CALLERS} callers saturate the scorer; then, "
        f"in a new order, Poisson arrivals at half of that rate for {seconds:.0f} s, latency from the moment at which "
        "a call was due; the same rate with the cache on and queries by Zipf's law (exponent 1, 10,000 different "
        f"ones); and k6, which sends at even intervals; {material.asked(workloads[_OFF])}, by Zipf's law "
        f"{material.asked(workloads[_ZIPF])}."
    )
    systems = {
        _OFF: lambda: scorer.system(_OFF, bundle, store),
        _ZIPF: lambda: scorer.system(_ZIPF, bundle, store, cached=True),
    }
    peaks: list[float] = []
    with run.drivers(systems, workloads, findings) as drivers:
        if _OFF not in drivers:
            return findings
        off, cached = drivers[_OFF], drivers.get(_ZIPF)
        turns: dict[str, Callable[[], dict[str, float]]] = {
            _SATURATED: partial(_saturate, off, seconds / 2, peaks),
            f"{_K6}: {_CALLERS} callers": partial(_k6, run, off, workloads[_OFF], None, seconds / 2),
            _OFF: partial(_half, off, seconds, peaks),
            f"{_K6}: half of saturation, even": partial(_k6, run, off, workloads[_OFF], peaks, seconds / 2),
        }
        if cached:
            turns[_ZIPF] = partial(_half, cached, seconds, peaks)
        results = run.interleaved(turns, run.effort.load_rounds, findings, first=_SATURATED)
    _report(findings, results)
    return findings


def _saturate(driver: Driver, seconds: float, peaks: list[float]) -> dict[str, float]:
    done = driver.closed(clients=_CALLERS, seconds=seconds)
    peaks.append(done.rate())
    return _measured(done, peaks[-1])


def _half(driver: Driver, seconds: float, peaks: list[float]) -> dict[str, float]:
    done = driver.open_loop(rate=peaks[-1] / 2, seconds=seconds, seed=len(peaks))
    return _measured(done, peaks[-1] / 2)


def _measured(done: Calls, rate: float) -> dict[str, float]:
    late = float(np.percentile(done.late_C, 99)) * 1e3
    return {"rate": rate, "p50": done.milliseconds(50), "p99": done.milliseconds(99), "late": late}


def _k6(run: Run, driver: Driver, workload: Path, peaks: list[float] | None, seconds: float) -> dict[str, float]:
    rate = peaks[-1] / 2 if peaks else None
    with driver.awake():
        return k6.run(
            driver.address,
            workload,
            run.material.folder,
            seconds=seconds,
            callers=_CALLERS if rate is None else 64,
            rate=rate,
        )


def _report(findings: Findings, results: dict[str, list[dict[str, float]]]) -> None:
    table = Table(
        title="Medians (quartiles) over rounds; ms",
        header=["load", "requests/s", "p50", "p99", "p99 ÷ p50", "generator late, p99"],
    )
    for name, rounds in results.items():
        columns = {key: [one[key] for one in rounds] for key in rounds[0]}
        late = columns.get("late", "–")
        table.add(name, columns["rate"], columns["p50"], columns["p99"], ratios(columns["p99"], columns["p50"]), late)
    findings.tables.append(table)
    if _OFF in results:
        values = [one["p99"] / one["p50"] for one in results[_OFF]]
        findings.figure("p99_over_p50_half_load", values, f"p99 ÷ p50 of Score, MiniLM float32: {_OFF}")


PART = Part(
    name="load", title="Half of saturation", seconds=(280, 35), figures=("p99_over_p50_half_load",), measure=measure
)
