"""The wall clock jumps by an hour, forwards and back, under a scorer: libfaketime reads the time of day from a file."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.corpora import texts
from faults.fault import Attempt, Fault, NotRunError, Tally, require
from store.format import CURRENT
from tests.servers import refresh, running, write_documents
from twinbert.client import ScorerClient, Task

_LIBRARY = "faketime/libfaketimeMT.so.1"
_PLACES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/local/lib")
_HOUR = 3600
_DOCUMENTS = 90


@contextmanager
def _prepared(folder: Path, bundle: Path) -> Iterator[Attempt]:
    library = _library()
    store, clock = folder / "store", folder / "clock"
    names = [
        refresh(bundle, store, write_documents(folder / "documents.jsonl", texts(version, _DOCUMENTS)))
        for version in range(2)
    ]
    (store / CURRENT).write_text(f"{names[0]}\n")
    clock.write_text("+0\n")
    faked = {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    # A jump of the wall clock does not move the monotonic one.
    faked |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    with _environment(faked), running("serve", bundle, store) as server, ScorerClient(server.address) as client:
        (store / CURRENT).write_text(f"{names[1]}\n")
        server.wait_for("generation_swapped")

        def attempt(seed: int) -> Tally:
            """A jump; then whatever depends on the time of day must be as before, or clamped."""
            chance = random.Random(seed)
            offset = chance.choice((-1, 1)) * chance.uniform(0.9, 1.0) * _HOUR
            clock.write_text(f"{offset:+.0f}\n")
            metrics = server.metrics()
            shown = metrics["twinbert_generation_age_seconds"]
            real = time.time() - metrics["twinbert_generation_created_timestamp_seconds"]
            require(shown >= 0, f"the generation is {shown:.0f} s old")
            require(abs(shown - max(0.0, real + offset)) < 60, f"the jump of {offset:.0f} s was not seen: {shown:.0f}")
            for name in names:
                reply = client.score(Task("pizza", ["d1", "d2"]), generation=name, timeout=5.0)
                require(reply.results[0].found.all(), f"{name} lost documents")
            after = server.metrics()
            require(after["twinbert_generations_held"] == 2, "a generation expired")
            ages = after["twinbert_document_age_seconds_sum"] - metrics["twinbert_document_age_seconds_sum"]
            count = 2 * len(names)
            require(0 <= ages <= count * (real + _HOUR + 60), f"ages add up to {ages:.0f} s")
            return Tally({f"{'back' if offset < 0 else 'forwards'}: nothing expired, ages in range": 1})

        yield attempt


def _library() -> str:
    places = (os.environ.get("FAKETIME_LIBRARY", ""), *(f"{place}/{_LIBRARY}" for place in _PLACES))
    found = next((place for place in places if place and Path(place).is_file()), None)
    if found is None:
        raise NotRunError("libfaketime is not installed (Debian: libfaketime); FAKETIME_LIBRARY may name it")
    return found


@contextmanager
def _environment(added: dict[str, str]) -> Iterator[None]:
    """Variables for the processes that are started here; this one has read its own already."""
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


CLOCK = Fault(
    name="clock",
    title="The clock jumps by an hour, forwards and back",
    promise="no mass expiry; ages clamp",
    unit="jumps",
    wanted=1000,
    quick=20,
    prepare=_prepared,
)
