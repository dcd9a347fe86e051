"""Recipes: those of the package are sound, and a wrong one is refused with the place that is wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from twinbert.cli import main
from twinbert.errors import UsageError
from twinbert.training import claims, recipe, runs, times
from twinbert.training.recipe import Inputs
from twinbert.training.report import Silent


@pytest.mark.parametrize("name", recipe.recipes())
def test_every_recipe_of_the_package_loads(name: str) -> None:
    """Each is a valid configuration whose default student carries both crossings, residual to rank with first."""
    assert all(one.crossings == ("residual", "cosine") for one in recipe.load(name).students.values())


def test_a_budget_changes_only_what_it_names() -> None:
    """The small budget of homedepot trains less; all else is the whole recipe's."""
    full, small = recipe.load("homedepot", budget="full"), recipe.load("homedepot", budget="small")
    assert recipe.load("homedepot") == full
    assert small.teacher.schedule.epochs < full.teacher.schedule.epochs
    assert small.teacher.schedule.rate == full.teacher.schedule.rate
    assert small.students.keys() == full.students.keys() - {"triletter-6", "triletter-6-labels", "triletter-3-labels"}
    assert (full.sample, small.sample) == (1.0, 0.25)
    assert (full.teachers, small.teachers) == (2, 1)
    with pytest.raises(UsageError, match="has no budget 'huge'; there are full, small"):
        recipe.load("homedepot", budget="huge")


def test_a_budget_for_gpus_asks_for_its_teacher() -> None:
    """A base-size teacher comes in no package, so its folder has to be given; MiniLM does not take its place."""
    with pytest.raises(UsageError, match="names no checkpoint; give the folder of one with --checkpoint"):
        recipe.load("homedepot", budget="gpu")
    gpu = recipe.load("homedepot", budget="gpu", changes={"teacher": {"checkpoint": "mpnet"}})
    assert (gpu.teacher.checkpoint, gpu.teacher.batch, gpu.teachers) == ("mpnet", 64, 1)


