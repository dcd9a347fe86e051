"""Towers whose tokens are trigrams."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from twinbert.errors import UsageError
from twinbert.model.config import Embedding, TowerConfig, TwinConfig
from twinbert.model.tower import Tower, TrigramEmbedding

TOWER = TowerConfig(vocabulary=40, hidden=8, layers=2, heads=2, feed_forward=12, positions=5, embedding="trigrams")


@pytest.fixture
def tower() -> Tower:
    """A small one, in evaluation mode."""
    torch.manual_seed(21)
    return Tower(TOWER).eval()


@torch.no_grad()
def test_a_word_is_the_sum_of_its_trigrams_and_its_position(tower: Tower) -> None:
    """First states are norm(Σ trigrams + position), number by number; a trigram that comes twice counts twice."""
    ids_BLT = torch.tensor([[[9, 8, 17], [11, 11, 0], [0, 0, 0]], [[12, 0, 0], [0, 0, 0], [39, 38, 37]]])
    states_BLH = tower.embeddings(ids_BLT)
    weight, norm = tower.embeddings.word.weight.tolist(), tower.embeddings.norm
    for text, words in zip(states_BLH, ids_BLT.tolist(), strict=True):
        for place, trigrams in enumerate(words):
            total = [position.item() for position in tower.embeddings.position[place]]
            for trigram in filter(None, trigrams):
                total = [value + part for value, part in zip(total, weight[trigram], strict=True)]
            mean = sum(total) / 8
            spread = (sum((value - mean) ** 2 for value in total) / 8 + norm.eps) ** 0.5
            torch.testing.assert_close(text[place], torch.tensor([(value - mean) / spread for value in total]))


@torch.no_grad()
def test_padding_of_words_and_of_texts_changes_nothing(tower: Tower) -> None:
    """A text has the same embedding alone as beside texts of more words, and of longer ones."""
    ids_LT = torch.tensor([[9, 8], [11, 0]])
    alone_1D = tower(ids_LT[None], torch.ones(1, 2, dtype=torch.int64))
    ids_BLT = torch.randint(1, 40, (2, 5, 6))
    ids_BLT[0, :2], ids_BLT[0, :2, :2] = 0, ids_LT
    mask_BL = torch.tensor([[1, 1, 0, 0, 0], [1] * 5])
    torch.testing.assert_close(tower(ids_BLT, mask_BL)[:1], alone_1D)


@pytest.mark.parametrize("embedding", ["tokens", "trigrams"])
def test_chunks_looked_up_at_once_are_embedded_as_each_alone(embedding: Embedding) -> None:
    """Embeddings and gradients, whatever the chunks' lengths and their most trigrams of a word."""
    torch.manual_seed(22)
    tower = Tower(replace(TOWER, embedding=embedding)).eval()
    trigrams = [(4,), (2,), (7,)] if embedding == "trigrams" else [(), (), ()]
    shapes = [(B, L, *T) for (B, L), T in zip([(2, 5), (1, 1), (3, 2)], trigrams, strict=True)]
    chunks = [(torch.randint(1, 40, shape), torch.ones(shape[:2], dtype=torch.int64)) for shape in shapes]
    chunks[0][1][0, 3:] = 0
    weight_ND = torch.randn(6, 8)
    found, expected = tower.several(chunks), torch.cat([tower(*chunk) for chunk in chunks])
    torch.testing.assert_close(found, expected)
    parameters = [p for p in tower.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad((weight_ND * value).sum(), parameters) for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_what_is_exported_computes_what_is_trained(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gather that an exported tower uses gives the sums that the bag gives in training."""
    ids_BLT = torch.randint(0, 40, (3, 4, 6))
    trained_BLH = tower.embeddings.word(ids_BLT)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(tower.embeddings.word(ids_BLT), trained_BLH)


def test_no_trigram_stays_nothing(tower: Tower) -> None:
    """The embedding of id 0 starts as zero, and training with weight decay leaves it there."""
    optimiser = torch.optim.AdamW(tower.parameters(), lr=0.1)
    for _ in range(3):
        ids_BLT = torch.randint(0, 40, (2, 5, 4))
        tower(ids_BLT, torch.ones(2, 5, dtype=torch.int64)).sum().backward()
        optimiser.step()
    weight = tower.embeddings.word.weight
    assert isinstance(tower.embeddings.word, TrigramEmbedding)
    assert not weight[0].any()
    assert weight[1:].any(dim=1).all()


@torch.no_grad()
def test_an_unknown_word_has_an_embedding(tower: Tower) -> None:
    """A text of id 0 alone is what its position makes of it: finite, and the same every time."""
    unknown, one = torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64)
    embedding_D = tower(unknown, one)
    assert embedding_D.isfinite().all()
    torch.testing.assert_close(tower(torch.zeros(1, 1, 9, dtype=torch.int64), one), embedding_D)


@torch.no_grad()
def test_pooled_is_what_is_projected() -> None:
    """An embedding is the pooled vector, projected, through tanh, and normalised where that is asked for."""
    torch.manual_seed(22)
    tower = Tower(replace(TOWER, projection=3, normalisation="l2")).eval()
    ids_BLT, mask_BL = torch.randint(1, 40, (2, 4, 3)), torch.tensor([[1] * 4, [1, 1, 0, 0]])
    pooled_BH = tower.pooled(ids_BLT, mask_BL)
    assert pooled_BH.shape == (2, 8)
    assert tower.projection is not None
    expected_BD = functional.normalize(torch.tanh(tower.projection(pooled_BH)), dim=-1)
    torch.testing.assert_close(tower(ids_BLT, mask_BL), expected_BD)


def test_trigram_towers_have_no_segment_and_may_read_one_word() -> None:
    """There is no segment embedding, as in the published code; texts may be as short as a word."""
    assert Tower(TOWER).embeddings.segment is None
    TwinConfig(query=TOWER, document=TOWER, query_max_tokens=1, document_max_tokens=5)
    pieces = replace(TOWER, embedding="tokens")
    with pytest.raises(UsageError, match="query tower: max_tokens is 0; it must be 1 to 5"):
        TwinConfig(query=TOWER, document=TOWER, query_max_tokens=0, document_max_tokens=5)
    with pytest.raises(UsageError, match="towers: embedding is trigrams and tokens; it must be the same for both"):
        TwinConfig(query=TOWER, document=pieces, query_max_tokens=3, document_max_tokens=5)
    with pytest.raises(UsageError, match="embedding is 'letters'; there are tokens and trigrams"):
        replace(TOWER, embedding="letters")  # type: ignore[arg-type]  # not a name of one
