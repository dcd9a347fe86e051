"""A run's teacher: made, loaded, and asked what students are to learn."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from twinbert.errors import UsageError
from twinbert.training import ensemble, lexical, teacher
from twinbert.training import pairs as pairs_
from twinbert.training.data import Dataset
from twinbert.training.devices import new_accelerator, precision_of
from twinbert.training.ensemble import CROSS_ENCODERS, REMEDY, WORDS, CrossEncoders, Ensemble, TwinVoice, Voice
from twinbert.training.pairs import Pairs, ScoreCache
from twinbert.training.recipe import Recipe
from twinbert.training.report import Report
from twinbert.training.runs import locked, recorded

_APART = 1_000_003  # seeds of one run's teachers: of successive ones the runs of neighbouring seeds would share some


def teacher_folders(recipe: Recipe, run: Path) -> list[Path]:
    """Where a run has its teachers."""
    return [run / ("teacher" if number == 1 else f"teacher-{number}") for number in range(1, recipe.teachers + 1)]


def lexical_folder(run: Path) -> Path:
    """Where a run has the network on words."""
    return run / "lexical"


def blend_folder(run: Path) -> Path:
    """Where a run has the weights of its teacher's voices."""
    return run / "blend"


def train_cross_encoders(recipe: Recipe, dataset: Dataset, run: Path, report: Report) -> CrossEncoders:
    """The recipe's cross-encoders; those that are there are loaded."""
    return CrossEncoders(
        [
            teacher.train(
                recipe.teacher,
                dataset.train,
                dataset.dev,
                output=folder,
                seed=_seed(recipe, number, folder),
                report=report,
            )
            for number, folder in enumerate(teacher_folders(recipe, run))
        ]
    )


def make_teacher(
    recipe: Recipe, cross_encoders: CrossEncoders, dataset: Dataset, run: Path, report: Report
) -> Ensemble:
    """The recipe's teacher whole, of twins that are there; words and weights that are there are loaded."""
    voices = _voices(recipe, cross_encoders, run)
    if recipe.lexical is not None:
        splits, folder = (dataset.train, dataset.dev), lexical_folder(run)
        voices[WORDS] = lexical.train(recipe.lexical, *splits, output=folder, seed=recipe.seed, report=report)
    return ensemble.weigh(voices, dataset.dev, output=blend_folder(run), report=report)


def load_teacher(recipe: Recipe, run: Path) -> Ensemble:
    """The teacher of a run.

    Raises:
        UsageError: a part of it is not there yet.
        BundleError: one is damaged.
    """
    folders = teacher_folders(recipe, run)
    for folder in folders:
        if not (folder / "model").is_dir():
            raise UsageError(f"{folder}: has no trained teacher yet; {REMEDY}")
    config = recipe.teacher
    members = [teacher.load(one / "model", max_tokens=config.max_tokens, batch=config.batch) for one in folders]
    voices = _voices(recipe, CrossEncoders(members), run)
    if recipe.lexical is not None:
        voices[WORDS] = lexical.load(lexical_folder(run))
    return ensemble.load(voices, blend_folder(run))


def _voices(recipe: Recipe, cross_encoders: CrossEncoders, run: Path) -> dict[str, Voice]:
    """All but the network on words."""
    twins: dict[str, Voice] = {}
    for name in recipe.twins:
        bundle = run / "students" / name / "bundle"
        if not bundle.is_dir():
            raise UsageError(f"{bundle.parent}: the twin that teaches is not trained yet; {REMEDY}")
        twins[name] = TwinVoice(bundle)
    return {CROSS_ENCODERS: cross_encoders, **twins}


def _seed(recipe: Recipe, number: int, folder: Path) -> int:
    """A teacher's seed; one that an earlier version began keeps the successive one that it had."""
    earlier = recipe.seed + number
    return earlier if recorded(folder).get("seed") == earlier else recipe.seed + _APART * number


def score_pairs(recipe: Recipe, dataset: Dataset, scorer: Ensemble, scores: Path, report: Report) -> Pairs:
    """The recipe's pairs with the teacher's logits; what each of its voices said is kept in the folder `scores`."""
    accelerator = new_accelerator()
    precision, main = precision_of(accelerator), accelerator.is_main_process
    chosen = pairs_.choose(dataset, recipe.pairs, seed=recipe.seed)
    said = []
    # Opening a cache drops what seems to be cut short, and another command may be writing just that.
    with locked(scores, report, writes=main):
        accelerator.wait_for_everyone()  # or some would look before this command's turn has come
        for name, voice in scorer.voices.items():
            asked = functools.partial(voice.score, precision=precision)
            with ScoreCache(scores, voice.cache_name(precision), writes=main) as cache:
                scored = pairs_.score(
                    chosen, asked, cache, report, order=voice.order, accelerator=accelerator, stage=f"pairs: {name}"
                )
            said.append(scored.teacher_P)
    return dataclasses.replace(chosen, teacher_P=scorer.combine(said))
