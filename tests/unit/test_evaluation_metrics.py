"""Metrics against scikit-learn, ir-measures and references written out slowly."""

from __future__ import annotations

import itertools
import math

import ir_measures
import numpy as np
import pytest
import sklearn.metrics
from scipy.stats import spearmanr

from twinbert.errors import UsageError
from twinbert.training import metrics
from twinbert.training.data import Pair
from twinbert.training.metrics import Floats, Judgments

GRADES = (0.0, 0.165, 0.335, 0.5, 0.665, 0.835, 1.0)


@pytest.fixture
def pairs() -> list[Pair]:
    """40 queries of 1 to 12 documents each, whose pairs are mixed."""
    random = np.random.default_rng(5)
    found = [
        Pair(f"query {query}", f"document {query} {document}", float(random.choice(GRADES)))
        for query in range(40)
        for document in range(random.integers(1, 13))
    ]
    return [found[place] for place in random.permutation(len(found))]


@pytest.fixture
def scores(pairs: list[Pair]) -> Floats:
    """Probabilities with something of the grades and many ties."""
    random = np.random.default_rng(6)
    noisy = [0.5 * pair.grade + 0.5 * random.random() for pair in pairs]
    return np.round(noisy, 2).astype(np.float32)


@pytest.fixture
def teacher(scores: Floats) -> Floats:
    """Probabilities that are like the scores."""
    return np.clip(scores + np.random.default_rng(7).normal(0, 0.1, len(scores)), 0, 1).astype(np.float32)


def grouped(pairs: list[Pair], *columns: Floats) -> list[tuple[list[float], ...]]:
    """For each query its grades and its part of each column."""
    rows: dict[str, list[int]] = {}
    for row, pair in enumerate(pairs):
        rows.setdefault(pair.query, []).append(row)
    return [([pairs[r].grade for r in of], *([float(c[r]) for r in of] for c in columns)) for of in rows.values()]


@pytest.mark.parametrize(("name", "threshold"), [("auc2", 0.5), ("auc233", 0.665)])
def test_areas_are_those_of_scikit_learn(pairs: list[Pair], scores: Floats, name: str, threshold: float) -> None:
    """auc2 and auc233 equal roc_auc_score with the relevant pairs from their grade up, ties and all."""
    relevant = [pair.grade >= threshold for pair in pairs]
    assert metrics.evaluate(scores, pairs)[name] == pytest.approx(sklearn.metrics.roc_auc_score(relevant, scores))


def test_a_grade_at_the_threshold_is_relevant_however_it_was_computed() -> None:
    """(2.33 − 1) / 2 is relevant for auc233, though float arithmetic may put it below 0.665."""
    judgments = Judgments.of([Pair("q", "d", (2.33 - 1) / 2), Pair("q", "e", (2.3299 - 1) / 2)])
    assert judgments.relevant(metrics.RELEVANT["auc233"]).tolist() == [True, False]


def test_average_precision_is_that_of_scikit_learn(pairs: list[Pair], scores: Floats) -> None:
    """pr_auc equals average_precision_score."""
    expected = sklearn.metrics.average_precision_score([pair.grade >= 0.5 for pair in pairs], scores)
    assert metrics.evaluate(scores, pairs)["pr_auc"] == pytest.approx(expected)


def test_ndcg_is_that_of_scikit_learn(pairs: list[Pair], scores: Floats) -> None:
    """ndcg10 equals ndcg_score's mean over the queries with 5 documents or more; equal scores share their discounts."""
    gains = [([4**grade - 1 for grade in grades], given) for grades, given in grouped(pairs, scores) if len(given) >= 5]
    expected = np.mean([sklearn.metrics.ndcg_score([gain], [given], k=10) for gain, given in gains])
    assert metrics.evaluate(scores, pairs)["ndcg10"] == pytest.approx(expected)


