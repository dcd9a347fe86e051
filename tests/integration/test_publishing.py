"""New models and new generations under a running scorer, as processes: what is served, refused, recorded, replayed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.bundles import constant, retrained, shuffled, variant
from tests.servers import Server, refresh, running, twinbert, write_documents
from twinbert.bundle import TOWERS, Bundle
from twinbert.client import Document, EncoderClient, ScorerClient, Task
from twinbert.errors import RemoteError
from twinbert.runtime import Runtime

WORDS = "red blue green small large shoe boot table chair lamp paper glass metal wood for with and without".split()
TEXTS = {
    f"d{number}": " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 2 + number % 9))
    for number in range(200)
}
IDS = [f"d{number}" for number in range(20)]


@pytest.fixture(scope="module")
def models(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles: `a`; `b`, of another fingerprint and another query tower; `query`, as `a` with a new query tower;
    `broken`, whose query tower is.
    """
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_bundle, folder / "a")
    variant(variant(tiny_bundle, folder / "half", "document", retrained), folder / "b", "query", retrained)
    variant(tiny_bundle, folder / "query", "query", retrained)
    variant(tiny_bundle, folder / "broken", "query", shuffled)
    variant(tiny_bundle, folder / "constant", "document", constant)
    return folder


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "documents.jsonl", TEXTS)


@pytest.fixture
def bundles(models: Path, tmp_path: Path) -> Path:
    """The folder that a scorer is given: with `a` only."""
    folder = tmp_path / "bundles"
    shutil.copytree(models / "a", folder / "a")
    return folder


@pytest.fixture
def store(models: Path, documents: Path, tmp_path: Path) -> Path:
    refresh(models / "a", tmp_path / "store", documents)
    return tmp_path / "store"


@pytest.fixture
def server(store: Path, bundles: Path, tmp_path: Path) -> Iterator[Server]:
    """A scorer that chooses among bundles, and records."""
    files = ["--bundles", str(bundles), "--record-requests", str(tmp_path / "requests.jsonl")]
    files += ["--record-requests-rate", "1e5", "--record-misses", str(tmp_path / "misses.jsonl")]
    with running("serve", None, store, *files) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[ScorerClient]:
    with ScorerClient(server.address) as client:
        yield client


def expected(bundle: Path, query: str) -> Any:
    runtime = Runtime(Bundle.open(bundle), towers=TOWERS)
    rows = runtime.encode([TEXTS[id_] for id_ in IDS], "document")
    return runtime.cross(runtime.encode([query]), rows, np.zeros(len(IDS), dtype=np.int64))


def scores(client: ScorerClient, query: str, generation: str = "") -> tuple[Any, str, str, int]:
    reply = client.score(Task(query, IDS), generation=generation, timeout=60)
    return reply.results[0].scores, reply.generation, reply.model, reply.times.cached_queries


def current(store: Path) -> str:
    return (store / "CURRENT").read_text().strip()


def segments(store: Path) -> set[str]:
    return {path.name for path in (store / "segments").iterdir()}


def test_bundle_and_generation_are_switched_together(  # noqa: PLR0917  fixtures
    models: Path, bundles: Path, store: Path, documents: Path, server: Server, client: ScorerClient
) -> None:
    """A refresh with another model is served by that model's bundle; who names the old generation gets the old bits,
    from the old bundle, and no cached query crosses over; without its bundle a generation waits, which is said.
    """
    first, model_a = current(store), Bundle.open(models / "a").model
    before = scores(client, "red shoe")
    assert before[1:] == (first, model_a, 0)
    np.testing.assert_allclose(before[0], expected(models / "a", "red shoe"), atol=1e-6)

    second, model_b = refresh(models / "b", store, documents), Bundle.open(models / "b").model
    event = server.wait_for("generation_refused")
    assert (event["refused"], event["serving"], event["reason"]) == (second, first, "bundle")
    assert model_b in event["why"]
    assert model_a[:12] in event["why"]
    refused = client.describe().refused
    assert refused is not None
    assert (refused.name, refused.reason) == (second, "bundle")
    assert server.metrics()['twinbert_generation_refused{reason="bundle"}'] == 1
    again = scores(client, "red shoe")
    assert again[1:] == (first, model_a, 1)

    shutil.copytree(models / "b", bundles / "b")
    assert server.wait_for("generation_swapped")["model"] == model_b
    after = scores(client, "red shoe")
    assert after[1:] == (second, model_b, 0)
    np.testing.assert_allclose(after[0], expected(models / "b", "red shoe"), atol=1e-6)
    assert np.abs(after[0] - before[0]).max() > 1e-4
    pinned = scores(client, "red shoe", first)
    assert pinned[1:] == (first, model_a, 1)
    assert pinned[0].tolist() == before[0].tolist()
    fresh = scores(client, "blue boot", first)
    np.testing.assert_allclose(fresh[0], expected(models / "a", "blue boot"), atol=1e-6)
    held = client.describe().held
    assert [(one.name, one.model) for one in held] == [(second, model_b), (first, model_a)]
    assert server.metrics()['twinbert_generation_refused{reason="bundle"}'] == 0

    assert twinbert("store", "rollback", "--store", str(store)).returncode == 0
    server.wait_for("generation_swapped")
    assert scores(client, "red shoe")[1:] == (first, model_a, 1)


