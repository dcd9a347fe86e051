"""Which generation and bundle answer. A request holds one snapshot from its first step to its last, whatever is
published then.

Snapshots are counted on the event loop, so counts need no lock; whatever reads files runs in threads beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from scorer_server.bundles import Bundles
from scorer_server.metrics import Metrics, RefusalReason
from scorer_server.settings import Settings
from store.comparison import lost_share
from store.errors import FormatError, GenerationNotFoundError, IdTypeError, StoreError
from store.lineage import is_earlier, lineage, predecessors
from store.manifest import Manifest
from store.reader import Generation
from store.store import Store
from twinbert.errors import BundleError, DriftError, MismatchError, TwinbertError
from twinbert.runtime import Runtime
from twinbert.serving.log import event

# How long a generation that was refused is left alone before it is tried again: a copy may still be under way.
_RETRY_SECONDS = 10.0

# Why a generation is refused, for the metric: the first that fits, else "error", which is a bug.
_REASONS: dict[type[Exception], RefusalReason] = {
    DriftError: "documents_lost",
    MismatchError: "mismatch",
    IdTypeError: "mismatch",
    FormatError: "format",
    BundleError: "bundle",
    StoreError: "unverified",
    OSError: "unverified",
}


@dataclass(slots=True, eq=False)
class Snapshot:
    """A generation, and the bundle that serves it. `superseded_at` is None while it is the current one."""

    generation: Generation
    runtime: Runtime
    users: int = 0
    superseded_at: float | None = None
    retired: bool = False

    def close(self) -> None:
        """Unmaps the generation, and unloads the bundle where no other generation needs it."""
        self.generation.close()
        del self.runtime


@dataclass(frozen=True, slots=True)
class Refusal:
    """A generation that CURRENT names and this server does not serve, why, and when it is tried again."""

    name: str
    reason: RefusalReason
    message: str
    until: float


@dataclass(frozen=True, slots=True)
class _Opening:
    """A generation that a thread opens, and the snapshot that it is to replace."""

    name: str
    served: Snapshot
    work: asyncio.Future[Snapshot]


class Snapshots:
    """The current generation and those held beside it. Where the one that CURRENT names does not verify when a server
    starts, what a rollback would go back to is served meanwhile.

    Args:
        store: where generations come from.
        bundles: where the bundles that serve them come from.
        settings: how long generations are held, how often CURRENT is looked at, and what a generation may lose.
        metrics: where to show it.

    Attributes:
        refusal: of the generation that CURRENT names, if it is refused.

    Raises:
        StoreError: CURRENT cannot be read, or neither its generation can be opened nor one before it.
        FormatError: a newer version wrote the generation that CURRENT names.
        BundleError: the bundle of the current generation cannot.
        MismatchError: it was encoded under another fingerprint than the bundle's.
    """

    def __init__(self, store: Store, bundles: Bundles, settings: Settings, metrics: Metrics) -> None:
        self._store, self._bundles, self._settings, self._metrics = store, bundles, settings, metrics
        self._held: dict[str, Snapshot] = {}
        self.refusal: Refusal | None = None
        self._opening: _Opening | None = None
        self._closing: set[asyncio.Future[None]] = set()
        name = store.current()
        try:
            self._current = self._open(name)
        except FormatError:
            raise  # it is whole, and another version is wanted here
        except (StoreError, OSError) as error:
            self._current = self._open_before(name, error)
            self._note_refusal(name, error)
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
            if self._opening is None or self._opening.work.done():
                await asyncio.sleep(self._settings.poll_seconds)
            else:
                await asyncio.wait((self._opening.work,), timeout=self._settings.poll_seconds)
            await self._look()
            self._let_go()

    async def close(self) -> None:
        """Closes all generations; no request may be running. One that is just being opened is given up."""
        self._store.give_up()
        if self._opening is not None:
            await asyncio.wait((self._opening.work,))
            self._opened("")
        for snapshot in self.held:
            self._retire(snapshot)
        await asyncio.gather(*self._closing)

    async def _look(self) -> None:
        name = ""
        try:
            name = await asyncio.to_thread(self._store.current)
            opened = self._opened(name)
            if name == self._current.generation.name:
                self._refuse(None)
            elif opened is not None:
                self._swap(opened)
            elif name in self._held:
                self._swap(self._held.pop(name))
            elif self.refusal and self.refusal.name == name and time.monotonic() < self.refusal.until:
                return
            elif self._opening is None:
                self._begin_to_open(name)
        except Exception as error:  # noqa: BLE001  the edge of a task: nothing may end it while the server serves
            self._note_refusal(name, error)

    def _begin_to_open(self, name: str) -> None:
        """Has a thread open a generation. It may take minutes, in which CURRENT is followed elsewhere."""
        if self.refusal is not None and self.refusal.name != name:
            self._refuse(None)  # of one that CURRENT does not name any more
        served = self._current
        work = asyncio.get_running_loop().run_in_executor(None, self._open, name, served.generation)
        self.keep(served, work)  # which it compares with
        self._opening = _Opening(name, served, work)

    def _opened(self, name: str) -> Snapshot | None:
        """The generation that was being opened, if it is ready and is the one asked for, or what is wrong with it. One
        that CURRENT does not name any more, or that was compared with another than what is served now, is closed.
        """
        opening = self._opening
        if opening is None or not opening.work.done():
            return None
        self._opening = None
        if opening.name == name and opening.served is self._current:
            return opening.work.result()
        if opening.work.exception() is None:
            self._retire(opening.work.result())
        return None

    def _note_refusal(self, name: str, error: Exception) -> None:
        known = (reason for kind, reason in _REASONS.items() if isinstance(error, kind))
        reason: RefusalReason = next(known, "error")
        # What a generation lacks it will always lack.
        until = math.inf if reason == "documents_lost" else time.monotonic() + _RETRY_SECONDS
        before = self.refusal
        self._refuse(Refusal(name, reason, str(error), until))
        if before is None or (before.name, before.reason) != (name, reason):
            trace = None if _expected(error) else error
            fields = {"refused": name, "serving": self._current.generation.name, "why": str(error)}
            event("generation_refused", level=logging.ERROR, error=trace, reason=reason, **fields)

    def _refuse(self, refusal: Refusal | None) -> None:
        self.refusal = refusal
        for reason, refused in self._metrics.refused.items():
            refused.set(refusal is not None and refusal.reason == reason)

    def _open(self, name: str, served: Generation | None = None) -> Snapshot:
        """Verifies, opens and warms a generation and its bundle; `served` is the generation that it is to replace."""
        manifest = self._store.manifest(name)
        runtime = self._bundles.runtime(manifest)
        generation = self._store.open(name)
        try:
            if served is not None:
                self._require_documents(served, generation)
            generation.warm()
            _, documents_ND = next(generation.scan(1))
            runtime.cross(documents_ND, documents_ND, np.zeros(1, dtype=np.int64))
        except BaseException:
            generation.close()
            raise
        return Snapshot(generation, runtime)

    def _open_before(self, name: str, error: Exception) -> Snapshot:
        """Opens what may stand in for a generation, or raises what is wrong with that."""
        for other in predecessors(self._store.path, name):
            with contextlib.suppress(StoreError, TwinbertError, OSError):
                return self._open(other)
        raise error

    def _require_documents(self, served: Generation, generation: Generation) -> None:
        """Raises DriftError where too many documents are gone, unless an operator wanted it so: by going back to an
        earlier generation, or by `--force` when it, or one between the two, was published.
        """
        if is_earlier(generation.manifest, served.manifest):
            return
        lost, allowed = lost_share(served, generation), self._settings.max_lost_share
        since = takewhile(lambda one: is_earlier(served.manifest, one), lineage(self._store.path, generation.manifest))
        if lost > allowed and not any(map(_forced, since)):
            raise DriftError(
                f"generation {generation.name} lacks {lost:.1%} of the {served.manifest.documents:,} documents of "
                f"{served.name}, which is being served; {allowed:.1%} may be missing: roll back, or if it is as it "
                "should be publish it with --force"
            )

    def _swap(self, snapshot: Snapshot) -> None:
        old, self._current = self._current, snapshot
        old.superseded_at, snapshot.superseded_at = time.monotonic(), None
        self._held[old.generation.name] = old
        self._refuse(None)
        self._metrics.swaps.inc()
        self._show()
        model = snapshot.runtime.bundle.model
        event("generation_swapped", old=old.generation.name, new=snapshot.generation.name, model=model)

    def _let_go(self) -> None:
        """Retires generations that are neither among the latest superseded ones nor superseded lately."""
        horizon = time.monotonic() - self._settings.hold_seconds
        for snapshot in self.held[1 + self._settings.hold_generations :]:
            if (snapshot.superseded_at or 0) < horizon:
                self._retire(self._held.pop(snapshot.generation.name))
                self._metrics.held.set(1 + len(self._held))

    def _retire(self, snapshot: Snapshot) -> None:
        snapshot.retired = True
        self._close_unused(snapshot)

    def _close_unused(self, snapshot: Snapshot) -> None:
        if snapshot.retired and snapshot.users == 0:
            # Unmapping gigabytes and unloading a model take milliseconds, which the event loop does not have.
            closing = asyncio.ensure_future(asyncio.to_thread(snapshot.close))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _show(self) -> None:
        current, runtime = self._current, self._current.runtime
        self._metrics.set_current(current.generation, runtime.bundle.model, runtime.engine, 1 + len(self._held))


def _forced(manifest: Manifest) -> bool:
    """Whether the generation was published with `--force`."""
    gate = manifest.quality.get("gate")
    return isinstance(gate, dict) and gate.get("forced") is True


def _expected(error: Exception) -> bool:
    """Whether an error says all that there is to say; any other is a bug, and its trace is logged."""
    return isinstance(error, StoreError | TwinbertError | OSError)
