"""From the folders of runs to a table's rows, and the commands over them. The run is put together, not trained."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import transformers

from twinbert.cli import main
from twinbert.errors import UsageError
from twinbert.training import dssm, follow, lexical, parity, recipe, synthetic, systems, teacher
from twinbert.training.data import Dataset, Pair, Split
from twinbert.training.dssm import DssmConfig
from twinbert.training.evaluation import System
from twinbert.training.report import Silent
from twinbert.training.schedule import Schedule
from twinbert.training.texts import TextFile


@pytest.fixture(scope="module")
def followed() -> recipe.Recipe:
    """The recipe of tests, of a teacher that learns for one epoch."""
    tiny = recipe.load("tiny")
    return dataclasses.replace(tiny, teacher=dataclasses.replace(tiny.teacher, schedule=Schedule(epochs=1)))


@pytest.fixture(scope="module")
def dataset(followed: recipe.Recipe) -> Dataset:
    """Its data."""
    return follow.read(followed, recipe.Inputs())


@pytest.fixture(scope="module")
def run(followed: recipe.Recipe, dataset: Dataset, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a checkpoint, a teacher whose cross-encoder has learned nothing, and one student."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    synthetic.save_checkpoint(folder / "checkpoint")
    described = dataclasses.asdict(followed)
    for name, student in described.pop("students").items():
        (folder / "students" / name).mkdir(parents=True)
        (folder / "students" / name / "configuration.json").write_text(json.dumps({"student": student}))
    (folder / "configuration.json").write_text(json.dumps({"recipe": described}))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "checkpoint", num_labels=1)
    model.save_pretrained(folder / "teacher" / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "teacher" / "model")
    shutil.copytree(tiny_bundle, folder / "students" / "wordpiece" / "bundle")
    assert followed.lexical is not None
    lexical.train(followed.lexical, dataset.train, dataset.dev, output=folder / "lexical", seed=1)
    (folder / "blend").mkdir()
    (folder / "blend" / "weights.json").write_text('{"weights": [0.5, 0.5], "bias": 0}')
    return folder


TEACHER = ("teacher", "teacher's cross-encoders", "teacher's words")


def names(rows: list[System]) -> list[str]:
    """The rows' names, seeds and all."""
    return [row.name for row in rows]


def test_a_runs_recipe_is_read_back(run: Path, followed: recipe.Recipe) -> None:
    """What configuration.json says is the recipe that was followed, whole."""
    assert follow.recipe_of(run) == followed


def test_rows_are_what_is_there(run: Path, dataset: Dataset, followed: recipe.Recipe) -> None:
    """Baselines that need no training, the teacher and the student that was trained; nothing for one that was not."""
    rows = list(systems.systems(dataset, followed, [run]))
    assert names(rows) == ["random", "BM25", "checkpoint untrained", *TEACHER, "wordpiece cosine"]
    pairs = dataset.test.texts()[:5]
    for row in rows:
        scores = row.score(pairs)
        assert scores.shape == (5,)
        assert not row.probabilities or ((scores >= 0) & (scores <= 1)).all()


def test_a_student_again_from_another_seed_shares_a_row(run: Path, followed: recipe.Recipe, tmp_path: Path) -> None:
    """NAME@SEED beside NAME is a seed of its row, and is held against the teacher of the same run."""
    own = tmp_path / "own"
    shutil.copytree(run, own)
    shutil.copytree(own / "students" / "wordpiece", own / "students" / "wordpiece@3")
    described = recipe.with_seeds(followed, ["wordpiece@3"]).students["wordpiece@3"].described()
    (own / "students" / "wordpiece@3" / "configuration.json").write_text(json.dumps({"student": described}))
    assert main(["train", "evaluate", str(own), "--resamples", "20", "-o", str(tmp_path / "out")]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "quality.json").read_text())["rows"]}
    assert [len(rows[name]["runs"]) for name in ("teacher", "wordpiece cosine")] == [1, 2]
    first, second = rows["wordpiece cosine"]["runs"]
    assert first == second


def test_a_baseline_that_is_being_trained_has_no_row(
    run: Path, dataset: Dataset, followed: recipe.Recipe, tmp_path: Path
) -> None:
    """Others can be measured meanwhile, or when it was killed."""
    own = tmp_path / "own"
    shutil.copytree(run, own)
    (own / "baselines" / "c-dssm").mkdir(parents=True)
    (own / "baselines" / "c-dssm" / "tokenizer.json").write_text("{}")
    assert names(list(systems.systems(dataset, followed, [own]))) == names(
        list(systems.systems(dataset, followed, [run]))
    )


