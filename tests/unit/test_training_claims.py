"""Whose a run's folder is: its data, its texts, the process that works in it; and how long that took."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import FILES, graded

from twinbert.cli import main
from twinbert.errors import UsageError
from twinbert.training import (
    claims,
    ensemble,
    follow,
    lexical,
    recipe,
    runs,
    student,
    synthetic,
    teacher,
    teaching,
    times,
)
from twinbert.training.ensemble import CROSS_ENCODERS, CrossEncoders, Ensemble
from twinbert.training.initial import StudentConfig
from twinbert.training.pairs import judged
from twinbert.training.recipe import Inputs
from twinbert.training.report import Silent


def claim(run: Path, inputs: Inputs, only: tuple[str, ...] = ()) -> None:
    """Does of `follow.run` what comes before training."""
    dataset = follow.read(FILES, inputs)
    with claims.claimed(claims.claim_of(FILES, dataset, inputs), only, (), run, Silent(), writes=True):
        pass


def test_a_run_is_measured_only_on_its_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands that measure a run refuse other pairs, whose test split it may have learned, and say which to give."""
    run, files = tmp_path / "run", [graded(tmp_path / f"{name}.tsv") for name in ("train", "dev", "test")]
    for file in files:
        file.write_text(file.read_text().replace("query ", f"{file.stem} "))
    claim(run, Inputs(train=files[0], dev=files[1], test=files[2]))
    for words in (["evaluate", "-o", str(tmp_path / "out")], ["baselines"], ["parity", "-o", str(tmp_path / "out")]):
        assert main(["train", words[0], str(run), "--data", str(files[0]), *words[1:]]) == 2
        assert capsys.readouterr().err.endswith(
            f"{run}: was trained on other pairs, and may know these by heart; give the same --data, --dev and --test "
            f"as then, --data {files[0]} --dev {files[1]} --test {files[2]}\n"
        )
    (run / "inputs.json").unlink()
    dataset = follow.read(FILES, Inputs(train=files[0]))
    with pytest.raises(UsageError, match=r"--dev and --test as then$"):
        claims.require_data(run, dataset)
    stated = json.loads((run / "configuration.json").read_text())
    (run / "configuration.json").write_text(json.dumps({"recipe": stated["recipe"]}))
    claims.require_data(run, dataset)  # of a folder that did not record it nothing is known


def test_other_unlabelled_texts_are_refused(tmp_path: Path) -> None:
    """A run goes on with the texts that it began with, or stops before it writes; one that recorded none takes any."""
    run, data = tmp_path / "run", graded(tmp_path / "pairs.tsv")
    texts = [tmp_path / "some.tsv", tmp_path / "others.tsv"]
    for path in texts:
        path.write_text(f"document\n{path.stem}\n")
    claim(run, Inputs(train=data, documents=texts[0]))
    claim(run, Inputs(train=data, documents=texts[0]))
    for inputs in (Inputs(train=data, documents=texts[1]), Inputs(train=data)):
        with pytest.raises(UsageError, match=r"another configuration \(texts.documents is '[0-9a-f]{64}' there and"):
            follow.run(FILES, inputs, run)
    assert not (run / "texts").exists()
    stated = json.loads((run / "configuration.json").read_text())
    del stated["texts"]
    (run / "configuration.json").write_text(json.dumps(stated))
    claim(run, Inputs(train=data, documents=texts[1]))


def test_a_student_is_trained_by_one_process(tmp_path: Path) -> None:
    """While another holds a student's folder, it is refused with who that is, and other students are not."""
    run, inputs = tmp_path / "run", Inputs(train=graded(tmp_path / "pairs.tsv"))
    folder = run / "students" / "triletter"
    claim(run, inputs, ("triletter",))
    with runs.locked(folder, Silent()):
        who = rf"{folder}: process {os.getpid()} on .*, since 20.*Z, works in it; wait for it to end"
        with pytest.raises(UsageError, match=who):
            follow.run(FILES, inputs, run, students=["triletter"])
        claim(run, inputs, ("wordpiece",))
    claim(run, inputs, ("triletter",))


class Waited(Exception):  # noqa: N818 - no error: what the tests below wait for
    """Somebody is told to wait."""


class Told(Silent):
    """Ends a test where it would wait, with what for."""

    def event(self, name: str, text: str, **fields: object) -> None:
        if name == "waiting":
            raise Waited(fields["folder"])


