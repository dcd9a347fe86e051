"""Bytes that are not what was written: a manifest or CURRENT cut off anywhere, a segment damaged in each of its
regions, while a scorer serves the generation before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path

import lmdb

from faults.corpora import texts
from faults.fault import Attempt, Fault, Tally, require
from store.format import CURRENT, DATA, GENERATIONS, SEGMENTS
from store.store import Store
from tests.servers import Server, refresh, running, write_documents
from twinbert.client import ScorerClient, Task

_REFUSED = 'twinbert_generation_refused{reason="unverified"}'
_DOCUMENTS = 90  # fewer than the swap gate compares

Region = tuple[int, int]
"""First byte, and the one after the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scene:
    """A scorer that serves one generation, while files of the next one are damaged."""

    server: Server
    client: ScorerClient
    store: Path
    good: str
    next: str

    def try_next(self, file: Path, content: bytes | None) -> None:
        """Puts `content`, or nothing, in the place of a file and makes the next generation current; then puts all back.

        Raises:
            BrokenPromiseError: the scorer takes it, dies, or does not say so.
        """
        whole = file.read_bytes()
        current = self.store / CURRENT
        try:
            _put(file, content)
            if file != current:
                _put(current, f"{self.next}\n".encode())
            event = self.server.wait_for("generation_refused")
            require(event["reason"] == "unverified", f"refused for {event['reason']}: {event['why']}")
            require(self.server.metrics()[_REFUSED] == 1, "the metric does not say so")
            reply = self.client.score(Task("pizza", ["d1", "d2"]))
            require(reply.generation == self.good, f"it answers from {reply.generation}")
            require(all(result.found.all() for result in reply.results), "it misses documents")
        finally:
            _put(current, f"{self.good}\n".encode())
            if file != current:
                _put(file, whole)
        while self.server.metrics()[_REFUSED]:  # until it has seen that CURRENT is good again
            pass


def _put(file: Path, content: bytes | None) -> None:
    """In one step, as a new file: what damages files is not the kernel's cache."""
    if content is None:
        file.unlink()
        return
    beside = file.with_name(f"{file.name}.new")
    beside.write_bytes(content)
    beside.replace(file)


@contextmanager
def _scene(folder: Path, bundle: Path) -> Iterator[_Scene]:
    store = folder / "store"
    names = [
        refresh(bundle, store, write_documents(folder / f"{version}.jsonl", texts(version, _DOCUMENTS)))
        for version in range(2)
    ]
    _put(store / CURRENT, f"{names[0]}\n".encode())
    with running("serve", bundle, store) as server, ScorerClient(server.address) as client:
        yield _Scene(server=server, client=client, store=store, good=names[0], next=names[1])


@contextmanager
def _cut(folder: Path, bundle: Path) -> Iterator[Attempt]:
    with _scene(folder, bundle) as scene:
        current, manifest = scene.store / CURRENT, scene.store / GENERATIONS / f"{scene.next}.json"
        sizes = [current.stat().st_size, manifest.stat().st_size]

        def attempt(seed: int) -> Tally:
            """Every byte of CURRENT, then every byte of the manifest, and again."""
            place = seed % sum(sizes)
            file, size = (current, place) if place < sizes[0] else (manifest, place - sizes[0])
            scene.try_next(file, file.read_bytes()[:size])
            name = "CURRENT" if file is current else "the manifest"
            return Tally({f"{name} cut off: refused": 1}, figures={"bytes of both": float(sum(sizes))})

        yield attempt


@contextmanager
def _damaged(folder: Path, bundle: Path) -> Iterator[Attempt]:
    with _scene(folder, bundle) as scene:
        file = scene.store / SEGMENTS / Store(scene.store).manifest(scene.next).segments[0].id / DATA
        content, regions = file.read_bytes(), _regions(file.parent)

        def attempt(seed: int) -> Tally:
            """The kinds of damage in turn, each in the regions in turn, at a random place."""
            kind = [*_DAMAGES][seed % len(_DAMAGES)]
            region = [*regions][seed // len(_DAMAGES) % len(regions)]
            begin, end = regions[region]
            changed = _DAMAGES[kind](content, random.Random(seed).randrange(begin, end))
            scene.try_next(file, changed)
            return Tally({f"{kind}, {region}: refused": 1})

        yield attempt


def _flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def _zeroed(content: bytes, place: int) -> bytes:
    """The page around a place, or the next one that is not zero already."""
    pages = [*range(place - place % PAGESIZE, len(content), PAGESIZE), *range(0, place, PAGESIZE)]
    page = next(page for page in pages if any(content[page : page + PAGESIZE]))
    return content[:page] + bytes(PAGESIZE) + content[page + PAGESIZE :]


_DAMAGES: Mapping[str, Callable[[bytes, int], bytes | None]] = {
    "a bit flipped": _flipped,
    "cut off": lambda content, place: content[:place],
    "a page of zeros": _zeroed,
    "grown": lambda content, place: content + content[:1] * (1 + place % PAGESIZE),
    "gone": lambda _content, _place: None,
}


def _regions(directory: Path) -> dict[str, Region]:
    """Where the values of a segment are in its file; what is before and between them are LMDB's own pages."""
    content, regions = (directory / DATA).read_bytes(), {}
    with lmdb.open(str(directory), readonly=True, lock=False, max_dbs=8) as environment, environment.begin() as values:
        for name, _ in list(values.cursor()):
            for key, value in values.cursor(environment.open_db(name, txn=values, create=False)):
                place = content.find(value)
                require(place >= 0, f"{key.decode()} of {name.decode()} is not in the file")
                regions[f"{name.decode()}: {key.decode()}"] = (place, place + len(value))
    return {"LMDB's own pages": (0, min(first for first, _ in regions.values())), **regions}


CUT = Fault(
    name="cut",
    title="CURRENT and a manifest cut off at each byte",
    promise="found before use; the server never dies and serves the last good generation; metric and log say so",
    unit="cuts",
    wanted=1500,  # a few more than both have bytes
    quick=10,
    prepare=_cut,
)

DAMAGED = Fault(
    name="damaged",
    title="A segment with a bit flipped in each region, cut off, with a page of zeros, grown, gone",
    promise="the same",
    unit="damages",
    wanted=1000,
    quick=10,
    prepare=_damaged,
)
