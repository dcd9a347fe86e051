"""Which generation answers. A request holds one snapshot from its first step to its last, whatever is published then.

Snapshots are counted on the event loop, so counts need no lock; whatever reads files runs in threads beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scorer_server.metrics import Metrics
from scorer_server.settings import Settings
from store.errors import GenerationNotFoundError, StoreError
from store.reader import Generation
from store.store import Store
from twinbert.errors import MismatchError, TwinbertError
from twinbert.runtime import Runtime
from twinbert.serving.log import event

# How long a generation that was refused is left alone before it is tried again: a copy may still be under way.
_RETRY_SECONDS = 10.0


@dataclass(slots=True, eq=False)
class Snapshot:
    """A generation that requests may use. `superseded_at` is None while it is the current one."""

    generation: Generation
    users: int = 0
    superseded_at: float | None = None
    retired: bool = False


@dataclass(slots=True)
class _Refusal:
    name: str
    until: float = field(default_factory=lambda: time.monotonic() + _RETRY_SECONDS)


class Snapshots:
    """The current generation and those held beside it.

    Args:
        store: where generations come from.
        runtime: the bundle that serves them.
        settings: how long generations are held, and how often CURRENT is looked at.
        metrics: where to show it.

    Raises:
        StoreError: the current generation cannot be opened.
        MismatchError: it was encoded under another fingerprint than the bundle's.
    """

    def __init__(self, store: Store, runtime: Runtime, settings: Settings, metrics: Metrics) -> None:
        self._store, self._runtime, self._settings, self._metrics = store, runtime, settings, metrics
        self._held: dict[str, Snapshot] = {}
        self._refusal: _Refusal | None = None
        self._closing: set[asyncio.Future[None]] = set()
        self._current = Snapshot(self._open(store.current()))
        self._show()

    @property
    def current(self) -> Snapshot:
        """The snapshot that answers requests which name no generation."""
        return self._current

    @property
    def held(self) -> list[Snapshot]:
        """All that a request may name, the current one first, then the latest superseded first."""
        others = sorted(self._held.values(), key=lambda snapshot: -(snapshot.superseded_at or 0))
        return [self._current, *others]

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[Snapshot]:
        """A snapshot for the length of a request; the empty name means the current one.

        Raises:
            GenerationNotFoundError: the server does not hold it; the message names those that it holds.
        """
        snapshot = self._current if name in ("", self._current.generation.name) else self._held.get(name)
        if snapshot is None:
            there = ", ".join(one.generation.name for one in self.held)
            raise GenerationNotFoundError(f"generation {name!r} is not held by this server; it holds {there}")
        snapshot.users += 1
        try:
            yield snapshot
        finally:
            self._leave(snapshot)

    def keep(self, snapshot: Snapshot, work: asyncio.Future[Any]) -> None:
        """Holds a snapshot until a thread has done its work, whatever becomes of the request that asked for it.

        Unmapping a segment under a thread that reads it would kill the process.
        """
        snapshot.users += 1
        work.add_done_callback(lambda _: self._leave(snapshot))

    def _leave(self, snapshot: Snapshot) -> None:
        snapshot.users -= 1
        self._close_unused(snapshot)

    async def watch(self) -> None:
        """Follows CURRENT until cancelled; one that cannot be served changes only a metric and the log."""
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            await self._look()
            self._let_go()

    async def close(self) -> None:
        """Closes all generations; no request may be running. One that is just being opened is given up."""
        self._store.give_up()
        for snapshot in self.held:
            snapshot.retired = True
            self._close_unused(snapshot)
        await asyncio.gather(*self._closing)

    async def _look(self) -> None:
        name = ""
        try:
            name = await asyncio.to_thread(self._store.current)
            if name == self._current.generation.name:
                self._refusal = None
                self._metrics.refused.set(0)
                return
            if self._refusal and self._refusal.name == name and time.monotonic() < self._refusal.until:
                return
            if name in self._held:
                self._swap(self._held.pop(name))
            else:
                self._swap(Snapshot(await asyncio.to_thread(self._open, name)))
        except Exception as error:  # noqa: BLE001  the edge of a task: nothing may end it while the server serves
            if self._refusal is None or self._refusal.name != name:
                trace = None if _expected(error) else error
                fields = {"refused": name, "serving": self._current.generation.name, "why": str(error)}
                event("generation_refused", level=logging.ERROR, error=trace, **fields)
            self._refusal = _Refusal(name)
            self._metrics.refused.set(1)

    def _open(self, name: str) -> Generation:
        """Verifies, opens and warms a generation."""
        manifest, bundle = self._store.manifest(name), self._runtime.bundle
        if (manifest.fingerprint, manifest.dimension) != (bundle.fingerprint, bundle.dimension):
            raise MismatchError(
                f"generation {name} of {self._store.path} has fingerprint {manifest.fingerprint}, bundle {bundle.path} "
                f"has {bundle.fingerprint}: their embeddings must not be crossed; refresh the store with this bundle, "
                "or serve the one that the store was made with"
            )
        generation = self._store.open(name)
        try:
            generation.warm()
            _, documents_ND = next(generation.scan(1))
            self._runtime.cross(documents_ND, documents_ND, np.zeros(1, dtype=np.int64))
        except BaseException:
            generation.close()
            raise
        return generation

    def _swap(self, snapshot: Snapshot) -> None:
        old, self._current = self._current, snapshot
        old.superseded_at, snapshot.superseded_at = time.monotonic(), None
        self._held[old.generation.name] = old
        self._refusal = None
        self._metrics.refused.set(0)
        self._metrics.swaps.inc()
        self._show()
        event("generation_swapped", old=old.generation.name, new=snapshot.generation.name)

    def _let_go(self) -> None:
        """Retires generations that are neither among the latest superseded ones nor superseded lately."""
        horizon = time.monotonic() - self._settings.hold_seconds
        for snapshot in self.held[1 + self._settings.hold_generations :]:
            if (snapshot.superseded_at or 0) < horizon:
                del self._held[snapshot.generation.name]
                snapshot.retired = True
                self._close_unused(snapshot)
                self._metrics.held.set(1 + len(self._held))

    def _close_unused(self, snapshot: Snapshot) -> None:
        if snapshot.retired and snapshot.users == 0:
            # Unmapping gigabytes takes milliseconds, which the event loop does not have.
            closing = asyncio.ensure_future(asyncio.to_thread(snapshot.generation.close))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _show(self) -> None:
        self._metrics.set_current(self._current.generation, self._runtime.bundle.model, 1 + len(self._held))


def _expected(error: Exception) -> bool:
    """Whether an error says all that there is to say; any other is a bug, and its trace is logged."""
    return isinstance(error, StoreError | TwinbertError | OSError)
