"""What people use today, on the same MiniLM weights and the same 100 candidates: alone, and with 16 callers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import numpy as np

from bench import environments
from bench.driver import Driver, System
from bench.findings import Findings, Table, ratios
from bench.parts import ENGINES, Part
from bench.run import Run
from bench.serving import NotMeasuredError
from bench.systems import embedding, scorer, textbook

CALLERS = 16

_TORCH, _ONNX = "infinity on torch + numpy", "infinity on ONNX Runtime + numpy"
_TEXTBOOK = "textbook: sync gRPC, torch eager, an LMDB get a document"
_CORES = len(os.sched_getaffinity(0))
_AGREED = 0.9  # int8 may differ a little from float32; another pooling shares two thirds
_CHECKED = 16  # requests whose rankings are compared with ours


def measure(run: Run) -> Findings:
    """See the module."""
    calls, seconds = run.effort.calls, run.effort.load_s / 3
    workload = run.material.workload("corpus")
    findings = Findings(
        setting=f"MiniLM (6 × 384) everywhere, 1 query × 100 candidates, our query cache off. Alone: one caller, "
        f"{calls} calls of each a round in a new order. Throughput: {CALLERS} callers, {seconds:.0f} s of each a "
        f"round; {run.material.asked(workload)}."
    )
    with run.drivers(_systems(run), workload, findings) as drivers:
        agreement = _agreement(drivers, findings)
        for name in [name for name, share in agreement.items() if share < _AGREED]:
            findings.missing[name] = f"ranks otherwise: {agreement[name]:.0%} of its ten best are among ours"
            del drivers[name]
        alone = run.interleaved(
            {name: partial(_alone, driver, calls) for name, driver in drivers.items()}, run.effort.rounds, findings
        )
        loaded = run.interleaved(
            {name: partial(_rate, driver, seconds) for name, driver in drivers.items() if name in alone},
            run.effort.load_rounds,
            findings,
        )
    _report(findings, alone, loaded, agreement)
    return findings


def _systems(run: Run) -> dict[str, Callable[[], System]]:
    material = run.material
    bundle, store, documents = material.minilm, material.minilm_store, material.documents

    def infinity(title: str, engine: str) -> System:
        python = environments.python("infinity")
        return embedding.infinity(title, python, material.checkpoint, documents, engine=engine)

    def in_process() -> System:
        arguments = {"model": str(material.checkpoint), "documents": str(documents)}
        python = str(environments.python("sentence-transformers"))
        client = "bench.systems.in_process"
        return System(
            title="sentence-transformers + numpy, in process", client=client, arguments=arguments, python=python
        )

    return {
        _ours("float32"): lambda: scorer.system(_ours("float32"), bundle, store),
        _ours("int8"): lambda: scorer.system(_ours("int8"), material.int8(bundle), store, engine="int8"),
        **{_workers(engine): partial(_with_workers, run, engine) for engine in ENGINES},
        _TORCH: lambda: infinity(_TORCH, "torch"),
        _ONNX: lambda: infinity(_ONNX, "optimum"),
        "mosec, the same ONNX model + numpy": lambda: embedding.mosec(
            "mosec, the same ONNX model + numpy", environments.python("mosec"), bundle, documents
        ),
        "sentence-transformers + numpy, in process": in_process,
        _TEXTBOOK: lambda: textbook.system(_TEXTBOOK, material.checkpoint, material.lmdb),
    }


def _ours(engine: str) -> str:
    return f"Score, MiniLM {engine}"


def _workers(engine: str) -> str:
    return f"{_ours(engine)}, {_CORES} workers"


def _with_workers(run: Run, engine: str) -> System:
    material = run.material
    bundle = material.int8(material.minilm) if engine == "int8" else material.minilm
    named = engine if engine == "int8" else ""
    return scorer.system(_workers(engine), bundle, material.minilm_store, engine=named, workers=_CORES)


def _alone(driver: Driver, calls: int) -> float:
    return driver.closed(calls=calls).milliseconds(50)


def _rate(driver: Driver, seconds: float) -> float:
    return driver.closed(clients=CALLERS, seconds=seconds).rate()


def _agreement(drivers: dict[str, Driver], findings: Findings) -> dict[str, float]:
    """Share of our ten best candidates that are a system's ten best too, over the first requests, by system; one that
    cannot say is taken out of `drivers`.
    """
    best: dict[str, list[set[int]]] = {}
    for name, driver in [*drivers.items()]:
        try:
            rows = [scores for request in driver.scores(_CHECKED) for scores in request]
        except NotMeasuredError as reason:
            findings.missing[name] = str(reason)
            del drivers[name]
            continue
        best[name] = [set(np.argsort(scores)[-10:].tolist()) for scores in rows]
    ours = best.get(_ours("float32"), [])
    return {
        name: float(np.mean([len(one & other) / 10 for one, other in zip(ours, theirs, strict=True)]))
        for name, theirs in best.items()
        if ours
    }


def _report(
    findings: Findings, alone: dict[str, list[float]], loaded: dict[str, list[float]], agreement: dict[str, float]
) -> None:
    ours = _ours("float32")
    latency = Table(
        title="One caller",
        header=["system", "p50 ms", f"÷ {ours}", f"÷ {_ours('int8')}", "top 10 in common with ours"],
    )
    throughput = Table(
        title=f"{CALLERS} callers", header=["system", "requests/s", f"{ours} ÷ it", f"{_ours('int8')} ÷ it"]
    )
    for name, values in alone.items():
        over = [
            ratios(values, alone[_ours(engine)]) if _ours(engine) in alone else "–" for engine in ("float32", "int8")
        ]
        latency.add(name, values, *over, f"{agreement[name]:.0%}" if name in agreement else "–")
    for name, values in loaded.items():
        over = [
            ratios(loaded[_ours(engine)], values) if _ours(engine) in loaded else "–" for engine in ("float32", "int8")
        ]
        throughput.add(name, values, *over)
    findings.tables += [latency, throughput]
    meant = next((_workers(engine) for engine in ENGINES if _workers(engine) in loaded), None)
    for key, peer in (("infinity", _TORCH), ("infinity_onnx", _ONNX), ("textbook", _TEXTBOOK)):
        if meant is not None and peer in loaded:
            findings.figure(f"{key}_over_score_p50", ratios(alone[peer], alone[meant]), f"p50: {peer} ÷ {meant}")
            findings.figure(
                f"{key}_over_score_throughput",
                ratios(loaded[meant], loaded[peer]),
                f"requests/s, {CALLERS} callers: {meant} ÷ {peer}",
            )


PART = Part(
    name="peers",
    title="What people use today, on the same weights",
    seconds=(350, 60),
    figures=(
        "infinity_over_score_p50",
        "infinity_over_score_throughput",
        "textbook_over_score_p50",
        "textbook_over_score_throughput",
    ),
    further=("infinity_onnx_over_score_p50", "infinity_onnx_over_score_throughput"),
    measure=measure,
)