def test_a_voice_is_heard_once_and_keeps_its_time(run: Path, dataset: Dataset, followed: recipe.Recipe) -> None:
    """The teacher asks its voices first; their rows say what that took, not what looking it up took."""
    rows = {row.name: row for row in systems.systems(dataset, followed, [run])}
    pairs = dataset.test.texts()
    rows["teacher"].score(pairs)
    spent = rows["teacher's cross-encoders"].spent
    assert spent is not None
    before = spent()
    assert before > 0
    rows["teacher's cross-encoders"].score(list(pairs))
    assert spent() == before


def test_without_runs_there_are_baselines(dataset: Dataset, followed: recipe.Recipe) -> None:
    """A table can be made before anything is trained."""
    assert names(list(systems.systems(dataset, followed, []))) == ["random", "BM25"]


def test_seeds_of_another_recipe_are_refused(run: Path, dataset: Dataset, followed: recipe.Recipe) -> None:
    """Runs share rows only where nothing but the seed differs."""
    other = dataclasses.replace(followed, seed=99)
    rows = list(systems.systems(dataset, other, [run, run]))
    assert [(row.name, row.run) for row in rows if row.name == "teacher"] == [("teacher", 0), ("teacher", 1)]
    with pytest.raises(UsageError, match="of another recipe"):
        list(systems.systems(dataset, recipe.load("tiny"), [run]))


def test_what_is_no_run_is_refused(tmp_path: Path, run: Path) -> None:
    """A folder without configuration.json, and a student that was never trained, are named."""
    with pytest.raises(UsageError, match="is no folder of `twinbert train run`"):
        follow.recipe_of(tmp_path)
    with pytest.raises(UsageError, match="no trained student 'triletter'; it has wordpiece"):
        systems.bundles_of(run, ["triletter"])


def test_first_layers_are_a_checkpoint_of_fewer(run: Path, tmp_path: Path) -> None:
    """The copy loads with as many layers as asked for, each with the weights that it had."""
    path = systems.first_layers(run / "checkpoint", 1, tmp_path / "shallow")
    shallow, whole = (transformers.AutoModel.from_pretrained(one) for one in (path, run / "checkpoint"))
    assert (len(shallow.encoder.layer), len(whole.encoder.layer)) == (1, 2)
    for mine, its in zip(shallow.encoder.layer[0].parameters(), whole.encoder.layer[0].parameters(), strict=True):
        assert mine.equal(its)
    assert systems.first_layers(run / "checkpoint", 3, tmp_path / "all").joinpath("config.json").exists()
    assert len(transformers.AutoModel.from_pretrained(tmp_path / "all").encoder.layer) == 2


def test_baselines_are_trained_once_and_get_rows(
    run: Path, dataset: Dataset, followed: recipe.Recipe, tmp_path: Path
) -> None:
    """C-DSSM and the shallow cross-encoder are trained on the run's data; the second time they are only loaded."""
    own = tmp_path / "own"
    shutil.copytree(run, own)
    network = DssmConfig(convolution=6, dimension=4, distil=Schedule(epochs=1, rate=1e-2))
    systems.train_baselines(own, dataset, Silent(), network=network)
    rows = names(list(systems.systems(dataset, followed, [own])))
    assert rows[3:5] == ["C-DSSM", "3-layer cross-encoder"]
    weights = (own / "baselines" / "c-dssm" / "weights.safetensors").stat().st_mtime_ns
    systems.train_baselines(own, dataset, Silent(), network=network)
    assert (own / "baselines" / "c-dssm" / "weights.safetensors").stat().st_mtime_ns == weights
    assert dssm.load(own / "baselines" / "c-dssm").twin.config.document.dimension == 4


def test_a_baseline_minimises_what_students_do(dataset: Dataset) -> None:
    """C-DSSM has the losses that most distilled students have; students on grades alone say nothing of them."""
    homedepot = recipe.load("homedepot")
    assert systems.network_of(homedepot, dataset).losses == homedepot.students["minilm"].losses
    labels = {name: one for name, one in homedepot.students.items() if not one.needs_teacher}
    assert systems.network_of(dataclasses.replace(homedepot, students=labels), dataset).losses == DssmConfig().losses


def graded_as(dataset: Dataset, query: str) -> Dataset:
    """The dataset with one more graded query."""
    pair = Pair(query, "bada", 1.0)
    return dataclasses.replace(dataset, train=Split("train", [*dataset.train.pairs, pair]))


def test_a_baseline_reads_the_letters_of_students_and_data(dataset: Dataset, followed: recipe.Recipe) -> None:
    """C-DSSM has the letters of the tri-letter students, and those of every script where a graded text needs them."""
    pieces = dataclasses.replace(followed, students={"wordpiece": followed.students["wordpiece"]})
    scripts = dataclasses.replace(followed.students["triletter"], letters="unicode")
    everywhere = dataclasses.replace(followed, students={"triletter": scripts})
    assert [systems.network_of(one, dataset).letters for one in (pieces, followed)] == ["ascii", "ascii"]
    assert systems.network_of(everywhere, dataset).letters == "unicode"
    assert systems.network_of(pieces, graded_as(dataset, "東京")).letters == "unicode"


