"""A tower: a BERT encoder (Devlin et al., arXiv 1810.04805) whose token states are pooled into one embedding.

Shapes: B texts, L tokens, T trigrams of a token, H hidden, A heads, K = H / A, F feed-forward, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinbert.model.config import TowerConfig


class TrigramEmbedding(nn.Module):
    """A word's embedding is the sum of its trigrams'. That of id 0 is zero and stays it: it adds nothing."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, hidden))

    def forward(self, input_ids_BLT: Tensor) -> Tensor:
        """Embeddings of words."""
        B, L, T = input_ids_BLT.shape
        if torch.compiler.is_exporting():  # the bag becomes a loop over words: 25 times slower for 3 words
            words_BLH: Tensor = functional.embedding(input_ids_BLT, self.weight).sum(2)
            return words_BLH
        bags_NT = input_ids_BLT.reshape(B * L, T)
        return functional.embedding_bag(bags_NT, self.weight, mode="sum", padding_idx=0).view(B, L, -1)  # [B, L, H]


class Embeddings(nn.Module):
    """Word and position embeddings.

    A text is one segment, so BERT's segment embedding is one vector, added to all; trigrams have none.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        trigrams = config.embedding == "trigrams"
        kind = TrigramEmbedding if trigrams else nn.Embedding
        self.word = kind(config.vocabulary, config.hidden)
        self.position = nn.Parameter(torch.empty(config.positions, config.hidden))
        self.segment = None if trigrams else nn.Parameter(torch.empty(config.hidden))
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        """First states of tokens, whose ids are [B, L], or [B, L, T] of trigrams."""
        return self._placed(self.word(input_ids))  # [B, L, H]

    def several(self, chunks: Sequence[Tensor]) -> list[Tensor]:
        """First states of several such `input_ids`.

        One lookup for all: the gradient of each is as large as the vocabulary, and took a quarter of a training step.
        """
        flat = [ids.flatten(0, 1) for ids in chunks]  # [B · L] or [B · L, T]
        if flat[0].ndim > 1:
            most = max(ids.shape[1] for ids in flat)
            flat = [functional.pad(ids, (0, most - ids.shape[1])) for ids in flat]
        words_SH = self.word(torch.cat(flat).unsqueeze(0)).squeeze(0)
        parts = words_SH.split([len(ids) for ids in flat])
        return [self._placed(part.view(*ids.shape[:2], -1)) for part, ids in zip(parts, chunks, strict=True)]

    def _placed(self, words_BLH: Tensor) -> Tensor:
        # Position and segment are added first: export folds them into one constant.
        position = self.position if self.segment is None else self.position + self.segment
        states_BLH: Tensor = self.dropout(self.norm(words_BLH + position[: words_BLH.shape[1]]))
        return states_BLH


class Attention(nn.Module):
    """Multi-head self-attention. Written out, since that is what ONNX Runtime computes fastest at its opset."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key = nn.Linear(config.hidden, config.hidden)
        self.value = nn.Linear(config.hidden, config.hidden)
        self.output = nn.Linear(config.hidden, config.hidden)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states_BLH: Tensor, mask_B11L: Tensor) -> Tensor:
        """What each token takes from the others; the mask is added to their scores."""
        B, L, H = states_BLH.shape
        K = H // self.heads

        def split(projected_BLH: Tensor) -> Tensor:
            return projected_BLH.view(B, L, self.heads, K).transpose(1, 2)  # [B, A, L, K]

        query, key, value = split(self.query(states_BLH)), split(self.key(states_BLH)), split(self.value(states_BLH))
        scores_BALL = query @ key.transpose(-1, -2) / math.sqrt(K) + mask_B11L
        weights_BALL = self.dropout(scores_BALL.softmax(-1))
        output_BLH: Tensor = self.output((weights_BALL @ value).transpose(1, 2).reshape(B, L, H))
        return output_BLH  # [B, L, H]


