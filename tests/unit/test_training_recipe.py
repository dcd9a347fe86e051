"""Recipes: those of the package are sound, and a wrong one is refused with the place that is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from training_cases import FILES, graded

from twinbert.cli import main
from twinbert.errors import UsageError
from twinbert.model.config import ResidualConfig
from twinbert.training import follow, initial, recipe, synthetic, teacher, teaching
from twinbert.training.claims import claim_of, claimed
from twinbert.training.embedding import SpaceConfig
from twinbert.training.initial import StudentConfig
from twinbert.training.lexical import LexicalConfig
from twinbert.training.pairs import judged
from twinbert.training.recipe import Inputs
from twinbert.training.report import Silent
from twinbert.training.runs import Run
from twinbert.training.teacher import TeacherConfig


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
    assert full.twins == small.twins == ("minilm-labels",)
    with pytest.raises(UsageError, match="has no budget 'huge'; there are full, small"):
        recipe.load("homedepot", budget="huge")


@pytest.mark.parametrize("budget", ["full", "small"])
def test_variants_join_a_run_of_homedepot(budget: str) -> None:
    """Teacher and pairs are the same, `minilm` and what teaches too; each other differs from `minilm` in one thing."""
    variants, homedepot = recipe.load("variants", budget=budget), recipe.load("homedepot", budget=budget)
    assert dataclasses.replace(variants, students={}) == dataclasses.replace(homedepot, students={})
    whole = homedepot.students["minilm"]
    changed = {
        "minilm": {},
        "minilm-quarter": {"share": 0.25, "distil": dataclasses.replace(whole.distil, epochs=8)},
        "minilm-half": {"share": 0.5, "distil": dataclasses.replace(whole.distil, epochs=4)},
        "minilm-plain-projection": {"projection_start": "plain"},
        "minilm-plain-residual": {"residual": ResidualConfig(start="plain")},
    }
    taught = {name: dataclasses.replace(whole, **values) for name, values in changed.items()}
    assert variants.students == taught | {name: homedepot.students[name] for name in homedepot.twins}


def test_a_budget_for_gpus_asks_for_its_teacher() -> None:
    """A base-size teacher comes in no package, so its folder has to be given; MiniLM does not take its place."""
    with pytest.raises(UsageError, match="names no checkpoint; give the folder of one with --checkpoint"):
        recipe.load("homedepot", budget="gpu")
    gpu = recipe.load("homedepot", budget="gpu", changes={"teacher": {"checkpoint": "mpnet"}})
    assert (gpu.teacher.checkpoint, gpu.teacher.batch) == ("mpnet", 64)


@pytest.mark.parametrize("command", [["run"], ["teacher"], ["student", "wordpiece"]])
def test_all_that_train_take_the_teachers_checkpoint(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option means the same for each, so that one goes on with the folder of another."""
    words = ["--recipe", "tiny", "--checkpoint", str(tmp_path / "none"), "-o", str(tmp_path / "run")]
    assert main(["train", *command, *words]) == 2
    assert capsys.readouterr().err.endswith("none: is no directory, and no known name; known is all-minilm-l6-v2\n")
    stated = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert stated["recipe"]["teacher"]["checkpoint"] == str(tmp_path / "none")


def test_options_change_the_recipe() -> None:
    """What the command line says takes the place of the recipe's values."""
    changed = recipe.load("pairs", changes={"seed": 3, "columns": {"query": "q", "lowest": 1, "highest": 5}})
    assert (changed.seed, changed.columns.query, changed.columns.highest) == (3, "q", 5.0)


