"""The commands of the README and of the training page, run as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from twinbert.training import synthetic

ROOT = Path(__file__).resolve().parents[2]

# Waits, after a command that was put into the background, until its port answers.
WAIT = "for try in $(seq 300); do (: < /dev/tcp/127.0.0.1/{port}) 2>/dev/null && break; sleep 0.2; done"

# For machines without curl.
CURL = (
    """curl() { python -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[-1]).read().decode())' "$@"; }"""
)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def run_blocks(text: str, folder: Path, *, timeout: float) -> str:
    """Runs every `sh` and `python` block of a page, in order, as one script in a folder, on free ports.

    Returns:
        What it printed.
    """
    ports = {port: str(free_port()) for port in ("50051", "50052", "9101", "9102")}
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p)' EXIT"]
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.S | re.M):
        # All at once: a free port may have another's digits in it.
        block = re.sub("|".join(ports), lambda found: ports[found[0]], block)  # noqa: PLW2901 - on free ports
        if language == "python":
            script = folder / f"block_{len(lines)}.py"
            script.write_text(block)
            lines.append(f"python {script.name}")
            continue
        if language == "toml":
            (folder / block.splitlines()[0].removeprefix("# ")).write_text(block)
            continue
        for line in block.splitlines():
            if line.startswith("pip install"):
                continue  # made by `make setup`; the suite needs no network
            lines.append(line)
            if line.endswith(" &"):
                lines.append(WAIT.format(port=ports["50052" if "encoder" in line else "50051"]))
    if shutil.which("curl") is None:
        lines.insert(0, CURL)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TWINBERT_ADDRESS": f"127.0.0.1:{ports['50051']}",
        "TWINBERT_METRICS_PORT": ports["9101"],
        "XDG_STATE_HOME": str(folder / "state"),
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)  # a minute alone
def test_the_commands_of_the_readme_work(tmp_path: Path) -> None:
    """They go from weights to scores."""
    printed = run_blocks((ROOT / "README.md").read_text(), tmp_path, timeout=240)
    for said in (
        "fingerprint",
        "sku-1",
        "not found",
        '"sku-2"',
        "twinbert_rpc_duration_seconds_bucket",
        "OK",
        "[1 1 2]",
    ):
        assert said in printed, said
    assert "sku-4" in (tmp_path / "rejected.jsonl").read_text()
    assert (tmp_path / "replica" / "CURRENT").read_text() == (tmp_path / "store" / "CURRENT").read_text()


@pytest.mark.timeout(600)  # two minutes alone: two models are trained, exported, measured and served
def test_the_commands_of_the_training_page_work(tmp_path: Path) -> None:
    """They go from graded pairs to scores, with a checkpoint made in code in the place of MiniLM."""
    dataset = synthetic.dataset()
    pairs = [pair for split in (dataset.train, dataset.dev, dataset.test) for pair in split.pairs]
    rows = "".join(f"{pair.query}\t{pair.document}\t{1 + 4 * pair.grade}\n" for pair in pairs)
    (tmp_path / "pairs.tsv").write_text(f"query\ttitle\trating\n{rows}")
    titles = dict.fromkeys(pair.document for pair in pairs)
    documents = [json.dumps({"id": f"sku-{number}", "title": title}) for number, title in enumerate(titles)]
    (tmp_path / "catalogue.jsonl").write_text("\n".join(documents))
    text = (ROOT / "docs" / "training.md").read_text()
    for mine, small in (
        ('"all-minilm-l6-v2"', '"synthetic"'),
        ("projection = 256", "projection = 16"),
        ("[0, 2, 4]", "[0]"),
    ):
        assert mine in text
        text = text.replace(mine, small)
    printed = run_blocks(text, tmp_path, timeout=500)
    for said in ("deep\trun/students/deep/bundle", "shallow residual", "paired", "live uint8", "sku-1"):
        assert said in printed, said
