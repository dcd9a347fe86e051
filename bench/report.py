"""What every result says about itself: the machine, the versions, the commit; and how figures are summed up."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

RESULTS = Path(__file__).parent / "results"


def machine(*packages: str) -> list[str]:
    """Lines about the hardware and the versions of packages."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    flags = next((line.split() for line in cpuinfo if line.startswith("flags")), [])
    wide = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_tile") if flag in flags]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return [
        f"- {len(os.sched_getaffinity(0))} cores of {model} ({', '.join(wide)}), shared with other machines",
        f"- Python {platform.python_version()}, {versions}",
        f"- commit {commit()}",
    ]


def commit() -> str:
    """Of this code; ends in `-dirty` where files were changed since, and is `unknown` where there is no git."""
    words = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def write(name: str, text: str) -> Path:
    """Writes `bench/results/<name>_<date>.md`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}_{datetime.datetime.now(tz=datetime.UTC).date().isoformat()}.md"
    path.write_text(text)
    return path


def percentile(seconds: Sequence[float], percent: float) -> float:
    """In milliseconds."""
    return float(np.percentile(seconds, percent)) * 1e3


def spread(values: Sequence[float] | npt.NDArray[np.float64]) -> str:
    """Median, and the quartiles of its rounds."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:,.2f} ({low:,.2f} to {high:,.2f})"