def test_a_student_is_named_again_from_another_seed() -> None:
    """NAME@SEED is the student NAME but for its seed, which runs record; what is no seed is refused."""
    pairs = recipe.load("pairs")
    [name] = pairs.students
    again = recipe.with_seeds(pairs, [name, f"{name}@3", "other@3"])
    assert again.students == {
        name: pairs.students[name],
        f"{name}@3": dataclasses.replace(pairs.students[name], seed=3),
    }
    assert again.students[f"{name}@3"].described() == pairs.students[name].described() | {"seed": 3}
    with pytest.raises(UsageError, match=f"{name}@x: 'x' is no seed; give a number from 0, as in {name}@3"):
        recipe.with_seeds(pairs, [f"{name}@x"])
    with pytest.raises(UsageError, match="'03' is no seed"):
        recipe.with_seeds(pairs, [f"{name}@03"])
    with pytest.raises(UsageError, match=f"is {name} itself, whose seed is {pairs.seed}; give another"):
        recipe.with_seeds(pairs, [f"{name}@{pairs.seed}"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('source = "moon"\n[students.a]', "source is 'moon'; there are home_depot, files, synthetic"),
        ('source = "files"', "students is missing"),
        ('source = "files"\nsample = 0\n[students.a]', "sample is 0.0; it must be above 0"),
        ('source = "files"\n[students]', "has no student"),
        ('source = "files"\n[students."a/b"]', "'a/b' is no name for a student; use letters"),
        ('source = "files"\n[students."a@3"]', "the student 'a@3' has a name for another seed; rename it"),
        ('source = "files"\ntwins = ["words"]\n[students.words]', "'words' has the name of another voice"),
        ('source = "files"\nsed = 1\n[students.a]', "sed is unknown; there are source, seed"),
        ('source = "files"\nseed = "x"\n[students.a]', "seed is 'x', which is no int"),
        ('source = "files"\nseed = -1\n[students.a]', "recipe: seed is -1; it must be from 0 to 4294967295"),
        ('source = "files"\n[students.a]\nseed = -1', "student: seed is -1; it must be from 0 to 4294967295"),
        ('source = "files"\n[students.a]\nshared = 1', "students.a: shared is 1, which is no bool"),
        ('source = "files"\n[students.a]\nshare = 0', "share is 0.0; it must be above 0"),
        ('source = "files"\n[students.a.distil]\nepochs = 0', "epochs is 0"),
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


def test_a_table_within_changes_only_what_it_names(tmp_path: Path) -> None:
    """One rate of a schedule leaves its epochs as they are where nothing is said, which differ from stage to stage."""
    path = tmp_path / "mine.toml"
    rates = "".join(
        f"[{table}]\nrate = 1e-3\n"
        for table in ("teacher.schedule", "lexical.schedule", "students.a.distil", "students.a.space.schedule")
    )
    path.write_text('source = "files"\n' + rates)
    mine = recipe.load(str(path))
    student, lexical = mine.students["a"], mine.lexical
    assert lexical is not None
    assert student.space is not None
    schedules = (mine.teacher.schedule, lexical.schedule, student.distil, student.space.schedule)
    defaults = (TeacherConfig().schedule, LexicalConfig().schedule, StudentConfig().distil, SpaceConfig().schedule)
    assert schedules == tuple(dataclasses.replace(one, rate=1e-3) for one in defaults)
    assert len({one.epochs for one in schedules}) == 3


def test_a_run_without_its_data_is_refused(tmp_path: Path) -> None:
    """The data is asked for before anything is made."""
    with pytest.raises(UsageError, match="needs data: give its path with --data"):
        follow.run(recipe.load("pairs"), Inputs(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_students_and_recipes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says what there is, with exit code 2."""
    assert main(["train", "student", "giant", "--recipe", "tiny", "-o", str(tmp_path / "run")]) == 2
    assert "no student 'giant'; there are wordpiece, triletter" in capsys.readouterr().err
    assert main(["train", "run", "--recipe", "none", "-o", str(tmp_path / "run")]) == 2
    assert "is no recipe; there are homedepot, pairs, tiny, variants" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["document", "query"])
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_texts_without_a_trigram_are_found_before_training(place: str, split: str, tmp_path: Path) -> None:
    """A tri-letter student of the paper's letters refuses texts of other scripts, wherever they are graded."""
    files = {}
    for name in ("train", "dev", "test"):
        files[name] = graded(tmp_path / f"{name}.tsv", **({place: "東京"} if name == split else {}))
        files[name].write_text(files[name].read_text().replace("query ", f"{name} "))
    with pytest.raises(UsageError, match=r"students\.triletter: the text '東京' has no letter"):
        follow.run(
            dataclasses.replace(FILES, students={"triletter": FILES.students["triletter"]}),
            Inputs(**files),
            tmp_path / "run",
        )
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_student_that_cannot_be_made_is_found_before_training(tmp_path: Path) -> None:
    """A layer too many of the last student stops the run before its teacher is trained, in a line that names both."""
    wrong = recipe.load("tiny", changes={"students": {"wordpiece": {"layers": [9]}}})
    with pytest.raises(UsageError, match=r"students.wordpiece: layers: 9 is none of"):
        follow.run(wrong, Inputs(), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize("split", ["train", "dev"])
def test_grades_that_are_all_the_same_are_found_before_training(split: str, tmp_path: Path) -> None:
    """Clicks alone say nothing of what is not relevant: refused before anything is trained."""
    files = {}
    for name in ("train", "dev", "test"):
        files[name] = graded(tmp_path / f"{name}.tsv")
        text = files[name].read_text().replace("query ", f"{name} ")
        files[name].write_text(text.replace("\t0", "\t1") if name == split else text)
    with pytest.raises(UsageError, match=f"{split}: all 60 pairs have the grade 1, which teaches nothing"):
        follow.run(FILES, Inputs(**files), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_share_without_a_pair_is_found_before_training(tmp_path: Path) -> None:
    """A share of too few queries stops the run before its teacher is trained."""
    wrong = recipe.load("tiny", changes={"students": {"triletter": {"share": 1e-9}}})
    with pytest.raises(UsageError, match=r"students.triletter: student: its share of 1e-09 of the queries has no pair"):
        follow.run(wrong, Inputs(), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()


def test_runs_of_neighbouring_seeds_share_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two teachers each make six of three seeds; a run that an earlier version began keeps those it has."""
    seeds: list[int] = []
    monkeypatch.setattr(teacher, "train", lambda *_, seed, **__: seeds.append(seed))
    monkeypatch.setattr(teaching, "CrossEncoders", list)
    dataset, two = synthetic.dataset(), dataclasses.replace(FILES, teachers=2)
    for seed in (2002, 2003, 2004):
        teaching.train_cross_encoders(dataclasses.replace(two, seed=seed), dataset, tmp_path, Silent())
    assert seeds[::2] == [2002, 2003, 2004]
    assert len(set(seeds)) == 6
    Run(tmp_path / "teacher-2", {"seed": 2003})
    teaching.train_cross_encoders(dataclasses.replace(two, seed=2002), dataset, tmp_path, Silent())
    assert seeds[6:] == [2002, 2003]


def test_a_student_without_a_projection_is_read_back(tmp_path: Path) -> None:
    """`projection = 0` is an embedding of the hidden width, and a run that recorded it says so."""
    plain = recipe.load("tiny", changes={"students": {"triletter": {"projection": 0}}})
    dataset = synthetic.dataset()
    twin, _ = initial.build(plain.students["triletter"], tmp_path, judged(dataset), seed=0)
    assert (twin.config.document.projection, twin.config.document.dimension) == (None, 32)
    with claimed(claim_of(plain, dataset, Inputs()), ["triletter"], (), tmp_path / "run", Silent(), writes=True):
        assert follow.recipe_of(tmp_path / "run").students["triletter"] == plain.students["triletter"]


def test_a_missing_checkpoint_is_found_before_training(tmp_path: Path) -> None:
    """A student's checkpoint that is not there stops the run before its teacher is trained."""
    tiny = recipe.load("tiny", changes={"teacher": {"checkpoint": str(tmp_path / "none")}})
    with pytest.raises(UsageError, match="is no directory, and no known name"):
        follow.run(tiny, Inputs(), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()
