"""Texts to learn from: on disk, more than fit into memory, read by position; and parts of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt


def spans(documents: Iterable[str], each: int, *, seed: int) -> Iterator[str]:
    """Stand-ins for queries, of which there are never enough: runs of 1 to 4 successive words of documents.

    Args:
        documents: a stream.
        each: of one document.
        seed: of their places.
    """
    generator = np.random.default_rng(seed)
    for document in documents:
        words = document.split()
        for length, place in zip(generator.integers(1, 5, each), generator.random(each), strict=True):
            start = int(place * max(1, len(words) - length + 1))
            yield " ".join(words[start : start + length])


class TextFile(Sequence[str]):
    """Texts on disk, in any number: read by position through a memory map, 8 bytes of memory a text.

    Args:
        path: of the texts, that `write` made.
    """

    def __init__(self, path: Path) -> None:
        self._ends = np.load(_ends_path(path), mmap_mode="r")
        self._bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)

    @classmethod
    def write(cls, path: Path, texts: Iterable[str]) -> TextFile:
        """Writes a stream of texts; what is there is replaced, and stays whole for those who have it open."""
        path.parent.mkdir(parents=True, exist_ok=True)
        ends, end = array("q"), 0
        building = path.with_name(f".{path.name}.building")
        with building.open("wb") as file:
            for text in texts:
                content = text.encode()
                end += len(content)
                file.write(content)
                ends.append(end)
        building_ends = path.with_name(f".{path.name}.ends.npy")
        np.save(building_ends, np.array(ends, dtype=np.int64))
        building.rename(path)
        building_ends.rename(_ends_path(path))
        return cls(path)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each text: about as its tokens are many."""
        sizes: npt.NDArray[np.int64] = np.diff(self._ends, prepend=0)
        return sizes

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return bytes(self._bytes[start : int(self._ends[index])]).decode()


def _ends_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.ends.npy")
