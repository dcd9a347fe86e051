"""A BERT-Base-sized cross-encoder in torch: what scoring costs when query and document are read together.

The weights are random: they do not change the time. Shapes: N pairs, B pairs of a batch, L tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from torch import Tensor, nn

from bench.driver import System
from bench.load import Call
from bench.workloads import Task

PAIR_TOKENS = 24  # of a query and a product's title; longer pairs are cut, which favours the cross-encoder

_BATCH = 25


def system(title: str, layers: int, tokenizer: Path, texts: Path) -> System:
    """In the caller's process, on every core.

    Args:
        title: in the report.
        layers: 12 is BERT-Base.
        tokenizer: WordPiece's tokenizer.json.
        texts: JSON, document id → text.
    """
    arguments = {"layers": layers, "tokenizer": str(tokenizer), "texts": str(texts)}
    return System(title=title, client=__name__, arguments=arguments)


async def connect(layers: int, tokenizer: str, texts: str) -> Call:
    """Scores that mean nothing, in the time that real ones take."""
    pairs = tokenizers.Tokenizer.from_file(tokenizer)
    pairs.no_padding()
    pairs.enable_truncation(PAIR_TOKENS)
    model, documents = CrossEncoder(pairs, layers=layers), json.loads(Path(texts).read_text())

    async def call(tasks: Sequence[Task]) -> list[list[float]]:
        return [model.score(query, [documents[id_] for id_ in ids]).tolist() for query, ids in tasks]

    return call


class CrossEncoder(nn.Module):
    """12 layers of 768, 12 heads, feed-forward 3072: torch's own encoder layers, fused for inference.

    Args:
        tokenizer: of the pairs.
        layers: 12 is BERT-Base.
        seed: of the weights.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, layers: int = 12, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self._tokenizer = tokenizer
        self.words = nn.Embedding(tokenizer.get_vocab_size(), 768)
        self.positions = nn.Embedding(512, 768)
        self.kinds = nn.Embedding(2, 768)
        self.norm = nn.LayerNorm(768)
        layer = nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.score_ = nn.Linear(768, 1)
        self.eval()

    @torch.inference_mode()
    def score(self, query: str, documents: Sequence[str]) -> Tensor:
        """Probabilities [N] of the pairs, in batches of like length so that little padding is computed."""
        pairs = self._tokenizer.encode_batch([(query, document) for document in documents])
        order = sorted(range(len(pairs)), key=lambda number: len(pairs[number].ids))
        scores_N = torch.empty(len(pairs))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            ids_BL = nn.utils.rnn.pad_sequence([torch.tensor(pairs[n].ids) for n in batch], batch_first=True)
            kinds_BL = nn.utils.rnn.pad_sequence([torch.tensor(pairs[n].type_ids) for n in batch], batch_first=True)
            mask_BL = nn.utils.rnn.pad_sequence(
                [torch.tensor(pairs[n].attention_mask) for n in batch], batch_first=True
            )
            x_BLD = self.words(ids_BL) + self.positions(torch.arange(ids_BL.shape[1])) + self.kinds(kinds_BL)
            x_BLD = self.encoder(self.norm(x_BLD), src_key_padding_mask=mask_BL == 0)
            scores_N[batch] = self.score_(x_BLD[:, 0]).sigmoid()[:, 0]
        return scores_N
