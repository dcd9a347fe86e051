"""A teacher of several voices: their weights beside each other, and what students are told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from twinbert.bundle import Bundle
from twinbert.errors import UsageError
from twinbert.training import ensemble, recipe, student, synthetic, teaching
from twinbert.training.calibration import Blend, blend
from twinbert.training.devices import Precision
from twinbert.training.ensemble import CrossEncoders, Ensemble, TwinVoice, Voice
from twinbert.training.report import Silent
from twinbert.training.teacher import Floats, TextPair

TINY = recipe.load("tiny")
DATASET = synthetic.dataset(seed=TINY.seed)
GRADES = {(pair.query, pair.document): pair.grade for pair in DATASET.dev.pairs}


class Spoken:
    """A voice that knows as much of a grade as it is told to, and remembers what it was asked."""

    def __init__(self, digest: str, knows: float) -> None:
        self.digest, self._knows = digest, knows
        self.asked: list[TextPair] = []

    def score(self, pairs: Sequence[TextPair], *, precision: Precision = "float32") -> Floats:
        self.asked.extend(pairs)
        chance = [(hash_of(self.digest, *pair) % 1000) / 1000 - 0.5 for pair in pairs]
        known = [GRADES.get(pair, 0.5) - 0.5 for pair in pairs]
        return np.array(np.array(known) * self._knows + chance, dtype=np.float32)

    def cache_name(self, precision: Precision) -> str:
        return f"{self.digest}-{precision}"

    def order(self, query: str, document: str) -> tuple[int, str]:
        return -len(document), ""


def hash_of(*texts: str) -> int:
    """The same in every process."""
    return sum(ord(letter) * 31**place for place, letter in enumerate("|".join(texts))) % 1_000_003


def voices(*names: str) -> dict[str, Voice]:
    return {name: Spoken(name, knows) for name, knows in zip(names, (1.0, 2.0, 0.0), strict=False)}


def test_known_weights_are_found() -> None:
    """Of grades that two logits and a bias made, these; one that misleads or is flat has none, the first some."""
    generator = np.random.default_rng(3)
    logits_N2 = generator.normal([1, -2], [1, 3], (50_000, 2)).astype(np.float32)
    true = Blend((0.7, 0.4), -0.5)
    grades_N = (1 / (1 + np.exp(-true.apply(logits_N2)))).astype(np.float64)
    found = blend(logits_N2, grades_N)
    assert (*found.weights, found.bias) == pytest.approx((0.7, 0.4, -0.5), abs=0.01)
    misled = blend((logits_N2 * [1, -1]).astype(np.float32), grades_N)
    assert misled.weights[0] > 0
    assert misled.weights[1] == 0
    assert blend((logits_N2 * [-1, 1]).astype(np.float32), grades_N).weights[0] > 0
    flat = np.array([1, 0], dtype=np.float32)
    assert blend(logits_N2 * flat, grades_N).weights[1] == 0
    assert blend(logits_N2 * flat + (1 - flat) * np.float32(0.3), grades_N).weights[1] == 0  # whose mean is rounded
    with pytest.raises(UsageError, match="the model has learned nothing"):
        blend(logits_N2 * flat[::-1], grades_N)


def test_voices_are_weighed_once(tmp_path: Path) -> None:
    """Together they have a smaller loss on dev than either; the weights are kept, with what each gives, and loaded."""
    both = voices("one", "two")
    whole = ensemble.weigh(both, DATASET.dev, output=tmp_path, report=Silent())
    kept = json.loads((tmp_path / "weights.json").read_text())
    assert whole.weights == Blend(tuple(kept["weights"]), kept["bias"])
    assert kept["dev"]["together"]["loss"] < min(kept["dev"][name]["loss"] for name in ("one", "two"))
    again = ensemble.weigh(voices("one", "two"), DATASET.dev, output=tmp_path, report=Silent())
    assert again.weights == whole.weights
    assert all(isinstance(voice, Spoken) and not voice.asked for voice in again.voices.values())
    pairs = DATASET.dev.texts()
    expected = (
        np.stack([voice.score(pairs) for voice in both.values()], axis=1) @ np.array(kept["weights"]) + kept["bias"]
    )
    np.testing.assert_allclose(ensemble.load(both, tmp_path).score(pairs), expected, rtol=1e-5)
    with pytest.raises(UsageError, match=r"voices.three is missing there and 'three' here"):
        ensemble.weigh(voices("one", "two", "three"), DATASET.dev, output=tmp_path, report=Silent())


def test_one_voice_speaks_for_itself(tmp_path: Path) -> None:
    """It has no weight, and no folder."""
    alone = ensemble.weigh(voices("one"), DATASET.dev, output=tmp_path / "blend", report=Silent())
    pairs = DATASET.dev.texts()
    np.testing.assert_array_equal(alone.score(pairs), voices("one")["one"].score(pairs))
    assert not (tmp_path / "blend").exists()


@pytest.mark.parametrize(
    ("content", "complaint"), [(None, "were not weighed yet"), ("{", "is damaged"), ("[]", "damaged")]
)
def test_weights_that_cannot_be_read_say_so(content: str | None, complaint: str, tmp_path: Path) -> None:
    """Missing or damaged, with what to do."""
    if content is not None:
        (tmp_path / "weights.json").write_text(content)
    with pytest.raises(UsageError, match=f"{complaint}.*make it with `twinbert train teacher`"):
        ensemble.load(voices("one", "two"), tmp_path)


def test_students_learn_what_the_whole_teacher_says(tmp_path: Path) -> None:
    """The pairs of a run have the logits of all voices, each of which is asked of a pair once, in its own order."""
    both = voices("one", "two")
    scorer = Ensemble(both, Blend((0.5, 0.25), 1.0))
    found = [teaching.score_pairs(TINY, DATASET, scorer, tmp_path / "scores", Silent()) for _ in range(2)]
    for voice in both.values():
        assert isinstance(voice, Spoken)
        assert len(voice.asked) == len(found[0])
        lengths = [len(document) for _, document in voice.asked]
        assert lengths == sorted(lengths, reverse=True)
    assert found[0].teacher_P.tobytes() == found[1].teacher_P.tobytes()
    np.testing.assert_allclose(found[0].teacher_P, scorer.score(found[0].texts()), rtol=1e-6)
    np.testing.assert_array_equal(found[0].grade_P, found[1].grade_P)
    assert len(list((tmp_path / "scores").glob("*.scores"))) == 2


def test_a_twin_speaks_as_its_bundle_does(tiny_bundle: Path) -> None:
    """Its first crossing's logits, by all that is in the bundle; a document's pairs are asked one after the other."""
    voice, pairs = TwinVoice(tiny_bundle), DATASET.dev.texts()[:9]
    np.testing.assert_array_equal(voice.score(pairs), student.load(tiny_bundle).logits(pairs))
    assert voice.digest == Bundle.open(tiny_bundle).model
    rough = voice.score(pairs, precision="bf16")
    assert 0 < np.abs(rough - voice.score(pairs)).max() < 0.3
    ordered = sorted([("a", "bb"), ("ccc", "aa"), ("b", "bb"), ("a", "a")], key=lambda pair: voice.order(*pair))
    assert [document for _, document in ordered] == ["a", "aa", "bb", "bb"]
    assert voice.cache_name("bf16") != voice.cache_name("float32")


def test_several_cross_encoders_speak_with_one_voice() -> None:
    """Their mean; its digest is of all of them, and of one alone its own."""
    members = [Spoken("one", 1.0), Spoken("two", 1.0)]
    pairs = DATASET.dev.texts()[:8]
    both, one = CrossEncoders(members), CrossEncoders(members[:1])
    first, second = (member.score(pairs) for member in members)
    assert np.abs(first - second).max() > 0
    np.testing.assert_allclose(both.score(pairs), (first + second) / 2, rtol=1e-6)
    np.testing.assert_array_equal(one.score(pairs), first)
    assert one.digest == "one"
    assert both.digest not in ("one", "two")
