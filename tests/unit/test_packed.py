"""Packed texts: in int8 embeddings that no company changes, with a certificate of the cost; in float32 nearly so."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.unit.test_export_kinds import make_tokenizer, make_twin
from twinbert import quantize as quantize_module
from twinbert import runs
from twinbert.bundle import BUNDLE_JSON, Bundle
from twinbert.cli import main
from twinbert.errors import BundleError, ExportError, UsageError
from twinbert.export import export
from twinbert.model.checkpoint import open_twin
from twinbert.quantize import Limits, Texts, quantize
from twinbert.runtime import Runtime
from twinbert.samples import DOCUMENTS, QUERIES
from twinbert.training import synthetic

WORDS = [word for text in (*QUERIES, *DOCUMENTS[:8]) for word in text.split()]
ANY_COST = Limits(score_largest=1, score_mean=1, cosine_smallest=-1, top10_overlap=0, auc2_loss=1)


@pytest.fixture(scope="module")
def int8_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny_bundle` with an int8 query tower."""
    return quantize(Bundle.open(tiny_bundle), tmp_path_factory.mktemp("int8") / "tiny")


@pytest.fixture(scope="module", params=["weighted", "cls, tanh", "trigrams", "trigrams, cls"])
def bundle(
    request: pytest.FixtureRequest, int8_bundle: Bundle, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A bundle with an int8 query tower of each kind of tower."""
    if request.param == "weighted":
        return int8_bundle
    folder = tmp_path_factory.mktemp("kinds")
    if request.param == "cls, tanh":
        source = Bundle.open(request.getfixturevalue("other_bundle"))
    else:
        pooling = "cls" if "cls" in request.param else "weighted"
        case: dict[str, object] = {"letters": "ascii", "pooling": pooling, "projection": 8, "normalisation": "none"}
        case |= {"shared": True, "crossings": ("cosine",), "start": "cosine"}
        vocabulary = make_tokenizer(folder / "tokenizer.json", "ascii", pooling, tiny_tokenizer)
        twin = make_twin(case, vocabulary)
        source = export(twin, folder / "source", tokenizer=folder / "tokenizer.json", source={"name": "case"})
    return quantize(source, folder / "bundle", limits=ANY_COST)


@pytest.fixture(scope="module", params=[1, 2])
def runtime(request: pytest.FixtureRequest, bundle: Bundle) -> Runtime:
    """The int8 engine on one thread and on two."""
    return Runtime(bundle, engine="int8", threads=request.param)


@pytest.fixture(scope="module")
def runtimes(bundle: Bundle) -> tuple[Runtime, Runtime]:
    """The float32 engine on packed texts, and on padded ones."""
    return Runtime(bundle), Runtime(replace(bundle, packed={}))


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=24).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(company=st.lists(texts, min_size=1, max_size=40), data=st.data())
def test_no_company_changes_a_bit(runtime: Runtime, company: list[str], data: st.DataObject) -> None:
    """A text has the same embedding, bit for bit, alone and among any others, of any lengths and in any order."""
    chosen = data.draw(st.integers(0, len(company) - 1))
    together_ND = runtime.encode(company)
    assert runtime.encode([company[chosen]])[0].tobytes() == together_ND[chosen].tobytes()
    order = data.draw(st.permutations(range(len(company))))
    assert runtime.encode([company[text] for text in order]).tobytes() == together_ND[order].tobytes()


def test_it_is_the_float32_tower_nearly(bundle: Bundle) -> None:
    """Embeddings of texts of every length point where the float32 engine's do, and are as long."""
    exact, runtime = Runtime(replace(bundle, packed={})), Runtime(bundle, engine="int8")
    queries = [*QUERIES, *(" ".join(WORDS[:count]) for count in range(1, 24))]
    exact_QD, found_QD = exact.encode(queries), runtime.encode(queries)
    lengths_Q = np.linalg.norm(exact_QD, axis=1)
    np.testing.assert_allclose(np.linalg.norm(found_QD, axis=1), lengths_Q, rtol=0.05)
    cosine_Q = (exact_QD * found_QD).sum(1) / lengths_Q / np.linalg.norm(found_QD, axis=1)
    assert cosine_Q.min() > 0.98
    assert runtime.encode([]).shape == (0, bundle.dimension)


@settings(max_examples=30, deadline=None)
@given(company=st.lists(texts, min_size=1, max_size=40))
def test_company_hardly_changes_float32(runtimes: tuple[Runtime, Runtime], company: list[str]) -> None:
    """Packed in float32, a text has the embedding that it has alone, and padded by the exported tower, to 1e-6."""
    packed, padded = runtimes
    together_ND = packed.encode(company)
    alone_ND = np.concatenate([packed.encode([text]) for text in company])
    np.testing.assert_allclose(together_ND, alone_ND, rtol=0, atol=1e-6)
    np.testing.assert_allclose(together_ND, padded.encode(company), rtol=0, atol=2e-6)


def test_a_row_of_zeros_stays_one(tiny_bundle: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """A row without a largest value, here what attention takes from values that are zero, gives its biases alone."""
    twin = open_twin(Bundle.open(tiny_bundle))
    with torch.no_grad():
        for layer in twin.query.layers:
            for parameter in layer.get_submodule("attention.value").parameters():
                nn.init.zeros_(parameter)
    source = export(twin, tmp_path / "source", tokenizer=tiny_tokenizer, source={"name": "zeros"})
    bundle = quantize(source, tmp_path / "bundle")
    found_QD, exact_QD = Runtime(bundle, engine="int8").encode(QUERIES), Runtime(bundle).encode(QUERIES)
    np.testing.assert_allclose(found_QD, exact_QD, rtol=0, atol=0.05)


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=60))
def test_packed_texts_are_whole(lengths: list[int]) -> None:
    """Every token of every text is computed once, at its place; what else a text's places hold is its first token."""
    ids = [np.arange(length) + 1000 * number for number, length in enumerate(lengths)]
    seen: list[int] = []
    for texts_N, feeds in runs.packed(runs.TokenBatch(ids, np.zeros(len(ids), np.bool_))):
        assert feeds["places"].size <= runs.MAX_RUN_TOKENS or len(texts_N) == 1
        placed_BW = feeds["input_ids"][feeds["places"]]
        assert placed_BW.shape[1] < max(len(ids[text]) for text in texts_N) + runs.PLACES
        assert (placed_BW.ravel()[feeds["slots"]] == feeds["input_ids"]).all()
        assert (feeds["input_ids"] % 1000 == feeds["positions"]).all()
        for text, placed_W, mask_W in zip(texts_N, placed_BW, feeds["mask"], strict=True):
            assert (placed_W[: len(ids[text])] == ids[text]).all()
            assert (placed_W[len(ids[text]) :] == ids[text][0]).all()
            assert mask_W.sum() == mask_W[: len(ids[text])].sum() == len(ids[text])
            seen.append(int(text))
    assert sorted(seen) == list(range(len(ids)))


