"""k6, a load generator in Go that knows nothing of us but the proto: a second opinion on our own generator."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from bench import environments
from bench.serving import ROOT, NotMeasuredError, last_words

_SCRIPT = Path(__file__).with_name("k6.js")


def run(
    address: str, workload: Path, folder: Path, *, seconds: float, callers: int, rate: float | None = None
) -> dict[str, float]:
    """Calls `Score` for some seconds: rate, answers a second; p50 and p99, ms from the sending.

    Args:
        address: of the scorer.
        workload: the requests.
        folder: for the summary.
        seconds: how long.
        callers: at a time; with a rate, at most.
        rate: calls a second, at even intervals; None: each caller calls again when it is answered.

    Raises:
        NotMeasuredError: k6 cannot be installed, or fails.
    """
    summary = folder / f"k6-{time.monotonic_ns()}.json"
    environment = {
        "ADDRESS": address,
        "WORKLOAD": str(workload),
        "PROTOS": str(ROOT / "protos"),
        "SUMMARY": str(summary),
        "LOAD": "closed" if rate is None else "open",
        "RATE": str(round(rate or 0)),
        "SECONDS": str(max(1, round(seconds))),
        "VUS": str(callers),
        "K6_NO_USAGE_REPORT": "true",
    }
    binary = environments.python("k6").with_name("k6")
    words = [str(binary), "run", "--quiet", "--no-color", "--log-output=stderr", "--address", "", str(_SCRIPT)]
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode or not summary.exists():
        raise NotMeasuredError(f"k6: {last_words(done.stderr)}")
    metrics = json.loads(summary.read_text())
    if failed := metrics.get("checks", {}).get("values", {}).get("fails"):
        raise NotMeasuredError(f"k6: {failed} calls failed")
    times = metrics["grpc_req_duration"]["values"]
    return {"rate": times["count"] / max(1, round(seconds)), "p50": times["med"], "p99": times["p(99)"]}
