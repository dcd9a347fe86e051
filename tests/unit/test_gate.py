"""The swap gate in the refresh pipeline, against real stores and bundles."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from encoder_server.adoption import adopt
from encoder_server.documents import Deletion, Document
from encoder_server.gate import Gate
from encoder_server.refresh import Refresh
from encoder_server.settings import GateSettings
from encoder_server.verdict import Verdict
from store.store import Store
from tests.bundles import constant, retrained, shuffled, variant
from tests.unit.store_cases import tree
from twinbert.bundle import TOWERS, Bundle
from twinbert.errors import DriftError, UsageError
from twinbert.runtime import Floats, Runtime

WORDS = "red blue green small large shoe boot table chair lamp paper glass metal wood for with and without".split()
DOCUMENTS = 300


class CountingRuntime(Runtime):
    """Counts the queries that it encodes."""

    queries = 0

    def encode(self, texts: Sequence[str], tower: Any = "query") -> Floats:
        self.queries += len(texts) if tower == "query" else 0
        return super().encode(texts, tower)


@pytest.fixture(scope="module")
def bundles(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles: the one in service, one trained on, and exports that went wrong."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "tiny").symlink_to(tiny_bundle)
    for change in (retrained, shuffled, constant):
        variant(tiny_bundle, folder / change.__name__, "document", change)
    return folder


@pytest.fixture(scope="module")
def runtime(bundles: Path) -> CountingRuntime:
    return CountingRuntime(Bundle.open(bundles / "tiny"), towers=TOWERS)


@pytest.fixture
def store(tmp_path: Path, runtime: Runtime) -> Store:
    store = Store(tmp_path / "store")
    publish(store, runtime, corpus())
    return store


def text(number: int) -> str:
    random = np.random.default_rng(number)
    return " ".join(random.choice(WORDS, random.integers(2, 9)))


def corpus(documents: Iterable[int] = range(DOCUMENTS), shift: int = 0) -> list[Document]:
    """Documents by number; with a shift each has the text of another."""
    return [Document(f"d{number}", text(number + shift), number) for number in documents]


def publish(store: Store, runtime: Runtime, documents: Iterable[Document], **settings: Any) -> Verdict | None:
    """A refresh with a gate; returns its verdict."""
    with Refresh(store, runtime, gate=Gate(GateSettings(**settings), runtime)) as refresh:
        refresh.add(documents)
        refresh.commit()
        return refresh.verdict


def refused(store: Store, runtime: Runtime, documents: Iterable[Document], **settings: Any) -> str:
    """The message of a refusal that left nothing behind."""
    before = published_files(store)
    with pytest.raises(DriftError) as caught:
        publish(store, runtime, documents, **settings)
    assert published_files(store) == before
    return str(caught.value)


def published_files(store: Store) -> dict[str, bytes]:
    """All files but the rows of a build, which the next refresh reuses."""
    return {name: content for name, content in tree(store.path).items() if not name.startswith("building")}


def damaged(store: Store) -> Store:
    """The store with a bit of its current generation turned over, as a process sees it that has not read it yet."""
    [segment] = (store.path / "segments").glob(f"{store.manifest(store.current()).segments[0].id}/data.mdb")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    return Store(store.path)


def recorded(path: Path, *requests: tuple[str, list[str]]) -> Path:
    path.write_text("".join(json.dumps({"query": query, "ids": ids}) + "\n" for query, ids in requests))
    return path


def test_a_refresh_as_on_any_day_passes(store: Store, runtime: Runtime) -> None:
    """A few documents are new, gone or changed: it is published, and the manifest says what was measured."""
    documents = corpus(range(5, 310))
    documents[7:12] = [Document(one.key, text(1000 + place), 0) for place, one in enumerate(documents[7:12])]
    before = store.current()
    verdict = publish(store, runtime, documents)
    assert verdict is not None
    gate = store.manifest(store.current()).quality["gate"]
    assert gate == verdict.as_dict()
    assert (gate["against"], gate["exceeded"], gate["forced"]) == (before, [], False)
    assert gate["requests"] == 64
    measured = gate["measured"]
    assert measured["documents_lost"] == round(5 / 300, 3)
    assert 0.9 < measured["kendall_tau"] < 1
    assert 0 < measured["score_shift"] < 0.1


def test_half_of_the_documents_lost(store: Store, runtime: Runtime) -> None:
    """Nothing is published or left behind; forced, it is published and the manifest says so."""
    half = corpus(range(0, DOCUMENTS, 2))
    message = refused(store, runtime, half)
    assert "documents lost is 0.500, at most 0.1" in message
    assert "--force" in message
    publish(store, runtime, half, force=True)
    gate = store.manifest(store.current()).quality["gate"]
    assert gate["forced"] is True
    assert gate["exceeded"] == ["documents_lost", "candidates_lost"]


def test_what_an_operator_forces_is_recorded_whatever_was_found(store: Store, runtime: Runtime) -> None:
    """A replica may serve an older generation, of which more is gone: the manifest says it also where no limit is
    exceeded, and where the current one is damaged and nothing was compared.
    """
    most = corpus(range(180))
    publish(store, runtime, most, limits={"lost": 0.5})
    assert store.manifest(store.current()).quality["gate"]["forced"] is False
    publish(store, runtime, most, limits={"lost": 0.5}, force=True)
    gate = store.manifest(store.current()).quality["gate"]
    assert (gate["exceeded"], gate["forced"]) == ([], True)
    publish(damaged(store), runtime, most, force=True)
    assert store.manifest(store.current()).quality["gate"] == {"forced": True}


def test_a_corpus_of_one_document(store: Store, runtime: Runtime) -> None:
    """A source that came almost empty is refused, whatever its one document is."""
    assert "documents lost is 0.997" in refused(store, runtime, corpus([7]))
    assert "documents lost is 1.000" in refused(store, runtime, [Document("new", "red shoe", None)])


@pytest.mark.parametrize("broken", ["shuffled", "constant"])
def test_a_broken_export(store: Store, bundles: Path, broken: str) -> None:
    """A bundle whose document tower is broken encodes without an error, and its generation is refused."""
    message = refused(store, Runtime(Bundle.open(bundles / broken), towers=TOWERS), corpus())
    assert "kendall tau is" in message
    assert "at least 0.3" in message


def test_a_model_trained_on_passes(store: Store, bundles: Path) -> None:
    """Another fingerprint is compared with the one in service, each by its own bundle, within limits of its own."""
    runtime = CountingRuntime(Bundle.open(bundles / "retrained"), towers=TOWERS)
    verdict = publish(store, runtime, corpus())
    assert verdict is not None
    assert (verdict.limits.tau, verdict.forced) == (0.3, False)
    assert verdict.measured.kendall_tau is not None
    assert 0.9 < verdict.measured.kendall_tau < 0.999
    assert store.manifest(store.current()).fingerprint == runtime.bundle.fingerprint


def test_documents_with_the_texts_of_others(store: Store, runtime: Runtime) -> None:
    """A source that joined its columns wrongly loses no document and keeps the distribution, but not the rankings."""
    message = refused(store, runtime, corpus(shift=1))
    assert "kendall tau is" in message
    assert "at least 0.7" in message
    assert "lost" not in message


def test_what_users_ask_for_weighs_more_than_what_is_stored(store: Store, runtime: Runtime, tmp_path: Path) -> None:
    """Few documents are gone, but those of every second request: refused on the recorded requests, and only on them."""
    replay = recorded(tmp_path / "requests.jsonl", *((text(n), ["d3", f"d{n}", "d4", "nowhere"]) for n in range(100)))
    fewer = corpus(set(range(DOCUMENTS)) - {3, 4})
    message = refused(store, runtime, fewer, replay=replay)
    assert "candidates lost is 0.6" in message
    assert "documents lost" not in message
    verdict = publish(store, runtime, fewer)
    assert verdict is not None
    assert verdict.recorded == 0


@pytest.mark.parametrize("ids", [["x{}", "x{}1"], ["d{}"]])
def test_a_recording_that_ranks_nothing_hides_nothing(
    store: Store, runtime: Runtime, bundles: Path, tmp_path: Path, ids: list[str]
) -> None:
    """Of requests that name documents of another store, or one each, texts make up for the rankings: a broken export is
    refused, and so is a source that joined half of its columns wrongly.
    """
    lines = [(text(number), [id_.format(number) for id_ in ids]) for number in range(0, DOCUMENTS, 2)]
    replay = recorded(tmp_path / "requests.jsonl", *lines)
    broken = Runtime(Bundle.open(bundles / "constant"), towers=TOWERS)
    assert "kendall tau is 0.000" in refused(store, broken, corpus(), replay=replay)
    half = corpus(range(0, DOCUMENTS, 2)) + corpus(range(1, DOCUMENTS, 2), shift=1)
    assert "kendall tau is" in refused(store, runtime, half, replay=replay)


def test_a_query_tower_is_adopted_on_rankings_alone(store: Store, tiny_bundle: Path, tmp_path: Path) -> None:
    """Requests that name documents of another store are none to compare by, however many: that is said."""

    def adopted(change: Any, rankings: int) -> str:
        bundle = variant(tiny_bundle, tmp_path / change.__name__ / str(rankings), "query", change)
        lines = [(text(number), [f"d{number}", f"d{number + 1}"]) for number in range(rankings)]
        replay = recorded(tmp_path / "requests.jsonl", *lines, *[("red shoe", ["x", "y"])] * 40)
        gate = GateSettings(replay=replay, bundles=tiny_bundle.parent)
        return adopt(bundle=bundle, store=store.path, report=mock.Mock(), gate=gate)

    before = published_files(store)
    for change, rankings in ((shuffled, 0), (retrained, 19)):
        told = f"has {rankings} rankings .* needs 20: {rankings} of {rankings + 40} recorded requests name"
        with pytest.raises(UsageError, match=told):
            adopted(change, rankings)
    with pytest.raises(DriftError, match="kendall tau is"):
        adopted(shuffled, 60)
    assert published_files(store) == before
    assert adopted(retrained, 20) == store.current()


def test_limits_are_settings(store: Store, runtime: Runtime) -> None:
    """A limit that is set counts in place of its default, the others stay."""
    documents = corpus(range(3, DOCUMENTS))
    assert "documents lost is 0.010, at most 0.001" in refused(store, runtime, documents, limits={"lost": 0.001})
    verdict = publish(store, runtime, documents, limits={"lost": 0.02})
    assert verdict is not None
    assert (verdict.limits.lost, verdict.limits.tau) == (0.02, 0.7)


def test_the_bundle_in_service_is_asked_for_before_anything_is_encoded(
    store: Store, bundles: Path, tmp_path: Path
) -> None:
    """Without it the rankings of two models cannot be compared: that is said at once, or known to be forced."""
    alone = variant(bundles / "retrained", tmp_path / "alone" / "new", "document", retrained)
    runtime = Runtime(Bundle.open(alone), towers=TOWERS)
    with pytest.raises(UsageError, match=r"name the folder that has that bundle with --bundles.*--force"):
        Refresh(store, runtime, gate=Gate(GateSettings(), runtime)).__enter__()
    with pytest.raises(UsageError, match="does not exist"):
        Refresh(store, runtime, gate=Gate(GateSettings(replay=tmp_path / "none"), runtime)).__enter__()
    publish(store, runtime, corpus(), force=True)
    gate = store.manifest(store.current()).quality["gate"]
    assert (gate["forced"], gate["measured"]["documents_lost"], gate["measured"]["kendall_tau"]) == (True, 0, None)
    publish(store, Runtime(Bundle.open(bundles / "retrained"), towers=TOWERS), corpus(), bundles=alone.parent)
    assert store.manifest(store.current()).quality["gate"]["forced"] is False


def test_requests_that_nothing_changes_for_cost_no_encoding(
    store: Store, runtime: CountingRuntime, tmp_path: Path
) -> None:
    """Their scores are the same bits; they are not computed, and weigh in the means and the distribution."""
    requests = [(text(n), [f"d{n}", f"d{n + 1}", f"d{n + 2}"]) for n in range(0, 200)]
    replay = recorded(tmp_path / "requests.jsonl", *requests)
    changed = corpus()
    changed[100] = Document("d100", "another text", 0)
    sampled = 64  # the sample of every refresh is encoded as queries too
    runtime.queries = 0
    verdict = publish(store, runtime, changed, replay=replay)
    assert runtime.queries == sampled + 3
    assert verdict is not None
    assert (verdict.asked, verdict.recorded) == (200, 200)
    assert verdict.measured.kendall_tau is not None
    assert verdict.measured.kendall_tau >= 1 - 2 * 3 / 200


def test_scores_that_are_no_numbers_are_refused(store: Store, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crossing that gives NaN agrees with nothing."""
    runtime = Runtime(Bundle.open(bundles / "retrained"), towers=TOWERS)
    whole = runtime.cross
    monkeypatch.setattr(runtime, "cross", lambda *arguments: whole(*arguments) * np.float32(np.nan))
    with contextlib.suppress(RuntimeWarning):
        message = refused(store, runtime, corpus())
    assert "kendall tau is 0.000" in message
    assert "score shift is 1.000" in message


