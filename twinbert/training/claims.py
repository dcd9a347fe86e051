"""What a run's folder is claimed for, before anything is put in it or an hour is spent.

RUN/configuration.json                  the recipe without its students, and digests of the data
RUN/inputs.json                         where the data was, for people: it may have moved since
RUN/students/<name>/configuration.json  the student: another one, or one that was changed, can join a teacher there
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinbert.errors import UsageError
from twinbert.training.data import Dataset, read_texts
from twinbert.training.embedding import digest_of_texts
from twinbert.training.report import Report
from twinbert.training.runs import Run, locked, recorded, replace_text
from twinbert.training.teacher import digest_of

if TYPE_CHECKING:
    from twinbert.training.recipe import Inputs, Recipe

_INPUTS = "inputs.json"


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a run is of: the recipe's part, and each student's."""

    described: dict[str, Any]
    students: dict[str, Any]
    inputs: dict[str, str]


def claim_of(recipe: Recipe, dataset: Dataset, inputs: Inputs) -> Claim:
    """The claim of a recipe on its data, without unlabelled texts, which are read from their files.

    Raises:
        UsageError: such a file cannot be read.
    """
    described = dataclasses.asdict(recipe)
    del described["students"]
    for name in ("lexical", "twins"):  # of which runs from before there were any say nothing
        if not described[name]:
            del described[name]
    if not recipe.pairs.spans:
        del described["pairs"]["spans"]
    students = {name: student.described() for name, student in recipe.students.items()}
    files = {
        "queries": (inputs.queries, recipe.columns.query),
        "documents": (inputs.documents, recipe.columns.document),
    }
    texts = {name: path and digest_of_texts(read_texts(path, column)) for name, (path, column) in files.items()}
    options = {"data": inputs.train, "dev": inputs.dev, "test": inputs.test}
    options |= {"queries": inputs.queries, "documents": inputs.documents}
    given = {name: str(path.absolute()) for name, path in options.items() if path is not None}
    return Claim({"recipe": described, "data": _digest(dataset), "texts": texts}, students, given)


@contextmanager
def claimed(
    claim: Claim, chosen: Collection[str], twins: Collection[str], output: Path, report: Report, *, writes: bool
) -> Iterator[None]:
    """Claims a run's folder and those of the students chosen, and holds these against other processes.

    Folders of twins, which other commands need too, are not held: whoever trains one does that.

    Raises:
        UsageError: they hold something else, or another process trains one of the students.
    """
    Run(output, claim.described, writes=writes)
    if writes and not (output / _INPUTS).exists():
        replace_text(output / _INPUTS, json.dumps(claim.inputs, indent=2) + "\n")
    with ExitStack() as stack:
        for name in chosen:
            folder = output / "students" / name
            if name in twins:
                Run(folder, {"student": claim.students[name]}, writes=writes)
            else:
                stack.enter_context(claimed_student(claim.students[name], folder, report, wait=False, writes=writes))
        yield


@contextmanager
def claimed_student(
    described: dict[str, Any], folder: Path, report: Report, *, wait: bool, writes: bool
) -> Iterator[None]:
    """Claims a student's folder and holds it against other processes.

    Args:
        described: the student, as runs record it.
        folder: its folder.
        report: is told of waiting.
        wait: for another process that trains it, without end.
        writes: whether this process is the one of several that writes.

    Raises:
        UsageError: it holds something else, or another process trains it, and there is no waiting.
    """
    Run(folder, {"student": described}, writes=writes)
    with locked(folder, report, wait=wait, writes=writes):
        yield


def require_data(run: Path, dataset: Dataset) -> None:
    """Refuses to measure a run on pairs that it may have learned from.

    Raises:
        UsageError: the dataset is not the run's.
    """
    digest = recorded(run).get("data")
    if digest in (None, _digest(dataset)):
        return
    given = json.loads(path.read_bytes()) if (path := run / _INPUTS).exists() else {}
    options = " ".join(f"--{name} {given[name]}" for name in ("data", "dev", "test") if name in given)
    raise UsageError(
        f"{run}: was trained on other pairs, and may know these by heart; "
        f"give the same --data, --dev and --test as then{options and f', {options}'}"
    )


def _digest(dataset: Dataset) -> str:
    return digest_of(dataset.train, dataset.dev, dataset.test)
