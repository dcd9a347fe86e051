"""Corpora of small documents that a store is to hold, whole, each with the embedding that the bundle gives it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from faults.fault import require
from store.format import BUILDING, SEGMENTS
from store.store import Store
from store.verification import verify
from twinbert.bundle import TOWERS, Bundle
from twinbert.runtime import Runtime

Corpus = Mapping[str, str]
"""Texts by id."""


def texts(version: int, count: int, first: int = 0) -> dict[str, str]:
    """Documents of a version: the ids of every version are the same, most texts are its own."""
    words = ("shoes", "pizza", "running", "csv", "duplicates")
    return {
        f"d{number}": f"list {number} of {words[number % 5]} {version if number % 5 else 'always'}"
        for number in range(first, first + count)
    }


def write_changes(path: Path, changes: Mapping[str, str | None]) -> Path:
    """Documents as JSON Lines, None is a deletion."""
    lines = (
        {"id": id_, "text": text} if text is not None else {"id": id_, "deleted": True} for id_, text in changes.items()
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def changed(corpus: Corpus, changes: Mapping[str, str | None]) -> dict[str, str]:
    """A corpus after a delta."""
    merged = {**corpus, **changes}
    return {id_: text for id_, text in merged.items() if text is not None}


class Judge:
    """Says what a store holds.

    Args:
        bundle: with which it was encoded.
    """

    def __init__(self, bundle: Path) -> None:
        self.runtime = Runtime(Bundle.open(bundle), towers=TOWERS)
        self._embeddings: dict[str, Any] = {}

    def embeddings(self, corpus: Corpus) -> Any:  # noqa: ANN401 - float32 [N, D]
        """What a corpus encodes to, float32 [N, D]."""
        new = [text for text in corpus.values() if text not in self._embeddings]
        if new:
            self._embeddings.update(zip(new, self.runtime.encode(new, "document"), strict=True))
        return np.stack([self._embeddings[text] for text in corpus.values()])

    def require_holds(self, path: Path, corpus: Corpus, absent: Mapping[str, object]) -> None:
        """The current generation is exactly this corpus, every generation verifies."""
        store = Store(path)
        with contextlib.closing(store.open(store.current())) as generation:
            count = generation.manifest.documents
            require(count == len(corpus), f"{store.current()} has {count} documents, not {len(corpus)}")
            located = generation.locate(list(corpus))
            require(located.found.all(), f"{store.current()} lacks documents")
            furthest = float(np.abs(generation.read(located) - self.embeddings(corpus)).max())
            require(furthest < 1e-5, f"{store.current()} has rows that are {furthest} from their documents'")
            gone = [id_ for id_ in absent if id_ not in corpus]
            require(not gone or not generation.locate(gone).found.any(), f"{store.current()} has what is deleted")
        problems = [str(problem) for _, problem in verify(store) if problem is not None]
        require(not problems, f"damage: {problems}")


def require_no_orphans(path: Path, *, builds: bool) -> None:
    """Every segment is named by a generation, nothing half made is left; builds to take up again may be."""
    store = Store(path)
    named = {one.id for name in store.generations() for one in store.manifest(name).segments}
    segments = {one.name for one in (path / SEGMENTS).iterdir()}
    require(segments == named, f"segments that nobody names: {segments - named}")
    left = [one.name for one in (path / BUILDING).iterdir() if not builds or one.name == "compaction"]
    left += [one.name for folder in (path, path / "generations") for one in folder.glob(".*")]
    require(not left, f"left behind: {left}")


def require_no_halves(path: Path) -> None:
    """Nothing is left of a change that failed, but rows that the next one reuses."""
    halves = [one.name for one in (path / BUILDING).rglob("*") if one.name in ("segment", "ordered.bin", "compaction")]
    require(not halves, f"left behind: {halves}")
    require_no_orphans(path, builds=True)
