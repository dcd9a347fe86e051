"""C-DSSM: its layers against the paper's formulas written out, and a small one trained to its end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from twinbert.errors import UsageError
from twinbert.tokenizer import TriLetter, save_triletter
from twinbert.training import dssm, synthetic
from twinbert.training.data import Dataset
from twinbert.training.distillation import LossWeights
from twinbert.training.dssm import CDssm, DssmConfig
from twinbert.training.metrics import evaluate
from twinbert.training.pairs import judged
from twinbert.training.schedule import Schedule
from twinbert.training.student import Student

CONFIG = DssmConfig(
    convolution=12,
    dimension=8,
    losses=LossWeights(soft_cross_entropy=0.0, graded_cross_entropy=1.0),
    distil=Schedule(epochs=2, rate=2e-2, weight_decay=0.0),
    documents=12,
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Pairs whose grade is the share of words in common."""
    return synthetic.dataset()


@pytest.fixture
def tokenizer(tmp_path: Path) -> TriLetter:
    """The paper's tri-letters."""
    save_triletter(tmp_path / "tokenizer.json")
    return TriLetter(tmp_path / "tokenizer.json", max_tokens=8)


def written_out(tower: dssm.ConvolutionalTower, words: list[list[int]]) -> list[float]:
    """One text's embedding by the paper's formulas, with one-hot tri-letters and no shortcuts."""
    table = tower.convolution.weight.detach().numpy()
    features = len(tower.bias)
    matrix = table.reshape(len(table), 3, features)  # W_c: tri-letter, place in the window, feature
    hidden = []
    for place in range(len(words)):
        total = tower.bias.detach().numpy().copy()
        for offset in (-1, 0, 1):
            if 0 <= place + offset < len(words):
                for trigram in words[place + offset]:
                    total += matrix[trigram, offset + 1]
        hidden.append(np.tanh(total))
    pooled = np.max(hidden, axis=0)
    weight, bias = tower.semantic.weight.detach().numpy(), tower.semantic.bias.detach().numpy()
    return [float(value) for value in np.tanh(weight @ pooled + bias)]


def test_towers_compute_the_papers_formulas(tokenizer: TriLetter) -> None:
    """Texts of one word and of several, together in a padded batch, have the embeddings written out for each alone."""
    torch.manual_seed(0)
    tower = CDssm(CONFIG.twin).document
    tokens = tokenizer.encode(["hammer", "claw hammer with handle", "two words"])
    embeddings = tower(*map(torch.from_numpy, tokens.padded())).detach()
    for ids_LT, embedding in zip(tokens.ids, embeddings, strict=True):
        words = [[trigram for trigram in word if trigram] for word in ids_LT.tolist()]
        assert embedding.tolist() == pytest.approx(written_out(tower, words), abs=1e-6)


def test_word_order_matters(tokenizer: TriLetter) -> None:
    """The window tells the same words in another order apart, which a bag of words does not."""
    torch.manual_seed(0)
    tower = CDssm(CONFIG.twin).query
    one, other = tower(*map(torch.from_numpy, tokenizer.encode(["red wood glue", "glue wood red"]).padded()))
    assert not torch.allclose(one, other, atol=1e-3)


def test_towers_share_weights_or_have_their_own() -> None:
    """`shared` is one tower under two names; without it the networks differ."""
    shared, apart = CDssm(CONFIG.twin), CDssm(dataclasses.replace(CONFIG, shared=False).twin)
    assert shared.query is shared.document
    assert not torch.equal(apart.query.convolution.weight, apart.document.convolution.weight)


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Path]:
    """A small C-DSSM and its folder."""
    folder = tmp_path_factory.mktemp("dssm")
    return dssm.train(CONFIG, dataset, judged(dataset), output=folder, seed=1), folder


def test_training_learns_and_calibrates(dataset: Dataset, trained: tuple[Student, Path]) -> None:
    """It ranks what it was trained on far above chance, and its scores on dev are near the grades."""
    train, dev = (evaluate(trained[0].score(split.texts()), split.pairs) for split in (dataset.train, dataset.dev))
    assert train["auc2"] > 0.75
    assert dev["calibration_error"] < 0.1


def test_a_trained_network_loads_with_its_scores(dataset: Dataset, trained: tuple[Student, Path]) -> None:
    """`load`, and training again into the same folder, give the network that is there."""
    student, folder = trained
    texts = dataset.test.texts()
    again = dssm.train(CONFIG, dataset, judged(dataset), output=folder, seed=1)
    for other in (dssm.load(folder), again):
        assert other.score(texts) == pytest.approx(student.score(texts))


def test_another_configuration_is_refused(dataset: Dataset, trained: tuple[Student, Path]) -> None:
    """A folder that holds the run of another seed is not trained on."""
    with pytest.raises(UsageError, match="another configuration"):
        dssm.train(CONFIG, dataset, judged(dataset), output=trained[1], seed=2)


def test_pairs_without_a_teachers_scores_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    """Losses against a teacher need its scores, and say so before anything is trained."""
    with pytest.raises(UsageError, match="none has scored"):
        dssm.train(DssmConfig(), dataset, judged(dataset), output=tmp_path, seed=1)


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    """Loading says what is missing."""
    with pytest.raises(UsageError, match="holds no trained C-DSSM"):
        dssm.load(tmp_path)