def test_the_next_refresh_encodes_nothing_again(store: Store, runtime: Runtime) -> None:
    """After a refusal the rows are there for the run that is forced."""
    with pytest.raises(DriftError):
        publish(store, runtime, corpus(shift=5000))
    with Refresh(store, runtime, gate=Gate(GateSettings(force=True), runtime)) as refresh:
        refresh.add(corpus(shift=5000))
        refresh.commit()
    assert (refresh.progress.encoded, refresh.progress.reused) == (0, DOCUMENTS)


def test_a_small_or_damaged_generation_is_not_compared_with(tmp_path: Path, runtime: Runtime) -> None:
    """Where a document weighs as much as a limit, or nothing can be read, the next generation is published."""
    store = Store(tmp_path / "store")
    publish(store, runtime, corpus(range(99)))
    assert publish(store, runtime, corpus(range(200, 500))) is None
    assert publish(damaged(store), runtime, corpus(range(10))) is None


def test_deltas_pass_the_gate_too(store: Store, runtime: CountingRuntime, bundles: Path) -> None:
    """One that changes little is published at the cost of its own texts as queries, one that only deletes at none; one
    that deletes a third is refused and leaves nothing.
    """

    def change(documents: Iterable[Document | Deletion], **settings: Any) -> Verdict | None:
        with Refresh(store, runtime, delta=True, gate=Gate(GateSettings(**settings), runtime)) as delta:
            delta.add(documents)
            delta.commit()
            return delta.verdict

    verdict = change([Document("d3", "large red lamp", 0), Document("new", "glass shoe", 0)])
    assert verdict is not None
    assert (verdict.asked, verdict.exceeded) == (2, [])
    runtime.queries = 0
    verdict = change([Deletion("d5")])
    assert verdict is not None
    assert (verdict.measured.kendall_tau, runtime.queries) == (None, 0)
    third = [Deletion(f"d{number}") for number in range(0, DOCUMENTS, 3)]
    before = published_files(store)
    with pytest.raises(DriftError, match=r"documents lost is 0\.33"):
        change(third)
    assert published_files(store) == before
    change(third, force=True)
    assert store.manifest(store.current()).quality["gate"]["forced"] is True


