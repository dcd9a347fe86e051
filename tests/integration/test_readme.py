"""The README's commands, run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.timeout(300)  # a minute alone
def test_the_commands_of_the_readme_work(tmp_path: Path) -> None:
    """Every `sh` and `python` block, in order, as one script in an empty folder, on free ports."""
    ports = {port: str(free_port()) for port in ("50051", "50052", "9101", "9102")}
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p)' EXIT"]
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M):
        # All at once: a free port may have another's digits in it.
        block = re.sub("|".join(ports), lambda found: ports[found[0]], block)  # noqa: PLW2901 - on free ports
        if language == "python":
            script = tmp_path / f"block_{len(lines)}.py"
            script.write_text(block)
            lines.append(f"python {script.name}")
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
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "fingerprint",
        "sku-1",
        "not found",
        '"sku-2"',
        "twinbert_rpc_duration_seconds_bucket",
        "OK",
        "[1 1 2]",
    ):
        assert said in done.stdout, said
    assert "sku-4" in (tmp_path / "rejected.jsonl").read_text()
    assert (tmp_path / "replica" / "CURRENT").read_text() == (tmp_path / "store" / "CURRENT").read_text()
