"""A tiny Hugging Face BERT checkpoint whose weights are formulas, so that the reference states hold everywhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

HIDDEN, LAYERS, FEED_FORWARD, VOCABULARY, POSITIONS = 16, 2, 24, 150, 40
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": FEED_FORWARD,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
# The second text is shorter: 0 is padding.
INPUT_IDS = [[2, 17, 33, 5, 99, 140, 3], [2, 64, 64, 3, 0, 0, 0]]


def _shapes(layers: int) -> dict[str, tuple[int, ...]]:
    def dense(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.LayerNorm.weight": (HIDDEN,), f"{name}.LayerNorm.bias": (HIDDEN,)}

    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        **norm("embeddings"),
    }
    for layer in (f"encoder.layer.{number}" for number in range(layers)):
        for part in ("query", "key", "value"):
            shapes |= dense(f"{layer}.attention.self.{part}", HIDDEN, HIDDEN)
        shapes |= dense(f"{layer}.attention.output.dense", HIDDEN, HIDDEN) | norm(f"{layer}.attention.output")
        shapes |= dense(f"{layer}.intermediate.dense", FEED_FORWARD, HIDDEN)
        shapes |= dense(f"{layer}.output.dense", HIDDEN, FEED_FORWARD) | norm(f"{layer}.output")
    return shapes


def weights(layers: int = LAYERS) -> dict[str, Tensor]:
    """The checkpoint's tensors: sines of their own frequency, around 1 for what a norm multiplies by."""
    state = {}
    for number, (name, shape) in enumerate(_shapes(layers).items(), start=1):
        steps = torch.arange(math.prod(shape), dtype=torch.float64)
        values = 0.4 * torch.sin(steps * (1 + number / 7) + number) + float(name.endswith("LayerNorm.weight"))
        state[name] = values.reshape(shape).float()
    return state


def save(
    directory: Path, *, tokenizer: Path | None = None, state: dict[str, Tensor] | None = None, **changes: Any
) -> Path:
    """Writes config.json with `changes`, model.safetensors and, where given, tokenizer.json; returns the folder."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    safetensors.torch.save_file(weights() if state is None else state, directory / "model.safetensors")
    if tokenizer is not None:
        (directory / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return directory
