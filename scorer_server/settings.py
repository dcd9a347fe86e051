"""The scorer's settings, with their defaults."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from twinbert.bundle import Engine


def default_engines(workers: int = 1) -> int:
    """How many: one a core that this process may use, up to 4; beyond that, more processes serve better.

    Args:
        workers: processes that share the cores.
    """
    return min(4, max(1, len(os.sched_getaffinity(0)) // workers))


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a request may ask for; more is refused with a message that says the limit.

    Attributes:
        tasks: tasks of a Score, queries of a Retrieve.
        candidates: candidates of a Score in all.
        id_bytes: UTF-8 bytes of a document id.
        query_bytes: UTF-8 bytes of a query.
        hits: hits for each query of a Retrieve.
    """

    tasks: int = 64
    candidates: int = 10_000
    id_bytes: int = 511
    query_bytes: int = 4096
    hits: int = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a scorer works.

    Attributes:
        limits: what a request may ask for.
        engines: how many batches are encoded at a time, all by the kind that `engine` says.
        engine: which kind encodes queries, not how many; `auto` is what was kept for the bundle on this host, else
            float32.
        threads: threads that encode one batch; None: those kept with `auto`, else one. One query of a few tokens has
            no work for two: more `engines` use cores better.
        tuning: folder of what is kept for this host; None: `twinbert.tuning.default_folder`.
        queue: queries that may wait for an engine; more are refused with RESOURCE_EXHAUSTED.
        batch_tokens: tokens of one batch, estimated from the length of the text.
        cache_bytes: memory for the query cache; 0 turns it off.
        candidates: candidates of all Score requests being answered; a request beyond them is refused with
            RESOURCE_EXHAUSTED, unless it is alone. Bounds their memory: about 2 KB each at 384 dimensions.
        retrievals: Retrieve requests being answered or waiting; the scans run one at a time.
        hold_generations: generations that stay available after they were superseded…
        hold_seconds: …and how long each stays at least, in seconds.
        poll_seconds: how often CURRENT is looked at.
        max_lost_share: share of the documents being served that a new generation may lack, 0 to 1. Lower than what the
            swap gate lets pass would make replicas refuse what was published.
        requests_file: where a sample of requests is recorded, with queries and ids, for the swap gate; None: nowhere.
        requests_bytes: size of that file and the older one beside it.
        requests_rate: requests a second that are recorded at most.
        misses_file: where ids of candidates that were not found are recorded; None: nowhere.
        misses_bytes: size of that file and the older one beside it.
        misses_queries: whether their queries are recorded too.
    """

    limits: Limits = field(default_factory=Limits)
    engines: int = field(default_factory=default_engines)
    engine: Engine | Literal["auto"] = "float32"
    threads: int | None = None
    tuning: Path | None = None
    queue: int = 512
    batch_tokens: int = 1024
    cache_bytes: int = 64 << 20
    candidates: int = 100_000
    retrievals: int = 8
    hold_generations: int = 2
    hold_seconds: float = 600.0
    poll_seconds: float = 0.2
    max_lost_share: float = 0.3
    requests_file: Path | None = None
    requests_bytes: int = 16 << 20
    requests_rate: float = 1.0
    misses_file: Path | None = None
    misses_bytes: int = 16 << 20
    misses_queries: bool = False
