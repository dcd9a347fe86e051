"""What `Score` adds to encoding, and the limits: the engine, its session, a no-op RPC, a numpy take."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from bench.driver import Driver, System
from bench.findings import Findings, Table
from bench.parts import Part
from bench.run import Run
from bench.systems import limits, noop, scorer
from bench.workloads import Workload
from twinbert.v1 import scorer_pb2 as pb

_SCORE, _ENCODE, _NOOP = "Score, MiniLM float32", "encode alone, in process", "no-op RPC, the same message sizes"


def measure(run: Run) -> Findings:
    """See the module."""
    material, calls = run.material, run.effort.calls
    bundle, workload = material.minilm, material.workload("corpus")
    request, answer = _sizes(next(Workload.load(workload).requests()))
    findings = Findings(
        setting=f"MiniLM (6 × 384), 1 query × 100 candidates, query cache off; one caller, {calls} calls of each a "
        f"round in a new order; messages of {request:,} bytes to the server and {answer:,} back; one thread a query; "
        f"{material.asked(workload)}."
    )
    paused = f"no-op RPC with a pause of {1e3 * noop.PAUSE_S:.0f} ms in it, less the pause"
    systems: dict[str, Callable[[], System]] = {
        _SCORE: lambda: scorer.system(_SCORE, bundle, material.minilm_store),
        "Score, MiniLM int8": lambda: scorer.system(
            "Score, MiniLM int8", material.int8(bundle), material.minilm_store, engine="int8"
        ),
        _ENCODE: lambda: limits.encode(_ENCODE, bundle),
        "ONNX session alone": lambda: limits.session("ONNX session alone", bundle),
        _NOOP: lambda: noop.system(_NOOP, request=request, answer=answer),
        paused: lambda: noop.system(paused, request=request, answer=answer, paused=True),
        "numpy take of 100 rows": lambda: limits.take("numpy take of 100 rows"),
    }
    with run.drivers(systems, workload, findings) as drivers:

        def turn(driver: Driver) -> tuple[float, float]:
            done = driver.closed(calls=calls)
            less = 1e3 * noop.PAUSE_S if driver.title == paused else 0.0
            return done.milliseconds(50) - less, done.milliseconds(99) - less

        results = run.interleaved(
            {name: partial(turn, driver) for name, driver in drivers.items()}, 2 * run.effort.rounds, findings
        )
    table = Table(title="Alone, in ms: median (quartiles) over rounds", header=["what", "p50", "p99 of a round"])
    for name, values in results.items():
        table.add(name, [one for one, _ in values], [one for _, one in values])
    findings.tables.append(table)
    if {_SCORE, _ENCODE, _NOOP} <= results.keys():
        score, encode, floor, woken = (
            np.array([one for one, _ in results.get(name, ())]) for name in (_SCORE, _ENCODE, _NOOP, paused)
        )
        key = "score_minus_encode_over_noop"
        findings.figure(key, ((score - encode) / floor).tolist(), f"({_SCORE} − {_ENCODE}) ÷ {_NOOP}")
        if len(woken):
            ratio = Table(title="The same over the RPC with a pause", header=["ratio", "median (quartiles)"])
            ratio.add(f"({_SCORE} − {_ENCODE}) ÷ {paused}", ((score - encode) / woken).tolist())
            findings.tables.append(ratio)
    return findings


def _sizes(request: list[tuple[str, list[str]]]) -> tuple[int, int]:
    """Bytes of a Score's request and of its answer."""
    tasks = [pb.ScoreTask(query=query, document_ids=ids) for query, ids in request]
    results = [
        pb.ScoreResult(scores=[0.5] * len(ids), statuses=[pb.DOCUMENT_STATUS_OK] * len(ids)) for _, ids in request
    ]
    answer = pb.ScoreResponse(
        results=results,
        generation="000001-00000000",
        model="0" * 64,
        times=pb.StageTimes(encode_us=5000, total_us=6000),
    )
    return pb.ScoreRequest(tasks=tasks).ByteSize(), answer.ByteSize()


PART = Part(
    name="floor",
    title="The limits, and what Score adds to encoding",
    seconds=(80, 20),
    figures=("score_minus_encode_over_noop",),
    measure=measure,
)
