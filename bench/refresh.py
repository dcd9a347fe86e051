"""What a refresh costs beside encoding: its rate against the engine's, a million documents, unchanged ones, deltas.

rate       `twinbert refresh` of the demo's corpus with MiniLM, and the engine alone on the same texts: two threads that
           embed batches sorted by length, tokenised beforehand. Interleaved
million    a first refresh of a million documents with towers that cost next to nothing: memory, and the time from the
           last document to the published generation
unchanged  the same documents again, and the engine alone (MiniLM) on some of them, interleaved
deltas     ten changes of a store of a million: through a running encoder, and by the command, which first loads the
           bundle and verifies the store

Each step is a measurement of its own, which adds to what the folder has; a step can be run again for more rounds.

python -m bench.refresh [STEP …] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.averaging import averaging_bundle
from bench.corpora import publish, served_by
from demo.corpus import write_corpus
from encoder_server.settings import default_workers
from store.store import Store
from tests.servers import running
from twinbert.bundle import TOWERS, Bundle
from twinbert.client import Deletion, Document, EncoderClient
from twinbert.importing import import_bundle
from twinbert.runtime import MAX_RUN_TOKENS, Runtime, TokenBatch

STEPS = ("rate", "million", "unchanged", "deltas")
DOCUMENTS = 1_000_000
RATE_DOCUMENTS = 5_000
ENGINE_DOCUMENTS = 1_000  # beside unchanged ones
DELTAS = 8

_BUNDLE = Path(__file__).resolve().parent.parent / ".demo" / "bundle"

Figures = dict[str, list[Any]]


def main() -> None:
    """Runs the benchmark; see the module."""
    parser = argparse.ArgumentParser(description="What a refresh costs beside encoding.")
    parser.add_argument("steps", nargs="*", default=STEPS, choices=STEPS)
    parser.add_argument("--folder", type=Path, help="Where stores and figures are kept; else a temporary one.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        _prepare(folder)
        figures: Figures = _read_json(folder / "figures.json", {})
        for step in arguments.steps:
            for name, value in globals()[f"_{step}"](folder).items():
                figures.setdefault(name, []).append(value)
            (folder / "figures.json").write_text(json.dumps(figures, indent=1))
        if all(f"{step}_s" in figures for step in STEPS):
            text = _report(figures)
            print(text)
            print(f"written to {report.write('refresh', text)}")


def _prepare(folder: Path) -> None:
    """Bundles and documents, where they are not there yet."""
    if not (_BUNDLE / "bundle.json").exists():
        _BUNDLE.parent.mkdir(exist_ok=True)
        import_bundle("all-minilm-l6-v2", _BUNDLE)
    if not (folder / "million.jsonl").exists():
        averaging_bundle(_BUNDLE, folder / "averaging")
        write_corpus(folder / "corpus.jsonl")
        texts = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").read_text().splitlines()]
        with (folder / "million.part").open("w") as file:
            for number in range(DOCUMENTS):
                document = {"id": f"document-{number}", "text": f"{texts[number % len(texts)]} {number}"}
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
        (folder / "million.part").rename(folder / "million.jsonl")


def _rate(folder: Path) -> dict[str, Any]:
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    some = np.random.default_rng(0).permutation(len(lines))[:RATE_DOCUMENTS].tolist()
    (folder / "rate.jsonl").write_text("".join(lines[number] + "\n" for number in some))
    engine = _engine([json.loads(lines[number])["text"] for number in some])
    with tempfile.TemporaryDirectory(dir=folder) as store:
        before = engine()
        result, wall = _command(_BUNDLE, Path(store) / "store", folder / "rate.jsonl")
        alone = (before + engine()) / 2
    return {
        "rate_s": result["seconds"],
        "rate_engine": len(some) / alone,
        "rate_over_engine": alone / result["seconds"],
        "rate_over_engine_with_start": alone / wall,
    }


def _million(folder: Path) -> dict[str, Any]:
    store = folder / f"store-{os.getpid()}"
    figures = _watched("first", folder, store)
    if not (folder / "store").exists():
        store.rename(folder / "store")
    return {f"million_{name}": value for name, value in figures.items()}


def _unchanged(folder: Path) -> dict[str, Any]:
    with (folder / "million.jsonl").open() as file:
        texts = [json.loads(next(file))["text"] for _ in range(ENGINE_DOCUMENTS)]
    engine = _engine(texts)
    before = engine()
    figures = _watched("again", folder, folder / "store")
    alone = (before + engine()) / 2 / len(texts)
    figures["over_encoding"] = alone / (figures["s"] / DOCUMENTS)
    return {f"unchanged_{name}": value for name, value in figures.items()}


def _watched(what: str, folder: Path, store: Path) -> dict[str, float]:
    """A refresh of the million in a process of its own, whose memory is looked at all the while."""
    words = [sys.executable, "-m", "bench.refresh_child", str(folder), str(store)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        figures: dict[str, float] = {}
        loaded, peaks, ended = {}, {"RssAnon": 0, "RssFile": 0}, threading.Event()

        def look() -> None:
            while not ended.wait(0.05):
                for name, kilobytes in _memory(process.pid).items():
                    peaks[name] = max(peaks[name], kilobytes)

        process.stdout.readline()
        loaded = _memory(process.pid)
        thread = threading.Thread(target=look)
        thread.start()
        figures = json.loads(process.stdout.readline())
        ended.set()
        thread.join()
    assert process.returncode == 0, what
    return {
        **figures,
        "loaded_mb": loaded["RssAnon"] / 1e3,
        "anonymous_mb": (peaks["RssAnon"] - loaded["RssAnon"]) / 1e3,
        "file_mb": peaks["RssFile"] / 1e3,
    }


def _memory(process: int) -> dict[str, int]:
    """What a process has in memory: kB of its own, and of files that are mapped, which the kernel can take back."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return {}
    return {name: int(kilobytes) for name, kilobytes in re.findall(r"(RssAnon|RssFile):\s+(\d+)", status)}


