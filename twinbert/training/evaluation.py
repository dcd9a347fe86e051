"""Systems × metrics on one split, and how far to trust them: intervals over queries, seeds beside each other.

Shapes: N pairs, Q queries, B resamples.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinbert.errors import UsageError
from twinbert.training.bootstrap import LEVEL, RESAMPLES, Estimate, difference, estimate, resample
from twinbert.training.data import Split
from twinbert.training.metrics import RELEVANT, Doubles, Floats, Judgments, mean_over_queries, measure, recall

Scorer = Callable[[Sequence[tuple[str, str]]], Floats]
"""(query, document) pairs → scores float32 [N]."""
Retriever = Callable[[Sequence[str], Sequence[str], int], list[list[str]]]
"""Queries, a corpus and a depth → the best documents of each query, best first."""

DEPTHS = (10, 100)
COMPARED = ("auc2", "auc233", "ndcg10", "pairwise")


@dataclass(frozen=True, kw_only=True)
class System:
    """Something that scores. Systems of one name are the seeds of one row."""

    name: str
    score: Scorer
    probabilities: bool = True
    """Whether scores are probabilities; of others calibration and divergence are not measured."""
    retrieve: Retriever | None = None
    """How it searches a corpus, where it can."""
    run: int | None = None
    """Which of several runs it is of; None: of none, or of the only one."""
    spent: Callable[[], float] | None = None
    """The seconds that its scores took, where another system had asked for them; None: what the call takes."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system: metrics by name, of the seeds' mean and of each seed; `seconds` is what a seed took to score."""

    name: str
    metrics: Mapping[str, Estimate]
    runs: Sequence[Mapping[str, float]]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What `left` is better by than `right`, by metric: paired, so its interval is narrower than either system's."""

    left: str
    right: str
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What `evaluate` found; `scores`, those of first seeds, and `judgments` are what plots are drawn from."""

    split: str
    pairs: int
    queries: int
    corpus: int
    resamples: int
    rows: Sequence[Row]
    differences: Sequence[Difference]
    scores: Mapping[str, Floats]
    judgments: Judgments

    def to_json(self) -> str:
        """All numbers, for programs; what is not defined is null."""
        content: dict[str, Any] = {
            "split": self.split,
            "pairs": self.pairs,
            "queries": self.queries,
            "corpus": self.corpus,
            "resamples": self.resamples,
            "level": LEVEL,
            "relevant_from_grade": dict(RELEVANT),
            "rows": [asdict(row) for row in self.rows],
            "differences": [asdict(row) for row in self.differences],
        }
        return json.dumps(defined(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Tables for readers: the systems, their seeds where there are several, and the differences."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.metrics))
        lines = [
            f"{self.pairs:,} pairs of {self.queries:,} queries ({self.split}); in brackets the {LEVEL:.0%} interval of "
            f"{self.resamples:,} bootstrap resamples of queries.",
            "",
            *_table(
                ["system", *names, "s"],
                [
                    [row.name, *(_cell(row.metrics.get(name)) for name in names), f"{row.seconds:,.0f}"]
                    for row in self.rows
                ],
            ),
        ]
        if several := [row for row in self.rows if len(row.runs) > 1]:
            lines += ["", "Seeds:", ""]
            seeds = [[row.name, *(_seeds(row, name) for name in names)] for row in several]
            lines += _table(["system", *names], seeds)
        if self.differences:
            lines += ["", "Differences (paired; bold where the interval leaves out 0):", ""]
            lines += _table(
                ["difference", *COMPARED],
                [
                    [f"{row.left} − {row.right}", *(_signed(row.metrics[name]) for name in COMPARED)]
                    for row in self.differences
                ],
            )
        return "\n".join(lines) + "\n"


def evaluate(
    systems: Sequence[System],
    split: Split,
    *,
    teacher: str | None = None,
    against: Sequence[str] = (),
    corpus: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    scored: Callable[[System, float], None] = lambda _system, _seconds: None,
) -> Table:
    """Scores a split with every system and measures all on the same resamples.

    Args:
        systems: rows, in their order.
        split: judged pairs.
        teacher: the row that fidelity is measured against: that of a system's own run; of one of no run its nth seed's
            against the nth, or the last.
        against: rows that every other is compared with.
        corpus: what recall@k is measured over; empty: it is not. Documents without a judgment count as not relevant.
        resamples: resamples of the bootstrap.
        seed: of the bootstrap.
        scored: told of every system that has scored, and its seconds.

    Raises:
        UsageError: `teacher` or `against` name no row, or a system's scores are not finite or no probabilities.
    """
    names = list(dict.fromkeys(system.name for system in systems))
    for name in ([teacher] if teacher else []) + list(against):
        if name not in names:
            raise UsageError(f"no system is called {name!r}; there are {', '.join(names)}")
    judgments = Judgments.of(split.pairs)
    weights_BQ = resample(judgments.queries, resamples, seed=seed)
    pairs = split.texts()
    scores: dict[str, list[Floats]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    teachers: dict[int | None, Floats] = {}  # by run
    for system in systems:
        start = time.perf_counter()
        scores[system.name].append(system.score(pairs))
        seconds[system.name].append(system.spent() if system.spent else time.perf_counter() - start)
        if system.name == teacher and system.run is not None:
            teachers[system.run] = scores[teacher][-1]
        scored(system, seconds[system.name][-1])
    measured: dict[str, list[dict[str, Doubles]]] = {name: [] for name in names}
    for system in systems:
        number = len(measured[system.name])
        scores_N = scores[system.name][number]
        taught_N = None
        if teacher and system.name != teacher:
            taught_N = teachers.get(system.run, scores[teacher][min(number, len(scores[teacher]) - 1)])
        found = measure(scores_N, judgments, weights_BQ, teacher_N=taught_N, probabilities=system.probabilities)
        if corpus and system.retrieve is not None:
            found |= _recall(system.retrieve, split, corpus, weights_BQ)
        measured[system.name].append(found)
    means = {name: _mean(runs) for name, runs in measured.items()}
    return Table(
        split=split.name,
        pairs=len(pairs),
        queries=judgments.queries,
        corpus=len(corpus),
        resamples=resamples,
        rows=[
            Row(
                name=name,
                metrics={metric: estimate(values_B) for metric, values_B in means[name].items()},
                runs=[{metric: float(values_B[0]) for metric, values_B in run.items()} for run in measured[name]],
                seconds=float(np.mean(seconds[name])),
            )
            for name in names
        ],
        differences=[
            Difference(
                left=left,
                right=right,
                metrics={metric: difference(means[left][metric], means[right][metric]) for metric in COMPARED},
            )
            for right in against
            for left in names
            if left != right
        ],
        scores={name: runs[0] for name, runs in scores.items()},
        judgments=judgments,
    )


def save(table: Table, folder: Path) -> None:
    """Writes quality.md, quality.json, and pictures: roc.png, distributions.png, calibration.png of probabilities."""
    from twinbert.training import plots

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.md").write_text(table.to_markdown(), encoding="utf-8")
    (folder / "quality.json").write_text(table.to_json(), encoding="utf-8")
    areas = {row.name: row.metrics["auc2"].value for row in table.rows}
    plots.plot_roc(folder / "roc.png", table.scores, table.judgments, areas)
    probabilities = {row.name: table.scores[row.name] for row in table.rows if "calibration_error" in row.metrics}
    plots.plot_distributions(folder / "distributions.png", table.scores, table.judgments)
    if probabilities:
        plots.plot_calibration(folder / "calibration.png", probabilities, table.judgments)


def _recall(retrieve: Retriever, split: Split, corpus: Sequence[str], weights_BQ: Doubles) -> dict[str, Doubles]:
    grouped = split.by_query()
    relevant = [
        frozenset(pair.document for pair in pairs if pair.grade >= RELEVANT["auc2"]) for pairs in grouped.values()
    ]
    retrieved = retrieve(list(grouped), corpus, max(DEPTHS))
    return {f"recall{depth}": mean_over_queries(recall(retrieved, relevant, depth), weights_BQ) for depth in DEPTHS}


def _mean(runs: Sequence[Mapping[str, Doubles]]) -> dict[str, Doubles]:
    return {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---", *["---:"] * (len(header) - 1)], *rows)]


def _cell(value: Estimate | None) -> str:
    if value is None or math.isnan(value.value):
        return "–"
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _seeds(row: Row, name: str) -> str:
    values = [run[name] for run in row.runs if name in run]
    return f"{min(values):.3f} to {max(values):.3f}" if values else "–"


def _signed(value: Estimate) -> str:
    if math.isnan(value.value):
        return "–"
    number = f"{value.value:+.3f}"
    return f"{f'**{number}**' if value.certain else number} [{value.low:+.3f}, {value.high:+.3f}]"


def defined(content: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """The same with None for NaN, which JSON has not."""
    if isinstance(content, dict):
        return {key: defined(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [defined(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
