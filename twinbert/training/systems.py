"""The rows of the table: what is in the folders of runs, and the baselines that belong beside it.

    RUN/teacher/model               the teacher, with those in RUN/teacher-2 … where there are several
    RUN/lexical, RUN/blend          words that teach along, and what weight they have; each voice has a row of its own
    RUN/students/<name>/bundle      a student, a row for each of its crossing layers
    RUN/baselines/c-dssm            C-DSSM on the students' pairs and losses
    RUN/baselines/cross-encoder-3   the first three layers of the teacher's checkpoint, trained as the teacher is

Runs of several seeds share rows, and so do the students NAME, NAME@SEED … of one run.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from twinbert.bundle import Bundle
from twinbert.errors import UnsupportedError, UsageError
from twinbert.importing import import_twin
from twinbert.model.checkpoint import read_json
from twinbert.runtime import Floats, Ints
from twinbert.training import dssm, follow, synthetic, teacher, teaching
from twinbert.training.baselines import Bm25, Embedded, Random, Twin, twins_of
from twinbert.training.data import Dataset
from twinbert.training.devices import new_accelerator
from twinbert.training.dssm import DssmConfig
from twinbert.training.ensemble import CROSS_ENCODERS, WORDS, Ensemble
from twinbert.training.evaluation import Scorer, System
from twinbert.training.readable import letters_tokenizer, readable_pairs, require_letters, without_letters
from twinbert.training.recipe import AGAIN, Recipe
from twinbert.training.report import Report
from twinbert.training.runs import locked
from twinbert.training.student import Student

TEACHER = "teacher"
VOICES = {CROSS_ENCODERS: "teacher's cross-encoders", WORDS: "teacher's words"}  # its twins are students, with rows
DSSM = "C-DSSM"
SHALLOW = "3-layer cross-encoder"
SHALLOW_LAYERS = 3

_WEIGHTS = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def train_baselines(run: Path, dataset: Dataset, report: Report, *, network: DssmConfig | None = None) -> None:
    """Trains C-DSSM and the shallow cross-encoder of a run whose teacher is there; what is there is not trained again.

    Args:
        run: its folder.
        dataset: its data.
        report: what is told.
        network: the C-DSSM; None: `network_of` the run.

    Raises:
        UsageError: `run` is no run, or lacks its teacher; another process trains them; or, once the cross-encoder is
            there, a graded text has no letter that C-DSSM reads.
    """
    followed, accelerator = follow.recipe_of(run), new_accelerator()
    scorer = teaching.load_teacher(followed, run)  # or it would be missed only when the cross-encoder is there
    with locked(run / "baselines", report, wait=False, writes=accelerator.is_main_process):
        accelerator.wait_for_everyone()  # or some would look for them before another process has made them
        _train_shallow(followed, run, dataset, report)
        if not (run / "baselines" / "c-dssm" / dssm.WEIGHTS).exists():
            _train_dssm(
                network or network_of(followed, dataset), scorer, followed, run=run, dataset=dataset, report=report
            )


def _train_shallow(followed: Recipe, run: Path, dataset: Dataset, report: Report) -> None:
    folder = run / "baselines"
    checkpoint = teacher.locate(_own(followed.teacher.checkpoint, run))
    with new_accelerator().main_process_first():
        shallow = first_layers(checkpoint, SHALLOW_LAYERS, folder / "checkpoint-3")
    config = dataclasses.replace(followed.teacher, checkpoint=str(shallow))
    output = folder / "cross-encoder-3"
    teacher.train(config, dataset.train, dataset.dev, output=output, seed=followed.seed, report=report)


def _train_dssm(
    network: DssmConfig, scorer: Ensemble, followed: Recipe, *, run: Path, dataset: Dataset, report: Report
) -> None:
    require_letters(network.letters, dataset.graded_texts())
    pairs = teaching.score_pairs(followed, dataset, scorer, run / "scores", report)
    pairs = readable_pairs(letters_tokenizer(network.letters), pairs)
    dssm.train(network, dataset, pairs, output=run / "baselines" / "c-dssm", seed=followed.seed, report=report)


def network_of(followed: Recipe, dataset: Dataset) -> DssmConfig:
    """The published C-DSSM, which minimises what most students with a teacher do: only the network is compared.

    It reads the letters that most tri-letter students do, or those of every script where a graded text has no other.
    """
    students = [student for name, student in followed.students.items() if AGAIN not in name]
    taught = Counter(student.losses for student in students if student.needs_teacher)
    read = Counter(student.letters for student in students if student.tokenizer == "triletter")
    network = DssmConfig()
    if taught:
        network = dataclasses.replace(network, losses=taught.most_common(1)[0][0])
    if read:
        network = dataclasses.replace(network, letters=read.most_common(1)[0][0])
    if next(without_letters(network.letters, dataset.graded_texts()), None) is not None:
        network = dataclasses.replace(network, letters="unicode")
    return network


def first_layers(checkpoint: Path, layers: int, output: Path) -> Path:
    """A checkpoint of the first layers of another, or of all it has: the same weights, and a config.json of fewer.

    Raises:
        UnsupportedError: its config.json does not say how many layers it has.
    """
    if not (output / "config.json").exists():
        config = read_json(checkpoint / "config.json", dict)
        if "num_hidden_layers" not in config:
            raise UnsupportedError(
                f"{checkpoint / 'config.json'}: does not say num_hidden_layers, so its first layers are not known; "
                "train the run's teacher from a BERT, RoBERTa or MPNet to have this baseline"
            )
        output.mkdir(exist_ok=True)
        for name in _WEIGHTS:
            if (checkpoint / name).exists():
                shutil.copyfile(checkpoint / name, output / name)
        config["num_hidden_layers"] = min(layers, config["num_hidden_layers"])
        (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return output


def systems(dataset: Dataset, followed: Recipe, runs: Sequence[Path]) -> Iterator[System]:
    """The rows of a table, in its order; only what is there has one.

    Args:
        dataset: whose documents BM25 counts words in.
        followed: the recipe of the runs.
        runs: its seeds.

    Raises:
        UsageError: a folder is of no run, of one of another recipe, or of one without a teacher.
        BundleError: a student's bundle is damaged.
    """
    for run in runs:
        other = follow.recipe_of(run)
        shared = followed.students.keys() & other.students.keys()
        alike = all(followed.students[name] == other.students[name] for name in shared)
        if not alike or dataclasses.replace(other, seed=followed.seed, students=followed.students) != followed:
            raise UsageError(f"{run}: is a run of another recipe; only seeds of one recipe share a table")
    for seed in range(max(1, len(runs))):
        yield System(name="random", score=Random(seed).score)
    bm25 = Bm25(dataset.corpus())
    yield System(name="BM25", score=bm25.score, probabilities=False, retrieve=bm25.retrieve)
    yield from _untrained(followed, runs)
    for number, run in enumerate(runs):
        for system in _trained(run):
            yield dataclasses.replace(system, run=number)


def _untrained(followed: Recipe, runs: Sequence[Path]) -> Iterator[System]:
    """The checkpoints that students start from, and the bi-encoders whose spaces they learn, as they are."""
    students = followed.students.values()
    named = dict.fromkeys(one.checkpoint for one in students if one.new is None)
    named |= dict.fromkeys(one.space.teacher for one in students if one.space is not None)
    checkpoints = [_own(name, runs[0]) if runs else name for name in named]
    lasts = Counter(Path(checkpoint).name for checkpoint in checkpoints)
    for checkpoint in checkpoints:
        if checkpoint == synthetic.NAME:  # made by a run, and there is none
            continue
        imported = import_twin(checkpoint)
        twin = _twin(Student(imported.twin, imported.tokenizer))
        last = Path(checkpoint).name
        # A cosine whose scale nobody fitted gives no probabilities.
        name = f"{last if lasts[last] == 1 else checkpoint} untrained"
        yield System(name=name, score=twin.score, probabilities=False, retrieve=twin.retrieve)


def _trained(run: Path) -> Iterator[System]:
    """What a run has trained so far: baselines, the teacher, and every student's crossing layers."""
    followed = follow.recipe_of(run)
    if (folder := run / "baselines" / "c-dssm").joinpath(dssm.WEIGHTS).exists():
        twin = _twin(dssm.load(folder))
        yield System(name=DSSM, score=twin.score, retrieve=twin.retrieve)
    if (folder := run / "baselines" / "cross-encoder-3").joinpath("model").is_dir():
        yield System(name=SHALLOW, score=_probabilities(_load(followed, folder).score))
    yield from _voices(teaching.load_teacher(followed, run))
    for name, folder in bundles_of(run).items():
        yield from of_bundle(name.partition(AGAIN)[0], folder)


