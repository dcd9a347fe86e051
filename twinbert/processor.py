"""What this host's processor is, as far as the system tells."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def _described() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def name() -> str:
    """Its maker's name for it."""
    return _described().get("model name") or platform.processor() or platform.machine()


def flags() -> frozenset[str]:
    """Its instruction sets, as Linux calls them."""
    return frozenset(_described().get("flags", "").split())
