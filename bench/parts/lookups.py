"""100 ids → embeddings, in process: ours, numpy's `take`, and one LMDB `get` a document."""

from __future__ import annotations

import numpy as np

from bench import lookup
from bench.corpora import Corpus, make, opened, rows_by_id
from bench.findings import Findings, Table, ratios
from bench.parts import Part
from bench.run import FULL, Run
from bench.workloads import CANDIDATES


def measure(run: Run) -> Findings:
    """See the module."""
    corpus, folder = Corpus(run.effort.lookup_documents, 128), run.material.folder
    findings = Findings(
        setting=f"{CANDIDATES} random string ids of {corpus.documents:,} documents, {corpus.dimension} dimensions as "
        "float32, one after the other in one process, in a new order each round."
    )
    make(folder / corpus.name, corpus)
    with opened(folder / corpus.name) as generation, rows_by_id(folder / "gets", corpus) as gets:
        hot = lookup.timed(lookup.lookups({corpus: generation}, gets), run.effort.rounds, ("hot",))["hot"]
    medians = {name: [1e6 * float(np.median(seconds)) for seconds in rounds] for name, rounds in hot.items()}
    ours, take, get = medians[f"lookup {corpus.name}"], medians["take"], medians["get"]
    titles = {
        "ours: ids → rows → embeddings": ours,
        "numpy take of rows in memory": take,
        "one LMDB get a document": get,
    }
    table = Table(title="µs: medians (quartiles) over rounds", header=["what", "p50", "÷ take"])
    for title, times in titles.items():
        table.add(title, times, ratios(times, take))
    findings.tables.append(table)
    if corpus.documents == FULL.lookup_documents:
        first, second, third = titles
        findings.figure("lookup_over_take", ratios(ours, take), f"{first} ÷ {second}")
        findings.figure("get_over_lookup", ratios(get, ours), f"{third} ÷ {first}")
        findings.figure("lookup_us", ours, f"{first}, {corpus.documents:,} documents")
    return findings


PART = Part(
    name="lookups",
    title="Lookup",
    seconds=(60, 10),
    figures=("lookup_over_take", "get_over_lookup"),
    further=("lookup_us",),
    measure=measure,
)