def test_a_new_query_tower_takes_over_the_stored_documents(  # noqa: PLR0917  fixtures
    models: Path, bundles: Path, store: Path, tmp_path: Path, server: Server, client: ScorerClient
) -> None:
    """`store adopt` publishes the same segments for the new bundle, once it ranked what the scorer recorded as the old
    one does; a broken tower and one of another fingerprint are refused, and nothing changes.
    """
    first, before = current(store), segments(store)
    scores(client, "red shoe")
    for number in range(24):
        scores(client, " ".join(WORDS[number // 3 : 3 + number // 2]))
    replay = tmp_path / "requests.jsonl"
    while (recorded := replay.read_text().count("\n")) < 20:
        pass
    words = ("store", "adopt", "--store", str(store), "--bundles", str(models))

    nothing = twinbert(*words, "--bundle", str(models / "query"))
    assert (nothing.returncode, "has 0 rankings to compare and needs 20" in nothing.stderr) == (2, True)
    broken = twinbert(*words, "--bundle", str(models / "broken"), "--replay", str(replay))
    assert broken.returncode == 3
    verdict = json.loads(broken.stderr.splitlines()[0])
    assert verdict["event"] == "gate"
    assert verdict["requests"] == verdict["recorded_requests"] >= recorded
    assert "kendall_tau" in verdict["exceeded"]
    assert broken.stderr.splitlines()[-1].startswith("twinbert: nothing was published")
    other = twinbert(*words, "--bundle", str(models / "b"), "--replay", str(replay))
    assert other.returncode == 2
    for bundle in ("a", "b"):
        assert Bundle.open(models / bundle).fingerprint in other.stderr
    assert (current(store), segments(store)) == (first, before)

    shutil.copytree(models / "query", bundles / "query")
    done = twinbert(*words, "--bundle", str(models / "query"), "--replay", str(replay))
    assert done.returncode == 0, done.stderr
    assert server.wait_for("generation_swapped")["new"] == current(store) != first
    assert segments(store) == before
    after = scores(client, "red shoe")
    assert after[1:] == (current(store), Bundle.open(models / "query").model, 0)
    np.testing.assert_allclose(after[0], expected(models / "query", "red shoe"), atol=1e-6)
    again = twinbert(*words, "--bundle", str(models / "query"))
    assert (again.returncode, current(store) in again.stdout) == (0, True)
    assert len(list((store / "generations").iterdir())) == 2


def test_what_was_asked_for_is_recorded_and_replayed(
    models: Path, store: Path, tmp_path: Path, server: Server, client: ScorerClient
) -> None:
    """Misses are counted by reason and recorded as ids alone; ages of what was scored are counted; a refresh without
    the documents that were asked for is refused on the recorded requests, with the table and exit code 3.
    """
    client.score(Task("blue boot", ["d1", "gone", "d2"]), timeout=60)
    metrics = server.metrics()
    assert metrics['twinbert_candidates_missed_total{reason="never_seen"}'] == 1
    assert metrics['twinbert_candidates_missed_total{reason="deleted"}'] == 0
    assert metrics["twinbert_document_age_seconds_count"] == 2
    assert metrics['twinbert_document_age_seconds_bucket{le="86400.0"}'] == 2
    requests, misses = tmp_path / "requests.jsonl", tmp_path / "misses.jsonl"
    assert server.stop() == 0  # which writes what was recorded
    [missed] = [json.loads(line) for line in misses.read_text().splitlines()]
    assert missed.keys() == {"time_ms", "id", "reason", "generation"}
    assert (missed["id"], missed["reason"], missed["generation"]) == ("gone", "never_seen", current(store))
    [asked] = [json.loads(line) for line in requests.read_text().splitlines()]
    assert (asked["query"], asked["ids"], asked["crossing"]) == ("blue boot", ["d1", "gone", "d2"], "cosine")

    fewer = write_documents(tmp_path / "fewer.jsonl", {id_: TEXTS[id_] for id_ in TEXTS if id_ not in ("d1", "d2")})
    files = ("--bundle", str(models / "a"), "--store", str(store), "--documents", str(fewer))
    requests.write_text(requests.read_text() * 64)
    done = twinbert("refresh", *files, "--replay", str(requests))
    assert done.returncode == 3
    [verdict] = [one for one in map(json.loads, done.stderr.splitlines()[:-1]) if one["event"] == "gate"]
    assert (verdict["recorded_requests"], verdict["exceeded"]) == (64, ["candidates_lost"])
    rows = [line.split() for line in verdict["message"].splitlines()]
    assert rows[0][:3] == ["swap", "gate:", "refused,"]
    assert rows[2] == ["candidates", "lost", "1.000", "at", "most", "0.1", "exceeded"]
    assert "candidates lost is 1.000, at most 0.1" in done.stderr.splitlines()[-1]
    forced = twinbert("refresh", *files, "--replay", str(requests), "--force", "--json")
    assert forced.returncode == 0
    assert json.loads(forced.stdout)["quality"]["gate"]["forced"] is True


def test_misses_heal(  # noqa: PLR0917  fixtures
    models: Path, store: Path, documents: Path, tmp_path: Path, server: Server, client: ScorerClient
) -> None:
    """`refresh --missing` adds those of the source's documents that were asked for and never there; what a delta
    deleted stays deleted, and what the source does not have stays missing.
    """
    files = ("--bundle", str(models / "a"), "--store", str(store))
    late = {"late": "red lamp", "later": "blue lamp", "unasked": "green lamp"}
    gone = tmp_path / "gone.jsonl"
    gone.write_text('{"id": "d6", "deleted": true}\n')
    assert twinbert("refresh", *files, "--documents", str(gone), "--delta").returncode == 0
    server.wait_for("generation_swapped")
    asked = Task("lamp", ["d1", "d6", "late", "later", "nowhere"])
    assert client.score(asked, timeout=60).results[0].found.tolist() == [True, False, False, False, False]
    missed = {reason: f'twinbert_candidates_missed_total{{reason="{reason}"}}' for reason in ("never_seen", "deleted")}
    metrics = server.metrics()
    assert {reason: metrics[series] for reason, series in missed.items()} == {"never_seen": 3, "deleted": 1}
    misses = tmp_path / "misses.jsonl"
    while len(misses.read_text().splitlines()) < 4:
        pass
    everything = write_documents(tmp_path / "everything.jsonl", TEXTS | late)
    with everything.open("a") as file:
        file.write('{"id": "nowhere", "text": " "}\n{"id": "d1", "text": " "}\n')
    done = twinbert("refresh", *files, "--documents", str(everything), "--missing", str(misses), "--json")
    assert done.returncode == 0, done.stderr
    told = {event["event"]: event for event in map(json.loads, done.stderr.splitlines())}
    assert (told["missing"]["wanted"], told["missing"]["found"]) == (3, 2)
    result = json.loads(done.stdout)
    assert (result["encoded"], result["rejected"]) == (2, {"the text is blank": 1})
    assert result["documents"] == len(TEXTS) - 1 + 2
    server.wait_for("generation_swapped")
    assert client.score(asked, timeout=60).results[0].found.tolist() == [True, False, True, True, False]
    again = twinbert("refresh", *files, "--documents", str(documents), "--missing", str(tmp_path / "none"))
    assert (again.returncode, "does not exist" in again.stderr) == (2, True)


def test_the_gate_of_an_encoder(models: Path, store: Path) -> None:
    """Over gRPC a refusal is FAILED_PRECONDITION with its reason, counted as refused; a client may force it."""
    half = [Document(id_, text) for id_, text in [*TEXTS.items()][::2]]
    first = current(store)
    with running("encoder", models / "a", store) as server, EncoderClient(server.address) as client:
        with pytest.raises(RemoteError, match=r"documents lost is 0\.500, at most 0\.1") as caught:
            list(client.refresh(half))
        assert (caught.value.code, caught.value.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION.name,
            "GENERATION_DRIFT",
        )
        assert server.wait_for("refresh_refused")["gate"]["exceeded"] == ["documents_lost", "candidates_lost"]
        assert current(store) == first
        assert server.metrics()['twinbert_encoder_refreshes_total{outcome="refused"}'] == 1
        *_, last = client.refresh(half, force=True)
        assert last.generation == current(store) != first


def test_a_broken_export_does_not_reach_a_scorer(models: Path, store: Path, documents: Path) -> None:
    """A refresh with a bundle that gives every text one embedding ends with exit code 3 and leaves CURRENT."""
    files = ("--bundle", str(models / "constant"), "--store", str(store), "--documents", str(documents))
    first, before = current(store), segments(store)
    done = twinbert("refresh", *files)
    assert (done.returncode, "kendall tau is 0.000" in done.stderr) == (3, True)
    assert (current(store), segments(store)) == (first, before)
    assert len(list((store / "generations").iterdir())) == 1
