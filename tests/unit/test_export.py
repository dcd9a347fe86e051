"""Export: the same bytes again, all or nothing, and never a graph that differs from its model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import tokenizers
import torch
from torch import Tensor, nn

from tests.bundles import tiny_tower
from twinbert import export as export_module
from twinbert.bundle import BUNDLE_JSON, Bundle
from twinbert.errors import BundleError, ExportError, UsageError
from twinbert.export import export
from twinbert.model.checkpoint import open_twin
from twinbert.model.config import TwinConfig
from twinbert.model.crossing import CosineCrossing
from twinbert.model.tower import ClsPooling
from twinbert.model.twin import TwinBert


def test_the_same_model_gives_the_same_bytes(other_bundle: Path, tmp_path: Path) -> None:
    """Exported once more, a bundle is byte for byte the same, so that its digests name it."""
    opened = Bundle.open(other_bundle)
    again = export(
        open_twin(opened), tmp_path / "new" / "again", tokenizer=opened.file("tokenizer.json"), source={"name": "other"}
    )
    for name in (*opened.configuration["files"], BUNDLE_JSON):
        assert (again.path / name).read_bytes() == (other_bundle / name).read_bytes(), name
    assert (again.model, again.fingerprint) == (opened.model, opened.fingerprint)
    assert [path.name for path in again.path.parent.iterdir()] == ["again"]


def test_a_bundle_holds_its_files_and_nothing_of_this_machine(tiny_bundle: Path) -> None:
    """A bundle is its listed files, readable by others; no path of this machine and no trace is in a graph."""
    opened = Bundle.open(tiny_bundle)
    assert {path.name for path in tiny_bundle.iterdir()} == {*opened.configuration["files"], BUNDLE_JSON}
    for path in tiny_bundle.iterdir():
        assert path.stat().st_mode & 0o444 == (tiny_bundle / "tokenizer.json").stat().st_mode & 0o444
        content = path.read_bytes()
        for trace in (
            b"site-packages",
            b".py",
            str(tiny_bundle.parent).encode(),
            str(Path(__file__).parents[2]).encode(),
        ):
            assert trace not in content, (path.name, trace)
    graph = onnx.load(tiny_bundle / "query.onnx")
    onnx.checker.check_model(graph)
    assert not graph.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)


def test_nothing_in_the_tokenizer_pads_or_cuts(tiny_bundle: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """A reader of the bundle's tokenizer.json that takes it as it is gets every token of a text and no other."""
    text = "running shoes " * 200
    original = tokenizers.Tokenizer.from_file(str(tiny_tokenizer))
    assert len(original.encode("a").ids) == len(original.encode(text).ids) == 128
    original.no_padding()
    original.no_truncation()
    exported = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    for read in ("a", text):
        assert exported.encode(read).ids == original.encode(read).ids
    content = json.loads((tiny_bundle / "tokenizer.json").read_bytes())
    assert content["padding"] is content["truncation"] is None
    # The same content in another order and layout.
    shuffled = dict(reversed(json.loads(tiny_tokenizer.read_bytes()).items()))
    (tmp_path / "tokenizer.json").write_text(json.dumps(shuffled, indent=7))
    assert export_module._unpadded(tmp_path / "tokenizer.json") == (tiny_bundle / "tokenizer.json").read_bytes()


def test_versions_are_those_of_releases(tiny_bundle: Path) -> None:
    """Builds of one version, as torch has them for CPU and GPU ("2.13.0+cpu"), are one version to a bundle."""
    versions = Bundle.open(tiny_bundle).configuration["versions"]
    assert versions.keys() == {"twinbert", "torch", "onnx", "onnxscript", "onnxruntime"}
    assert versions["torch"] == torch.__version__.split("+")[0]
    assert not any("+" in version for version in versions.values())


def test_shared_towers_are_one_file(tiny_bundle: Path, other_bundle: Path) -> None:
    """Towers with the same weights take the disk once; different towers are different files."""
    assert (other_bundle / "query.onnx").samefile(other_bundle / "document.onnx")
    assert (tiny_bundle / "query.onnx").read_bytes() != (tiny_bundle / "document.onnx").read_bytes()


