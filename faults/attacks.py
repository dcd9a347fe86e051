"""Slow and hostile clients beside an honest one, whose p99 is watched, quiet and under attack in turn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from faults.attackers import KINDS
from faults.corpora import texts
from faults.fault import Attempt, Fault, Tally, require
from faults.load import Caller, calling, require_ok
from faults.serving import Vitals
from tests.servers import Server, refresh, running, write_documents
from twinbert.v1 import scorer_pb2 as pb

_SECONDS = 1.0
_MOST_MB = 128.0
_RATIO = 2.0
_ENOUGH = 5  # attempts with one kind, for a median
# A p99 is the worst few calls of a second, which on shared cores can take several times as long by chance; of a server
# that an attack holds up it is a hundred times as long.
_EVER = 20.0


@contextmanager
def attempts(folder: Path, bundle: Path, *, ever: float = _EVER) -> Iterator[Attempt]:
    """Attempts with each kind in turn, none of which makes the p99 more than `ever` times the quiet one."""
    store = folder / "store"
    refresh(bundle, store, write_documents(folder / "documents.jsonl", texts(0, 90)))
    ids = [f"d{number}" for number in range(50)]
    request = pb.ScoreRequest(tasks=[pb.ScoreTask(query="pizza", document_ids=ids)]).SerializeToString()
    with running("serve", bundle, store) as server, calling(server.address) as caller:
        caller.run(caller.closed(lambda: request, 1, _SECONDS))
        vitals, ratios = Vitals(server), {kind: list[float]() for kind in KINDS}
        vitals.read(0.0)

        def attempt(seed: int) -> Tally:
            """A second of quiet, and a second under an attack of the kind whose turn it is."""
            kind = [*KINDS][seed % len(KINDS)]
            quiet = _p99(caller, request)
            with _attacking(kind, server, seed) as acts:
                attacked = _p99(caller, request)
            vitals.read(float(seed))
            grown = vitals.readings[-1][1] - vitals.readings[0][1]
            require(grown < _MOST_MB, f"{kind}: it takes {grown:.0f} MB more than before")
            ratio, some = attacked / quiet, ratios[kind]
            require(ratio <= ever, f"{kind}: p99 is {1e3 * attacked:.1f} ms, {ratio:.0f} times the quiet one")
            some.append(ratio)
            middle = float(np.median(some))
            require(len(some) < _ENOUGH or middle <= _RATIO, f"{kind}: p99 is {middle:.1f} times the quiet one: {some}")
            figures = {f"{kind}: honest p99, of the quiet one": middle, "RSS more than at first, MB": grown}
            return Tally({kind: acts[0]}, done=acts[0], figures=figures)

        yield attempt


def _p99(caller: Caller, request: bytes) -> float:
    answers = caller.run(caller.closed(lambda: request, 1, _SECONDS))
    require_ok(answers)
    return float(np.percentile([one.seconds for one in answers], 99))


@contextmanager
def _attacking(kind: str, server: Server, seed: int) -> Iterator[list[int]]:
    """Attackers at work; afterwards the list holds how many acts there were."""
    words = [sys.executable, "-m", "faults.attackers", kind, server.address, str(seed)]
    acts: list[int] = []
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # its imports are no attack
        yield acts
        told, _ = process.communicate()
    require(process.returncode == 0, "the attacker failed")
    acts.append(int(told))


ATTACKS = Fault(
    name="attacks",
    title="Slow-loris: silent connections, header-only calls, reset floods, oversize and malformed frames",
    promise="honest p99 within twice the quiet one, whatever the kind; memory bounded",
    unit="acts in one run",
    wanted=10_000,
    quick=1000,
    one_run=True,  # only with several attempts of a kind is there a median to judge
    prepare=attempts,
)
