"""The run that follows a recipe.

    RUN/configuration.json          the recipe as it was run, without its students, and digests of the data
    RUN/inputs.json                 where the data was
    RUN/teacher/                    run of the teacher; RUN/teacher/model is it, a Hugging Face directory
    RUN/teacher-2/ …                those of the others, where several teach together
    RUN/lexical/                    run of the network on words that teaches along, where the recipe has it
    RUN/blend/                      what weight each voice of the teacher has, where there are several
    RUN/scores/<digest>.scores      what a voice of the teacher said of each pair; float32 is part of the name
    RUN/texts/                      unlabelled texts
    RUN/vectors/                    vectors of a bi-encoder, for students with a first stage
    RUN/spaces/<digest>/            runs of first stages, each for all students that begin alike
    RUN/students/<name>/            its configuration; RUN/students/<name>/distil is the run, …/bundle is it
    RUN/times.jsonl                 how long each stage has worked; see `twinbert.training.times`

A stage whose result is there is not run again, and one that was killed goes on from its checkpoint. Students of one run
may be trained side by side, by several commands: what they share is made by one of these, and the others wait for it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from twinbert.errors import BundleError, ExportError, UnsupportedError, UsageError
from twinbert.training import initial, student, synthetic, teacher, teaching
from twinbert.training import pairs as pairs_
from twinbert.training.claims import Claim, claim_of, claimed, claimed_student, require_data
from twinbert.training.data import Dataset, add_unlabelled, read_dataset, read_home_depot, sample
from twinbert.training.devices import new_accelerator
from twinbert.training.initial import StudentConfig
from twinbert.training.pairs import Pairs, PairsConfig
from twinbert.training.recipe import Inputs, Recipe, with_seeds
from twinbert.training.report import Report, Silent
from twinbert.training.runs import locked
from twinbert.training.tables import build
from twinbert.training.texts import TextFile
from twinbert.training.times import timed


def run(
    recipe: Recipe,
    inputs: Inputs,
    output: Path,
    *,
    students: Collection[str] | None = None,
    report: Report | None = None,
) -> dict[str, Path]:
    """Follows a recipe from the beginning, or from where it was left.

    Args:
        recipe: what is trained.
        inputs: where the data is.
        output: the run's folder.
        students: which to train, also as NAME@SEED; of none, only the teacher is made; None: all.
        report: what is told.

    Returns:
        The bundles by student.

    Raises:
        UsageError: the data, a student or a checkpoint cannot be used, which is found out before anything is trained;
            `output` holds another run; or another process trains one of the students, but for twins that teach.
        BundleError: a file of a checkpoint is damaged.
        UnsupportedError: a checkpoint is of another architecture.
        ExportError: a tokenizer is not that of its checkpoint's weights.
    """
    report = report or Silent()
    recipe = with_seeds(recipe, students or ())
    chosen = _chosen(recipe, students)
    accelerator = new_accelerator()
    main = accelerator.is_main_process
    dataset = _read_pairs(recipe, inputs)
    claim = claim_of(recipe, dataset, inputs)
    with claimed(claim, chosen, recipe.twins, output, report, writes=main):
        with locked(output, report, writes=main), accelerator.main_process_first():
            dataset = _with_texts(dataset, recipe, inputs, output / "texts", writes=main)
            recipe = _with_checkpoint(recipe, output, writes=main)
        _check(recipe, chosen, dataset, output, report)
        return _follow(recipe, claim, chosen, dataset, output=output, report=report)


def _follow(
    recipe: Recipe, claim: Claim, chosen: Collection[str], dataset: Dataset, *, output: Path, report: Report
) -> dict[str, Path]:
    accelerator = new_accelerator()
    main, times = accelerator.is_main_process, output / "times.jsonl"
    judged = functools.cache(lambda: pairs_.judged(dataset))
    bundles: dict[str, Path] = {}

    def learn(name: str, pairs: Pairs) -> None:
        folder = output / "students" / name
        config, seed = recipe.students[name], recipe.seed
        # A twin is of all commands that need the teacher: each of them waits for it, and none longer than it takes.
        shared = claimed_student(claim.students[name], folder, report, wait=True, writes=main)
        with shared if name in recipe.twins else nullcontext():
            accelerator.wait_for_everyone()  # or some would begin it while another command ends it
            with timed(times, name, report, writes=main) as told:
                student.train(config, dataset, pairs, output=folder, seed=seed, common=output, report=told)
        bundles[name] = folder / "bundle"

    taught = [name for name in chosen if recipe.students[name].needs_teacher]
    if taught or not chosen:
        with timed(times, "teacher", report, writes=main) as told:
            cross_encoders = teaching.train_cross_encoders(recipe, dataset, output, told)
        for name in recipe.twins:
            learn(name, judged())
        with timed(times, "teacher", report, writes=main) as told:
            scorer = teaching.make_teacher(recipe, cross_encoders, dataset, output, told)
    if taught:
        with timed(times, "pairs", report, writes=main) as told:
            scored = teaching.score_pairs(recipe, dataset, scorer, output / "scores", told)
        del scorer, cross_encoders  # of all its memory, which students want
    for name in chosen:
        if name not in bundles:
            learn(name, scored if name in taught else judged())
    return {name: bundles[name] for name in chosen}


def recipe_of(run: Path) -> Recipe:
    """The recipe that a run followed, with the students that it has so far.

    Raises:
        UsageError: the folder is of no run.
    """
    path = run / "configuration.json"
    try:
        table = json.loads(path.read_bytes())["recipe"]
        students = {
            file.parent.name: json.loads(file.read_bytes())["student"]
            for file in sorted(run.glob("students/*/configuration.json"))
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{run}: is no folder of `twinbert train run` ({error}); give one with --run") from error
    return build(Recipe, _given(table | {"students": students}), str(path))


def _given(table: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """A table without its nulls, which TOML has not."""
    if isinstance(table, dict):
        return {name: _given(value) for name, value in table.items() if value is not None}
    return table


def read(recipe: Recipe, inputs: Inputs, *, runs: Collection[Path] = ()) -> Dataset:
    """The data of a recipe, all of it in memory.

    Args:
        recipe: whose.
        inputs: where it is.
        runs: whose graded pairs it has to be.

    Raises:
        UsageError: it is not there, or is no such data, or that of another run.
    """
    dataset = _read_pairs(recipe, inputs)
    for run in runs:
        require_data(run, dataset)
    return _with_texts(dataset, recipe, inputs, None)


def read_kept(run: Path, inputs: Inputs) -> Dataset:
    """The data of a run with the unlabelled texts that it has kept, which `inputs` need not name again.

    Raises:
        UsageError: the folder is of no run, or its graded pairs are not there, or others.
    """
    dataset = _read_pairs(recipe_of(run), inputs)
    require_data(run, dataset)
    kept = {name: run / "texts" / name for name in ("queries", "documents")}
    texts: dict[str, Any] = {name: TextFile(path) for name, path in kept.items() if path.exists()}
    return dataclasses.replace(dataset, **texts)


def _read_pairs(recipe: Recipe, inputs: Inputs) -> Dataset:
    if recipe.source == "synthetic":
        dataset = synthetic.dataset(seed=recipe.seed)
    elif inputs.train is None:
        raise UsageError("this recipe needs data: give its path with --data")
    elif recipe.source == "home_depot":
        dataset = read_home_depot(inputs.train)
    else:
        dataset = read_dataset(inputs.train, dev=inputs.dev, test=inputs.test, columns=recipe.columns)
    return dataset if recipe.sample == 1 else sample(dataset, recipe.sample)


def _with_texts(
    dataset: Dataset, recipe: Recipe, inputs: Inputs, folder: Path | None, *, writes: bool = True
) -> Dataset:
    return add_unlabelled(
        dataset,
        columns=recipe.columns,
        queries=inputs.queries,
        documents=inputs.documents,
        folder=folder,
        writes=writes,
    )


def _chosen(recipe: Recipe, students: Collection[str] | None) -> list[str]:
    for name in students or ():
        if name not in recipe.students:
            raise UsageError(f"the recipe has no student {name!r}; there are {', '.join(recipe.students)}")
    return [name for name in recipe.students if students is None or name in students]


def _check(recipe: Recipe, chosen: Collection[str], dataset: Dataset, output: Path, report: Report) -> None:
    """Finds mistakes before an hour is spent: of the students chosen, and where none is, of all that may come."""
    for split in (dataset.train, dataset.dev):
        if len(grades := {pair.grade for pair in split.pairs}) == 1:
            raise UsageError(
                f"{split.name}: all {len(split.pairs):,} pairs have the grade {grades.pop():g}, which teaches nothing; "
                "give irrelevant documents as well as relevant ones"
            )
    asked = recipe.pairs
    # What BM25 finds takes minutes to know; a random document is as good for whether a query has a pair at all.
    quick = PairsConfig(bm25=0, random=min(1, asked.bm25 + asked.random), unlabelled=asked.unlabelled)
    known = functools.cache(lambda taught: pairs_.choose(dataset, quick, seed=0) if taught else pairs_.judged(dataset))
    taught = any(recipe.students[name].needs_teacher for name in chosen)
    for name in dict.fromkeys([*(recipe.twins if taught else ()), *(chosen or recipe.students)]):
        config = recipe.students[name]
        if (output / "students" / name / "bundle").exists():
            continue
        try:
            initial.check(config, dataset, known(config.needs_teacher))
        except (UsageError, BundleError, UnsupportedError, ExportError) as error:
            raise type(error)(f"students.{name}: {error}") from error
    if taught or not chosen:
        teacher.locate(recipe.teacher.checkpoint)
    counts = ", ".join(f"{len(split.pairs):,} {split.name}" for split in (dataset.train, dataset.dev, dataset.test))
    texts = sum(1 for _ in dataset.texts())
    report.event("data", f"pairs: {counts}; {texts:,} texts to learn from", texts=texts)


def _with_checkpoint(recipe: Recipe, output: Path, *, writes: bool) -> Recipe:
    """The recipe with the synthetic checkpoint made, wherever it names that."""
    path = output / "checkpoint"

    def settled(named: str) -> str:
        if named != synthetic.NAME:
            return named
        if writes and not (path / "model.safetensors").exists():
            synthetic.save_checkpoint(path, seed=recipe.seed)
        return str(path)

    def settled_student(config: StudentConfig) -> StudentConfig:
        space = config.space and dataclasses.replace(config.space, teacher=settled(config.space.teacher))
        return dataclasses.replace(config, checkpoint=settled(config.checkpoint), space=space)

    return dataclasses.replace(
        recipe,
        teacher=dataclasses.replace(recipe.teacher, checkpoint=settled(recipe.teacher.checkpoint)),
        students={name: settled_student(config) for name, config in recipe.students.items()},
    )
