"""Deltas from end to end: files or gRPC in, a running scorer that answers from them, an encoder that compacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder_server import documents
from encoder_server.refresh import Refresh
from store.store import Store
from tests.servers import refresh, running, twinbert, write_documents
from twinbert.bundle import Bundle
from twinbert.client import Deletion, Document, EncoderClient, Progress, ScorerClient, Status, Task
from twinbert.errors import RemoteError
from twinbert.runtime import Runtime

WORDS = ["red shoe", "blue boot", "green lamp", "glass table", "wood chair", "paper lamp"]
BASE = {f"d{number}": f"{WORDS[number % 6]} {number}" for number in range(60)}


@pytest.fixture
def store(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A store of BASE."""
    path = tmp_path / "store"
    refresh(tiny_bundle, path, write_documents(tmp_path / "base.jsonl", BASE))
    return path


def changed(encoder: EncoderClient, *changes: Document | Deletion) -> Progress:
    """What a delta over gRPC ends with."""
    *_, last = encoder.refresh(changes, delta=True)
    return last


def assert_scores(scorer: ScorerClient, runtime: Runtime, corpus: dict[str, str], absent: list[str]) -> str:
    """Every document scores as its own text does, the absent ones have no score, Retrieve finds all and no other."""
    reply = scorer.score(Task("red lamp", [*corpus, *absent]))
    result = reply.results[0]
    assert result.statuses.tolist() == [Status.OK] * len(corpus) + [Status.NOT_FOUND] * len(absent)
    exact = runtime.encode([*corpus.values()], "document")
    expected = runtime.cross(runtime.encode(["red lamp"]), exact, np.zeros(len(corpus), dtype=np.int64))
    np.testing.assert_allclose(result.scores[: len(corpus)], expected, atol=1e-5)
    hits = scorer.retrieve("red lamp", limit=100, generation=reply.generation).results[0]
    assert sorted(hits.documents) == sorted(corpus)
    of = dict(zip(hits.documents, hits.scores.tolist(), strict=True))
    np.testing.assert_allclose([of[id_] for id_ in corpus], expected, atol=1e-5)
    return reply.generation


def test_a_scorer_follows_deltas_compactions_and_rollbacks(tiny_bundle: Path, store: Path, runtime: Runtime) -> None:
    """A running scorer answers from what each delta changed, goes on so when the encoder merges segments, and follows a
    rollback across both; a request that names an earlier generation gets the old scores.
    """
    corpus = dict(BASE)
    options = ("--max-segments", "2")
    with (
        running("encoder", tiny_bundle, store, *options) as encoder_server,
        running("serve", tiny_bundle, store) as scorer_server,
        EncoderClient(encoder_server.address) as encoder,
        ScorerClient(scorer_server.address) as scorer,
    ):
        first = assert_scores(scorer, runtime, corpus, ["new"])
        last = changed(encoder, Document("d3", "a red paper shoe"), Document("new", "red lamp"), Deletion("d4"))
        assert (last.received, last.encoded, last.deleted, last.absent) == (3, 2, 1, 0)
        assert scorer_server.wait_for("generation_swapped")["new"] == last.generation
        corpus |= {"d3": "a red paper shoe", "new": "red lamp"}
        del corpus["d4"]
        assert assert_scores(scorer, runtime, corpus, ["d4"]) == last.generation

        assert changed(encoder, Deletion("d4"), Deletion("nowhere")).generation == last.generation
        last = changed(encoder, Document("d3", BASE["d3"]), Deletion("d59"))
        assert last.reused == 1
        event = encoder_server.wait_for("compacted")
        assert (event["segments"], event["before"]) == (2, last.generation)
        while scorer_server.wait_for("generation_swapped")["new"] != event["generation"]:
            pass
        corpus["d3"] = BASE["d3"]
        del corpus["d59"]
        assert assert_scores(scorer, runtime, corpus, ["d4", "d59"]) == event["generation"]
        metrics = encoder_server.metrics()
        assert metrics['twinbert_encoder_compactions_total{outcome="published"}'] == 1
        assert metrics['twinbert_encoder_documents_total{outcome="deleted"}'] == 4

        old = scorer.score(Task("red lamp", ["d3", "d4", "new"]), generation=first).results[0]
        assert old.statuses.tolist() == [Status.OK, Status.OK, Status.NOT_FOUND]
        assert twinbert("store", "rollback", first, "--store", str(store)).returncode == 0
        assert scorer_server.wait_for("generation_swapped")["new"] == first
        assert assert_scores(scorer, runtime, BASE, ["new"]) == first


