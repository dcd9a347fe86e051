"""`Score` end to end against its floor and against the cross-encoder that it replaces, interleaved in one run.

(a) Score of 1 query × 100 candidates over gRPC, query cache off, client and server on the same cores
(b) a no-op gRPC method with the same message sizes
(c) the runtime's encode alone, in this process, with one thread, as each engine of the server has
(d) a BERT-Base-sized cross-encoder in torch on the same 100 pairs

python -m bench.score [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tokenizers
import torch

from bench import noop, report
from bench.cross_encoder import CrossEncoder
from bench.queries import QUERIES
from demo.corpus import write_corpus
from scorer_server.settings import Settings
from twinbert.bundle import Bundle
from twinbert.importing import import_bundle
from twinbert.runtime import Runtime
from twinbert.v1 import scorer_pb2, scorer_pb2_grpc

CANDIDATES = 100
CALLS = 40  # of each in a round; (d) takes seconds, so once a round

_FOLDER = Path(__file__).resolve().parent.parent / ".demo"
_COMMAND = str(Path(sys.executable).with_name("twinbert"))


def main() -> None:
    """Runs the benchmark; see the module."""
    parser = argparse.ArgumentParser(description="Score against its floor and a cross-encoder.")
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bundle, documents = _prepare(Path(folder))
        address = stack.enter_context(_scorer(bundle, Path(folder) / "store"))
        text = _measure(address, bundle, documents, rounds, stack)
    print(text)
    print(f"written to {report.write('score', text).relative_to(_FOLDER.parent)}")


def _prepare(folder: Path) -> tuple[Path, dict[str, str]]:
    """The MiniLM bundle, and a store of the demo's corpus."""
    bundle = _FOLDER / "bundle"
    if not (bundle / "bundle.json").exists():
        _FOLDER.mkdir(exist_ok=True)
        import_bundle("all-minilm-l6-v2", bundle)
    corpus = folder / "corpus.jsonl"
    write_corpus(corpus)
    lines = random.Random(0).sample(corpus.read_text().splitlines(), 2000)
    corpus.write_text("\n".join(lines) + "\n")
    refresh = ("refresh", "--bundle", str(bundle), "--store", str(folder / "store"), "--documents", str(corpus))
    subprocess.run([_COMMAND, *refresh], check=True, stdout=subprocess.DEVNULL)
    return bundle, {entry["id"]: entry["text"] for entry in map(json.loads, lines)}


