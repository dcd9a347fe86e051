"""A scorer with an int8 query tower, over gRPC: scores that no company changes, and which engine serves."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from scorer_server.bundles import OneBundle
from scorer_server.settings import Settings
from store.store import Store
from tests.servers import refresh, running, twinbert, write_documents
from twinbert.bundle import Bundle
from twinbert.quantize import quantize
from twinbert.samples import DOCUMENTS
from twinbert.tuning import Choice, best, keep, kept, measure
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1 import scorer_pb2_grpc

IDS = [f"d{number}" for number in range(len(DOCUMENTS))]
WORDS = " ".join(DOCUMENTS[:4]).lower().split()
QUERIES = [" ".join(WORDS[start : start + length]) for start in range(6) for length in (1, 2, 4, 7, 12)]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny_bundle` with an int8 query tower."""
    return quantize(Bundle.open(tiny_bundle), tmp_path_factory.mktemp("int8") / "bundle")


@pytest.fixture(scope="module")
def store(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A generation made with the bundle that has no int8 query tower."""
    folder = tmp_path_factory.mktemp("engines")
    refresh(
        tiny_bundle,
        folder / "store",
        write_documents(folder / "documents.jsonl", dict(zip(IDS, DOCUMENTS, strict=True))),
    )
    return folder / "store"


def scores(stub: scorer_pb2_grpc.ScorerServiceStub, *queries: str) -> list[bytes]:
    """Of each query the bits of its scores."""
    response = stub.Score(pb.ScoreRequest(tasks=[pb.ScoreTask(query=query, document_ids=IDS) for query in queries]))
    assert all(status == pb.DOCUMENT_STATUS_OK for result in response.results for status in result.statuses)
    return [result.SerializeToString() for result in response.results]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_an_int8_score_does_not_depend_on_its_company(bundle: Bundle, store: Path, threads: str) -> None:
    """A query's scores have the same bits alone, among others in a request, and among other requests at the time."""
    options = ("--engine", "int8", "--threads", threads, "--engines", "2", "--cache-bytes", "0")
    with running("serve", bundle.path, store, *options) as server, grpc.insecure_channel(server.address) as channel:
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        alone = {query: scores(stub, query)[0] for query in QUERIES}
        assert len(set(alone.values())) > len(QUERIES) / 2
        assert scores(stub, *QUERIES) == [*alone.values()]
        assert scores(stub, *QUERIES[::-1]) == [*alone.values()][::-1]
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            for query, found in pool.map(lambda query: (query, scores(stub, query)), QUERIES * 6):
                assert found == [alone[query]]
        assert any('engine="int8"' in series for series in server.metrics())
        [opened] = [event for event in server.log if event["event"] == "bundle_opened"]
        assert (opened["engine"], opened["threads"], opened["why"]) == ("int8", int(threads), "set")


def test_auto_serves_what_was_kept_for_this_host(bundle: Bundle, store: Path, tmp_path: Path) -> None:
    """`bundle tune` keeps a choice that `serve` takes; a stale one, or none, is float32, and the log says why."""
    tuned = twinbert("bundle", "tune", str(bundle.path), "--threads", "1", "--json", XDG_STATE_HOME=str(tmp_path))
    assert tuned.returncode == 0, tuned.stderr
    said = json.loads(tuned.stdout)
    file = tmp_path / "twinbert" / f"{bundle.model}.json"
    assert said["kept"] == str(file)
    assert [(timing["choice"]["engine"], timing["choice"]["threads"]) for timing in said["timings"]] == [
        ("float32", 1),
        ("int8", 1),
    ]
    assert all(timing["alone_s"] > 0 and timing["rate"] > 0 for timing in said["timings"])
    keep(bundle, Choice(engine="int8", threads=2), file.parent)
    with running("serve", bundle.path, store, "--tuning", str(file.parent)) as server:
        [opened] = [event for event in server.log if event["event"] == "bundle_opened"]
        assert (opened["engine"], opened["threads"], opened["why"]) == ("int8", 2, str(file))
    content = json.loads(file.read_text())
    content["made_on"]["processor"] = "another"
    file.write_text(json.dumps(content))
    opened_store = Store(store)
    manifest = opened_store.manifest(opened_store.current())
    for folder, why in ((file.parent, "no longer holds: processor is"), (tmp_path / "empty", "No such file")):
        runtime = OneBundle(bundle.path, Settings(engine="auto", tuning=folder)).runtime(manifest)
        assert runtime.engine == "float32"
        assert why in kept(bundle, folder)[1]


def test_a_broken_choice_does_not_stop_serving(tiny_bundle: Path, store: Path, tmp_path: Path) -> None:
    """A file that a full disk cut short is reported as the server starts, and scores are given in float32."""
    file = keep(Bundle.open(tiny_bundle), Choice(engine="float32", threads=2), tmp_path)
    file.write_text(file.read_text()[:20])
    with running("serve", tiny_bundle, store, "--tuning", str(tmp_path)) as server:
        [opened] = [event for event in server.log if event["event"] == "bundle_opened"]
        assert (opened["engine"], opened["threads"]) == ("float32", 1)
        assert f"{file}: is not JSON" in opened["why"]
        with grpc.insecure_channel(server.address) as channel:
            assert scores(scorer_pb2_grpc.ScorerServiceStub(channel), "red shoes")


def test_the_best_is_fast_under_load_and_then_alone(bundle: Bundle) -> None:
    """Of what encodes as much as any, the one that answers one query soonest; every engine and count is timed."""
    timings = measure(bundle, ["red shoes"], threads=(1, 2), callers=2, rounds=1, seconds=0.01)
    assert {(one.choice.engine, one.choice.threads) for one in timings} == {
        (engine, threads) for engine in ("float32", "int8") for threads in (1, 2)
    }
    slow, quick, weak = (
        type(timings[0])(choice=Choice(engine="int8", threads=threads), alone_s=alone_s, rate=rate)
        for threads, alone_s, rate in ((1, 0.003, 1000.0), (2, 0.002, 960.0), (4, 0.001, 900.0))
    )
    assert best([slow, quick, weak]) == quick.choice