def test_documents_stay_and_the_model_changes(tiny_bundle: Path, int8_bundle: Bundle) -> None:
    """Fingerprint and document embeddings are the old ones; model and int8 query digest are new; cost is certified."""
    before = Bundle.open(tiny_bundle)
    assert int8_bundle.fingerprint == before.fingerprint
    assert int8_bundle.model != before.model
    assert int8_bundle.engines == ("float32", "int8")
    digests = {before.query_digest(), int8_bundle.query_digest(), int8_bundle.query_digest("int8")}
    assert len(digests) == 3
    old_ND, new_ND = (
        Runtime(bundle, towers=("document",), engine=engine).encode(DOCUMENTS, "document")
        for bundle, engine in ((before, "float32"), (int8_bundle, "int8"))
    )
    np.testing.assert_array_equal(old_ND, new_ND)
    assert {path.name for path in int8_bundle.path.iterdir()} == {*int8_bundle.configuration["files"], BUNDLE_JSON}
    certificate = int8_bundle.quality["int8"]
    assert (certificate["texts"], certificate["queries"], certificate["documents"]) == (
        "built-in samples",
        len(QUERIES),
        len(DOCUMENTS),
    )
    assert certificate["company"] == 0
    assert 0 < certificate["score_mean"] <= certificate["score_largest"] < 0.1
    assert 0.97 < certificate["cosine_smallest"] <= certificate["cosine_mean"] <= 1
    assert 0.9 < certificate["top10_overlap"] <= 1
    assert set(before.quality) < set(int8_bundle.quality)


def test_the_same_bundle_gives_the_same_bytes(int8_bundle: Bundle, tmp_path: Path) -> None:
    """Made once more, from the bundle or from the quantized one, it is the same model."""
    assert quantize(int8_bundle, tmp_path / "again").model == int8_bundle.model


@pytest.mark.parametrize(
    ("strict", "named"),
    [
        (Limits(score_largest=1e-9), r"score_largest is \S+, at most 1e-09"),
        (Limits(score_mean=1e-9), r"score_mean is \S+, at most 1e-09"),
        (Limits(cosine_smallest=1.01), r"cosine_smallest is (0\.9\d*|1\.0), at least 1\.01"),
    ],
)
def test_too_high_a_cost_is_refused(tiny_bundle: Path, tmp_path: Path, strict: Limits, named: str) -> None:
    """What is past a limit is named with both numbers, and nothing is written."""
    with pytest.raises(ExportError, match=named):
        quantize(Bundle.open(tiny_bundle), tmp_path / "out", limits=strict)
    assert list(tmp_path.iterdir()) == []


