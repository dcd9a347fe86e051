"""Scorers that faults meet: what they serve, what they are asked, and what they use."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from demo.corpus import write_corpus
from faults.corpora import Corpus
from faults.fault import NotRunError
from tests.servers import Server, refresh
from twinbert.errors import TwinbertError
from twinbert.importing import import_bundle
from twinbert.v1 import scorer_pb2 as pb

_WORDS = ("read", "file", "list", "csv", "shoe", "run", "remove", "parse", "time", "red", "json", "sort", "http")
SLOPED = 15  # readings; a line through fewer says nothing

_DEMO = Path(__file__).resolve().parent.parent / ".demo"


def minilm() -> Path:
    """The bundle of `make demo`, made if it is not there.

    Raises:
        NotRunError: the package with its weights is not installed.
    """
    bundle = _DEMO / "bundle"
    if not (bundle / "bundle.json").exists():
        _DEMO.mkdir(exist_ok=True)
        try:
            import_bundle("all-minilm-l6-v2", bundle)
        except TwinbertError as error:
            raise NotRunError(f"the MiniLM bundle cannot be made: {error}") from error
    return bundle


@dataclass(frozen=True, slots=True)
class Stored:
    """A bundle, a store that was made with it, and the documents in it."""

    bundle: Path
    store: Path
    documents: Corpus

    def requests(
        self, chance: random.Random, *, count: int, queries: int, candidates: int, most_words: int = 4
    ) -> list[bytes]:
        """Score requests with random queries and candidates, as bytes."""
        ids = [*self.documents]
        return [
            pb.ScoreRequest(
                tasks=[
                    pb.ScoreTask(
                        query=words(chance, most_words // 2, most_words),
                        document_ids=chance.sample(ids, candidates),
                    )
                    for _ in range(queries)
                ]
            ).SerializeToString()
            for _ in range(count)
        ]


def minilm_stored(folder: Path, documents: int) -> Stored:
    """A store of so many documents of the demo's corpus, by MiniLM."""
    whole, corpus, store = folder / "whole.jsonl", folder / "corpus.jsonl", folder / "store"
    write_corpus(whole)
    lines = random.Random(0).sample(whole.read_text().splitlines(), documents)
    corpus.write_text("\n".join(lines) + "\n")
    refresh(minilm(), store, corpus)
    return Stored(minilm(), store, {fields["id"]: fields["text"] for fields in map(json.loads, lines)})


def words(chance: random.Random, least: int, most: int) -> str:
    """So many words; hardly ever the same twice."""
    return " ".join(f"{chance.choice(_WORDS)}{chance.randrange(100)}" for _ in range(chance.randint(least, most)))


def hourly(seconds: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> float:
    """By how much values grow in an hour: the slope of the line through them."""
    return 3600 * float(np.polyfit(seconds, values, 1)[0])


@dataclass(slots=True)
class Vitals:
    """What a server uses, read again and again: memory in MB, descriptors, mappings.

    Args:
        server: the server.
    """

    server: Server
    readings: list[tuple[float, float, float, float]] = field(default_factory=list)

    def read(self, at: float) -> None:
        """Reads them, at a moment in seconds."""
        process = Path(f"/proc/{self.server.process.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        memory = int(status["VmRSS"].split()[0]) / 1024
        descriptors = len([*(process / "fd").iterdir()])
        mappings = len((process / "maps").read_text().splitlines())
        self.readings.append((at, memory, float(descriptors), float(mappings)))

    def slopes(self) -> dict[str, float]:
        """By the hour, over the second half of the readings: until then caches and pools fill."""
        later = np.array(self.readings[len(self.readings) // 2 :])
        names = ("RSS, MB an hour", "descriptors an hour", "mappings an hour")
        if len(later) < SLOPED:
            return {}
        slopes = {name: hourly(later[:, 0], later[:, place]) for place, name in enumerate(names, 1)}
        return slopes | {"RSS at the end, MB": self.readings[-1][1]}

    def growth(self) -> tuple[float, float, float]:
        """By how much the last quarter's median is over the second one's."""
        quarter = len(self.readings) // 4
        early, late = self.readings[quarter : 2 * quarter], self.readings[-quarter:]
        medians = np.median(np.array(late), axis=0) - np.median(np.array(early), axis=0)
        return float(medians[1]), float(medians[2]), float(medians[3])
