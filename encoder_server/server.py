"""Puts an encoder together and runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from encoder_server.metrics import Metrics
from encoder_server.service import EncoderService
from encoder_server.settings import Settings
from store.store import Store
from twinbert.bundle import TOWERS, Bundle
from twinbert.runtime import Runtime
from twinbert.serving import log
from twinbert.serving.lifecycle import run
from twinbert.serving.listening import Listening


def serve(*, bundle: Path, store: Path, listening: Listening, settings: Settings) -> None:
    """Encodes, and refreshes a store, with a bundle until SIGTERM.

    Raises:
        BundleError: the bundle is missing or damaged.
        StoreError: the store cannot be made or written, or a newer version wrote it.
        UsageError: an address cannot be bound, or certificates or tokens are no good.
    """
    log.configure()
    runtime = Runtime(Bundle.open(bundle), towers=TOWERS)
    target = Store(store)
    target.create()

    async def main() -> None:
        metrics = Metrics()
        service = EncoderService(target, runtime, settings, metrics)
        await run(service, listening, metrics.registry)

    asyncio.run(main())
