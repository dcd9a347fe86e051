"""Weights in safetensors: those of a Hugging Face BERT into a tower, and those of a whole TwinBERT out and in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from twinbert.bundle import TOWERS, Bundle
from twinbert.errors import BundleError, UnsupportedError, UsageError
from twinbert.fields import Fields, parse_json
from twinbert.model.config import CrossingKind, Normalisation, Pooling, ResidualConfig, TowerConfig, TwinConfig
from twinbert.model.tower import Tower
from twinbert.model.twin import TwinBert

_T = TypeVar("_T")
_REMEDY = "download or save the checkpoint again"

# Hugging Face's names → ours, without the `bert.` that checkpoints of whole tasks put in front.
_NAMES = (
    (r"embeddings\.word_embeddings\.weight", r"embeddings.word.weight"),
    (r"embeddings\.position_embeddings\.weight", r"embeddings.position"),
    (r"embeddings\.token_type_embeddings\.weight", r"embeddings.segment"),
    (r"embeddings\.LayerNorm\.(\w+)", r"embeddings.norm.\1"),
    (r"encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(\w+)", r"layers.\1.attention.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"layers.\1.attention.output.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(\w+)", r"layers.\1.attention_norm.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"layers.\1.up.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"layers.\1.down.\2"),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(\w+)", r"layers.\1.down_norm.\2"),
)
# Heads of pre-training and of tasks, and a table of 0, 1, 2, … that old versions saved.
_UNUSED = re.compile(r"(pooler|cls|classifier|qa_outputs)\.|embeddings\.position_ids$")
# How the first BERT checkpoints called a norm's parameters.
_OLD_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}


def read_json(path: Path, kind: type[_T]) -> _T:
    """A JSON file of a checkpoint, which holds a `kind`: a dict or a list.

    Raises:
        BundleError: it is missing, or holds something else.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path}: is missing; a BERT checkpoint needs it") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise BundleError(f"{path}: cannot be read: {error}") from error
    return parse_json(path, content, kind, remedy=_REMEDY)


def read_fields(path: Path) -> Fields:
    """A JSON object of a checkpoint, to be read field by field.

    Raises:
        BundleError: the file is missing, or holds something else.
    """
    return Fields(path, read_json(path, dict), remedy=_REMEDY)


def bert_config(
    directory: Path, *, pooling: Pooling, projection: int | None = None, normalisation: Normalisation = "none"
) -> TowerConfig:
    """The tower that a Hugging Face BERT checkpoint fits into, from its config.json; pooling and what follows are ours.

    Raises:
        BundleError: config.json is missing, or a value is missing or wrong.
        UnsupportedError: it is another architecture.
    """
    path = directory / "config.json"
    config = read_json(path, dict)
    for name, supported in (
        ("model_type", "bert"),
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
    ):
        if config.get(name, supported) != supported:
            raise UnsupportedError(f"{path}: {name} is {config[name]!r}; only {supported!r} is supported")
    fields = Fields(path, config, remedy=_REMEDY)
    try:
        return TowerConfig(
            vocabulary=fields.count("vocab_size"),
            hidden=fields.count("hidden_size"),
            layers=fields.count("num_hidden_layers"),
            heads=fields.count("num_attention_heads"),
            feed_forward=fields.count("intermediate_size"),
            positions=fields.count("max_position_embeddings", above=2),  # [CLS], a token and [SEP]
            pooling=pooling,
            projection=projection,
            normalisation=normalisation,
            dropout=fields.number("hidden_dropout_prob", 0.1),
            norm_epsilon=fields.number("layer_norm_eps", 1e-12),
        )
    except UsageError as error:
        raise BundleError(f"{path}: {error}; {_REMEDY}") from error


def load_bert(tower: Tower, path: Path, *, layers: Sequence[int] | None = None) -> None:
    """Fills a tower's encoder from model.safetensors of a Hugging Face BERT; pooling and projection stay as they are.

    So do the embeddings of a tower that embeds trigrams, which a BERT has not.

    Args:
        tower: what to fill.
        path: the checkpoint's weights.
        layers: for each layer of the tower, from the first, the checkpoint's layer that it starts from, counted from
            0; None: the checkpoint has as many.

    Raises:
        BundleError: the file is missing or damaged, or lacks a tensor, or one has another shape.
        UnsupportedError: the file has tensors that a BERT encoder has not.
        UsageError: `layers` are not as many as the tower's, or name one that the checkpoint has not.
    """
    if layers is not None and len(layers) != tower.config.layers:
        raise UsageError(f"layers: {list(layers)} are {len(layers)}; the tower has {tower.config.layers}")
    state = _bert_state(path)
    if layers is not None:
        state = _choose(state, layers, path)
    untouched = ["pooling.", "projection."]
    if tower.config.embedding == "trigrams":
        untouched.append("embeddings.")
        state = {name: tensor for name, tensor in state.items() if not name.startswith("embeddings.")}
    encoder = {name for name, _ in tower.named_parameters() if not name.startswith(tuple(untouched))}
    _fill(tower, state, encoder, path)