def test_options_change_the_recipe() -> None:
    """What the command line says takes the place of the recipe's values."""
    changed = recipe.load("pairs", changes={"seed": 3, "columns": {"query": "q", "lowest": 1, "highest": 5}})
    assert (changed.seed, changed.columns.query, changed.columns.highest) == (3, "q", 5.0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('source = "moon"\n[students.a]', "source is 'moon'; there are home_depot, files, synthetic"),
        ('source = "files"', "students is missing"),
        ('source = "files"\nsample = 0\n[students.a]', "sample is 0.0; it must be above 0"),
        ('source = "files"\n[students]', "has no student"),
        ('source = "files"\nsed = 1\n[students.a]', "sed is unknown; there are source, seed"),
        ('source = "files"\nseed = "x"\n[students.a]', "seed is 'x', which is no int"),
        ('source = "files"\n[students.a]\nshared = 1', "students.a: shared is 1, which is no bool"),
        ('source = "files"\n[students.a.distil]\nepochs = 0', "epochs is 0"),
        ('source = "files"\n[students.a]\ntokenizer = "triletter"', "no checkpoint reads tri-letters"),
        ('source = "files"\n[students.a.losses]\nsoft_cross_entropy = 0', "weights must be at least 0"),
        ("source = ", "cannot be read as TOML"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    """Unknown keys, wrong types and impossible values are found when it is read."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint):
        recipe.load(str(path))


def test_a_run_without_its_data_is_refused(tmp_path: Path) -> None:
    """The data is asked for before anything is made."""
    with pytest.raises(UsageError, match="needs data: give its path with --data"):
        recipe.run(recipe.load("pairs"), Inputs(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_students_and_recipes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says what there is, with exit code 2."""
    assert main(["train", "student", "giant", "--recipe", "tiny", "-o", str(tmp_path / "run")]) == 2
    assert "no student 'giant'; there are wordpiece, triletter" in capsys.readouterr().err
    assert main(["train", "run", "--recipe", "none", "-o", str(tmp_path / "run")]) == 2
    assert "is no recipe; there are homedepot, pairs, tiny" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def graded(path: Path, count: int = 60, **other: str) -> Path:
    """A file of pairs; `other` texts take the place of the query or document of the one numbered 3."""
    texts = [{"query": f"query {n}", "document": f"text {n % 9}"} | (other if n == 3 else {}) for n in range(count)]
    rows = ["\t".join((text["query"], text["document"], str(n % 2))) for n, text in enumerate(texts)]
    path.write_text("\n".join(["query\tdocument\tgrade", *rows]))
    return path


FILES = recipe.load("tiny", changes={"source": "files"})


@pytest.mark.parametrize("place", ["document", "query"])
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_texts_without_a_trigram_are_found_before_training(place: str, split: str, tmp_path: Path) -> None:
    """A tri-letter student of the paper's letters refuses texts of other scripts, wherever they are graded."""
    files = {}
    for name in ("train", "dev", "test"):
        files[name] = graded(tmp_path / f"{name}.tsv", **({place: "東京"} if name == split else {}))
        files[name].write_text(files[name].read_text().replace("query ", f"{name} "))
    with pytest.raises(UsageError, match="students.triletter: the text '東京' has no letter"):
        recipe.run(
            dataclasses.replace(FILES, students={"triletter": FILES.students["triletter"]}),
            Inputs(**files),
            tmp_path / "run",
        )
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_student_that_cannot_be_made_is_found_before_training(tmp_path: Path) -> None:
    """A layer too many of the last student stops the run before its teacher is trained, in a line that names both."""
    wrong = recipe.load("tiny", changes={"students": {"wordpiece": {"layers": [9]}}})
    with pytest.raises(UsageError, match=r"students.wordpiece: layers: 9 is none of"):
        recipe.run(wrong, Inputs(), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()


def claim(run: Path, inputs: Inputs, only: tuple[str, ...] = ()) -> None:
    """Does of `recipe.run` what comes before training."""
    dataset = recipe.read(FILES, inputs)
    with claims.claimed(claims.claim_of(FILES, dataset, inputs), only, run, Silent(), writes=True):
        pass


def test_a_run_is_measured_only_on_its_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command that measures a run refuses other pairs, whose test split it may have learned, and says which to give."""
    run, files = tmp_path / "run", [graded(tmp_path / f"{name}.tsv") for name in ("train", "dev", "test")]
    for file in files:
        file.write_text(file.read_text().replace("query ", f"{file.stem} "))
    claim(run, Inputs(train=files[0], dev=files[1], test=files[2]))
    for words in (["evaluate", "-o", str(tmp_path / "out")], ["baselines"], ["parity", "-o", str(tmp_path / "out")]):
        assert main(["train", words[0], str(run), "--data", str(files[0]), *words[1:]]) == 2
        assert capsys.readouterr().err.endswith(
            f"{run}: was trained on other pairs, and may know these by heart; give the same --data, --dev and --test as "
            f"then, --data {files[0]} --dev {files[1]} --test {files[2]}\n"
        )
    (run / "inputs.json").unlink()
    dataset = recipe.read(FILES, Inputs(train=files[0]))
    with pytest.raises(UsageError, match="--dev and --test as then$"):
        claims.require_data(run, dataset)
    stated = json.loads((run / "configuration.json").read_text())
    (run / "configuration.json").write_text(json.dumps({"recipe": stated["recipe"]}))
    claims.require_data(run, dataset)  # of a folder that did not record it nothing is known


def test_other_unlabelled_texts_are_refused(tmp_path: Path) -> None:
    """A run goes on with the texts that it began with, or says so before it writes; one that recorded none takes any."""
    run, data = tmp_path / "run", graded(tmp_path / "pairs.tsv")
    texts = [tmp_path / "some.tsv", tmp_path / "others.tsv"]
    for path in texts:
        path.write_text(f"document\n{path.stem}\n")
    claim(run, Inputs(train=data, documents=texts[0]))
    claim(run, Inputs(train=data, documents=texts[0]))
    for inputs in (Inputs(train=data, documents=texts[1]), Inputs(train=data)):
        with pytest.raises(UsageError, match=r"another configuration \(texts.documents is '[0-9a-f]{64}' there and"):
            recipe.run(FILES, inputs, run)
    assert not (run / "texts").exists()
    stated = json.loads((run / "configuration.json").read_text())
    del stated["texts"]
    (run / "configuration.json").write_text(json.dumps(stated))
    claim(run, Inputs(train=data, documents=texts[1]))


def test_a_student_is_trained_by_one_process(tmp_path: Path) -> None:
    """While another process holds a student's folder, it is refused with who that is, and other students are not."""
    run, inputs = tmp_path / "run", Inputs(train=graded(tmp_path / "pairs.tsv"))
    folder = run / "students" / "triletter"
    claim(run, inputs, ("triletter",))
    with holding(folder) as process:
        who = rf"{folder}: process {process.pid} on .*, since 20.*Z, works in it; wait for it to end"
        with pytest.raises(UsageError, match=who):
            recipe.run(FILES, inputs, run, students=["triletter"])
        claim(run, inputs, ("wordpiece",))
    claim(run, inputs, ("triletter",))


def test_what_students_share_is_waited_for(tmp_path: Path) -> None:
    """A folder that another process holds is waited for, which is told, and free when that process is killed."""
    events: list[str] = []

    class Told(Silent):
        def event(self, name: str, text: str, **_fields: object) -> None:
            events.append(name)
            if name == "waiting":
                assert f"process {process.pid} on " in text
                process.kill()

    with holding(tmp_path / "space") as process:
        with runs.locked(tmp_path / "space", Told()):
            assert events == ["waiting", "waited"]
        with runs.locked(tmp_path / "space", Told()):
            assert events == ["waiting", "waited"]


@contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder."""
    code = (
        "import sys; from pathlib import Path\n"
        "from twinbert.training.report import Silent; from twinbert.training.runs import locked\n"
        "with locked(Path(sys.argv[1]), Silent()): print('held', flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_times_are_of_work_and_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a stage add up, also one that was cut off; waiting is no work, and what was there takes no time."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    told: list[dict[str, object]] = []

    class Told(Silent):
        def event(self, name: str, text: str, **fields: object) -> None:
            told.append({"name": name} | fields)

    path = tmp_path / "times.jsonl"
    with pytest.raises(KeyboardInterrupt), times.timed(path, "teacher", Told(), writes=True) as report:
        now += 100
        report.progress("teacher", 1, 9, unit="steps")
        assert times.seconds_of(path) == {"teacher": 100}  # a kill loses what comes after it
        now += 10
        raise KeyboardInterrupt
    with times.timed(path, "teacher", Told(), writes=True) as report:
        report.event("waiting", "")
        now += 1000
        report.event("waited", "")
        now += 7
        report.progress("teacher", 9, 9, unit="steps")
    with times.timed(path, "pairs", Told(), writes=True):
        now += 3
    assert times.seconds_of(path) == {"teacher": 117}
    assert told[-1] == {"name": "done", "stage": "teacher", "seconds": 117}
    with times.timed(path, "pairs", Told(), writes=False) as report:
        report.progress("pairs", 9, 9, unit="pairs")
    assert times.seconds_of(path) == {"teacher": 117}


def test_a_missing_checkpoint_is_found_before_training(tmp_path: Path) -> None:
    """A student's checkpoint that is not there stops the run before its teacher is trained."""
    tiny = recipe.load("tiny", changes={"teacher": {"checkpoint": str(tmp_path / "none")}})
    with pytest.raises(UsageError, match="is no directory, and no known name"):
        recipe.run(tiny, Inputs(), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()
