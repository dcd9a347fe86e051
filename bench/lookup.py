"""Lookup and crossing, by themselves: from ids to embeddings, and from embeddings to scores.

(lookup)  100 random ids of a generation of one segment → their embeddings
(take)    numpy `take` of 100 rows of an array in memory
(get)     one LMDB `get` a document
(cross)   one query against 100 and 1,000 documents, that are read already, and with reading them
(answer)  all that a Score request does between its parsed message and its response, but for encoding

Hot is one after the other; cold is after 5 ms of matrix products, as the encoding of a query leaves the caches; busy is
beside a thread that runs Python without end, after a sleep: a server's thread gets the lock that way.

python -m bench.lookup [--folder DIR] [--rounds N]         DIR keeps the stores for the next run
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt
import onnxruntime

from bench import report
from bench.corpora import Corpus, bundle, make, opened, rows_by_id
from bench.workloads import CANDIDATES
from scorer_server.ages import Ages
from scorer_server.scoring import Answer
from store.reader import Generation
from twinbert.bundle import Bundle
from twinbert.runtime import Floats, Runtime
from twinbert.v1 import scorer_pb2 as pb

CALLS = {"hot": 100, "cold": 8}  # of each step in a round
BUSY_CALLS = 500  # of each step in all rounds, at least: fewer have no p99
MILLION = 1_000_000

_JUNK = np.random.default_rng(1).standard_normal((700, 700), np.float32)

Step = Callable[[Any], Any]
Steps = dict[str, tuple[Callable[[], Any], Step]]  # what makes its argument, and the step


LOOKUPS = [
    Corpus(documents, dimension, id_type)
    for documents, dimension in ((MILLION, 64), (MILLION, 16), (10 * MILLION, 16))
    for id_type in ("string", "integer")
]
CROSSED = [Corpus(MILLION, 384, encoding=encoding) for encoding in ("float32", "float16", "uint8")]


def main() -> None:
    """Runs the benchmark; see the module."""
    parser = argparse.ArgumentParser(description="Lookup and crossing.")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        text = _measure(folder, arguments.rounds)
    print(text)
    print(f"written to {report.write('lookup', text)}")


def _measure(folder: Path, rounds: int) -> str:
    for corpus in (*LOOKUPS, *CROSSED):
        make(folder / corpus.name, corpus)
    gets, bundles = rows_by_id(folder / "gets", LOOKUPS[0]), {D: bundle(folder, D) for D in (128, 384)}
    gc.collect()
    with contextlib.ExitStack() as stack:
        generations, memory = {}, {}
        for corpus in (*LOOKUPS, *CROSSED):
            before = _anonymous()
            generations[corpus] = stack.enter_context(opened(folder / corpus.name))
            memory[corpus] = (_anonymous() - before) / corpus.documents
        asked = lookups({corpus: generations[corpus] for corpus in LOOKUPS}, gets)
        found = timed(asked, rounds, ("hot", "cold", "busy"))
        crossings = _crossings(generations, bundles, rounds)
        answers = _answers(generations[CROSSED[0]], Runtime(bundles[384]), rounds)
    figures = {
        "lookup_over_take": _ratio(found["hot"], f"lookup {LOOKUPS[0].name}", "take"),
        "get_over_lookup": _ratio(found["hot"], "get", f"lookup {LOOKUPS[0].name}"),
        "lookup_10m_over_1m": _ratio(found["hot"], f"lookup {LOOKUPS[4].name}", f"lookup {LOOKUPS[2].name}"),
        "integer_10m_over_1m": _ratio(found["hot"], f"lookup {LOOKUPS[5].name}", f"lookup {LOOKUPS[3].name}"),
        "graph_over_cosine_100": _ratio(crossings["hot"], "cosine by its graph, 100", "cosine, 100"),
        "graph_over_cosine_1000": _ratio(crossings["hot"], "cosine by its graph, 1000", "cosine, 1000"),
    }
    wanted = {"lookup_over_take": "at most 6", "get_over_lookup": "at least 7"}
    lines = [
        "# Lookup and crossing",
        "",
        *report.machine("numpy", "lmdb", "onnxruntime", "xxhash"),
        f"- calls of each step, in {rounds} rounds, in a new order each: "
        f"{', '.join(f'{rounds * _calls(way, rounds):,} {way}' for way in ('hot', 'cold', 'busy'))}",
        f"- {CANDIDATES} random ids; the dimension is behind the number of documents",
        f"- memory beyond the maps (RssAnon) of an open generation of {LOOKUPS[-1].documents:,} documents, bytes a "
        f"document: {max(memory[LOOKUPS[-1]], memory[LOOKUPS[-2]]):.2f}",
        "",
        *_table("µs", found),
        *_table("1 query × documents, µs", crossings),
        *_table("1 × 100 string ids, 384 float32, cosine, µs", answers),
        "| ratio of medians, by round: median (quartiles), hot | measured | wanted |",
        "| --- | --- | --- |",
        *(f"| {name} | {_cell(one)} | {wanted.get(name, '')} |" for name, one in figures.items()),
        "",
    ]
    return "\n".join(lines)


Times = dict[str, dict[str, list[list[float]]]]  # by way and step, of each round


def timed(steps: Steps, rounds: int, ways: tuple[str, ...]) -> Times:
    """Seconds of steps, in a new order each round; a call is given what was made for it before the caches were cold."""
    times: Times = {way: {name: [] for name in steps} for way in ways}
    for number, way in itertools.product(range(-1, rounds), ways):  # the first round only warms up
        with _busy() if way == "busy" else contextlib.nullcontext():
            for name in Random(number).sample([*steps], len(steps)):
                (make, step), seconds = steps[name], []
                for _ in range(_calls(way, rounds)):
                    argument = make()
                    _before(way)
                    begun = time.perf_counter()
                    step(argument)
                    seconds.append(time.perf_counter() - begun)
                if number >= 0:
                    times[way][name].append(seconds)
    return times


def _calls(way: str, rounds: int) -> int:
    """Of each step in a round."""
    return CALLS.get(way) or math.ceil(BUSY_CALLS / rounds)


def _before(way: str) -> None:
    if way == "cold":
        end = time.perf_counter() + 0.005
        while time.perf_counter() < end:
            _JUNK @ _JUNK
    elif way == "busy":
        time.sleep(0.001)


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """A thread that never waits and never calls what releases the lock."""
    done = threading.Event()

    def work() -> None:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # even where the measurement has a higher priority
        while not done.is_set():
            sum(range(1000))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def lookups(generations: Mapping[Corpus, Generation], gets: lmdb.Environment) -> Steps:
    """Lookups in generations, named `lookup` and the corpus; `take` and `get` of rows as long as the first one's."""
    random, first = np.random.default_rng(2), next(iter(generations))
    rows_nD = random.standard_normal((first.documents, first.dimension), np.float32)

    def get(ids: list[str]) -> Floats:
        with gets.begin(buffers=True) as transaction:
            return np.stack([np.frombuffer(transaction.get(id_.encode(), b""), np.float32) for id_ in ids])

    def lookup(generation: Generation) -> Step:
        return lambda ids: generation.read(generation.locate(ids))

    made: Steps = {
        "take": (lambda: random.integers(0, first.documents, CANDIDATES), lambda rows: rows_nD.take(rows, axis=0)),
        "get": (lambda: first.ids(random), get),
    }
    for corpus, generation in generations.items():
        made[f"lookup {corpus.name}"] = partial(corpus.ids, random), lookup(generation)
    return made


