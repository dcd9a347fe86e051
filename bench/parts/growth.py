"""How `Score` grows with the store: ten thousand documents against ten million."""

from __future__ import annotations

import shutil
from functools import partial

from bench.driver import Driver, System
from bench.findings import Findings, Table, ratios
from bench.parts import Part, p50
from bench.run import FULL, Run
from bench.serving import NotMeasuredError
from bench.systems import scorer

_SMALL = 10_000
_LISTS = 4096  # of candidates, more than a full run has calls: what is read was hardly read before
_LAYERS = 3  # the less there is to encode, the more of a call is lookup
_BYTES_A_DOCUMENT = 500  # while a store is built: rows, ids and columns, twice


def measure(run: Run) -> Findings:
    """See the module."""
    material, large = run.material, run.effort.documents
    bundle = material.triletter(_LAYERS)
    sizes = {f"{documents:,} documents": documents for documents in (_SMALL, large)}
    workloads = {
        title: material.workload("growth", documents=documents, lists=_LISTS) for title, documents in sizes.items()
    }
    findings = Findings(
        setting=f"The {_LAYERS}-layer tri-letter tower, float32, residual crossing, query cache off; stores of random "
        f"rows, 128 dimensions as uint8; {_LISTS:,} lists of candidates; {p50(run.effort.calls)}; "
        f"{material.asked(next(iter(workloads.values())))}."
    )
    room = shutil.disk_usage(material.folder).free
    if room < large * _BYTES_A_DOCUMENT:
        raise NotMeasuredError(
            f"{material.folder} has {room:,} bytes free, a store of {large:,} documents needs "
            f"{large * _BYTES_A_DOCUMENT:,}; set TMPDIR to a larger folder"
        )

    def make(title: str, documents: int) -> System:
        store, _ = material.random_store(f"growth-{documents}", bundle, documents, encoding="uint8")
        return scorer.system(title, bundle, store)

    systems = {title: partial(make, title, documents) for title, documents in sizes.items()}
    with run.drivers(systems, workloads, findings) as drivers:

        def turn(driver: Driver) -> float:
            return driver.closed(calls=run.effort.calls).milliseconds(50)

        turns = {title: partial(turn, driver) for title, driver in drivers.items()}
        medians = run.interleaved(turns, 2 * run.effort.rounds, findings)
    table = Table(title="p50 in ms: median (quartiles) over rounds", header=["store", "p50", f"÷ {_SMALL:,}'s"])
    small, big = sizes
    for title, values in medians.items():
        table.add(title, values, ratios(values, medians[small]) if small in medians else "–")
    findings.tables.append(table)
    if medians.keys() == sizes.keys() and large == FULL.documents:
        findings.figure("growth_10k_to_10m", ratios(medians[big], medians[small]), f"p50 of Score: {big} ÷ {small}")
    shutil.rmtree(material.folder / f"growth-{large}")
    return findings


PART = Part(
    name="growth",
    title="Growth of the store",
    seconds=(150, 15),
    figures=("growth_10k_to_10m",),
    measure=measure,
)
