"""Bundles that the whole suite uses: tiny, seeded, and made by the real export."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import nn

from twinbert.export import export
from twinbert.model.config import TowerConfig, TwinConfig
from twinbert.model.tower import WeightedPooling
from twinbert.model.twin import TwinBert

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


def tiny_tower(vocabulary: int, **changes: object) -> TowerConfig:
    """A tower of 2 layers × 32, but for what is changed."""
    parts = {"hidden": 32, "layers": 2, "heads": 2, "feed_forward": 64, "positions": 64, **changes}
    return TowerConfig(vocabulary=vocabulary, **parts)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json with padding and truncation built in."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(path)
    return path


@pytest.fixture(scope="session")
def tiny_twin(tiny_tokenizer: Path) -> TwinBert:
    """What `tiny_bundle` was made from: a query tower that is the first layer of the document tower's two."""
    vocabulary = tokenizers.Tokenizer.from_file(str(tiny_tokenizer)).get_vocab_size()
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


@pytest.fixture(scope="session")
def tiny_bundle(tiny_twin: TwinBert, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two different towers, weighted pooling, l2: D = 32, queries of 16 tokens, documents of 32."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    export(tiny_twin, path, tokenizer=tiny_tokenizer, source={"name": "tiny"})
    return path


@pytest.fixture(scope="session")
def other_bundle(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of another fingerprint: shared towers, `cls` pooling, tanh projection and no l2; also D = 32."""
    vocabulary = tokenizers.Tokenizer.from_file(str(tiny_tokenizer)).get_vocab_size()
    tower = tiny_tower(vocabulary, layers=1, pooling="cls", projection=32)
    config = TwinConfig(query=tower, document=tower, shared=True, query_max_tokens=16, document_max_tokens=32)
    with torch.random.fork_rng():
        torch.manual_seed(6275)
        twin = TwinBert(config)
        # Attention has to move the words into [CLS], or all texts would be nearly one.
        for module in twin.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
    path = tmp_path_factory.mktemp("bundles") / "other"
    export(twin, path, tokenizer=tiny_tokenizer, source={"name": "other"})
    return path