def _voices(scorer: Ensemble) -> Iterator[System]:
    """A teacher, and where it has several voices, these; each reads a split once."""
    voices = {name: _Remembering(voice.score) for name, voice in scorer.voices.items()}
    yield System(
        name=TEACHER,
        score=_probabilities(lambda pairs: scorer.combine([voice(pairs) for voice in voices.values()])),
    )
    for name, row in VOICES.items() if len(voices) > 1 else ():
        if name in voices:
            yield System(name=row, score=_probabilities(voices[name]), spent=voices[name].spent)


class _Remembering:
    """A scorer that is not asked again of the pairs that it was asked of last."""

    def __init__(self, score: Scorer) -> None:
        self._score = score
        self._last: tuple[Sequence[tuple[str, str]], Floats] | None = None
        self._seconds = 0.0

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        if self._last is None or self._last[0] != pairs:
            began = time.perf_counter()
            self._last = pairs, self._score(pairs)
            self._seconds = time.perf_counter() - began
        return self._last[1]

    def spent(self) -> float:
        """Seconds that the last scores took."""
        return self._seconds


def bundles_of(run: Path, names: Sequence[str] | None = None) -> dict[str, Path]:
    """The bundles of a run's students, by name.

    Args:
        run: the run's folder.
        names: the students wanted; None: all that are trained.

    Raises:
        UsageError: one that is wanted is not there.
    """
    bundles = {name: run / "students" / name / "bundle" for name in follow.recipe_of(run).students}
    there = {name: path for name, path in bundles.items() if path.is_dir()}
    for name in names or ():
        if name not in there:
            raise UsageError(f"{run}: has no trained student {name!r}; it has {', '.join(there) or 'none'}")
    return there if names is None else {name: there[name] for name in names}