def _bert_state(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors under our names."""
    state: dict[str, Tensor] = {}
    for name, tensor in _read(path).items():
        plain = name.removeprefix("bert.")
        if _UNUSED.match(plain):
            continue
        for old, new in _OLD_SUFFIXES.items():
            if plain.endswith(old):
                plain = plain.removesuffix(old) + new
        ours = next((re.sub(theirs, ours, plain) for theirs, ours in _NAMES if re.fullmatch(theirs, plain)), None)
        if ours is None:
            raise UnsupportedError(f"{path}: {name} belongs to no BERT encoder; only BERT checkpoints are supported")
        state[ours] = tensor[0] if ours == "embeddings.segment" else tensor
    return state


def _choose(state: Mapping[str, Tensor], layers: Sequence[int], path: Path) -> dict[str, Tensor]:
    """The embeddings, and the layers chosen under their new numbers."""
    numbers = {int(name.split(".")[1]) for name in state if name.startswith("layers.")}
    for layer in layers:
        if layer not in numbers:
            raise UsageError(f"layers: {layer} is none of {path}, which has 0 to {max(numbers, default=-1)}")
    chosen = {name: tensor for name, tensor in state.items() if not name.startswith("layers.")}
    for new, old in enumerate(layers):
        prefix = f"layers.{old}."
        chosen |= {
            f"layers.{new}.{name.removeprefix(prefix)}": tensor
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
    return chosen


def load_dense(tower: Tower, path: Path) -> None:
    """Fills a tower's projection from model.safetensors of a sentence-transformers Dense module.

    Raises:
        BundleError: the file is missing or damaged, or its tensors have other shapes.
    """
    assert tower.projection is not None
    state = {name.removeprefix("linear."): tensor for name, tensor in _read(path).items()}
    state.setdefault("bias", torch.zeros(tower.config.dimension))
    _fill(tower.projection, state, {"weight", "bias"}, path)


def save_weights(module: TwinBert | Tower, path: Path) -> None:
    """Writes every weight of a TwinBERT or a tower, shared ones once; equal weights give equal bytes."""
    path.write_bytes(safetensors.torch.save({name: tensor.detach() for name, tensor in module.named_parameters()}))


def load_weights(module: TwinBert | Tower, path: Path) -> None:
    """Fills a TwinBERT or a tower with what `save_weights` wrote.

    Raises:
        BundleError: the file is missing or damaged, or is of another configuration.
    """
    _fill(module, _read(path), {name for name, _ in module.named_parameters()}, path)


def open_twin(bundle: Bundle) -> TwinBert:
    """The model that a bundle was made from: what training goes on with.

    Raises:
        BundleError: the bundle comes without model.safetensors, or it does not fit.
    """
    stated = bundle.configuration
    query, document = (TowerConfig(**stated["towers"][tower]["architecture"]) for tower in TOWERS)
    kinds = sorted(bundle.crossings, key=lambda kind: kind != bundle.default_crossing)
    residual = stated["crossings"].get("residual", {}).get("architecture", {})
    twin = TwinBert(
        TwinConfig(
            query=query,
            document=document,
            query_max_tokens=bundle.max_tokens("query"),
            document_max_tokens=bundle.max_tokens("document"),
            shared=stated["shared_towers"],
            crossings=tuple(cast(CrossingKind, kind) for kind in kinds),
            residual=ResidualConfig(**residual),
        )
    )
    load_weights(twin, bundle.file("model.safetensors"))
    return twin


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise BundleError(f"{path}: is missing; weights are read from safetensors only, in one file") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path}: cannot be read as safetensors: {error}") from error


@torch.no_grad()
def _fill(module: nn.Module, state: Mapping[str, Tensor], wanted: set[str], path: Path) -> None:
    """Copies exactly the parameters `wanted`, as float32."""
    parameters = dict(module.named_parameters())
    missing, surplus = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or surplus:
        problem = f"lacks {missing[0]}" if missing else f"has {surplus[0]}, which the configuration has not"
        raise BundleError(f"{path}: {problem}; its configuration is of another model")
    for name in wanted:
        if parameters[name].shape != state[name].shape:
            shapes = f"{list(state[name].shape)}, the configuration says {list(parameters[name].shape)}"
            raise BundleError(f"{path}: {name} has shape {shapes}")
        parameters[name].copy_(state[name])
