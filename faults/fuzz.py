"""Anything for input: messages, manifests, bundles and documents, made of recorded ones, changed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc

from faults.corpora import texts
from faults.fault import Attempt, Fault, Tally, require
from faults.inputs import messages
from faults.inputs.reader import reading
from faults.inputs.recorder import DESCRIBE, ENCODE, REFRESH, RETRIEVE, SCORE, Calls, record_encoder, record_scorer
from faults.load import Caller, calling
from store.maintenance import gc
from store.store import Store
from tests.servers import Server, refresh, running, write_documents

# Inputs an attempt: a stream of Refresh writes to the disk, and the others go at thousands a second.
_SCORES, _GENERATED, _RETRIEVALS, _DESCRIPTIONS, _ENCODES, _REFRESHES = 500, 50, 200, 100, 300, 4


@contextmanager
def _prepared(folder: Path, bundle: Path) -> Iterator[Attempt]:
    store, refreshed = folder / "store", folder / "refreshed"
    refresh(bundle, store, write_documents(folder / "documents.jsonl", texts(0, 90)))
    refresh(bundle, store, write_documents(folder / "delta.jsonl", texts(1, 9, first=85)), "--delta")
    with (
        reading(folder / "files", bundle, store) as reader,
        running("serve", bundle, store) as scorer,
        running("encoder", bundle, refreshed) as encoder,
        calling(scorer.address, connections=4) as to_scorer,
        calling(encoder.address, connections=2) as to_encoder,
        grpc.insecure_channel(encoder.address) as streams,
    ):
        calls = {**record_scorer(scorer.address), **record_encoder(encoder.address)}

        def attempt(seed: int) -> Tally:
            """Some hundred inputs of each kind; the files are read meanwhile."""
            reader.begin(seed)
            chance = random.Random(seed)
            outcomes = _asked(to_scorer, calls, chance)
            outcomes += to_scorer.run(messages.ask(to_scorer, SCORE, messages.generated(seed, _GENERATED)))
            encodes = messages.mutate(calls, ENCODE, chance, _ENCODES)
            outcomes += to_encoder.run(messages.ask(to_encoder, ENCODE, encodes))
            outcomes += messages.refresh(streams, calls[REFRESH], chance, _REFRESHES)
            gc(Store(refreshed), keep=2)
            outcomes.update(reader.outcomes())
            _require_sound(scorer)
            _require_sound(encoder)
            return Tally(outcomes, done=outcomes.total())

        yield attempt


def _asked(scorer: Caller, calls: Mapping[str, Calls], chance: random.Random) -> Counter[str]:
    outcomes = Counter[str]()
    for method, count in ((SCORE, _SCORES), (RETRIEVE, _RETRIEVALS), (DESCRIBE, _DESCRIPTIONS)):
        outcomes += scorer.run(messages.ask(scorer, method, messages.mutate(calls, method, chance, count)))
    return outcomes


def _require_sound(server: Server) -> None:
    require(server.process.poll() is None, "a server is gone")
    bugs = [event for event in server.log if event["event"] in ("rpc_failed", "")]
    require(not bugs, f"a server's log has {bugs[:1]}")


FUZZ = Fault(
    name="fuzz",
    title="Fuzzed messages of every method, manifests, bundles with their tokenizers and graphs, and document files",
    promise="the right status, no trace in it, no crash",
    unit="inputs",
    wanted=1_000_000,
    quick=4000,
    prepare=_prepared,
)
