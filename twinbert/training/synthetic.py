"""Data and a checkpoint made in code, for a recipe that runs in seconds: relevance is the share of a query's words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

from twinbert.training.data import Dataset, Pair, split_by_query

NAME = "synthetic"

_CONSONANTS, _VOWELS = "bdfgklmnprst", "aeiou"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_QUERY_WORDS, _DOCUMENT_WORDS = 3, 6


def words(count: int = 60) -> list[str]:
    """Pronounceable words of four letters, all different."""
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    return [syllables[n % len(syllables)] + syllables[(n * 7 + 3) % len(syllables)] for n in range(count)]


def dataset(*, queries: int = 120, documents: int = 6, seed: int = 0) -> Dataset:
    """Graded pairs: a document has some of its query's words, and its grade is their share."""
    generator = np.random.default_rng(seed)
    vocabulary = np.array(words())
    pairs = []
    for _ in range(queries):
        query = generator.choice(vocabulary, _QUERY_WORDS, replace=False)
        for _ in range(documents):
            shared = int(generator.integers(_QUERY_WORDS + 1))
            others = generator.choice(np.setdiff1d(vocabulary, query), _DOCUMENT_WORDS - shared, replace=False)
            document = generator.permutation([*query[:shared], *others])
            pairs.append(Pair(" ".join(query), " ".join(document), shared / _QUERY_WORDS))
    return split_by_query(pairs)


def save_checkpoint(directory: Path, *, seed: int = 0) -> None:
    """Writes a Hugging Face BERT of 2 layers × 32 with random weights, whose WordPiece knows the words."""
    directory.mkdir(parents=True)
    vocabulary = {piece: number for number, piece in enumerate([*_SPECIAL, *words()])}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 (no password)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = (("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"]))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _SPECIAL, strict=True))
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)  # type: ignore[no-untyped-call]  # theirs
    wrapped.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
            ),
            add_pooling_layer=False,
        )
    model.config.save_pretrained(directory)
    safetensors.torch.save_file(model.state_dict(), directory / "model.safetensors")
