"""The table: rows, seeds, differences and pictures of a few systems; and the baselines that need no training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from twinbert.bundle import Bundle
from twinbert.errors import UsageError
from twinbert.model.twin import TwinBert
from twinbert.runtime import Floats
from twinbert.training import evaluation, synthetic
from twinbert.training.baselines import Bm25, Random, Twin, best, twins_of
from twinbert.training.data import Dataset
from twinbert.training.evaluation import Scorer, System, Table
from twinbert.training.student import Student

COUNTED = ("auc2", "auc233", "pr_auc", "ndcg10", "pairwise")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Pairs whose grade is the share of words in common."""
    return synthetic.dataset()


def overlap(noise: float, seed: int) -> Scorer:
    """Scores by words in common, and noise."""

    def score(pairs: list[tuple[str, str]]) -> Floats:
        random = np.random.default_rng(seed)
        shared = np.array([len({*query.split()} & {*document.split()}) / 3 for query, document in pairs])
        return np.clip(shared + noise * random.normal(size=len(pairs)), 0, 1).astype(np.float32)

    return score  # type: ignore[return-value]  # a list is a sequence


@pytest.fixture(scope="module")
def table(dataset: Dataset) -> Table:
    """Random, BM25, a system of three seeds, and a teacher."""
    bm25 = Bm25(dataset.corpus())
    systems = [
        System(name="random", score=Random().score),
        System(name="BM25", score=bm25.score, probabilities=False, retrieve=bm25.retrieve),
        *(System(name="student", score=overlap(0.5, seed)) for seed in range(3)),
        System(name="teacher", score=overlap(0.1, 9)),
    ]
    corpus = [pair.document for pair in dataset.test.pairs]
    return evaluation.evaluate(systems, dataset.test, teacher="teacher", against=["BM25"], corpus=corpus, resamples=200)


def test_every_system_has_a_row_with_what_can_be_measured_of_it(table: Table) -> None:
    """Calibration is of probabilities, fidelity of all but the teacher, recall of what can search."""
    rows = {row.name: row for row in table.rows}
    assert list(rows) == ["random", "BM25", "student", "teacher"]
    assert set(rows["BM25"].metrics) == {*COUNTED, "spearman", "recall10", "recall100"}
    assert set(rows["student"].metrics) == {*COUNTED, "calibration_error", "spearman", "kl"}
    assert set(rows["teacher"].metrics) == {*COUNTED, "calibration_error"}


def test_intervals_hold_their_values_and_order_the_systems(table: Table) -> None:
    """Each value lies in its interval, and better systems have better areas."""
    for row in table.rows:
        for estimate in row.metrics.values():
            assert estimate.low <= estimate.value <= estimate.high
    areas = {row.name: row.metrics["auc2"].value for row in table.rows}
    assert areas["random"] < areas["student"] < areas["teacher"]


def test_seeds_share_a_row_and_are_all_told(table: Table) -> None:
    """A row of three seeds is their mean, and each seed's own numbers are kept."""
    (student,) = (row for row in table.rows if row.name == "student")
    alone = [run["auc2"] for run in student.runs]
    assert len(set(alone)) == 3
    assert student.metrics["auc2"].value == pytest.approx(np.mean(alone))


def test_differences_are_against_the_row_asked_for(table: Table) -> None:
    """Every other row is compared, and its difference is that of the values."""
    assert [(row.left, row.right) for row in table.differences] == [
        (name, "BM25") for name in ("random", "student", "teacher")
    ]
    areas = {row.name: row.metrics["auc2"].value for row in table.rows}
    for row in table.differences:
        assert row.metrics["auc2"].value == pytest.approx(areas[row.left] - areas["BM25"])
    assert table.differences[0].metrics["auc2"].certain


def test_markdown_and_json_say_the_same(table: Table) -> None:
    """Both have every row, a missing number is a dash or absent, and JSON has no NaN."""
    text, content = table.to_markdown(), json.loads(table.to_json())
    for row in content["rows"]:
        value = row["metrics"]["auc2"]
        assert f"| {row['name']} | {value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" in text
    assert content["pairs"] == len(table.scores["teacher"])
    columns = Counter(line.count("|") for line in text.splitlines() if line.startswith("| "))
    assert len(columns) == 3  # systems, seeds and differences are whole tables
    assert "nan" not in text