def test_what_was_measured_is_in_the_bundle(tiny_bundle: Path, other_bundle: Path) -> None:
    """bundle.json has the parity with torch, within its limit, and what each lossy encoding costs."""
    for path in (tiny_bundle, other_bundle):
        quality = json.loads((path / BUNDLE_JSON).read_bytes())["quality"]
        assert 0 < quality["parity"]["embeddings"] <= quality["parity"]["limit"] == 1e-4
        assert 0 < quality["parity"]["scores"] <= 1e-4
        assert quality["encodings"].keys() == {"float16", "uint8"}
        for cost in quality["encodings"].values():
            assert 0 < cost["score_mean"] <= cost["score_largest"] < 0.05
            assert 0.8 < cost["top10_overlap"] <= 1
        assert quality["encodings"]["float16"]["score_largest"] < quality["encodings"]["uint8"]["score_largest"]


class _DriftingPooling(ClsPooling):
    """Pools otherwise once it is exported: what versions that do not agree look like."""

    def __init__(self, drift: float) -> None:
        super().__init__()
        self.drift = drift

    def forward(self, states_BLH: Tensor, mask_BL: Tensor) -> Tensor:
        """The first state, every other number of it off by `drift` in the graph."""
        vector_BH = super().forward(states_BLH, mask_BL)
        return vector_BH + self.drift * (torch.arange(32) % 2) if torch.compiler.is_exporting() else vector_BH


class _DriftingCrossing(CosineCrossing):
    """Scores otherwise once it is exported."""

    def forward(self, queries_QD: Tensor, documents_ND: Tensor, task_N: Tensor) -> Tensor:
        """Probabilities, off by 1.02e-4 in the graph."""
        scores_N = super().forward(queries_QD, documents_ND, task_N)
        return scores_N + 1.02e-4 if torch.compiler.is_exporting() else scores_N


@pytest.mark.parametrize(
    ("pooling", "crossing", "words"),
    [
        # What would be the limit itself, were it rounded to two digits first.
        (_DriftingPooling(1.02e-4), CosineCrossing(), r"embeddings of .* by 0\.00010[0-4]\d*, more than 0\.0001;"),
        (_DriftingPooling(math.nan), CosineCrossing(), "embeddings of .* by nan, more"),
        (ClsPooling(), _DriftingCrossing(), "does not compute the cosine crossing with the a and b of bundle.json"),
        # Embeddings within the limit, of which a steep crossing makes scores that are not.
        (_DriftingPooling(0.9e-4), CosineCrossing(a=200.0, b=0.0), r"scores of .* by 0\.00\d+, more"),
    ],
)
def test_graphs_that_differ_from_their_model_are_refused(
    pooling: ClsPooling, crossing: CosineCrossing, words: str, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """An embedding or a score off by more than the limit, or not a number, is an error that says so."""
    tower = tiny_tower(150, layers=1, pooling="cls")
    config = TwinConfig(query=tower, document=tower, shared=True, query_max_tokens=8, document_max_tokens=8)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        twin = TwinBert(config)
        for module in twin.document.modules():  # so that texts lie apart
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
    twin.document.pooling = pooling
    twin.crossings["cosine"] = crossing
    with pytest.raises((ExportError, BundleError), match=words):
        export(twin, tmp_path / "bundle", tokenizer=tiny_tokenizer, source={})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_nothing(
    tiny_twin: TwinBert, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that fails halfway, here at weights that are too large for ONNX, takes its files with it."""
    monkeypatch.setattr(export_module, "_MAX_PROTOBUF", 100)
    with pytest.raises(ExportError, match=r"a Tower has [\d,]+ bytes of weights; an ONNX file holds less than 2 GiB"):
        export(tiny_twin, tmp_path / "bundle", tokenizer=tiny_tokenizer, source={})
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_at_once(tiny_twin: TwinBert, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """An output that exists, and a tokenizer that is missing or has more ids than the towers have words."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="taken: exists already"):
        export(tiny_twin, tmp_path / "taken", tokenizer=tiny_tokenizer, source={})
    with pytest.raises(BundleError, match=r"absent\.json: cannot be read as a tokenizer"):
        export(tiny_twin, tmp_path / "new", tokenizer=tmp_path / "absent.json", source={})
    small = replace(tiny_twin.config.document, vocabulary=20)
    config = replace(tiny_twin.config, document=small)
    with pytest.raises(ExportError, match=r"tokenizer\.json: has \d+ ids, a tower 20 word embeddings"):
        export(TwinBert(config), tmp_path / "new", tokenizer=tiny_tokenizer, source={})
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
