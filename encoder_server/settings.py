"""The encoder's settings, with their defaults."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


def default_workers() -> int:
    """One a core that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How an encoder works.

    Attributes:
        workers: threads that encode, for Encode and for a refresh each.
        texts: texts of one Encode.
        waiting: Encode requests that may wait for a worker; more are refused with RESOURCE_EXHAUSTED.
        idle_s: a Refresh stream that sends nothing for this long is ended, since it holds the store's lock.
    """

    workers: int = field(default_factory=default_workers)
    texts: int = 256
    waiting: int = 64
    idle_s: float = 600.0
