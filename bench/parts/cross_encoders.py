"""A cross-encoder against our `Score` with the paper's towers, end to end: 1 query × 100 candidates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.driver import Driver, System
from bench.findings import Findings, Table, ratios
from bench.parts import ENGINES, Part
from bench.run import Run
from bench.systems import cross_encoder, scorer
from twinbert.bundle import Bundle

_LAYERS = (6, 3)
_DOCUMENTS = 10_000
_WARM = 16  # queries of the warm cache: all of them are asked before a median counts


def measure(run: Run) -> Findings:
    """See the module."""
    material, calls = run.material, run.effort.calls
    ours, theirs = material.workload("paper", documents=_DOCUMENTS), material.workload("corpus")
    findings = Findings(
        setting=f"One caller; {calls} calls of each scorer a round and one of each cross-encoder, in a new order each "
        f"round. Cross-encoders: torch on every core, float32, pairs cut to {cross_encoder.PAIR_TOKENS} tokens. Ours: "
        f"untrained towers of the paper's shape, 128 dimensions as uint8, a store of {_DOCUMENTS:,} documents, query "
        f"cache off but where it says warm, which has {_WARM} queries again and again; {material.asked(ours)}."
    )
    tokenizer = material.minilm / Bundle.open(material.minilm, verify=False).tokenizer.file
    systems: dict[str, Callable[[], System]] = {}
    for layers in (12, 3):
        title = f"cross-encoder, {layers} layers × 768"
        systems[title] = partial(cross_encoder.system, title, layers, tokenizer, material.texts_file)
    for layers in _LAYERS:
        for engine in ENGINES:
            for crossing in ("residual", "cosine"):
                title = _title(layers, engine, crossing)
                systems[title] = partial(_scorer, run, title, layers, engine, crossing)
        if layers == _LAYERS[0]:
            for engine in ENGINES:
                title = _title(layers, engine, "warm")
                systems[title] = partial(_scorer, run, title, layers, engine, "warm")
    workloads = {title: theirs if title.startswith("cross") else ours for title in systems}
    again = material.workload("again", documents=_DOCUMENTS, queries=_WARM)
    workloads |= {_title(_LAYERS[0], engine, "warm"): again for engine in ENGINES}
    with run.drivers(systems, workloads, findings) as drivers:

        def turn(driver: Driver) -> float:
            if driver.title.startswith("cross"):
                return driver.closed(calls=1, warm=False).milliseconds(50)
            return driver.closed(calls=calls).milliseconds(50)

        turns = {title: partial(turn, driver) for title, driver in drivers.items()}
        medians = run.interleaved(turns, run.effort.rounds, findings)
    _report(findings, medians)
    return findings


def _title(layers: int, engine: str, kind: str) -> str:
    what = "residual, query cache warm" if kind == "warm" else kind
    return f"Score, {layers} × 512 tri-letter, {engine}, {what}"


def _scorer(run: Run, title: str, layers: int, engine: str, kind: str) -> System:
    material, plain = run.material, run.material.triletter(layers)
    bundle = material.int8(plain) if engine == "int8" else plain
    store = material.folder / f"paper-{layers}"
    if not store.exists():
        material.random_store(store.name, plain, _DOCUMENTS, encoding="uint8")
    crossing = "residual" if kind == "warm" else kind
    return scorer.system(
        title, bundle, store, engine=engine if engine == "int8" else "", crossing=crossing, cached=kind == "warm"
    )


def _report(findings: Findings, medians: dict[str, list[float]]) -> None:
    base = medians.get("cross-encoder, 12 layers × 768")
    table = Table(
        title="p50 of a call in ms, and the 12-layer cross-encoder's over it",
        header=["system", "p50 ms: median (quartiles) over rounds", "cross-encoder ÷ it"],
    )
    for title, values in medians.items():
        table.add(title, values, ratios(base, values) if base else "–")
    findings.tables.append(table)
    if base is None:
        return
    for key, layers, kind in (
        ("cross_encoder_over_score_6_layers", 6, "residual"),
        ("cross_encoder_over_score_3_layers", 3, "residual"),
        ("cross_encoder_over_score_cached", 6, "warm"),
    ):
        measured = [title for engine in ENGINES if (title := _title(layers, engine, kind)) in medians]
        if measured:
            findings.figure(key, ratios(base, medians[measured[0]]), f"cross-encoder, 12 layers ÷ {measured[0]}")


PART = Part(
    name="cross",
    title="Cross-encoders",
    seconds=(180, 60),
    figures=(
        "cross_encoder_over_score_6_layers",
        "cross_encoder_over_score_3_layers",
        "cross_encoder_over_score_cached",
    ),
    measure=measure,
)
