"""Puts a scorer together and runs it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from scorer_server.bundles import BundleFolder, Bundles, OneBundle
from scorer_server.metrics import Metrics
from scorer_server.service import ScorerService
from scorer_server.settings import Settings
from store.store import Store
from twinbert.errors import UsageError
from twinbert.serving import log
from twinbert.serving.lifecycle import run
from twinbert.serving.listening import Listening

# Python lets a thread that computes keep the interpreter for 5 ms while others want it. An engine's thread wants it for
# some 20 µs twice a query, just when the event loop looks up candidates: this takes 5 % off a Score of 8 ms.
_SWITCH_SECONDS = 1e-4


def serve(*, bundle: Path | None, bundles: Path | None, store: Path, listening: Listening, settings: Settings) -> None:
    """Serves a store until SIGTERM, with one bundle or with those of a folder.

    Raises:
        BundleError: the bundle is missing or damaged.
        StoreError: the store is missing, empty or damaged.
        MismatchError: the store was made with another bundle.
        UsageError: an address cannot be bound, certificates or tokens are no good, or not just one of `bundle` and
            `bundles` is given.
    """
    log.configure()
    sys.setswitchinterval(_SWITCH_SECONDS)
    metrics = Metrics()
    service = ScorerService(
        Store(store), _bundles(bundle, bundles, settings), settings, listening.message_bytes, metrics
    )
    asyncio.run(run(service, listening, metrics.registry))


def _bundles(bundle: Path | None, bundles: Path | None, settings: Settings) -> Bundles:
    if bundle and not bundles:
        return OneBundle(bundle, settings)
    if bundles and not bundle:
        return BundleFolder(bundles, settings)
    raise UsageError("give either --bundle, or --bundles with a folder of several")