class Layer(nn.Module):
    """Attention and feed-forward network, each followed by a residual connection and then the norm (post-norm)."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden, eps=config.norm_epsilon)
        self.up = nn.Linear(config.hidden, config.feed_forward)
        self.down = nn.Linear(config.feed_forward, config.hidden)
        self.down_norm = nn.LayerNorm(config.hidden, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states_BLH: Tensor, mask_B11L: Tensor) -> Tensor:
        """The next states of tokens."""
        states_BLH = self.attention_norm(states_BLH + self.dropout(self.attention(states_BLH, mask_B11L)))
        activated_BLF = functional.gelu(self.up(states_BLH))  # the exact one, with erf
        output_BLH: Tensor = self.down_norm(states_BLH + self.dropout(self.down(activated_BLF)))
        return output_BLH  # [B, L, H]


class ClsPooling(nn.Module):
    """The state of the first token, [CLS]."""

    def forward(self, states_BLH: Tensor, mask_BL: Tensor) -> Tensor:
        """One vector of each text."""
        return states_BLH[:, 0]  # [B, H]


class WeightedPooling(nn.Module):
    """v = Σᵢ αᵢ hᵢ with αᵢ = softmaxᵢ(w · hᵢ + b) over the real tokens. It starts as the mean: w = 0, b = 0."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.score = nn.Linear(config.hidden, 1)

    def forward(self, states_BLH: Tensor, mask_BL: Tensor) -> Tensor:
        """One vector of each text; the mask is added to the tokens' scores."""
        alpha_BL: Tensor = (self.score(states_BLH).squeeze(-1) + mask_BL).softmax(-1)
        return (alpha_BL.unsqueeze(1) @ states_BLH).squeeze(1)  # [B, H]


class Tower(nn.Module):
    """Token ids → embeddings. New ones have BERT's initial weights.

    Args:
        config: its widths and parts.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.pooling = ClsPooling() if config.pooling == "cls" else WeightedPooling(config)
        self.projection = None if config.projection is None else nn.Linear(config.hidden, config.projection)
        self._initialise()

    def states(self, input_ids: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """The last layer's states [B, L, H] of tokens; those of padding mean nothing."""
        return self._states(self.embeddings(input_ids), attention_mask_BL)

    def pooled(self, input_ids: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """One vector [B, H] of each text: its embedding before projection and normalisation."""
        return self._pooled(self.embeddings(input_ids), attention_mask_BL)

    def forward(self, input_ids: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Embeddings of texts.

        Args:
            input_ids: int64 [B, L] token ids, padded at the end; [B, L, T] where a token is trigrams, 0 being none.
            attention_mask_BL: int64, 1 for tokens and 0 for padding; every text has a token.

        Returns:
            float32 [B, D].
        """
        return self._embedded(self.embeddings(input_ids), attention_mask_BL)

    def several(self, chunks: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Embeddings [N, D] of the texts of all chunks, each what `forward` takes, in their sequence."""
        first = self.embeddings.several([ids for ids, _ in chunks])
        masks = [mask for _, mask in chunks]
        return torch.cat([self._embedded(states, mask) for states, mask in zip(first, masks, strict=True)])

    def _states(self, states_BLH: Tensor, attention_mask_BL: Tensor) -> Tensor:
        mask_B11L = _additive(attention_mask_BL)[:, None, None, :]
        for layer in self.layers:
            states_BLH = layer(states_BLH, mask_B11L)
        return states_BLH  # [B, L, H]

    def _pooled(self, first_BLH: Tensor, attention_mask_BL: Tensor) -> Tensor:
        states_BLH = self._states(first_BLH, attention_mask_BL)
        vector_BH: Tensor = self.pooling(states_BLH, _additive(attention_mask_BL))
        return vector_BH

    def _embedded(self, first_BLH: Tensor, attention_mask_BL: Tensor) -> Tensor:
        vector_BD = self._pooled(first_BLH, attention_mask_BL)
        if self.projection is not None:
            vector_BD = torch.tanh(self.projection(vector_BD))
        if self.config.normalisation == "l2":
            vector_BD = functional.normalize(vector_BD, dim=-1)
        return vector_BD  # [B, D]

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | TrigramEmbedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embeddings.position, std=0.02)
        if self.embeddings.segment is not None:
            nn.init.normal_(self.embeddings.segment, std=0.02)
        if isinstance(self.embeddings.word, TrigramEmbedding):
            nn.init.zeros_(self.embeddings.word.weight[0])
        if isinstance(self.pooling, WeightedPooling):
            nn.init.zeros_(self.pooling.score.weight)


def _additive(attention_mask_BL: Tensor) -> Tensor:
    """0 for tokens, the lowest float32 for padding: added to a logit, it leaves no weight in a softmax."""
    return (1.0 - attention_mask_BL.float()) * torch.finfo(torch.float32).min  # [B, L]
