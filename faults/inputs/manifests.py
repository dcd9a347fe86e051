"""Manifests under the names that belong to them, as a writer with a fault or somebody who means harm would leave them:
only what they say is wrong. What opens is looked up in and read to its end.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from contextlib import closing

import numpy as np

from faults.fault import require
from faults.inputs.mutation import altered_json
from store.errors import CorruptError, FormatError
from store.format import GENERATIONS, generation_name
from store.reader import Generation
from store.store import Store

_NUMBER = 7
_SURE = 200  # inputs, of which some are sure to open


def read_manifests(store: Store, chance: random.Random, count: int) -> Counter[str]:
    """Opens generations of mutated manifests of a store, whose own stays as it is."""
    outcomes = Counter[str]()
    good = (store.path / GENERATIONS / f"{store.current()}.json").read_bytes()
    seed = store.manifest(store.current()).seed
    for _ in range(count):
        content = altered_json(good, chance)
        name = generation_name(_number(content), hashlib.sha256(content).hexdigest())
        path = store.path / GENERATIONS / f"{name}.json"
        if content == good:
            continue
        path.write_bytes(content)
        try:
            with closing(store.open(name)) as generation:
                _look_up(generation, seed)
            outcomes["manifest: opened, looked up and read"] += 1
        except (CorruptError, FormatError) as error:
            outcomes[f"manifest: {type(error).__name__}"] += 1
        finally:
            path.unlink()
    opened = outcomes["manifest: opened, looked up and read"]
    require(opened or count < _SURE, "no manifest opened: whatever reads them further down was not tried")
    return outcomes


def _number(content: bytes) -> int:
    """What the name of these bytes begins with: the number that they state, if it is one."""
    try:
        number = json.loads(content)["number"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return _NUMBER
    return number if type(number) is int and number >= 0 else _NUMBER


def _look_up(generation: Generation, seed: int) -> None:
    """Whatever a scorer reads of a generation, and that it fits together; `seed` is the one of its keys."""
    generation.warm()
    ids = [f"d{number}" for number in range(100)]
    located = generation.locate(ids)
    embeddings_FD, times_F = generation.read(located), generation.times(located)
    require(len(embeddings_FD) == len(times_F) == np.count_nonzero(located.found), "rows that are not those found")
    found = [id_ for id_, there in zip(ids, located.found, strict=True) if there]
    # Under another seed nothing says that a key is another id's: xxh3 gives ids of up to 3 bytes each other's keys.
    right = generation.ids(located.rows) == found
    require(right or generation.manifest.seed != seed, "rows of other documents than were asked for")
    require(not generation.deleted(found).any(), "documents that are there and deleted")
    scanned = sum(len(rows_R) for rows_R, _ in generation.scan(16))
    require(scanned == generation.manifest.documents, f"{scanned} documents, not {generation.manifest.documents}")
