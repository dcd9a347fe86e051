"""A tower against the BertModel of transformers itself, with all its layers and with a choice of them."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import hf_checkpoint
import pytest
import torch

from twinbert.errors import UsageError
from twinbert.model.checkpoint import bert_config, load_bert
from twinbert.model.config import TowerConfig
from twinbert.model.tower import Tower

LAYERS = 4


@pytest.fixture
def bert(tmp_path: Path) -> Any:
    """A random BERT of four layers, as transformers saves it, in `tmp_path`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the library
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(41)
        config = transformers.BertConfig(**hf_checkpoint.CONFIG | {"num_hidden_layers": LAYERS})
        bert = transformers.BertModel(config).eval()
        with torch.no_grad():
            for parameter in bert.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        bert.save_pretrained(tmp_path)
    return bert


def tower_of(folder: Path, *layers: int) -> Tower:
    config = bert_config(folder, pooling="weighted")
    tower = Tower(dataclasses.replace(config, layers=len(layers) or config.layers)).eval()
    load_bert(tower, folder / "model.safetensors", layers=layers or None)
    return tower


@torch.no_grad()
def assert_same_states(tower: Tower, bert: Any) -> None:
    ids_BL = torch.tensor(hf_checkpoint.INPUT_IDS)
    mask_BL = (ids_BL != 0).long()
    expected_BLH = bert(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
    real_BL = mask_BL.bool()
    torch.testing.assert_close(tower.states(ids_BL, mask_BL)[real_BL], expected_BLH[real_BL], rtol=0, atol=1e-5)


def test_hidden_states_are_those_of_transformers(bert: Any, tmp_path: Path) -> None:
    """Every state of every token is the library's, to 1e-5."""
    assert_same_states(tower_of(tmp_path), bert)


@pytest.mark.parametrize("layers", [(0, 2), (3, 1, 0), (0, 0, 1, 1)])
def test_chosen_layers_are_those_of_the_checkpoint(bert: Any, tmp_path: Path, layers: tuple[int, ...]) -> None:
    """A tower of chosen layers, in any order and as often as named, computes what a BERT of these layers computes."""
    bert.encoder.layer = torch.nn.ModuleList(bert.encoder.layer[number] for number in layers)
    assert_same_states(tower_of(tmp_path, *layers), bert)


def test_a_choice_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A layer that the checkpoint has not, and a choice of another number than the tower's layers."""
    hf_checkpoint.save(tmp_path)
    with pytest.raises(UsageError, match=r"layers: 2 is none of .*model\.safetensors, which has 0 to 1"):
        tower_of(tmp_path, 0, 2)
    tower = Tower(bert_config(tmp_path, pooling="cls"))
    with pytest.raises(UsageError, match=r"layers: \[0\] are 1; the tower has 2"):
        load_bert(tower, tmp_path / "model.safetensors", layers=[0])


def test_a_trigram_tower_takes_the_layers_alone(tmp_path: Path) -> None:
    """A BERT has no trigrams, so their embeddings stay as they are; the layers are the checkpoint's."""
    hf_checkpoint.save(tmp_path)
    config = TowerConfig(
        vocabulary=40, hidden=16, layers=1, heads=4, feed_forward=24, positions=6, embedding="trigrams"
    )
    tower = Tower(config)
    embeddings = [parameter.clone() for parameter in tower.embeddings.parameters()]
    load_bert(tower, tmp_path / "model.safetensors", layers=[1])
    assert all(map(torch.equal, tower.embeddings.parameters(), embeddings))
    loaded = hf_checkpoint.weights()["encoder.layer.1.attention.self.query.weight"]
    assert torch.equal(tower.layers[0].get_parameter("attention.query.weight"), loaded)