def test_a_delta_keeps_the_model_that_serves(store: Store, tiny_bundle: Path, tmp_path: Path) -> None:
    """An encoder that has the next query tower already changes documents only: the bundle in service is not needed."""
    ahead = Runtime(Bundle.open(variant(tiny_bundle, tmp_path / "alone" / "b", "query", retrained)), towers=TOWERS)
    model = store.manifest(store.current()).model
    with Refresh(store, ahead, delta=True, gate=Gate(GateSettings(), ahead)) as delta:
        delta.add([Document("d3", "large red lamp", 0)])
        delta.commit()
    assert delta.verdict is not None
    assert delta.verdict.limits.tau == 0.7
    assert store.manifest(store.current()).model == model != ahead.bundle.model


def test_integer_ids(tmp_path: Path, runtime: Runtime) -> None:
    """Documents and recorded candidates are compared by number."""
    store = Store(tmp_path / "store")
    numbers = [Document(2**63 + number, text(number), number) for number in range(200)]
    publish(store, runtime, numbers)
    replay = tmp_path / "requests.jsonl"
    replay.write_text(json.dumps({"query": "red shoe", "ids": [2**63, 2**63 + 1, 5]}) + "\n")
    assert "candidates lost is" in refused(store, runtime, numbers[100:], replay=replay)
    verdict = publish(store, runtime, numbers[2:], replay=replay, limits={"lost": 0.5})
    assert verdict is not None
    assert verdict.recorded == 1
