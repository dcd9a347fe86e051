"""100 ids → embeddings, in process: ours, numpy's `take`, and one LMDB `get` a document."""

from __future__ import annotations

from bench import lookups
from bench.findings import Findings, Table, ratios
from bench.parts import Part
from bench.run import FULL, Run

_TITLES = {
    "lookup": "ours: ids → rows → embeddings",
    "take": "numpy take of rows in memory",
    "get": "one LMDB get a document",
}


def measure(run: Run) -> Findings:
    """See the module."""
    documents = run.effort.lookup_documents
    findings = Findings(
        setting=f"{lookups.CANDIDATES} random string ids of {documents:,} documents, 128 dimensions as float32, in one "
        "process, in a new order each round."
    )
    medians = lookups.measure(run.material, documents, run.effort.rounds)
    table = Table(title="µs: medians (quartiles) over rounds", header=["what", "p50", "÷ take"])
    for name, title in _TITLES.items():
        table.add(title, medians[name], ratios(medians[name], medians["take"]))
    findings.tables.append(table)
    if documents == FULL.lookup_documents:
        for key, over, under in (("lookup_over_take", "lookup", "take"), ("get_over_lookup", "get", "lookup")):
            findings.figure(key, ratios(medians[over], medians[under]), f"{_TITLES[over]} ÷ {_TITLES[under]}")
    return findings


PART = Part(
    name="lookups",
    title="Lookup",
    seconds=(60, 10),
    figures=("lookup_over_take", "get_over_lookup"),
    measure=measure,
)
