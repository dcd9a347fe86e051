"""The lexical part of a teacher: features as they are named, and a network that learns them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from twinbert.errors import BundleError, UsageError
from twinbert.training import lexical
from twinbert.training.data import Pair, Split
from twinbert.training.features import FEATURES, VERSION, features
from twinbert.training.lexical import LexicalConfig
from twinbert.training.schedule import Schedule

CONFIG = LexicalConfig(hidden=16, batch=64, schedule=Schedule(epochs=12, rate=1e-2))


def _split(name: str, count: int) -> Split:
    """Queries of two words, of which a document has none, one or two: so is its grade."""
    generator = np.random.default_rng(len(name))
    pairs = []
    for number in range(count):
        words = [f"{name}{number}a", f"{name}{number}b"]
        there = int(generator.integers(3))
        document = " ".join([*words[:there], *(f"x{one}" for one in generator.integers(99, size=4))])
        pairs.append(Pair(query=" ".join(words), document=document, grade=there / 2))
    return Split(name=name, pairs=pairs)


TRAIN, DEV = _split("train", 600), _split("dev", 200)
DEV_GRADES = np.array([pair.grade for pair in DEV.pairs])


def _train(folder: Path, *, seed: int = 1) -> lexical.Lexical:
    return lexical.train(CONFIG, TRAIN, DEV, output=folder, seed=seed)


def known(query: str, document: str) -> dict[str, float]:
    """Features by name."""
    return dict(zip(FEATURES, features(query, document, max_words=9), strict=True))


def test_features_are_what_their_names_say() -> None:
    """One pair, worked out by hand: case, decimals, stems, misspelt words, compounds."""
    found = known("Drill-press 1.5 in. vise", "1.5 in. Drilling Vice, drillpress")
    # drill press 1.5 in vise; 1.5 in drilling vice drillpress
    assert found == pytest.approx(
        {
            "query words": 5,
            "document words": 5,
            "query letters": 24,
            "document letters": 33,
            "words found": 2,
            "share found": 2 / 5,
            "share found by prefix": 3 / 5,
            "first found": 0,
            "last found": 0,
            "last found by prefix": 0,
            "letters not found": 14,
            "numbers": 1,
            "share of numbers found": 1,
            # drill, drilling: " d dr ri il ll" of 6 and 9 pairs; press, drillpress: "pr re es ss s " of 6 and 11;
            # vise, vice: " v vi e " of 5 and 5
            "likeness": (10 / 15 + 10 / 17 + 1 + 1 + 6 / 10) / 5,
            "least likeness": 10 / 17,
            "likeness of first": 10 / 15,
            "likeness of last": 6 / 10,
            "ends equal": 0,
            "likeness of ends": 0,
            "words before the first": 0,
            "place of the last": 2 / 5,
            "found run together": 0,
            "phrase": 0,
            "share within": 4 / 5,
        }
    )


@pytest.mark.parametrize(
    ("query", "document", "expected"),
    [
        ("dish washer", "the dishwasher", {"found run together": 1, "phrase": 0, "share found": 0, "share within": 1}),
        (
            "steel bar",
            "a steel bar, 2 ft",
            {"found run together": 1, "phrase": 1, "place of the last": 3 / 5, "words before the first": 1},
        ),
        ("tee", "steel", {"found run together": 1, "phrase": 0, "words before the first": 1, "place of the last": 0}),
        ("ÜBER", "über", {"share found": 1, "ends equal": 1, "likeness of ends": 1}),
        ("cafe\u0301 ½", "Café １ 2", {"query words": 3, "share found": 1}),
        ("हिन्दी किताब", "किताब, हिन्दी", {"query words": 2, "document words": 2, "share found": 1}),
        ("don't 3/4 a.b. x_y", "3.4", {"query words": 7, "document words": 1, "share found": 0}),
        ("bar bar", "bar", {"words found": 2, "share found": 1}),
    ],
)
def test_compounds_phrases_and_other_scripts(query: str, document: str, expected: dict[str, float]) -> None:
    """What one feature is for."""
    found = known(query, document)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(("query", "document"), [("", "text"), ("…", "text"), ("text", "–"), ("", "")])
def test_texts_without_a_word_have_features_too(query: str, document: str) -> None:
    """Sizes, and nothing found."""
    found = features(query, document, max_words=9)
    assert len(found) == len(FEATURES)
    assert found[2:4] == [len(query), len(document)]
    assert not any(found[4:])


def test_only_the_first_words_are_looked_at() -> None:
    """A word beyond them is not there."""
    text = "a b c d"
    found = [features("d c", text, max_words=most)[FEATURES.index("words found")] for most in (2, 3, 4)]
    assert found == [0, 1, 2]


def test_a_network_learns_and_is_read_back(tmp_path: Path) -> None:
    """It orders dev by the words found; what is loaded is what was trained, and another training of the seed is too."""
    trained = _train(tmp_path / "one")
    pairs = DEV.texts()
    scores = trained.score(pairs)
    for low, high in ((0.0, 0.5), (0.5, 1.0)):
        assert scores[low == DEV_GRADES].max() < scores[high == DEV_GRADES].min()
    loaded, again = lexical.load(tmp_path / "one"), _train(tmp_path / "two")
    np.testing.assert_array_equal(loaded.score(pairs), scores)
    np.testing.assert_array_equal(again.score(pairs), scores)
    assert trained.digest == loaded.digest == again.digest
    assert trained.digest != _train(tmp_path / "three", seed=2).digest
    assert (tmp_path / "one" / "curves.png").exists()
    assert not (tmp_path / "one" / "checkpoint").exists()


def test_what_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    """Missing, cut short, or of other features."""
    with pytest.raises(UsageError, match="has no trained lexical network yet"):
        lexical.load(tmp_path)
    _train(tmp_path / "run")
    path = tmp_path / "run" / "lexical.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(BundleError, match="is damaged"):
        lexical.load(path.parent)
    path.write_bytes(safetensors.torch.save({"w": torch.zeros(3)}, {"lexical": json.dumps({"features": VERSION + 1})}))
    with pytest.raises(BundleError, match=f"reads features of version {VERSION + 1}, not {VERSION}; remove"):
        lexical.load(path.parent)


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"batch": 0}, {"max_words": 0}, {"dropout": 1.0}])
def test_sizes_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    """Found when the recipe is read."""
    with pytest.raises(UsageError, match="lexical: hidden, max_words and batch must be at least 1"):
        LexicalConfig(**wrong)  # type: ignore[arg-type]  # one of its fields


def test_the_network_is_what_is_written_out() -> None:
    """Standardised and cut to four deviations, two layers of GELU, a sum; a feature that never differs says nothing."""
    torch.manual_seed(0)
    network = lexical.Network(LexicalConfig(hidden=3)).eval()
    generator = np.random.default_rng(0)
    taught = generator.normal(5, 2, (50, len(FEATURES))).astype(np.float32)
    taught[:, 7] = 1
    network.standardise(taught)
    asked = generator.normal(5, 9, (6, len(FEATURES))).astype(np.float32)
    weights = {name: value.numpy().astype(np.float64) for name, value in network.state_dict().items()}
    for row, logit in zip(asked, network.logits(torch.from_numpy(asked)).tolist(), strict=True):
        spread = taught.astype(np.float64).std(0)
        values = [
            0.0 if k == 7 else min(4.0, max(-4.0, (x - taught[:, k].astype(np.float64).mean()) / spread[k]))
            for k, x in enumerate(row.tolist())
        ]
        for layer in (0, 3, 6):
            sums = weights[f"layers.{layer}.weight"] @ np.array(values) + weights[f"layers.{layer}.bias"]
            values = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in sums] if layer < 6 else sums.tolist()
        assert logit == pytest.approx(values[0], abs=1e-5)
