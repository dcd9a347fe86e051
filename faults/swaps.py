"""A scorer that is swapped every second under load, from one corpus to another in which every text is another."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from encoder_server.documents import Document
from encoder_server.refresh import Refresh
from faults.corpora import Corpus, Judge
from faults.fault import Attempt, Fault, Tally, require
from faults.load import Caller, calling, require_ok
from faults.serving import Vitals
from store.maintenance import gc
from store.store import Store
from tests.servers import running
from twinbert.runtime import Floats
from twinbert.v1 import scorer_pb2 as pb

_DOCUMENTS = 60
_CANDIDATES = 10
_QUERIES = ("pizza", "running shoes", "read a csv file", "remove duplicates of a list")
_CALLERS = 8
_SECONDS = 1.0
_ENOUGH_READINGS = 80


@contextmanager
def _prepared(folder: Path, bundle: Path) -> Iterator[Attempt]:
    corpora = [{f"d{n}": f"{word} {n}" for n in range(_DOCUMENTS)} for word in ("red shoes of", "remove the list")]
    publisher = _Publisher(folder / "store", Judge(bundle), corpora)
    publisher.publish()
    # Nothing is held, so that what is superseded has to be closed.
    holding = ("--hold-generations", "0", "--hold-seconds", "0")
    with running("serve", bundle, folder / "store", *holding) as server, calling(server.address) as caller:
        vitals = Vitals(server)

        def attempt(seed: int) -> Tally:
            """A second of load, in which one generation is published."""
            tally = publisher.swap_under(caller, seed)
            vitals.read(time.monotonic())
            if len(vitals.readings) >= _ENOUGH_READINGS:
                memory, descriptors, mappings = vitals.growth()
                grown = f"{memory:.0f} MB, {descriptors:.0f} descriptors, {mappings:.0f} mappings"
                require(memory < 16 and descriptors < 4 and mappings < 8, f"it has grown by {grown}")
            return Tally(tally, done=tally["calls answered from one generation"], figures=vitals.slopes())

        yield attempt


class _Publisher:
    """Publishes the corpora in turn, and knows what each scores."""

    def __init__(self, path: Path, judge: Judge, corpora: Sequence[Corpus]) -> None:
        self._store, self._judge, self._corpora = Store(path), judge, corpora
        self._published: list[str] = []
        self._pool = ThreadPoolExecutor(1)

    def publish(self) -> None:
        """The corpus whose turn it is."""
        corpus = self._corpora[len(self._published) % 2]
        with Refresh(self._store, self._judge.runtime, workers=1) as refresh:
            refresh.add(Document(id_, text, None) for id_, text in corpus.items())
            self._published.append(refresh.commit())
        gc(self._store, keep=1)

    def swap_under(self, caller: Caller, seed: int) -> Counter[str]:
        """Calls for a second, while the next corpus is published; every response is held against its generation's."""
        chance = random.Random(seed)
        query = chance.choice(_QUERIES)
        ids = chance.sample(sorted(self._corpora[0]), _CANDIDATES)
        request = pb.ScoreRequest(tasks=[pb.ScoreTask(query=query, document_ids=ids)]).SerializeToString()
        publishing = self._pool.submit(self.publish)
        answers = caller.run(caller.closed(lambda: request, _CALLERS, _SECONDS))
        publishing.result()
        require_ok(answers)
        expected = [self._scores(corpus, query, ids) for corpus in self._corpora]
        seen = {
            (response.generation, np.array(response.results[0].scores, np.float32).tobytes())
            for response in (pb.ScoreResponse.FromString(answer.response) for answer in answers)
        }
        for generation, scores in seen:
            right = expected[self._published.index(generation) % 2]
            furthest = float(np.abs(np.frombuffer(scores, np.float32) - right).max())
            require(furthest < 1e-5, f"a response that says {generation} has scores that are not: {furthest} away")
        counts = Counter({"calls answered from one generation": len(answers), "generations published": 1})
        counts["generations seen"] = len({generation for generation, _ in seen})
        return counts

    def _scores(self, corpus: Corpus, query: str, ids: list[str]) -> Floats:
        documents_ND = self._judge.embeddings({id_: corpus[id_] for id_ in ids})
        queries_QD = self._judge.runtime.encode([query], "query")
        return self._judge.runtime.cross(queries_QD, documents_ND, np.zeros(len(ids), np.int64))


SWAPS = Fault(
    name="swaps",
    title="A hot swap every second under load",
    promise="no failed RPC; one generation a response; RSS, descriptors and mappings flat",
    unit="RPCs",
    wanted=1_000_000,
    quick=2000,
    prepare=_prepared,
)