@pytest.mark.parametrize("chosen", [["triletter"], ["wordpiece", "triletter"]])
def test_a_twin_that_teaches_is_waited_for(chosen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another command trains it a command waits, asked for it or not, and holds it only while it trains it."""
    run, inputs = tmp_path / "run", Inputs(train=graded(tmp_path / "pairs.tsv"))
    grades = {"soft_cross_entropy": 0, "margin_mse": 0, "listwise_kl": 0, "in_batch_softmax": 0}
    changes = {"source": "files", "twins": ["wordpiece"], "students": {"wordpiece": {"losses": grades}}}
    monkeypatch.setattr(teaching, "train_cross_encoders", lambda *_: None)
    taught, folder = recipe.load("tiny", changes=changes), run / "students" / "wordpiece"
    claim = claims.claim_of(taught, follow.read(taught, inputs), inputs)
    with (
        claims.claimed(claim, ["wordpiece"], taught.twins, run, Silent(), writes=True),
        runs.locked(folder, Silent()),
        pytest.raises(Waited, match=str(folder)),
    ):
        follow.run(taught, inputs, run, students=chosen, report=Told())
    assert not (folder / "distil").exists()


def test_what_students_share_is_made_by_one_process(tmp_path: Path) -> None:
    """Whatever students share is waited for where another makes it: a teacher's parts, its scores, a first stage."""
    synthetic.save_checkpoint(tmp_path / "checkpoint")
    tiny = recipe.load("tiny", changes={"teacher": {"checkpoint": str(tmp_path / "checkpoint")}})
    dataset, config = synthetic.dataset(queries=40), tiny.students["triletter"]
    assert config.space is not None
    config = dataclasses.replace(config, space=dataclasses.replace(config.space, teacher=str(tmp_path / "checkpoint")))
    pairs = dataclasses.replace(judged(dataset), teacher_P=judged(dataset).grade_P)
    voice = CrossEncoders([teacher.open_checkpoint(tmp_path / "checkpoint", max_tokens=24)])
    scorer = Ensemble({CROSS_ENCODERS: voice})

    def trains_teacher() -> None:
        teacher.train(tiny.teacher, dataset.train, dataset.dev, output=tmp_path / "teacher", seed=1, report=Told())

    def trains_lexical() -> None:
        assert tiny.lexical is not None
        lexical.train(tiny.lexical, dataset.train, dataset.dev, output=tmp_path / "lexical", seed=1, report=Told())

    def weighs() -> None:
        ensemble.weigh({"one": voice, "two": voice}, dataset.dev, output=tmp_path / "blend", report=Told())

    def scores() -> None:
        teaching.score_pairs(tiny, dataset, scorer, tmp_path / "scores", Told())

    def learns_space() -> None:
        student.train(config, dataset, pairs, output=tmp_path / "one", seed=1, common=tmp_path, report=Told())

    folders = {
        "teacher": trains_teacher,
        "lexical": trains_lexical,
        "blend": weighs,
        "scores": scores,
        "vectors": learns_space,
    }
    for folder, makes in ((tmp_path / name, makes) for name, makes in folders.items()):
        runs.Run(folder, {})  # claimed, as whatever another process works in
        with runs.locked(folder, Silent()), pytest.raises(Waited, match=str(folder)):
            makes()
    [space] = (tmp_path / "spaces").iterdir()
    with runs.locked(space, Silent()), pytest.raises(Waited, match=str(space)):
        learns_space()


def test_a_first_stage_is_shared_by_towers_that_start_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Students with one network, whose weights are drawn first, and with two have first stages of their own; those of
    other seeds or of fewer pairs have not, and start from the same weights.
    """
    synthetic.save_checkpoint(tmp_path / "checkpoint")
    tiny, dataset = recipe.load("tiny").students["triletter"], synthetic.dataset(queries=40)
    assert tiny.space is not None
    base = dataclasses.replace(tiny, space=dataclasses.replace(tiny.space, teacher=str(tmp_path / "checkpoint")))
    pairs = dataclasses.replace(judged(dataset), teacher_P=judged(dataset).grade_P)
    changes: list[dict[str, Any]] = [
        {"shared": False},
        {"shared": False, "share": 0.5},
        {"shared": False, "seed": 7},
        {"shared": True},
    ]
    learn_space, starts = student.learn_space, []

    def starting(config: StudentConfig, one: student.Student, *args: Any, **options: Any) -> None:
        starts.append(one.twin.document.state_dict())
        learn_space(config, one, *args, **options)

    monkeypatch.setattr(student, "learn_space", starting)
    runs.Run(tmp_path / "vectors", {})
    with runs.locked(tmp_path / "vectors", Silent()):
        for number, change in enumerate(changes):
            config, output = dataclasses.replace(base, **change), tmp_path / str(number)
            with pytest.raises(Waited):
                student.train(config, dataset, pairs, output=output, seed=1, common=tmp_path, report=Told())
    spaces = [json.loads(path.read_text()) for path in (tmp_path / "spaces").glob("*/configuration.json")]
    assert sorted(space.get("shared", False) for space in spaces) == [False, True]
    for start in starts[1:3]:
        assert all(map(torch.equal, start.values(), starts[0].values()))
    seeds = [json.loads((tmp_path / f"{n}/distil/configuration.json").read_text())["seed"] for n in range(4)]
    assert seeds == [1, 1, 7, 1]


def test_whoever_waits_has_its_turn_when_the_other_is_killed(tmp_path: Path) -> None:
    """A folder is free when the process that held it is gone, however it ended."""
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    events: list[str] = []
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        class Kills(Silent):
            def event(self, name: str, text: str, **_fields: object) -> None:
                events.append(name)
                process.kill()

        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with runs.locked(tmp_path, Kills()):
            assert events == ["waiting", "waited"]


def test_times_are_of_work_and_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a stage add up, also one that was cut off; waiting is no work, and what was there takes no time."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    told: list[dict[str, object]] = []

    class Listens(Silent):
        def event(self, name: str, text: str, **fields: object) -> None:
            told.append({"name": name} | fields)

    path = tmp_path / "times.jsonl"
    with suppress(KeyboardInterrupt), times.timed(path, "teacher", Listens(), writes=True) as report:
        now += 100
        report.progress("teacher", 1, 9, unit="steps")
        assert times.seconds_of(path) == {"teacher": 100}  # a kill loses what comes after it
        now += 10
        raise KeyboardInterrupt
    with times.timed(path, "teacher", Listens(), writes=True) as report:
        report.event("waiting", "")
        now += 1000
        report.event("waited", "")
        now += 7
        report.progress("teacher", 9, 9, unit="steps")
    with times.timed(path, "pairs", Listens(), writes=True):
        now += 3
    assert times.seconds_of(path) == {"teacher": 117}
    assert told[-1] == {"name": "done", "stage": "teacher", "seconds": 117}
    with times.timed(path, "pairs", Listens(), writes=False) as report:
        report.progress("pairs", 9, 9, unit="pairs")
    assert times.seconds_of(path) == {"teacher": 117}