def test_everything_is_saved(table: Table, tmp_path: Path) -> None:
    """A folder gets the table, its numbers, and three pictures with something in them."""
    evaluation.save(table, tmp_path / "new")
    assert (tmp_path / "new" / "quality.md").read_text() == table.to_markdown()
    assert (tmp_path / "new" / "quality.json").read_text() == table.to_json()
    for name in ("roc", "calibration", "distributions"):
        picture = (tmp_path / "new" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000


def test_fidelity_is_to_the_teacher_of_ones_own_run(dataset: Dataset) -> None:
    """A student that only the second run has is measured against that run's teacher, its own scores."""
    first, second = overlap(0.1, 1), overlap(0.1, 2)
    systems = [
        System(name="teacher", score=first, run=0),
        System(name="teacher", score=second, run=1),
        System(name="student", score=second, run=1),
    ]
    table = evaluation.evaluate(systems, dataset.test, teacher="teacher", resamples=2)
    assert table.rows[1].metrics["spearman"].value == pytest.approx(1)
    assert table.rows[1].metrics["kl"].value == pytest.approx(0, abs=1e-6)


def test_a_row_that_is_not_there_is_named(dataset: Dataset) -> None:
    """Comparing with an unknown row fails before anything is scored."""
    with pytest.raises(UsageError, match="no system is called 'techer'; there are random"):
        evaluation.evaluate([System(name="random", score=Random().score)], dataset.test, teacher="techer")


def test_bm25_scores_as_it_retrieves(dataset: Dataset) -> None:
    """The scores of a query's pairs with every document are in the order in which they are retrieved."""
    corpus = dataset.corpus()[:200]
    bm25 = Bm25(corpus)
    query = dataset.test.pairs[0].query
    scores = bm25.score([(query, document) for document in corpus])
    (found,) = bm25.retrieve([query], corpus, 10)
    assert [scores[corpus.index(document)] for document in found] == sorted(scores, reverse=True)[:10]
    assert {*query.split()} & {*found[0].split()}


def test_bm25_gives_nothing_for_stop_words_and_refuses_unknown_documents() -> None:
    """A query of stop words scores 0, and a document outside the collection is no silent 0."""
    bm25 = Bm25(["red shoes", "blue socks"])
    assert bm25.score([("the", "red shoes"), ("shoes", "blue socks")]).tolist() == [0, 0]
    with pytest.raises(UsageError, match="its collection lacks the document 'green hats'"):
        bm25.score([("hats", "green hats")])
    wordless = Bm25(["a", "–"])
    assert wordless.score([("shoes", "a")]).tolist() == [0]
    assert sorted(wordless.retrieve(["shoes"], ["a", "–"], 5)[0]) == ["a", "–"]


def test_a_bundle_scores_and_retrieves_as_its_model(tiny_bundle: Path, tiny_twin: TwinBert) -> None:
    """Pairs have the model's probabilities whatever their order, and the best by cosine come first."""
    twin: Twin = twins_of(Bundle.open(tiny_bundle), threads=1)["cosine"]
    student = Student(tiny_twin, tiny_bundle / "tokenizer.json")
    queries, documents = ["running shoes", "read a csv file"], ["shoes", "list of files", "pizza", "csv"]
    pairs = [(query, document) for document in documents for query in queries]
    scores = twin.score(pairs)
    assert scores == pytest.approx(student.score(pairs), abs=1e-5)
    assert twin.score(pairs[::-1]) == pytest.approx(scores[::-1], abs=1e-6)
    by_query = scores.reshape(len(documents), len(queries)).T
    for row, found in zip(by_query, twin.retrieve(queries, documents, 3), strict=True):
        assert found == [documents[place] for place in np.argsort(-row)[:3]]


def test_the_best_come_first_also_where_there_are_few() -> None:
    """`best` is a sorted prefix, and all there is when more is asked for."""
    scores = np.array([0.1, 0.9, 0.5], np.float32)
    assert best(scores, 2).tolist() == [1, 2]
    assert best(scores, 10).tolist() == [1, 2, 0]