def of_bundle(name: str, path: Path) -> Iterator[System]:
    """A bundle's crossing layers; only a cosine searches.

    Raises:
        BundleError: the bundle is missing or damaged.
    """
    for kind, twin in twins_of(Bundle.open(path)).items():
        yield System(name=f"{name} {kind}", score=twin.score, retrieve=twin.retrieve if kind == "cosine" else None)


def teacher_of(run: Path) -> Scorer:
    """The probabilities of a run's teacher, which reads a split once.

    Raises:
        UsageError: the run has none yet.
    """
    return _Remembering(_probabilities(teaching.load_teacher(follow.recipe_of(run), run).score))


def _load(followed: Recipe, folder: Path) -> teacher.Teacher:
    config = followed.teacher
    return teacher.load(folder / "model", max_tokens=config.max_tokens, batch=config.batch)


def _probabilities(logits: Scorer) -> Scorer:
    """A teacher gives logits."""

    def score(pairs: Sequence[tuple[str, str]]) -> Floats:
        probabilities_N: Floats = torch.sigmoid(torch.from_numpy(logits(pairs))).numpy()
        return probabilities_N

    return score


def _own(checkpoint: str, run: Path) -> str:
    """A checkpoint, which the run may have made."""
    return str(run / "checkpoint") if checkpoint == synthetic.NAME else checkpoint


def _twin(student: Student) -> Twin:
    """A student in torch, by its cosine."""

    @torch.inference_mode()
    def cross(queries_QD: Floats, documents_ND: Floats, task_N: Ints) -> Floats:
        device = next(student.twin.parameters()).device
        inputs = (torch.from_numpy(side).to(device) for side in (queries_QD, documents_ND, task_N))
        probabilities_N: Floats = student.twin.crossing("cosine")(*inputs).cpu().numpy()
        return probabilities_N

    return Twin(Embedded(student.embed), cross)
