"""Weights from Hugging Face checkpoints, and our own to a file and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_checkpoint
import pytest
import torch
from torch import Tensor

from twinbert.bundle import Bundle
from twinbert.errors import BundleError, TwinbertError, UnsupportedError
from twinbert.model.checkpoint import bert_config, load_bert, load_weights, open_twin, save_weights
from twinbert.model.config import TwinConfig
from twinbert.model.tower import Tower
from twinbert.model.twin import TwinBert

REFERENCE = Path(__file__).parent.parent / "golden" / "bert_states.json"


def _load(directory: Path) -> Tower:
    tower = Tower(bert_config(directory, pooling="weighted"))
    load_bert(tower, directory / "model.safetensors")
    return tower.eval()


def _as_it_is(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def _of_a_whole_task(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under `bert.`, with heads, and the norms' parameters called as in the first checkpoints."""
    old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    renamed = {}
    for name, tensor in state.items():
        suffix = next((suffix for suffix in old if name.endswith(suffix)), "")
        renamed[f"bert.{name.removesuffix(suffix)}{old.get(suffix, '')}"] = tensor
    heads = {"bert.pooler.dense.weight": torch.ones(2, 2), "cls.predictions.bias": torch.ones(2)}
    return {**renamed, **heads, "bert.embeddings.position_ids": torch.arange(3)}


@pytest.mark.parametrize("written", [_as_it_is, _of_a_whole_task])
def test_hidden_states_are_those_of_hugging_face(
    tmp_path: Path, written: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """A checkpoint's states are those that the transformers library computes, however its tensors are called."""
    tower = _load(hf_checkpoint.save(tmp_path, state=written(hf_checkpoint.weights())))
    ids_BL = torch.tensor(hf_checkpoint.INPUT_IDS)
    with torch.no_grad():
        states_BLH = tower.states(ids_BL, (ids_BL != 0).long())
    for text_LH, expected in zip(states_BLH, json.loads(REFERENCE.read_text())["states"], strict=True):
        assert torch.allclose(text_LH[: len(expected)], torch.tensor(expected), atol=2e-5)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    """A float16 checkpoint loads into a float32 tower."""
    state = {name: tensor.half() for name, tensor in hf_checkpoint.weights().items()}
    tower = _load(hf_checkpoint.save(tmp_path, state=state))
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'; only 'bert' is supported"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
    ],
)
def test_another_architecture_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """What a checkpoint needs and a tower has not is named."""
    with pytest.raises(UnsupportedError, match=words):
        bert_config(hf_checkpoint.save(tmp_path, **change), pooling="cls")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": "16"}, "hidden_size is '16', it must be a whole number above 0"),
        ({"hidden_size": None}, "hidden_size is None, it must be a whole number above 0"),
        ({"hidden_size": 16.0}, r"hidden_size is 16\.0, it must be a whole number above 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, it must be a whole number above 0"),
        ({"num_attention_heads": 3}, "tower: 3 heads do not divide a hidden width of 16"),
        ({"max_position_embeddings": 2}, "max_position_embeddings is 2, it must be a whole number above 2"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps is '1e-12', it must be a number"),
        ({"layer_norm_eps": math.inf}, "layer_norm_eps is inf, it must be a number"),
        ({"layer_norm_eps": 10**400}, r"layer_norm_eps is 10+\.\.\.0+, it must be a number"),
        ({"layer_norm_eps": 0}, r"tower: norm_epsilon is 0\.0; it must be above 0"),
        ({"hidden_dropout_prob": None}, "hidden_dropout_prob is None, it must be a number"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """A number of another kind, or out of range, is refused with the file, the field and what it must be."""
    with pytest.raises(BundleError, match=rf"config\.json: {words}; download or save the checkpoint again"):
        bert_config(hf_checkpoint.save(tmp_path, **change), pooling="cls")


def _without_a_bias(state: dict[str, Tensor]) -> None:
    del state["encoder.layer.1.output.dense.bias"]


def _with_a_third_layer(state: dict[str, Tensor]) -> None:
    state["encoder.layer.2.output.dense.bias"] = torch.ones(hf_checkpoint.HIDDEN)


def _with_an_adapter(state: dict[str, Tensor]) -> None:
    state["encoder.layer.0.adapter.weight"] = torch.ones(2)


def _with_fewer_words(state: dict[str, Tensor]) -> None:
    state["embeddings.word_embeddings.weight"] = torch.ones(20, hf_checkpoint.HIDDEN)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without_a_bias, "lacks layers.1.down.bias"),
        (_with_a_third_layer, "has layers.2.down.bias, which the configuration has not"),
        (_with_an_adapter, "adapter.weight belongs to no BERT encoder"),
        (_with_fewer_words, r"embeddings.word.weight has shape \[20, 16\], the configuration says \[150, 16\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, damage: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    """A checkpoint that lacks a tensor, has one too many or one of another shape is refused, and the tensor named."""
    state = hf_checkpoint.weights()
    damage(state)
    with pytest.raises(TwinbertError, match=words):
        _load(hf_checkpoint.save(tmp_path, state=state))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """A checkpoint with a missing, cut off or wrong file is refused, and the file named."""
    directory = hf_checkpoint.save(tmp_path)
    (directory / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes()[:100])
    with pytest.raises(BundleError, match=r"model\.safetensors: cannot be read as safetensors"):
        _load(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors: is missing"):
        _load(directory)
    for content, words in (
        ("[1]", "holds no JSON object"),
        ("{", "is not JSON"),
        ("{}", "vocab_size is missing"),
        ("[" * 100_000, "is nested too deeply"),
    ):
        (directory / "config.json").write_text(content)
        with pytest.raises(BundleError, match=rf"config\.json: {words}"):
            _load(directory)


def test_our_weights_come_back(tmp_path: Path) -> None:
    """A TwinBERT read back is the one that was written, with the same bytes when written again; shared towers once."""
    tower = bert_config(hf_checkpoint.save(tmp_path), pooling="weighted", projection=8)
    for shared in (False, True):
        config = TwinConfig(query=tower, document=tower, shared=shared, query_max_tokens=8, document_max_tokens=8)
        written, read = TwinBert(config), TwinBert(config)
        save_weights(written, tmp_path / "first")
        load_weights(read, tmp_path / "first")
        assert all(map(torch.equal, written.parameters(), read.parameters()))
        save_weights(read, tmp_path / "second")
        assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    other = TwinConfig(query=tower, document=tower, query_max_tokens=8, document_max_tokens=8)
    with pytest.raises(BundleError, match=r"first: lacks document\."):
        load_weights(TwinBert(other), tmp_path / "first")


def test_a_bundle_opens_as_the_model_it_was_made_from(
    tiny_bundle: Path, tiny_twin: TwinBert, other_bundle: Path
) -> None:
    """Configuration and weights of a bundle are those of the TwinBERT that was exported."""
    opened = open_twin(Bundle.open(tiny_bundle))
    assert opened.config == tiny_twin.config
    assert all(map(torch.equal, opened.parameters(), tiny_twin.parameters()))
    assert open_twin(Bundle.open(other_bundle)).config.shared