def test_a_delta_of_another_model_is_refused(tiny_bundle: Path, other_bundle: Path, store: Path) -> None:
    """An encoder with a bundle of another fingerprint changes nothing, and names both."""
    before = Store(store).current()
    with running("encoder", other_bundle, store) as server, EncoderClient(server.address) as encoder:
        with pytest.raises(RemoteError) as refusal:
            changed(encoder, Document("d3", "a red paper shoe"))
        assert (refusal.value.code, refusal.value.reason) == ("FAILED_PRECONDITION", "FINGERPRINT_MISMATCH")
        for bundle in (tiny_bundle, other_bundle):
            assert Bundle.open(bundle).fingerprint in str(refusal.value)
        assert server.metrics()['twinbert_encoder_refreshes_total{outcome="failed"}'] == 1
    assert Store(store).current() == before


def rows(changes: list[dict[str, Any]], kind: str, folder: Path) -> Path:
    """Changes as a file."""
    path = folder / f"changes.{kind}"
    columns = ("id", "text", "deleted")
    if kind == "jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in changes))
    elif kind == "tsv":
        lines = ["\t".join(str(one.get(column, "")).replace("True", "true") for column in columns) for one in changes]
        path.write_text("\n".join(["\t".join(columns), *lines]))
    else:
        pq.write_table(pa.table({column: [one.get(column) for one in changes] for column in columns}), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "tsv", "parquet"])
def test_the_command(tiny_bundle: Path, store: Path, tmp_path: Path, runtime: Runtime, kind: str) -> None:
    """`twinbert refresh --delta` takes what changed from a file of each format, and says what it did."""
    changes = [{"id": "d1", "text": "red paper"}, {"id": "d2", "deleted": True}, {"id": "x", "deleted": True}]
    files = ("--bundle", str(tiny_bundle), "--store", str(store), "--documents", str(rows(changes, kind, tmp_path)))
    done = twinbert("refresh", "--delta", *files, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    counts = {name: result[name] for name in ("documents", "received", "encoded", "reused", "deleted", "absent")}
    assert counts == {"documents": 59, "received": 3, "encoded": 1, "reused": 0, "deleted": 2, "absent": 1}
    opened = Store(store)
    generation = opened.open(opened.current())
    located = generation.locate(["d1", "d2", "d3"])
    assert located.found.tolist() == [True, False, True]
    exact = runtime.encode(["red paper", BASE["d3"]], "document")
    np.testing.assert_allclose(generation.read(located), exact, atol=1e-5)
    generation.close()


def test_the_command_when_nothing_changed(tiny_bundle: Path, store: Path, tmp_path: Path) -> None:
    """An empty delta is done at once, exit code 0, and says so; `deleted` without --delta is rejected."""
    name = Store(store).current()
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    files = ("--bundle", str(tiny_bundle), "--store", str(store), "--documents", str(empty))
    done = twinbert("refresh", "--delta", *files, "--json")
    assert (done.returncode, json.loads(done.stdout)["generation"]) == (0, name)
    assert "unchanged" in [json.loads(line)["event"] for line in done.stderr.splitlines()]
    rows([{"id": "d1", "deleted": True}], "jsonl", tmp_path).rename(empty)
    done = twinbert("refresh", *files)
    assert done.returncode == 2
    assert "needs a delta refresh" in done.stderr.splitlines()[-1]


def test_many_deltas_are_noticed(tiny_bundle: Path, store: Path, tmp_path: Path, runtime: Runtime) -> None:
    """Where no encoder compacts, the command says when it is time to, and `store compact` does it."""
    opened = Store(store)
    for number in range(4):
        with Refresh(opened, runtime, delta=True) as one_more:
            one_more.add([documents.Document(f"d{number}", "red paper", None)])
            one_more.commit()
    path = rows([{"id": "d4", "text": "red paper"}], "jsonl", tmp_path)
    done = twinbert(
        "refresh", "--delta", *("--bundle", str(tiny_bundle), "--store", str(store), "--documents", str(path))
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["event"] == "notice"
    assert "6 segments, 8% of the rows dead: twinbert store compact" in last["message"]
    assert twinbert("store", "compact", "--store", str(store)).returncode == 0
    assert len(opened.manifest(opened.current()).segments) == 1