def test_ndcg_without_ties_is_that_of_ir_measures(pairs: list[Pair]) -> None:
    """Each query's ndcg10 equals nDCG@10 of ir-measures, grades being gains."""
    scores = np.random.default_rng(8).permutation(len(pairs)).astype(np.float32)
    gains = {grade: place for place, grade in enumerate(GRADES)}  # ir-measures takes whole gains
    whole = [Pair(pair.query, pair.document, math.log(1 + gains[pair.grade], 4)) for pair in pairs]
    qrels = [ir_measures.Qrel(pair.query, pair.document, gains[pair.grade]) for pair in pairs]
    run = [ir_measures.ScoredDoc(p.query, p.document, float(s)) for p, s in zip(pairs, scores, strict=True)]
    expected = {found.query_id: found.value for found in ir_measures.iter_calc([ir_measures.nDCG @ 10], qrels, run)}
    names = list(dict.fromkeys(pair.query for pair in pairs))
    for name, value in zip(names, metrics.ndcg(scores, Judgments.of(whole)), strict=True):
        assert math.isnan(value) or value == pytest.approx(expected[name])


def test_pairwise_counts_pairs_of_one_query(pairs: list[Pair], scores: Floats) -> None:
    """pairwise is the share of a query's pairs of different grades in the right order, equal scores a half."""
    right, total = 0.0, 0
    for grades, given in grouped(pairs, scores):
        for a, b in itertools.permutations(range(len(grades)), 2):
            if grades[a] > grades[b]:
                total += 1
                right += 1.0 if given[a] > given[b] else 0.5 if given[a] == given[b] else 0.0
    assert metrics.evaluate(scores, pairs)["pairwise"] == pytest.approx(right / total)


def test_calibration_error_is_the_gap_between_probability_and_grade(pairs: list[Pair], scores: Floats) -> None:
    """calibration_error, and the function of that name, is the mean over pairs of their bin's gap."""
    error = 0.0
    for number in range(15):
        last = number == 14
        inside = [
            (float(s), pair.grade)
            for s, pair in zip(scores, pairs, strict=True)
            if number / 15 <= s < (number + 1) / 15 or (last and s == 1)
        ]
        if inside:
            gap = np.mean([s for s, _ in inside]) - np.mean([grade for _, grade in inside])
            error += abs(float(gap)) * len(inside) / len(pairs)
    assert metrics.evaluate(scores, pairs)["calibration_error"] == pytest.approx(error, abs=1e-6)
    grades = np.array([pair.grade for pair in pairs])
    assert metrics.expected_calibration_error(scores, grades) == pytest.approx(error, abs=1e-6)


def test_fidelity_is_rank_correlation_and_divergence(pairs: list[Pair], scores: Floats, teacher: Floats) -> None:
    """spearman is scipy's, mean over queries with 5 documents; kl is written out; both are perfect for the teacher."""
    report = metrics.evaluate(scores, pairs, teacher)
    by_query = [(given, taught) for _, given, taught in grouped(pairs, scores, teacher) if len(given) >= 5]
    assert report["spearman"] == pytest.approx(np.mean([spearmanr(*both).statistic for both in by_query]))
    divergence = 0.0
    for t, p in np.clip(np.stack([teacher, scores], axis=1).astype(np.float64), 1e-6, 1 - 1e-6):
        divergence += t * math.log(t / p) + (1 - t) * math.log((1 - t) / (1 - p))
    assert report["kl"] == pytest.approx(divergence / len(pairs))
    itself = metrics.evaluate(teacher, pairs, teacher)
    assert [itself["spearman"], itself["kl"]] == pytest.approx([1, 0])


def test_constant_scores_are_worth_a_coin(pairs: list[Pair], teacher: Floats) -> None:
    """One score for all pairs gives areas and pairwise accuracy of a half and no correlation, whatever their order."""
    report = metrics.evaluate(np.full(len(pairs), 0.5, np.float32), pairs, teacher)
    assert [report[name] for name in ("auc2", "auc233", "pairwise", "spearman")] == [0.5, 0.5, 0.5, 0]