def test_a_text_that_c_dssm_cannot_read_stops_it_alone(
    run: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cross-encoder, which needs no letters, is trained; then the text is named with a remedy that there is."""
    own = tmp_path / "own"
    trained: list[str] = []
    shutil.copytree(run, own)
    monkeypatch.setattr(teacher, "train", lambda *_, output, **__: trained.append(output.name))
    with pytest.raises(UsageError, match=r"the text .–. has no letter .* from it; remove it$"):
        systems.train_baselines(own, graded_as(dataset, "–"), Silent())
    assert trained == ["cross-encoder-3"]


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        ("teacher/model", "teacher: has no trained teacher yet; make it with"),
        ("lexical", "lexical: has no trained lexical network yet"),
        ("blend", "blend: the voices of the teacher were not weighed yet"),
        ("students/wordpiece/bundle", "students/wordpiece: the twin that teaches is not trained yet; make it with"),
    ],
)
def test_a_missing_teacher_is_found_before_baselines_are_trained(
    part: str, complaint: str, run: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """Neither baseline is begun where a part of the run's teacher is not there."""
    own = tmp_path / "own"
    shutil.copytree(run, own)
    configuration = json.loads((own / "configuration.json").read_text())
    if part.startswith("students"):
        configuration["recipe"]["twins"] = ["wordpiece"]
        followed = json.loads((own / "students" / "wordpiece" / "configuration.json").read_text())
        followed["student"]["losses"] |= dict.fromkeys(followed["student"]["losses"], 0) | {"graded_cross_entropy": 1}
        followed["student"]["losses"]["temperature"] = 1
        (own / "students" / "wordpiece" / "configuration.json").write_text(json.dumps(followed))
    (own / "configuration.json").write_text(json.dumps(configuration))
    shutil.rmtree(own / part)
    with pytest.raises(UsageError, match=f"{own}/{complaint}"):
        systems.train_baselines(own, dataset, Silent())
    assert not (own / "baselines").exists()


def test_the_bi_encoder_of_a_first_stage_has_a_row(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    """Where all students begin with new weights, what they learn the space of is measured without training."""
    own = tmp_path / "own"
    shutil.copytree(run, own)
    shutil.rmtree(own / "students" / "wordpiece")
    rows = names(list(systems.systems(dataset, follow.recipe_of(own), [own])))
    assert rows == ["random", "BM25", "checkpoint untrained", *TEACHER]


def test_baselines_learn_from_the_texts_that_the_run_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlabelled queries and documents of the run are those of its baselines, without being given again."""
    own = tmp_path / "own"
    shutil.copytree(run, own)
    TextFile.write(own / "texts" / "queries", ["bada"])
    TextFile.write(own / "texts" / "documents", ["fimo bada", "fimo"])
    learned: list[Dataset] = []
    monkeypatch.setattr(systems, "train_baselines", lambda _run, dataset, _report: learned.append(dataset))
    assert main(["train", "baselines", str(own)]) == 0
    assert [(list(one.queries), list(one.documents)) for one in learned] == [(["bada"], ["fimo bada", "fimo"])]


def test_evaluate_writes_and_prints_the_table(
    run: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train evaluate` measures a run and one more bundle, compares with the teacher, and keeps table and plots."""
    words = ("--bundle", f"more={tiny_bundle}", "--resamples", "20", "-o", str(tmp_path))
    assert main(["train", "evaluate", str(run), *words]) == 0
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "quality.md").read_text()
    content = json.loads((tmp_path / "quality.json").read_text())
    assert [row["name"] for row in content["rows"]][-2:] == ["wordpiece cosine", "more cosine"]
    assert {row["right"] for row in content["differences"]} == {"teacher"}
    assert "teacher: scored in" in printed.err
    assert (tmp_path / "roc.png").exists()


def test_parity_is_written_before_it_fails(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train parity` takes a student through live scorers; above the limit it leaves its report and exits with 2."""
    monkeypatch.setattr(parity, "LIMIT", 0.0)
    assert main(["train", "parity", str(run), "--student", "wordpiece", "--split", "dev", "-o", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == f"wordpiece: {(tmp_path / 'parity-wordpiece.md').read_text()}\n"
    assert printed.err.startswith("twinbert: parity: cosine scores of onnx differ from those of torch by ")
    content = json.loads((tmp_path / "parity-wordpiece.json").read_text())
    assert [hop["name"] for hop in content["crossings"]["cosine"]][-2:] == ["stored uint8", "live uint8"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [((), "give --recipe"), (("--recipe", "tiny", "--bundle", "nameless"), "is not NAME=DIR")],
)
def test_commands_say_what_is_missing(
    options: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither run nor recipe, and a bundle without a name, are named before anything is scored."""
    assert main(["train", "evaluate", "-o", str(tmp_path), *options]) == 2
    assert complaint in capsys.readouterr().err
