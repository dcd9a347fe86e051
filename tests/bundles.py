"""A tiny bundle, made by the real export, and bundles that differ from another in one tower, as a training or a broken
export makes them: quick, and really run.
"""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tokenizers
import torch
from onnx import numpy_helper
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import nn

from twinbert.bundle import BUNDLE_JSON, describe_file, fingerprint, to_json
from twinbert.export import export
from twinbert.model.config import TowerConfig, TwinConfig
from twinbert.model.tower import WeightedPooling
from twinbert.model.twin import TwinBert

Weights = npt.NDArray[np.float32]

WORDS = ("the", "of", "a", "list", "file", "read", "csv", "shoes", "running", "pizza", "remove", "duplicates", "##ing")


def save_tokenizer(path: Path) -> int:
    """Writes a small lower-casing WordPiece tokenizer: whole words, and letters for the rest; returns its size."""
    letters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *string.punctuation, *(f"##{c}" for c in letters)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *WORDS]))}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 (no password)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    # As published checkpoints do; whoever reads the file has to replace both.
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    tokenizer.save(str(path))
    return len(vocabulary)


def tiny_tower(vocabulary: int, **changes: Any) -> TowerConfig:
    """A tower of 2 layers × 32, but for what is changed."""
    parts: dict[str, Any] = {"hidden": 32, "layers": 2, "heads": 2, "feed_forward": 64, "positions": 64, **changes}
    return TowerConfig(vocabulary=vocabulary, **parts)


def tiny_twin(tokenizer: Path) -> TwinBert:
    """What the tiny bundle is made from: a query tower that is the first layer of the document tower's two."""
    vocabulary = tokenizers.Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    config = TwinConfig(
        query=tiny_tower(vocabulary, layers=1, normalisation="l2"),
        document=tiny_tower(vocabulary, normalisation="l2"),
        query_max_tokens=16,
        document_max_tokens=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2002)
        twin = TwinBert(config)
        # Words far apart and pooling uneven, so that scores spread as a trained model's do.
        nn.init.normal_(twin.document.embeddings.word.weight)
        assert isinstance(twin.document.pooling, WeightedPooling)
        nn.init.normal_(twin.document.pooling.score.weight, std=0.1)
    twin.query.load_state_dict(twin.document.state_dict(), strict=False)
    return twin.eval()


def write_tiny(folder: Path) -> Path:
    """The tiny bundle, in a folder of this folder: D = 32, queries of 16 tokens, documents of 32."""
    tokenizer, path = folder / "tokenizer.json", folder / "tiny"
    save_tokenizer(tokenizer)
    export(tiny_twin(tokenizer), path, tokenizer=tokenizer, source={"name": "tiny"})
    return path


def retrained(weights: Weights) -> Weights:
    """Nearly the same, as after a little more training."""
    random = np.random.default_rng(1)
    noise: Weights = random.standard_normal(weights.shape, dtype=np.float32)
    return weights + np.float32(0.02 * weights.std()) * noise


def shuffled(weights: Weights) -> Weights:
    """The right numbers in the wrong places."""
    return np.random.default_rng(2).permutation(weights.reshape(-1)).reshape(weights.shape)


def constant(weights: Weights) -> Weights:
    """Whatever the text, the same embedding."""
    return np.full_like(weights, 0.01)


def variant(bundle: Path, to: Path, tower: str, change: Callable[[Weights], Weights]) -> Path:
    """A copy of a bundle with the weight matrices of one of its two towers changed."""
    shutil.copytree(bundle, to)
    file = to / f"{tower}.onnx"
    model = onnx.load(file)
    for initializer in model.graph.initializer:
        weights = numpy_helper.to_array(initializer)
        if weights.dtype == np.float32 and weights.ndim > 1:
            initializer.CopyFrom(numpy_helper.from_array(change(weights).astype(np.float32), initializer.name))
    onnx.save(model, file)
    configuration: dict[str, Any] = json.loads((to / BUNDLE_JSON).read_bytes())
    files = configuration["files"]
    files[file.name] |= describe_file(file)
    configuration["fingerprint"] = fingerprint(
        document_onnx=files[configuration["towers"]["document"]["file"]]["sha256"],
        tokenizer=files[configuration["tokenizer"]["file"]]["sha256"],
        max_tokens=configuration["towers"]["document"]["max_tokens"],
        pooling=configuration["pooling"],
        normalisation=configuration["normalisation"],
        dimension=configuration["dimension"],
    )
    (to / BUNDLE_JSON).write_bytes(to_json(configuration))
    return to
