"""The main job, end to end, on real input: the Python API of this machine, encoded, served, searched and scored.

    python -m demo.run [--keep]

Everything goes into .demo/: corpus.jsonl, the bundle, the store and the logs of the servers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo.corpus import write_corpus

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
COMMAND = str(Path(sys.executable).with_name("twinbert"))

QUESTIONS = (
    "remove duplicates from a list keeping order",
    "read a csv file",
    "measure how long a piece of code takes",
    "index of the largest element of an array",
    "run a shell command and capture its output",
)
# csv.DictReader has no docstring, so the corpus does not have it.
CANDIDATES = ("heapq.heappush", "csv.Sniffer", "csv.DictReader", "json.load", "numpy.genfromtxt", "numpy.loadtxt")

# What a first look at /metrics is after.
METRICS = (
    "twinbert_rpc_duration_seconds_count",
    "twinbert_stage_duration_seconds_sum",
    "twinbert_candidates_total",
    "twinbert_queries_total",
    "twinbert_documents",
    "twinbert_generation_info",
    "twinbert_generation_age_seconds",
    "twinbert_encoder_last_publish_timestamp_seconds",
    "twinbert_encoder_generation_info",
)

_START_SECONDS = 60


def main() -> None:
    """Runs the demo; see the module."""
    parser = argparse.ArgumentParser(description="The main job, end to end, on real input.")
    parser.add_argument("--keep", action="store_true", help="leave the servers running")
    keep = parser.parse_args().keep
    started = time.monotonic()
    FOLDER.mkdir(exist_ok=True)
    os.chdir(ROOT)

    _heading("A corpus: the documented Python API of this machine")
    corpus = FOLDER / "corpus.jsonl"
    _say(f"{write_corpus(corpus):,} documents in {_shown(corpus)}, for example:")
    with corpus.open() as lines:
        _say(next(line for line in lines if '"json.loads"' in line).strip())

    _heading("A bundle: both towers, from real weights")
    bundle = FOLDER / "bundle"
    if not (bundle / "bundle.json").exists():
        _twinbert("bundle", "import", "all-minilm-l6-v2", "--output", str(bundle))
    else:
        _say(f"{_shown(bundle)} is there from an earlier run")

    _heading("A refresh: documents become a generation of the store")
    store = FOLDER / "store"
    _twinbert("refresh", "--bundle", str(bundle), "--store", str(store), "--documents", str(corpus))
    _twinbert("store", "list", "--store", str(store))

    with contextlib.ExitStack() as stack:
        _heading("Two servers, as processes of their own")
        files = ("--bundle", str(bundle), "--store", str(store))
        scorer = stack.enter_context(_server("serve", files, keep=keep))
        encoder = stack.enter_context(_server("encoder", files, keep=keep))

        _heading("Retrieve: the best of the whole corpus")
        for question in QUESTIONS:
            _twinbert("retrieve", "--address", scorer["address"], question, "-k", "4", tables=True)

        _heading("Score: given candidates, one of which the corpus does not have")
        _twinbert("score", "--address", scorer["address"], "read a csv file", *CANDIDATES, tables=True)

        _heading("What Prometheus sees")
        for server in (scorer, encoder):
            _show_metrics(server["metrics_port"])
        if keep:
            _explain(scorer, encoder)
    _say(f"\ndone in {time.monotonic() - started:.0f} s")


@contextlib.contextmanager
def _server(command: str, arguments: tuple[str, ...], *, keep: bool) -> Iterator[dict[str, Any]]:
    """Starts a server on free ports; yields what it says when it serves. Stops it, unless it is to be kept."""
    log = FOLDER / f"{command}.log"
    words = [COMMAND, command, *arguments, "--address", "127.0.0.1:0", "--metrics-port", "0"]
    with log.open("w") as output:
        # A session of its own, so that Ctrl-C in this terminal does not reach a server that is kept.
        process = subprocess.Popen(words, stderr=output, start_new_session=True)
    try:
        event = _wait_until_serving(process, log)
        _say(f"{command}: process {process.pid}, gRPC on {event['address']}, metrics on port {event['metrics_port']}")
        yield event | {"pid": process.pid}
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=30)
            _say(f"{command}: drained and stopped with exit code {code}")


def _wait_until_serving(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "serving":
                return dict(event)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"the server did not start; its log {_shown(log)} says:\n{log.read_text()}")


def _show_metrics(port: int) -> None:
    url = f"http://127.0.0.1:{port}/metrics"
    _say(f"$ curl {url}")
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    for line in lines:
        if line.startswith(METRICS) and not line.endswith(" 0.0") and "_bucket" not in line:
            _say(f"  {line}")


def _explain(scorer: dict[str, Any], encoder: dict[str, Any]) -> None:
    _heading("The servers go on running")
    grpcurl = _shown(Path(sys.executable).with_name("grpcurl"))
    _say(f"{_shown(Path(COMMAND))} retrieve --address {scorer['address']} 'sort a dictionary by value'")
    _say(f"{grpcurl} -plaintext {scorer['address']} twinbert.v1.ScorerService/Describe")
    request = '{"tower": "TOWER_QUERY", "texts": ["hello"]}'
    _say(f"{grpcurl} -plaintext -d '{request}' {encoder['address']} twinbert.v1.EncoderService/Encode")
    _say(f"curl http://127.0.0.1:{scorer['metrics_port']}/metrics")
    _say(f"their logs: {_shown(FOLDER / 'serve.log')} and {_shown(FOLDER / 'encoder.log')}")
    _say(f"stop them with: kill {scorer['pid']} {encoder['pid']}")


def _twinbert(*words: str, tables: bool = False) -> None:
    """Runs a command and shows it; with `tables` it prints for a reader also where that is not a terminal."""
    shown = [_shown(Path(word)) if word.startswith(str(ROOT)) else word for word in words]
    _say(f"\n$ twinbert {shlex.join(shown)}")
    as_terminal = {"TTY_COMPATIBLE": "1", "TERM": "dumb"} if tables and not sys.stdout.isatty() else {}
    code = subprocess.run([COMMAND, *words], env=os.environ | as_terminal, check=False).returncode
    if code:
        raise SystemExit(f"twinbert {words[0]} failed with exit code {code}")


def _heading(text: str) -> None:
    _say(f"\n━━ {text} " + "━" * max(0, 76 - len(text)))


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
