"""The parity report, over a real store and a real scorer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from twinbert.bundle import Bundle
from twinbert.errors import ExportError, UnavailableError
from twinbert.runtime import Floats
from twinbert.training import synthetic
from twinbert.training.data import Pair, Split
from twinbert.training.live import live_scorer
from twinbert.training.parity import LIMIT, Hop, Parity, parity
from twinbert.tuning import Choice, keep

HOPS = ["teacher", "torch", "onnx", "stored float32", "live float32", "live float32", "stored uint8", "live uint8"]


@pytest.fixture(scope="module")
def split() -> Split:
    """70 queries, more than one request may have tasks, with all but one of 5 documents."""
    dataset = synthetic.dataset(queries=100)
    pairs = [*dataset.train.pairs, *dataset.test.pairs]
    return Split("test", [pair for pair in pairs if pair.query in {p.query for p in pairs[:420]}])


def teacher(pairs: list[tuple[str, str]]) -> Floats:
    """Probabilities by words in common."""
    return np.array([len({*q.split()} & {*d.split()}) / 3 for q, d in pairs], np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stores and the logs of their scorers are."""
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path, split: Split, place: Path) -> Parity:
    """Every hop of the tiny bundle, but for float16, on a host that is tuned, and with a setting for its commands."""
    keep(Bundle.open(tiny_bundle), Choice(engine="float32", threads=2), place / "state" / "twinbert")
    with pytest.MonkeyPatch.context() as host:
        host.setenv("XDG_STATE_HOME", str(place / "state"))
        host.setenv("TWINBERT_THREADS", "none that a command takes")
        return parity(
            tiny_bundle,
            split,
            folder=place,
            teacher=teacher,  # type: ignore[arg-type]  # a list is a sequence
            encodings=("float32", "uint8"),
        )


@pytest.mark.usefixtures("measured")
def test_scorers_are_set_to_float32(place: Path) -> None:
    """Neither what a host is tuned to nor its environment has a say in how the reference is compared with."""
    for encoding in ("float32", "uint8"):
        lines = (place / encoding / "serve.log").read_text().splitlines()
        [opened] = [json.loads(line) for line in lines if '"bundle_opened"' in line]
        assert (opened["engine"], opened["why"]) == ("float32", "set")


def test_every_hop_is_measured(measured: Parity) -> None:
    """Every stage is compared with the one before it, the live one also with torch; quality is a number everywhere."""
    hops = measured.crossings["cosine"]
    assert [hop.name for hop in hops] == HOPS
    assert [hop.before for hop in hops] == [
        "",
        "teacher",
        "torch",
        "onnx",
        "stored float32",
        "torch",
        "onnx",
        "stored uint8",
    ]
    assert all(0 <= hop.auc2 <= 1 and 0 <= hop.ndcg10 <= 1 for hop in hops)


def test_float32_is_the_same_from_torch_to_the_live_scorer(measured: Parity) -> None:
    """No score of an unrounded hop differs by more than the limit, and losses are the differences of quality."""
    hops = {hop.name: hop for hop in measured.crossings["cosine"]}
    for name in ("onnx", "stored float32", "live float32"):
        assert hops[name].exact
        assert hops[name].largest <= LIMIT
    measured.check()
    assert hops["torch"].auc2_lost == pytest.approx(hops["teacher"].auc2 - hops["torch"].auc2)
    assert math.isnan(hops["torch"].largest)


def test_rounding_shows_where_it_happens(measured: Parity) -> None:
    """uint8 differs when it is stored, and the live scorer gives what was stored."""
    hops = {hop.name: hop for hop in measured.crossings["cosine"]}
    assert not hops["stored uint8"].exact
    assert LIMIT < hops["stored uint8"].largest < 0.1
    assert hops["live uint8"].mean < hops["stored uint8"].mean / 10


def test_the_report_is_a_table_and_json(measured: Parity) -> None:
    """Both have a line for each hop; JSON has null for what is not defined."""
    lines = measured.to_markdown().splitlines()
    assert [line.split(" | ")[0].lstrip("| ") for line in lines[4:]] == HOPS
    content = json.loads(measured.to_json())
    assert content["crossings"]["cosine"][0]["auc2_lost"] is None
    assert content["limit"] == LIMIT


@pytest.mark.parametrize("largest", [2e-4, math.nan])
def test_a_difference_above_the_limit_is_refused(largest: float) -> None:
    """The hop at fault is named, also where its scores are NaN; a rounded hop may differ."""

    def hop(name: str, *, exact: bool) -> Hop:
        return Hop(
            name=name,
            before="onnx",
            auc2=0.7,
            ndcg10=0.8,
            auc2_lost=0,
            ndcg10_lost=0,
            largest=largest,
            mean=0,
            exact=exact,
        )

    Parity(model="ab", pairs=1, crossings={"cosine": [hop("stored uint8", exact=False)]}).check()
    with pytest.raises(ExportError, match="parity: cosine scores of live float32 differ from those of onnx"):
        Parity(model="ab", pairs=1, crossings={"cosine": [hop("live float32", exact=True)]}).check()


def test_a_store_that_cannot_be_made_says_why(tiny_bundle: Path, tmp_path: Path) -> None:
    """The command's own last line comes with the error, not a trace."""
    (tmp_path / "store").write_text("a file where the store should be")
    with (
        pytest.raises(UnavailableError, match="`twinbert refresh` failed: twinbert: "),
        live_scorer(tiny_bundle, ["red shoes"], encoding="float32", folder=tmp_path),
    ):
        pass


def test_documents_that_were_left_out_are_missed(tiny_bundle: Path, tmp_path: Path) -> None:
    """A blank document, which refresh rejects, is an error and no score."""
    pairs = [Pair("shoes", "red shoes", 1.0), Pair("shoes", " ", 0.0)]
    documents = [pair.document for pair in pairs]
    with live_scorer(tiny_bundle, documents, encoding="float32", folder=tmp_path) as live:
        with pytest.raises(UnavailableError, match="the store lacks documents"):
            live.score([(pair.query, pair.document) for pair in pairs])
        assert live.score([("shoes", "red shoes")]).shape == (1,)
