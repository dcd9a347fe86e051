"""The encoder's settings, with their defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# With more, a lookup among all of them would take half as long again as among one; dead rows cost memory and scans.
MAX_SEGMENTS = 4
MAX_DEAD_SHARE = 0.25


def default_workers() -> int:
    """One a core that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSettings:
    """What a generation is compared with before it is published, see `encoder_server.gate`.

    Attributes:
        replay: requests that a scorer recorded; None: only texts of documents are asked for.
        bundles: folder that has the bundle in service, where that is another; None: the folder around our own.
        limits: by name of `Limits`, those that are not the defaults.
        force: publish whatever is found, and record that it was wanted.
    """

    replay: Path | None = None
    bundles: Path | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    force: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How an encoder works.

    Attributes:
        workers: threads that encode, for Encode and for a refresh each.
        texts: texts of one Encode.
        waiting: Encode requests that may wait for a worker; more are refused with RESOURCE_EXHAUSTED.
        idle_s: a Refresh stream that sends nothing for this long is ended, since it holds the store's lock.
        max_segments: a generation with more is compacted.
        max_dead_share: a generation of whose rows more are dead is compacted.
        gate: how generations are judged before they are published.
    """

    workers: int = field(default_factory=default_workers)
    texts: int = 256
    waiting: int = 64
    idle_s: float = 600.0
    max_segments: int = MAX_SEGMENTS
    max_dead_share: float = MAX_DEAD_SHARE
    gate: GateSettings = field(default_factory=GateSettings)
