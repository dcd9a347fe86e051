"""The `tiny` recipe from end to end: teacher, pairs, students, calibration, bundles, refresh, Score."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.once import MakeOnce
from tests.servers import COMMAND, refresh, running, write_documents
from twinbert.bundle import Bundle
from twinbert.client import ScorerClient, Task
from twinbert.errors import UsageError
from twinbert.training import follow, recipe, student, synthetic
from twinbert.training.recipe import Inputs

pytestmark = pytest.mark.timeout(600)  # two students are trained and exported before the first test

STUDENTS = ("wordpiece", "triletter")
TINY = recipe.load("tiny")


# Threads only wait for each other on matrices this small, and sum in an order of their own.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def run(make_once: MakeOnce) -> Path:
    """The folder of a run by the command."""

    def train(path: Path) -> None:
        words = [COMMAND, "train", "run", "--recipe", "tiny", "--output", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"{name}\t{path / 'students' / name / 'bundle'}" for name in STUDENTS]
        events = [json.loads(line) for line in done.stderr.splitlines()]
        assert {"data", "progress", "epoch", "calibrated", "done"} <= {event["event"] for event in events}

    return make_once("run", train)


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_configuration_curves_and_metrics(run: Path) -> None:
    """Every stage has a folder with what was asked for, how it went and a picture; checkpoints are gone."""
    stages = ["teacher", "lexical", *(f"students/{name}/distil" for name in STUDENTS)]
    [space] = (run / "spaces").iterdir()
    for stage in [*stages, space]:
        assert json.loads((run / stage / "configuration.json").read_text())
        assert (run / stage / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert not (run / stage / "checkpoint").exists()
    timed = [json.loads(line)["stage"] for line in (run / "times.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(timed)) == ["teacher", "pairs", *STUDENTS]


@pytest.mark.parametrize("name", STUDENTS)
def test_students_learn(name: str, run: Path) -> None:
    """The loss falls, and the bundle has both crossings, the residual one first, with what calibrated them on dev."""
    losses = [line["loss"] for line in metrics(run / "students" / name / "distil") if "loss" in line]
    assert min(losses[-3:]) < losses[0]
    bundle = Bundle.open(run / "students" / name / "bundle")
    assert bundle.default_crossing == "residual"
    assert all(bundle.crossings[kind].calibrated for kind in ("residual", "cosine"))
    fitted = [line for line in metrics(run / "students" / name / "distil") if "fitted_pairs" in line]
    for one, kind in zip(fitted, ("residual", "cosine"), strict=True):
        assert one == {"crossing": kind} | bundle.configuration["crossings"][kind]["calibration"]
        assert one["fitted_pairs"] == len(synthetic.dataset(seed=TINY.seed).dev.pairs)
        assert 0 <= one["fitted_error_after"] < 1
    assert bundle.tokenizer.kind == name


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_served(name: str, run: Path, tmp_path: Path) -> None:
    """A store refreshed with the bundle, asked by Score, gives the probabilities that the student gives in torch."""
    bundle = run / "students" / name / "bundle"
    pairs = synthetic.dataset(seed=TINY.seed).test.pairs[:6]
    documents = {f"d{n}": pair.document for n, pair in enumerate(pairs)}
    store = tmp_path / "store"
    refresh(bundle, store, write_documents(tmp_path / "documents.jsonl", documents))
    texts = [(pairs[0].query, document) for document in documents.values()]
    with running("serve", bundle, store) as server, ScorerClient(server.address) as client:
        for kind in ("residual", "cosine"):
            reply = client.score(Task(pairs[0].query, list(documents)), crossing=kind)
            expected_N = student.load(bundle).score(texts, kind)
            np.testing.assert_allclose(reply.results[0].scores, expected_N, atol=1e-4)


def test_bundles_load_without_torch(run: Path) -> None:
    """Both bundles are verified and scored with in an interpreter that has no torch."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from twinbert.bundle import Bundle; from twinbert.runtime import Runtime\n"
        "for path in sys.argv[1:]:\n"
        "    runtime = Runtime(Bundle.open(path), towers=('query', 'document'))\n"
        "    q, d = runtime.encode(['bada fimo'], 'query'), runtime.encode(['bada', 'fimo bada'], 'document')\n"
        "    for kind in ('residual', 'cosine'):\n"
        "        assert runtime.cross(q, d, np.zeros(2, np.int64), kind).shape == (2,)\n"
    )
    bundles = [str(run / "students" / name / "bundle") for name in STUDENTS]
    done = subprocess.run([sys.executable, "-c", code, *bundles], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_killed_run_resumed_gives_the_same_student(run: Path, tmp_path: Path) -> None:
    """Killed with SIGKILL in the teacher and in the distillation, the student comes out the same to the bit."""
    words = [COMMAND, "train", "student", "wordpiece", "--recipe", "tiny", "--output", str(tmp_path / "run")]
    for stage in ("teacher", "wordpiece distil"):
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
            assert process.stderr is not None
            for line in process.stderr:
                event = json.loads(line)
                if (event["event"], event.get("stage")) == ("epoch", stage):  # a checkpoint was saved before it
                    break
            process.kill()
            process.stderr.read()
        assert process.returncode == -signal.SIGKILL
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    weights = [path / "students" / "wordpiece" / "bundle" / "model.safetensors" for path in (run, tmp_path / "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_same_command_again_changes_nothing(run: Path) -> None:
    """What is finished is not trained again: bundles stay as they are, to the byte."""
    before = {name: Bundle.open(run / "students" / name / "bundle").model for name in STUDENTS}
    bundles = follow.run(TINY, Inputs(), run)
    assert {name: Bundle.open(path).model for name, path in bundles.items()} == before


def test_a_run_of_another_recipe_is_refused(run: Path) -> None:
    """The folder is left alone, and the message says what differs."""
    with pytest.raises(UsageError, match=r"recipe.seed is 7 there and 8 here"):
        follow.run(recipe.load("tiny", changes={"seed": 8}), Inputs(), run)


# The least that goes through every step in which several processes have to take turns.
SHARED = """
source = "synthetic"
twins = ["two"]
[teacher]
checkpoint = "synthetic"
max_tokens = 24
[teacher.schedule]
epochs = 1
[lexical]
hidden = 4
[lexical.schedule]
epochs = 1
[pairs]
bm25 = 1
random = 1
[students.one]
tokenizer = "triletter"
checkpoint = "synthetic"
projection = 8
crossings = ["cosine"]
query_max_tokens = 4
document_max_tokens = 8
[students.one.new]
layers = 1
hidden = 16
heads = 2
feed_forward = 16
[students.one.space]
teacher = "synthetic"
[students.one.space.schedule]
epochs = 1
[students.one.distil]
epochs = 1
[students.two]
checkpoint = "synthetic"
projection = 8
crossings = ["cosine"]
losses = { soft_cross_entropy = 0, graded_cross_entropy = 1 }
distil = { epochs = 1 }
"""


def test_processes_that_train_together_take_turns(tmp_path: Path) -> None:
    """Two processes of `accelerate launch` make one run, whose bundles are told once.

    Slow, 30 s: each process imports torch and transformers, and the export of a bundle is 10 s.
    """
    (tmp_path / "one.toml").write_text(SHARED)
    (tmp_path / "more.tsv").write_text("document\n" + "".join(f"bada fimo {n}\n" for n in range(2000)))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    words = ["-m", "twinbert", "train", "run", "--recipe", "one.toml", "--documents", "more.tsv", "-o", "run"]
    environment = ENVIRONMENT | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, *launch, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name}\trun/students/{name}/bundle" for name in ("one", "two")]
    assert Bundle.open(tmp_path / "run" / "students" / "one" / "bundle").tokenizer.kind == "triletter"
    assert not [path.name for path in (tmp_path / "run").rglob("*.building")]