@contextlib.contextmanager
def _scorer(bundle: Path, store: Path) -> Iterator[str]:
    """A real server process, without its query cache: every query is encoded."""
    files = ("--bundle", str(bundle), "--store", str(store), "--cache-bytes", "0")
    words = [_COMMAND, "serve", *files, "--address", "127.0.0.1:0", "--metrics-port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        event = next(event for event in map(json.loads, process.stderr) if event["event"] == "serving")
        try:
            yield event["address"]
        finally:
            process.terminate()


@contextlib.contextmanager
def _noop(size: int) -> Iterator[str]:
    words = [sys.executable, "-m", "bench.noop", str(size)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def _measure(address: str, bundle: Path, documents: dict[str, str], rounds: int, stack: contextlib.ExitStack) -> str:
    runtime = Runtime(Bundle.open(bundle), towers=("query",), threads=1)
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    cross_encoder = CrossEncoder(tokenizer)

    channel = stack.enter_context(grpc.insecure_channel(address))
    stub = scorer_pb2_grpc.ScorerServiceStub(channel)
    chosen = random.Random(1)
    requests = []
    for query in QUERIES:
        ids = chosen.sample(sorted(documents), CANDIDATES)
        requests.append(scorer_pb2.ScoreRequest(tasks=[scorer_pb2.ScoreTask(query=query, document_ids=ids)]))
    request_size = int(np.mean([request.ByteSize() for request in requests]))
    noop_address = stack.enter_context(_noop(stub.Score(requests[0]).ByteSize()))
    noops = stack.enter_context(grpc.insecure_channel(noop_address))
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = noops.unary_unary(noop.CALL)
    wait: grpc.UnaryUnaryMultiCallable[bytes, bytes] = noops.unary_unary(noop.WAIT)
    empty = bytes(request_size)
    pause = noop.SECONDS.pack(0.005) + empty

    steps: dict[str, Callable[[scorer_pb2.ScoreRequest], Any]] = {
        "a": stub.Score,
        "b": lambda _request: call(empty),
        "c": lambda request: runtime.encode([request.tasks[0].query]),
        "w": lambda _request: wait(pause),
        "d": lambda request: cross_encoder.score(
            request.tasks[0].query, [documents[id_] for id_ in request.tasks[0].document_ids]
        ),
    }
    seconds: dict[str, list[list[float]]] = {name: [] for name in steps}
    for number in range(-1, rounds):  # the first round only warms up
        for name, step in steps.items():
            calls = 1 if name == "d" else CALLS
            times = []
            for turn in range(calls):
                request = requests[(number * calls + turn) % len(requests)]
                begun = time.perf_counter()
                answer = step(request)
                elapsed = time.perf_counter() - begun
                times.append(elapsed - noop.SECONDS.unpack_from(answer)[0] if name == "w" else elapsed)
            if number >= 0:
                seconds[name].append(times)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    pairs = [cross_encoder.tokens(r.tasks[0].query, [documents[i] for i in r.tasks[0].document_ids]) for r in requests]
    lengths = runtime.tokenize(QUERIES).lengths
    setting = [
        f"- {rounds} rounds of {CALLS} calls of each in turn, but one of (d); one thread for (c) and each "
        f"of the {Settings().engines} engines of (a), {torch.get_num_threads()} for (d)",
        f"- queries of {lengths.min()} to {lengths.max()} tokens, median {int(np.median(lengths))}; "
        f"{np.mean(pairs) / CANDIDATES:.0f} tokens a pair for (d); messages of {request_size:,} bytes to the server",
    ]
    return _report(seconds, setting)


def _report(seconds: dict[str, list[list[float]]], setting: list[str]) -> str:
    names = {
        "a": "Score, 1 query × 100 candidates, over gRPC",
        "b": "no-op gRPC method, same message sizes",
        "c": "encode alone, in process",
        "d": "BERT-Base-sized cross-encoder, torch",
        "w": "no-op after a pause of 5 ms, without the pause",
    }
    rows = [f"| ({step}) {name} | {_cells(seconds[step])} |" for step, name in names.items()]
    medians = {step: np.array([np.median(times) for times in rounds]) for step, rounds in seconds.items()}
    over, paused = ((medians["a"] - medians["c"]) / medians[step] for step in ("b", "w"))
    ratios = [
        f"| d / a: cross-encoder over Score | {report.spread(medians['d'] / medians['a'])} | at least 300 |",
        f"| (a − c) / b: what Score adds to encoding, in no-op RPCs | {report.spread(over)} | at most 1.5 |",
        f"| (a − c) / w: the same, in no-op RPCs after a pause | {report.spread(paused)} | |",
        f"| a / c | {report.spread(medians['a'] / medians['c'])} | |",
    ]
    lines = [
        "# Score against its floor and a cross-encoder",
        "",
        *report.machine("grpcio", "onnxruntime", "torch", "numpy", "lmdb"),
        *setting,
        "",
        "| what | p50 ms | p99 ms | calls |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        "| ratio of medians, by round: median (quartiles) | measured | wanted |",
        "| --- | --- | --- |",
        *ratios,
        "",
    ]
    return "\n".join(lines)


def _cells(rounds: list[list[float]]) -> str:
    times = [one for times in rounds for one in times]
    return f"{report.percentile(times, 50):,.2f} | {report.percentile(times, 99):,.2f} | {len(times)}"


if __name__ == "__main__":
    main()
