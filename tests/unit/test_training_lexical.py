"""The lexical part of a teacher: features as they are named, a network that learns them, its weight beside others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from twinbert.errors import BundleError, UsageError
from twinbert.training import lexical
from twinbert.training.calibration import Blend, blend
from twinbert.training.data import Pair, Split
from twinbert.training.ensemble import Ensemble
from twinbert.training.features import FEATURES, features
from twinbert.training.lexical import LexicalConfig
from twinbert.training.schedule import Schedule
from twinbert.training.teacher import Floats, TextPair

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


def _others() -> Floats:
    """Cross-encoders that know something of DEV, and not all."""
    return (DEV_GRADES - 0.5 + np.random.default_rng(0).normal(0, 0.5, len(DEV_GRADES))).astype(np.float32)


def _train(folder: Path, **changes: object) -> lexical.Lexical:
    given = {"named": "others", "output": folder, "seed": 1} | changes
    return lexical.train(CONFIG, TRAIN, DEV, _others, **given)  # type: ignore[arg-type]  # tests change what they like


def test_features_are_what_their_names_say() -> None:
    """One pair, worked out by hand: case, decimals, stems, misspelt words, compounds."""
    found = dict(zip(FEATURES, features("Drill-press 1.5 in. vise", "1.5 in. Drilling Vice, drillpress"), strict=True))
    # drill press 1.5 in vise; 1.5 in drilling vice drillpress
    assert found == pytest.approx(
        {
            "query words": 5,
            "document words": 5,
            "query letters": 24,
            "document letters": 33,
            "words found": 2,
            "share found": 2 / 5,
            "share found by stem": 3 / 5,
            "first found": 0,
            "last found": 0,
            "last found by stem": 0,
            "letters not found": 14,
            "numbers": 1,
            "share of numbers found": 1,
            # drill, drilling: " d dr ri il ll" of 6 and 9 pairs; press, drillpress: "pr re es ss s " of 6 and 11;
            # vise, vice: " v vi e " of 5 and 5
            "likeness": (10 / 15 + 10 / 17 + 1 + 1 + 6 / 10) / 5,
            "least likeness": 10 / 17,
            "likeness of first": 10 / 15,
            "likeness of last": 6 / 10,
            "ends alike": 0,
            "likeness of ends": 0,
            "first place": 0,
            "last place": 2 / 5,
            "compound": 0,
            "phrase": 0,
            "share within": 4 / 5,
        }
    )


@pytest.mark.parametrize(
    ("query", "document", "expected"),
    [
        ("dish washer", "the dishwasher", {"compound": 1, "phrase": 0, "share found": 0, "share within": 1}),
        ("steel bar", "a steel bar, 2 ft", {"compound": 1, "phrase": 1, "last place": 3 / 5, "first place": 1}),
        ("tee", "steel", {"compound": 1, "phrase": 0, "first place": 1, "last place": 0}),
        ("ÜBER", "über", {"share found": 1, "ends alike": 1, "likeness of ends": 1}),
        ("bar bar", "bar", {"words found": 2, "share found": 1}),
    ],
)
def test_compounds_phrases_and_other_scripts(query: str, document: str, expected: dict[str, float]) -> None:
    """What one feature is for."""
    found = dict(zip(FEATURES, features(query, document), strict=True))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(("query", "document"), [("", "text"), ("…", "text"), ("text", "–"), ("", "")])
def test_texts_without_a_word_have_features_too(query: str, document: str) -> None:
    """Sizes, and nothing found."""
    found = features(query, document)
    assert len(found) == len(FEATURES)
    assert found[2:4] == [len(query), len(document)]
    assert not any(found[4:])


def test_a_network_learns_and_is_read_back(tmp_path: Path) -> None:
    """It orders dev by the words found; what is loaded is what was trained, and another training of the seed is too."""
    trained = _train(tmp_path / "one")
    pairs = [(pair.query, pair.document) for pair in DEV.pairs]
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


def test_it_weighs_what_it_adds(tmp_path: Path) -> None:
    """Together they have a smaller cross-entropy on dev than the cross-encoders have with any scale and bias."""
    trained = _train(tmp_path)
    pairs, others = [(pair.query, pair.document) for pair in DEV.pairs], _others()
    together = trained.add(others, trained.score(pairs))
    assert together.dtype == np.float32
    alone = blend(others[:, None], DEV_GRADES).apply(others[:, None])

    def loss(logits: Floats) -> float:
        return float((np.logaddexp(0, logits) - DEV_GRADES * logits).mean())

    assert loss(together) < loss(alone) - 0.05


def test_an_ensemble_adds_it_to_what_its_members_say(tmp_path: Path) -> None:
    """The members' mean is weighted; without a network it stays as it is, and the digest is of the members."""

    class Member:
        digest = "member"

        def score(self, pairs: list[TextPair], *, precision: str) -> Floats:
            assert precision == "float32"
            return np.arange(len(pairs), dtype=np.float32)

    words, pairs = _train(tmp_path), [(pair.query, pair.document) for pair in DEV.pairs[:9]]
    members = [Member(), Member()]
    alone, whole = Ensemble(members), Ensemble(members, words)  # type: ignore[arg-type]  # as a Teacher does
    np.testing.assert_array_equal(alone.score(pairs), np.arange(9))
    np.testing.assert_array_equal(whole.read(pairs), np.arange(9))
    weights = words.weights
    expected = weights.weights[0] * np.arange(9) + weights.weights[1] * words.score(pairs) + weights.bias
    np.testing.assert_allclose(whole.score(pairs), expected, rtol=1e-5)
    assert alone.digest == whole.digest


def test_one_of_other_cross_encoders_is_refused(tmp_path: Path) -> None:
    """Its weights are those beside the teachers that it was weighed against."""
    _train(tmp_path)
    with pytest.raises(UsageError, match="cross_encoders is 'others' there and 'new' here"):
        _train(tmp_path, named="new")


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
    kept = {"hidden": 16, "features": ["query words"], "weights": [1, 1], "bias": 0}
    path.write_bytes(safetensors.torch.save(safetensors.torch.load(whole), {"lexical": json.dumps(kept)}))
    with pytest.raises(BundleError, match="knows other features than this version"):
        lexical.load(path.parent)


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"batch": 0}, {"dropout": 1.0}])
def test_sizes_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    """Found when the recipe is read."""
    with pytest.raises(UsageError, match="lexical: hidden and batch must be at least 1"):
        LexicalConfig(**wrong)  # type: ignore[arg-type]  # one of its fields


def test_known_weights_are_found() -> None:
    """Of grades that two logits and a bias made, these; one that only misleads has no say, the first one always."""
    generator = np.random.default_rng(3)
    logits_N2 = generator.normal([1, -2], [1, 3], (50_000, 2)).astype(np.float32)
    true = Blend((0.7, 0.4), -0.5)
    grades_N = (1 / (1 + np.exp(-true.apply(logits_N2)))).astype(np.float64)
    found = blend(logits_N2, grades_N)
    assert (*found.weights, found.bias) == pytest.approx((0.7, 0.4, -0.5), abs=0.01)
    misled = blend(logits_N2 * [1, -1], grades_N)
    assert misled.weights[0] > 0
    assert misled.weights[1] == 0
    assert blend(logits_N2 * [-1, 1], grades_N).weights[0] > 0
    with pytest.raises(UsageError, match="the model has learned nothing"):
        blend(logits_N2 * np.array([1, 0], dtype=np.float32), grades_N)