def _deltas(folder: Path) -> dict[str, Any]:
    bundle, store = Bundle.open(_BUNDLE, verify=False), folder / "deltas"
    if not store.exists():
        publish(Store(store), DOCUMENTS, **served_by(bundle), encoding="float32")  # deltas do not look at embeddings
    random, grpc_ms, command_ms, whole_ms = np.random.default_rng(time.time_ns()), [], [], []
    with running("encoder", _BUNDLE, store) as server, EncoderClient(server.address) as client:
        for _ in range(DELTAS):
            changes = _changes(random)
            begun = time.perf_counter()
            *_, last = client.refresh(changes, delta=True)
            grpc_ms.append(1e3 * (time.perf_counter() - begun))
            assert last.generation
    for _ in range(DELTAS // 2):
        file = folder / "changes.jsonl"
        with file.open("w") as into:
            for one in _changes(random):
                fields = {"text": one.text} if isinstance(one, Document) else {"deleted": True}
                into.write(json.dumps({"id": one.id, **fields}) + "\n")
        result, wall = _command(_BUNDLE, store, file, "--delta")
        command_ms.append(1e3 * result["seconds"])
        whole_ms.append(1e3 * wall)
    # The first one finds the store neither verified nor in memory.
    return {
        "deltas_s": sum(grpc_ms) / 1e3,
        "delta_first_grpc_ms": grpc_ms[0],
        "delta_grpc_ms": grpc_ms[1:],
        "delta_command_ms": command_ms,
        "delta_command_whole_ms": whole_ms,
    }


def _changes(random: np.random.Generator) -> list[Document | Deletion]:
    numbers = random.choice(DOCUMENTS, 10, replace=False).tolist()
    return [
        *(Document(f"document-{number}", f"wood screws, {number} x {time.time_ns()} mm") for number in numbers[:8]),
        *(Deletion(f"document-{number}") for number in numbers[8:]),
    ]


def _engine(texts: list[str]) -> Callable[[], float]:
    """Embeds the texts on all cores, sorted by length, in full runs; gives seconds. Tokenising is not counted."""
    runtime = Runtime(Bundle.open(_BUNDLE, verify=False), towers=TOWERS)
    tokens = runtime.tokenize(texts, "document")
    order = np.argsort(-tokens.lengths, kind="stable")
    runs, start = [], 0
    while start < len(order):
        stop = start + max(1, MAX_RUN_TOKENS // int(tokens.lengths[order[start]]))
        runs.append(tokens.take(order[start:stop]))
        start = stop
    workers = ThreadPoolExecutor(default_workers())

    def embed(run: TokenBatch) -> None:
        runtime.embed(run, "document")

    def seconds() -> float:
        begun = time.perf_counter()
        list(workers.map(embed, runs))
        return time.perf_counter() - begun

    list(workers.map(embed, runs[-2:]))  # warm
    return seconds


def _command(bundle: Path, store: Path, documents: Path, *options: str) -> tuple[dict[str, Any], float]:
    """`twinbert refresh`: its own account, and the seconds of the whole process."""
    files = ("--bundle", str(bundle), "--store", str(store), "--documents", str(documents))
    begun = time.perf_counter()
    words = [sys.executable, "-m", "twinbert", "refresh", *files, *options, "--json"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result, time.perf_counter() - begun


def _read_json(path: Path, default: Figures) -> Figures:
    found: Figures = json.loads(path.read_text()) if path.exists() else default
    return found


def _report(figures: Figures) -> str:
    def of(name: str, scale: float = 1.0) -> str:
        values = np.array([one for value in figures[name] for one in np.atleast_1d(value)]) * scale
        return f"{report.spread(values.tolist())}, {len(values)} ×"

    rows = [
        ("engine alone, MiniLM, documents/s", of("rate_engine"), ""),
        (f"refresh of {RATE_DOCUMENTS:,} documents ÷ engine alone", of("rate_over_engine"), "at least 0.90"),
        ("the same, with starting Python and loading the bundle", of("rate_over_engine_with_start"), ""),
        ("first refresh of a million with towers that cost nothing, s", of("million_s"), ""),
        ("its memory of its own beyond the loaded model, MB", of("million_anonymous_mb"), "under 1,000"),
        ("mapped pages of files, which the kernel can take back, MB", of("million_file_mb"), ""),
        ("from the last document to the published generation, s", of("million_commit_s"), "at most 10"),
        ("the million again, unchanged, s", of("unchanged_s"), ""),
        ("an unchanged document ÷ encoding one with MiniLM, rates", of("unchanged_over_encoding"), "at least 100"),
        ("its memory of its own beyond the loaded model, MB", of("unchanged_anonymous_mb"), "under 1,000"),
        ("a delta of 10 over gRPC, in a store of a million, ms", of("delta_grpc_ms"), "under 1,000"),
        ("the first one, while the encoder still reads the store from disk, ms", of("delta_first_grpc_ms"), ""),
        ("the same delta by the command, bundle loaded, ms", of("delta_command_ms"), "under 1,000"),
        ("the whole process, ms", of("delta_command_whole_ms"), ""),
    ]
    lines = [
        "# A refresh beside its encoder",
        "",
        *report.machine("onnxruntime", "numpy", "lmdb"),
        f"- {DOCUMENTS:,} documents × 384 float32, texts of the demo's corpus; MiniLM float32, one thread a worker",
        "",
        "| what | median (quartiles), times measured | wanted |",
        "| --- | --- | --- |",
        *(f"| {what} | {measured} | {wanted} |" for what, measured, wanted in rows),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
