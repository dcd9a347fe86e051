"""p99 of `Score` while something else goes on beside it: a hot swap every 5 seconds, and Retrieve."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.driver import Calls, Driver, System, attached
from bench.findings import Findings, Table, ratios
from bench.parts import Part
from bench.run import Run
from bench.serving import NotMeasuredError
from bench.systems import retrieve, scorer
from store.manifest import write_current
from twinbert.client import ScorerClient

_EVERY_S = 5.0
_DOCUMENTS = 30_000  # 46 MB of float32: a swap reads its checksum, maps and touches it
_CALLERS = 16

_SCORE = "Score, MiniLM float32"
_QUIET, _SWAPS, _RETRIEVE = "Score alone", f"a swap every {_EVERY_S:.0f} s", "Retrieve beside it"


def measure(run: Run) -> Findings:
    """See the module."""
    material, rounds = run.material, run.effort.load_rounds
    workload = material.workload("swapped", documents=_DOCUMENTS)
    swaps = max(1, int(2 * run.effort.load_s // _EVERY_S))
    seconds = swaps * _EVERY_S
    findings = Findings(
        setting=f"MiniLM float32, query cache off, {_DOCUMENTS:,} documents as float32; Poisson arrivals at half of "
        f"saturation for {seconds:.0f} s a turn. A swap: CURRENT names a generation that the scorer has never seen, "
        f"written before; it is verified, opened and warmed, and the old one given up. Retrieve: one caller that asks "
        f"for the best 100 of all documents without pause; {material.asked(workload)}."
    )
    turns_of_swaps = rounds + run.effort.warm_rounds
    store, names = material.random_store("swapped", material.minilm, _DOCUMENTS, generations=1 + turns_of_swaps * swaps)
    write_current(store, names[0])
    holding = ("--hold-generations", "0", "--hold-seconds", "0")
    make = partial(scorer.system, _SCORE, material.minilm, store, options=holding)
    with run.drivers({_SCORE: make}, workload, findings) as drivers:
        if _SCORE not in drivers:
            return findings
        driver = drivers[_SCORE]
        beside = System(title="Retrieve", client=retrieve.__name__)
        rate = driver.closed(clients=_CALLERS, seconds=seconds / 2).rate() / 2
        with (
            driver.awake(),
            attached(beside, workload, material.folder / "retrieve.client", driver.address, driver.server) as retriever,
        ):
            load = partial(_load, driver, rate, seconds, iter(range(10**6)))
            turns: dict[str, Callable[[], Calls]] = {
                _QUIET: load,
                _SWAPS: partial(_swapping, load, store, iter(names[1:]), swaps, driver.address),
                _RETRIEVE: partial(_retrieving, load, retriever, seconds),
            }
            results = run.interleaved(turns, rounds, findings)
    _report(findings, results, rate)
    return findings


def _load(driver: Driver, rate: float, seconds: float, seeds: Iterator[int]) -> Calls:
    return driver.open_loop(rate=rate, seconds=seconds, seed=next(seeds))


def _swapping(load: Callable[[], Calls], store: Path, unseen: Iterator[str], swaps: int, address: str) -> Calls:
    """A load, and so many swaps beside it, the first in the middle of the first interval."""
    names, ended = [next(unseen) for _ in range(swaps)], threading.Event()

    def swap() -> None:
        for number, name in enumerate(names):
            if ended.wait(_EVERY_S if number else _EVERY_S / 2):
                return
            write_current(store, name)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        calls = load()
    finally:
        ended.set()
        thread.join()
    with ScorerClient(address) as client:
        serving = client.describe().current.name
    if serving != names[-1]:
        raise NotMeasuredError(f"the scorer serves {serving} half an interval after {names[-1]} was published")
    return calls


def _retrieving(load: Callable[[], Calls], retriever: Driver, seconds: float) -> Calls:
    """A load, and a caller that retrieves all the while."""
    retriever.begin({"do": "closed", "clients": 1, "calls": 10**9, "seconds": seconds}, warm=False)
    try:
        return load()
    finally:
        retriever.end()


def _report(findings: Findings, results: dict[str, list[Calls]], rate: float) -> None:
    table = Table(
        title=f"{rate:.0f} requests/s; ms, medians (quartiles) over rounds",
        header=["what", "p50", "p99", "p99 ÷ p99 alone", "not answered"],
    )
    quiet = [calls.milliseconds(99) for calls in results.get(_QUIET, [])]
    for name, rounds in results.items():
        p99 = [calls.milliseconds(99) for calls in rounds]
        lost = sum(int((~calls.ok).sum()) for calls in rounds)
        table.add(
            name, [calls.milliseconds(50) for calls in rounds], p99, ratios(p99, quiet) if quiet else "–", f"{lost:,}"
        )
    findings.tables.append(table)
    if quiet and _SWAPS in results:
        swapped = [calls.milliseconds(99) for calls in results[_SWAPS]]
        findings.figure("p99_swap_over_quiet", ratios(swapped, quiet), f"p99 of {_SCORE}: {_SWAPS} ÷ without")


PART = Part(
    name="beside",
    title="Hot swaps and Retrieve beside Score",
    seconds=(400, 35),
    figures=("p99_swap_over_quiet",),
    measure=measure,
)
