"""Anything for input: requests, manifests, bundles and documents, made of recorded ones, changed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from encoder_server.documents import DocumentSource
from faults.corpora import texts
from faults.fault import Attempt, Fault, Tally, require
from faults.load import Caller, calling
from store.errors import StoreError
from store.format import GENERATIONS, generation_name
from store.store import Store
from tests.servers import Server, refresh, running, write_documents
from twinbert.bundle import BUNDLE_JSON, Bundle
from twinbert.errors import BundleError, UsageError
from twinbert.v1 import scorer_pb2 as pb

_EACH = 250  # inputs of a kind in an attempt; of bundles a tenth, since opening one reads it

_LONG_S = 120.0  # only a hang takes this long

_ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1 << 31, 1 << 63, 1 << 64, 10**30, 0.5, float("inf"), float("nan")),
    *("", "a", "..", "../../etc/passwd", "\0", "\ud800", "é" * 300, "9" * 5000, [], {}, [[]], [None], {"a": []}),
)

Mutate = Callable[[random.Random], bytes]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, removed, repeated, inserted, or exchanged for telling ones."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place, length = chance.randrange(len(changed) + 1), chance.choice((1, 1, 2, 4, 8, 64))
        match chance.randrange(6):
            case 0 if place < len(changed):
                changed[place] ^= 1 << chance.randrange(8)
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = changed[place : place + length]
            case 3:
                changed[place:place] = chance.randbytes(length)
            case 4:
                changed[place : place + length] = chance.choice(
                    (b"\xff" * 10, b"\0", b"\x80", b'"', b"\n", b"{", b"\t")
                )
            case _:
                del changed[place:]
    return bytes(changed)


def altered(fields: Any, chance: random.Random) -> Any:  # noqa: ANN401 - JSON
    """JSON with one value, somewhere in it, exchanged, removed or doubled."""
    if isinstance(fields, dict) and fields and chance.random() < 0.9:
        key = chance.choice([*fields])
        match chance.randrange(8):
            case 0:
                return {name: value for name, value in fields.items() if name != key}
            case 1:
                return fields | {chance.choice(("", "extra", key.upper())): fields[key]}
            case _:
                return fields | {key: altered(fields[key], chance)}
    if isinstance(fields, list) and fields and chance.random() < 0.9:
        place = chance.randrange(len(fields))
        return [*fields[:place], altered(fields[place], chance), *fields[place + chance.randrange(2) :]]
    return chance.choice(_VALUES)


@contextmanager
def _prepared(folder: Path, bundle: Path) -> Iterator[Attempt]:
    store = folder / "store"
    documents = write_documents(folder / "documents.jsonl", texts(0, 90))
    refresh(bundle, store, documents)
    copied = Path(shutil.copytree(bundle, folder / "bundle"))
    files = {"jsonl": documents.read_bytes()[:2000], "tsv": b"id\ttext\ttime\n" + b"d1\tred shoes\t2026-01-01\n" * 9}
    with running("serve", bundle, store) as server, calling(server.address, connections=4) as caller:

        def attempt(seed: int) -> Tally:
            """A few hundred inputs of each kind."""
            chance = random.Random(seed)
            outcomes = Counter[str]()
            outcomes += caller.run(_requests(caller, [_request(chance) for _ in range(_EACH)]))
            outcomes += caller.run(_requests(caller, _generated(seed)))
            outcomes += _manifests(Store(store), chance)
            outcomes += _bundles(copied, chance)
            outcomes += _documents(folder / "fuzzed", files, chance)
            _require_sound(server)
            return Tally(outcomes, done=outcomes.total())

        yield attempt


def _request(chance: random.Random) -> bytes:
    ids = [f"d{chance.randrange(100)}" for _ in range(chance.randrange(1, 20))]
    tasks = [pb.ScoreTask(query="red shoes", document_ids=ids) for _ in range(chance.randrange(1, 4))]
    return mutated(pb.ScoreRequest(tasks=tasks, crossing=pb.CROSSING_COSINE).SerializeToString(), chance)


def _generated(seed: int) -> list[bytes]:
    """Well-formed requests with whatever values their fields can have."""
    made: list[bytes] = []
    task = st.builds(
        pb.ScoreTask,
        query=st.text(max_size=40),
        document_ids=st.lists(st.text(max_size=20), max_size=5),
        document_numbers=st.lists(st.integers(0, (1 << 64) - 1), max_size=2),
    )
    request = st.builds(
        pb.ScoreRequest,
        tasks=st.lists(task, max_size=4),
        generation=st.sampled_from(["", "", "000001-00000000", "../x"]) | st.text(max_size=30),
        crossing=st.integers(0, 5),
        allow_partial=st.booleans(),
    )

    @seeded(seed)
    @settings(
        max_examples=_EACH // 5,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(request)
    def make(one: pb.ScoreRequest) -> None:
        made.append(one.SerializeToString())

    make()
    return made


async def _requests(caller: Caller, contents: list[bytes]) -> Counter[str]:
    outcomes = Counter[str]()
    for answer in await asyncio.gather(*(caller.answer(content, _LONG_S) for content in contents)):
        message = answer.details.message if answer.details else ""
        require(answer.code in _ALLOWED, f"a request ended as {answer.code.name}: {message}")
        require("Traceback" not in message and ".py" not in message, f"a trace in a status: {message}")
        outcomes[f"request: {answer.code.name}"] += 1
    return outcomes


def _require_sound(server: Server) -> None:
    require(server.process.poll() is None, "the server is gone")
    bugs = [event for event in server.log if event["event"] in ("rpc_failed", "")]
    require(not bugs, f"the server's log has {bugs[:1]}")


def _manifests(store: Store, chance: random.Random) -> Counter[str]:
    """Under names that fit their bytes, as a writer with a fault would leave them."""
    outcomes = Counter[str]()
    good = (store.path / GENERATIONS / f"{store.current()}.json").read_bytes()
    for _ in range(_EACH):
        content = _json(good, chance)
        name = generation_name(7, hashlib.sha256(content).hexdigest())
        path = store.path / GENERATIONS / f"{name}.json"
        path.write_bytes(content)
        try:
            store.open(name).close()
            outcomes["manifest: opened"] += 1
        except StoreError as error:
            outcomes[f"manifest: {type(error).__name__}"] += 1
        path.unlink()
    return outcomes


def _json(good: bytes, chance: random.Random) -> bytes:
    """With a value changed, written as it should be; or with bytes changed."""
    if chance.random() < 0.3:
        return mutated(good, chance)
    content = json.dumps(altered(json.loads(good), chance), indent=1, sort_keys=True, ensure_ascii=False)
    return content.encode(errors="surrogatepass") + b"\n"


def _bundles(bundle: Path, chance: random.Random) -> Counter[str]:
    outcomes = Counter[str]()
    file = bundle / BUNDLE_JSON
    good = file.read_bytes()
    for _ in range(_EACH // 10):
        file.write_bytes(_json(good, chance))
        try:
            Bundle.open(bundle)
            outcomes["bundle: opened"] += 1
        except BundleError:
            outcomes["bundle: BundleError"] += 1
    file.write_bytes(good)
    return outcomes


def _documents(path: Path, files: Mapping[str, bytes], chance: random.Random) -> Counter[str]:
    outcomes = Counter[str]()
    for _ in range(_EACH):
        kind = chance.choice([*files])
        path.write_bytes(mutated(files[kind], chance))
        try:
            deque(DocumentSource(path=path, format=kind, delta=chance.random() < 0.5), maxlen=0)
            outcomes["documents: read, bad ones rejected"] += 1
        except UsageError:
            outcomes["documents: UsageError"] += 1
    return outcomes


FUZZ = Fault(
    name="fuzz",
    title="Fuzzed requests, manifests, bundles and document files",
    promise="the right status, no trace in it, no crash",
    unit="inputs",
    wanted=1_000_000,
    quick=2000,
    prepare=_prepared,
)