def _crossings(generations: dict[Corpus, Generation], bundles: dict[int, Bundle], rounds: int) -> Times:
    runtimes = {D: Runtime(bundle) for D, bundle in bundles.items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = bundles[384].file("crossing.cosine.onnx")
    graph = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    steps: Steps = {}
    for count in (100, 1000):
        steps |= _crossing_steps(generations, runtimes, graph, count)
    return timed(steps, rounds, ("hot", "cold"))


def _crossing_steps(
    generations: dict[Corpus, Generation], runtimes: dict[int, Runtime], graph: onnxruntime.InferenceSession, count: int
) -> Steps:
    random, task_N = np.random.default_rng(3), np.zeros(count, np.int64)
    queries = {D: random.standard_normal((1, D), np.float32) for D in runtimes}
    short_ND = random.standard_normal((count, 128), np.float32)

    def rows() -> npt.NDArray[np.int64]:
        return random.integers(0, MILLION, count)

    def cosine(documents_ND: Floats) -> Floats:
        return runtimes[384].cross(queries[384], documents_ND, task_N, "cosine")

    def whole(generation: Generation, rows_N: npt.NDArray[np.int64]) -> Floats:
        return cosine(generation.read_rows(rows_N))

    def run_graph(documents_ND: Floats) -> Any:  # noqa: ANN401  as the session gives it
        return graph.run(None, {"queries": queries[384], "documents": documents_ND, "task": task_N})

    def residual(documents_ND: Floats) -> Floats:
        return runtimes[128].cross(queries[128], documents_ND, task_N, "residual")

    first = generations[CROSSED[0]]
    steps: Steps = {
        f"cosine, {count}": (lambda: first.read_rows(rows()), cosine),
        f"cosine by its graph, {count}": (lambda: first.read_rows(rows()), run_graph),
        f"residual, 128 and bottleneck 64, {count}": (lambda: short_ND, residual),
    }
    for corpus in CROSSED:
        steps[f"read {corpus.encoding} and cosine, {count}"] = rows, partial(whole, generations[corpus])
    return steps


def _answers(generation: Generation, runtime: Runtime, rounds: int) -> Times:
    random = np.random.default_rng(4)
    snapshot: Any = SimpleNamespace(generation=generation, runtime=runtime)
    embedding_D, ages = random.standard_normal(384, np.float32), Ages()

    def request() -> pb.ScoreRequest:
        task = pb.ScoreTask(query="query", document_ids=CROSSED[0].ids(random))
        return pb.ScoreRequest.FromString(pb.ScoreRequest(tasks=[task]).SerializeToString())

    def prepared() -> Answer:
        return Answer(request(), snapshot, "cosine")

    def finished() -> Answer:
        answer = prepared()
        answer.finish((embedding_D,))
        return answer

    steps: Steps = {
        "prepare, while the query is encoded": (request, lambda request: Answer(request, snapshot, "cosine")),
        "finish, once it is": (prepared, lambda answer: answer.finish((embedding_D,))),
        "count their ages": (finished, lambda answer: ages.observe(answer.times_F, 1_800_000_000_000)),
    }
    return timed(steps, rounds, ("hot", "cold"))


def _table(what: str, times: Times) -> list[str]:
    head = "".join(f" | {way} p50 | p99" for way in times)
    lines = [f"| {what}{head} |", "| --- " * (1 + 2 * len(times)) + "|"]
    for name in next(iter(times.values())):
        seconds = [list(itertools.chain(*steps[name])) for steps in times.values()]
        cells = (f" | {1e3 * report.percentile(one, percent):,.1f}" for one in seconds for percent in (50, 99))
        lines.append(f"| {name}{''.join(cells)} |")
    return [*lines, ""]


def _ratio(times: dict[str, list[list[float]]], over: str, under: str) -> dict[str, Any]:
    ratios = [float(np.median(a) / np.median(b)) for a, b in zip(times[over], times[under], strict=True)]
    low, middle, high = np.percentile(ratios, (25, 50, 75)).round(3).tolist()
    return {"value": middle, "spread": [low, high]}


def _cell(figure: dict[str, Any]) -> str:
    low, high = figure["spread"]
    return f"{figure['value']:.2f} ({low:.2f} to {high:.2f})"


def _anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
