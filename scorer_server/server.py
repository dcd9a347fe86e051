"""Puts a scorer together and runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from scorer_server.metrics import Metrics
from scorer_server.service import ScorerService
from scorer_server.settings import Settings
from store.store import Store
from twinbert.bundle import Bundle
from twinbert.runtime import Runtime
from twinbert.serving import log
from twinbert.serving.lifecycle import run
from twinbert.serving.listening import Listening


def serve(*, bundle: Path, store: Path, listening: Listening, settings: Settings) -> None:
    """Serves a store with a bundle until SIGTERM.

    Raises:
        BundleError: the bundle is missing or damaged.
        StoreError: the store is missing, empty or damaged.
        MismatchError: the store was made with another bundle.
        UsageError: an address cannot be bound, or certificates or tokens are no good.
    """
    log.configure()
    metrics = Metrics()
    runtime = Runtime(Bundle.open(bundle), towers=("query",), threads=settings.threads)
    service = ScorerService(Store(store), runtime, settings, listening.message_bytes, metrics)
    asyncio.run(run(service, listening, metrics.registry))
