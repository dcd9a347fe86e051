"""Compaction in the background of the encoder: whoever publishes deltas, the store's segments stay few."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import threading
from concurrent.futures import Future
from functools import partial

from encoder_server.current import current_manifest, verify_ahead
from encoder_server.metrics import Metrics
from encoder_server.refresh import SOFTWARE
from encoder_server.settings import Settings
from store.compaction import Compacted, compact, due
from store.errors import StoreError, StoreLockedError, SupersededError
from store.manifest import Manifest
from store.store import Store
from twinbert.serving.log import event

_LOOK_SECONDS = 1.0

# Niceness of the merging thread: whatever the encoder is asked for goes first.
_NICE = 10


class Compactor:
    """Watches a store, shows and verifies what is current, and merges its segments when there are too many, or too many
    dead rows.

    Args:
        store: the store.
        settings: what is too many.
        metrics: where to show it.
    """

    def __init__(self, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._store, self._settings, self._metrics = store, settings, metrics
        self._seen = ""

    async def watch(self) -> None:
        """Looks once a second until cancelled. What fails is tried again when there is another generation."""
        while True:
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001  the edge of a task: nothing may end it while the server serves
                event("compactor_failed", level=logging.ERROR, error=error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        manifest = await asyncio.to_thread(self._current)
        if manifest is None or manifest.name == self._seen:
            return
        self._seen = manifest.name
        self._metrics.set_generation(manifest)
        await asyncio.to_thread(verify_ahead, self._store)  # or the first delta would wait for all of it to be read
        settings = self._settings
        newest = due(manifest, max_segments=settings.max_segments, max_dead_share=settings.max_dead_share)
        if newest:
            await self._compact(newest)

    def _current(self) -> Manifest | None:
        try:
            return current_manifest(self._store)
        except StoreError:  # whoever serves or refreshes the store says so
            return None

    async def _compact(self, newest: int) -> None:
        try:
            work = partial(compact, self._store, software=SOFTWARE, newest=newest, wait=True)
            done = await _in_background(work)
        except StoreLockedError:
            self._seen = ""  # somebody else compacts: the next look shows what is left to do
        except SupersededError as error:
            self._metrics.compactions["superseded"].inc()
            event("compaction_superseded", message=str(error))
        except (StoreError, OSError) as error:
            self._metrics.compactions["failed"].inc()
            event("compaction_failed", level=logging.ERROR, message=str(error))
        else:
            if done is not None:
                self._metrics.compactions["published"].inc()
                event("compacted", **dataclasses.asdict(done))


def _in_background(work: partial[Compacted | None]) -> asyncio.Future[Compacted | None]:
    """Runs a compaction in a thread that the end of the process does not wait for: it survives being killed."""
    future: Future[Compacted | None] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # Linux keeps niceness by thread
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001  the edge of a thread
            future.set_exception(error)

    threading.Thread(target=run, name="compaction", daemon=True).start()
    return asyncio.wrap_future(future)