def test_weights_count_a_query_as_often_as_it_stands_there(pairs: list[Pair], scores: Floats, teacher: Floats) -> None:
    """Every metric under the weights of a resample equals the metric of the pairs written out that often."""
    judgments = Judgments.of(pairs)
    weights_1Q = np.random.default_rng(9).integers(0, 4, (1, judgments.queries)).astype(np.float64)
    weighted = metrics.measure(scores, judgments, weights_1Q, teacher_N=teacher)
    copies: list[tuple[Pair, float, float]] = []
    for row, pair in enumerate(pairs):
        for copy in range(int(weights_1Q[0, judgments.query_N[row]])):
            named = Pair(f"{pair.query} copy {copy}", pair.document, pair.grade)
            copies.append((named, float(scores[row]), float(teacher[row])))
    written, given, taught = zip(*copies, strict=True)
    expected = metrics.evaluate(given, written, taught)
    assert {name: float(values[0]) for name, values in weighted.items()} == pytest.approx(expected)


def test_many_weightings_at_once_are_each_alone(pairs: list[Pair], scores: Floats) -> None:
    """A weighting's metrics do not depend on the others that are computed with it, nor on how many there are."""
    judgments = Judgments.of(pairs)
    weights_BQ = np.random.default_rng(10).integers(0, 3, (700, judgments.queries)).astype(np.float64)
    together = metrics.measure(scores, judgments, weights_BQ)
    for row in (0, 349, 699):
        alone = metrics.measure(scores, judgments, weights_BQ[row : row + 1])
        assert {name: values[row] for name, values in together.items()} == pytest.approx(
            {name: values[0] for name, values in alone.items()}
        )


def test_recall_is_that_of_ir_measures() -> None:
    """recall equals R@k of ir-measures; a query without a relevant document has none."""
    random = np.random.default_rng(11)
    documents = [f"d{number}" for number in range(50)]
    relevant = [frozenset(random.choice(documents, size, replace=False).tolist()) for size in (1, 3, 12)]
    retrieved = [random.permutation(documents)[:20].tolist() for _ in relevant]
    qrels = [ir_measures.Qrel(f"q{query}", document, 1) for query, wanted in enumerate(relevant) for document in wanted]
    run = [
        ir_measures.ScoredDoc(f"q{query}", document, -float(place))
        for query, found in enumerate(retrieved)
        for place, document in enumerate(found)
    ]
    expected = {found.query_id: found.value for found in ir_measures.iter_calc([ir_measures.R @ 10], qrels, run)}
    assert metrics.recall(retrieved, relevant, 10).tolist() == pytest.approx(
        [expected[f"q{query}"] for query in range(3)]
    )
    assert math.isnan(metrics.recall([documents], [frozenset()], 10)[0])


def test_what_is_not_defined_is_nan() -> None:
    """Where every pair is relevant there is no area, and without queries of 5 documents no nDCG; nothing is raised."""
    report = metrics.evaluate([0.2, 0.4], [Pair("q", "a", 1.0), Pair("q", "b", 1.0)])
    assert [math.isnan(report[name]) for name in ("auc2", "ndcg10", "pairwise", "pr_auc")] == [True, True, True, False]


def test_reliability_tells_empty_bins_from_full_ones(scores: Floats, pairs: list[Pair]) -> None:
    """Shares add up to 1, a full bin's mean probability lies inside it, and an empty bin has none."""
    grades = np.array([pair.grade for pair in pairs])
    probability_K, _, share_K = metrics.reliability((scores / 2).astype(np.float32), grades)
    assert share_K.sum() == pytest.approx(1)
    assert np.isnan(probability_K[8:]).all()
    full_K = share_K > 0
    assert (np.floor(probability_K[full_K] * 15) == np.flatnonzero(full_K)).all()


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [
        ([0.5], "one for each"),
        ([0.5, math.nan], "not finite at pair 1"),
        ([0.5, 1.5], "no probabilities"),
    ],
)
def test_bad_scores_are_refused(scores: list[float], complaint: str) -> None:
    """Too few scores, NaN, and what is no probability are named instead of measured."""
    with pytest.raises(UsageError, match=complaint):
        metrics.evaluate(scores, [Pair("q", "a", 1.0), Pair("q", "b", 0.0)])


def test_no_pairs_are_refused() -> None:
    """An empty split is an error, not a report of NaN."""
    with pytest.raises(UsageError, match="no judged pairs"):
        metrics.evaluate([], [])