def test_packed_float32_that_differs_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that computes something else than the exported tower is not published."""
    made = quantize_module.packed_graph

    def wrong(tower: Any, engine: Any) -> bytes:
        with torch.no_grad():
            tower.embeddings.norm.bias += engine == "float32"
        return made(tower, engine)

    monkeypatch.setattr(quantize_module, "packed_graph", wrong)
    with pytest.raises(ExportError, match=r"differ from padded ones' by .*, more than 0\.0001"):
        quantize(Bundle.open(tiny_bundle), tmp_path / "out", limits=ANY_COST)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cost", "named"),
    [
        ({"company": 1e-9}, "company is 1e-09, at most 0.0"),
        ({"top10_overlap": 0.9}, "top10_overlap is 0.9, at least 0.95"),
        ({"cosine_smallest": float("nan")}, "cosine_smallest is nan"),
    ],
)
def test_every_limit_holds(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: dict[str, Any], named: str
) -> None:
    """An embedding that depends on its company is refused as a score's difference is, and so is what is no number."""
    measured = quantize_module.engine_costs

    def worse(*arguments: Any) -> dict[str, float]:
        return measured(*arguments) | cost

    monkeypatch.setattr(quantize_module, "engine_costs", worse)
    with pytest.raises(ExportError, match=re.escape(named)):
        quantize(Bundle.open(tiny_bundle), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("loss", [0.0021, float("nan")])
def test_the_limit_on_area_holds(tiny_bundle: Path, tmp_path: Path, loss: float) -> None:
    """Area lost on labelled pairs, or no number there, is refused as a score's difference is."""
    with pytest.raises(ExportError, match=rf"auc2_loss is {loss}, at most 0\.002"):
        quantize(Bundle.open(tiny_bundle), tmp_path / "out", labelled=lambda _: {"auc2_loss": loss})
    assert not (tmp_path / "out").exists()


def test_area_that_was_not_measured_is_said_to_be(int8_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """Without labelled pairs the certificate has null, not a loss of nothing, and readers are told."""
    assert int8_bundle.quality["int8"]["labelled"] is None
    assert main(["bundle", "show", str(int8_bundle.path)]) == 0
    assert "labelled not measured" in capsys.readouterr().out


def test_what_cannot_be_quantized_is_said(tiny_bundle: Path, int8_bundle: Bundle, tmp_path: Path) -> None:
    """A bundle without weights, no texts, and an engine that a bundle lacks."""
    shutil.copytree(tiny_bundle, tmp_path / "light")
    (tmp_path / "light" / "model.safetensors").unlink()
    light = Bundle.open(tmp_path / "light")
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        quantize(light, tmp_path / "out")
    with pytest.raises(UsageError, match="mine: has no text"):
        quantize(int8_bundle, tmp_path / "out", texts=Texts(source="mine", queries=[]))
    with pytest.raises(BundleError, match="has no int8 query tower; `twinbert bundle quantize` adds one"):
        Runtime(light, engine="int8")


def test_the_command_certifies_what_it_is_given(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Queries of a file, and the area of labelled pairs, are in bundle.json and printed; bad input is one line."""
    dataset = synthetic.dataset(queries=120)
    pairs = [*dataset.train.pairs, *dataset.dev.pairs, *dataset.test.pairs]
    lines = [json.dumps({"query": pair.query, "document": pair.document, "grade": pair.grade}) for pair in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    (tmp_path / "queries.txt").write_text("red shoes\n\nred shoes\ncsv file\n")
    words = ["bundle", "quantize", str(tiny_bundle), "-o", str(tmp_path / "out")]
    words += ["--queries", str(tmp_path / "queries.txt")]
    labelled = [*words, "--data", str(tmp_path / "pairs.jsonl")]
    assert main(labelled) == 2
    assert "--recipe" in capsys.readouterr().err
    assert main([*labelled, "--recipe", "pairs", "--max-auc2-loss", "1"]) == 0
    certificate = Bundle.open(tmp_path / "out").quality["int8"]
    assert (certificate["texts"], certificate["queries"]) == ("queries.txt", 2)
    areas = certificate["labelled"]
    assert 0 < areas["pairs"] < len(pairs)
    assert areas["auc2_loss"] == pytest.approx(areas["auc2_float32"] - areas["auc2_int8"], abs=2e-4)
    assert f"auc2_float32 {areas['auc2_float32']}" in capsys.readouterr().out
    (tmp_path / "none.txt").write_text("\n \n")
    assert main([*words[:-1], str(tmp_path / "none.txt")]) == 2
    assert "has no query" in capsys.readouterr().err


def test_a_graph_of_another_kind_is_refused(int8_bundle: Bundle, tmp_path: Path) -> None:
    """A bundle.json that takes the padded graph for the int8 one is an error by the file's name."""
    shutil.copytree(int8_bundle.path, tmp_path / "wrong")
    configuration = json.loads((tmp_path / "wrong" / BUNDLE_JSON).read_text())
    configuration["packed"]["int8"]["file"] = "query.onnx"
    (tmp_path / "wrong" / BUNDLE_JSON).write_text(json.dumps(configuration))
    with pytest.raises(BundleError, match=r"query\.onnx: has inputs attention_mask, input_ids .* wants .*places"):
        Runtime(Bundle.open(tmp_path / "wrong"), engine="int8")


def test_each_engine_is_loaded_alone(int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime of one engine reads no other's query tower."""
    opened: list[str] = []
    read: Callable[[Path], bytes] = Path.read_bytes

    def reading(path: Path) -> bytes:
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    Runtime(int8_bundle, engine="int8")
    assert "query.int8.onnx" in opened
    assert {"query.onnx", "query.float32.onnx"}.isdisjoint(opened)
