"""Commands that train: `train run`, `train teacher`, `train student`; those that measure join them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinbert.cli.evaluate import baselines, evaluate, parity

if TYPE_CHECKING:
    from twinbert.training.report import Report

app = typer.Typer(help="Train: a teacher on human grades, students on the teacher; and measure both.")
app.command()(evaluate)
app.command()(baselines)
app.command()(parity)

RecipeOption = Annotated[
    str,
    typer.Option("--recipe", metavar="NAME", help="homedepot, pairs, tiny, or the path of a TOML file."),
]
BudgetOption = Annotated[
    str | None,
    typer.Option("--budget", metavar="NAME", help="small or another budget of the recipe; full is the whole recipe."),
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="RUN", help="The run's folder. One that was left is taken up again.")
]
DataOption = Annotated[Path | None, typer.Option("--data", metavar="FILE", help="Graded pairs: what to learn from.")]
DevOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Graded pairs to calibrate on.")]
TestOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Graded pairs to measure on.")]
QueriesOption = Annotated[Path | None, typer.Option(metavar="FILE", help="More queries, without grades.")]
DocumentsOption = Annotated[Path | None, typer.Option(metavar="FILE", help="More documents, without grades.")]
QueryColumnOption = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the query.")]
DocumentColumnOption = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the document.")]
GradeColumnOption = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the grade.")]
LowestOption = Annotated[float | None, typer.Option(metavar="GRADE", help="Grade of an irrelevant document.")]
HighestOption = Annotated[float | None, typer.Option(metavar="GRADE", help="Grade of a perfect document.")]
SeedOption = Annotated[int | None, typer.Option(metavar="N", min=0, help="Of everything random.")]


@app.command()
def run(
    *,
    recipe: RecipeOption,
    output: OutputOption,
    budget: BudgetOption = None,
    data: DataOption = None,
    dev: DevOption = None,
    test: TestOption = None,
    queries: QueriesOption = None,
    documents: DocumentsOption = None,
    query_column: QueryColumnOption = None,
    document_column: DocumentColumnOption = None,
    grade_column: GradeColumnOption = None,
    lowest_grade: LowestOption = None,
    highest_grade: HighestOption = None,
    seed: SeedOption = None,
) -> None:
    """Follow a recipe: teacher, pairs, students, calibration, bundles.

    Killed at any time, the same command goes on. Several GPUs: accelerate launch $(which twinbert) train run …
    """
    from twinbert.training import recipe as recipes

    columns = _given(
        query=query_column, document=document_column, grade=grade_column, lowest=lowest_grade, highest=highest_grade
    )
    changes: dict[str, Any] = {"columns": columns} if columns else {}
    loaded = recipes.load(recipe, budget=budget, changes=changes | _given(seed=seed))
    inputs = recipes.Inputs(train=data, dev=dev, test=test, queries=queries, documents=documents)
    with _reporting() as report:
        bundles = recipes.run(loaded, inputs, output, report=report)
    for name, bundle in bundles.items():
        typer.echo(f"{name}\t{bundle}")


@app.command()
def teacher(
    *,
    recipe: RecipeOption,
    output: OutputOption,
    budget: BudgetOption = None,
    data: DataOption = None,
    dev: DevOption = None,
    test: TestOption = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="DIR", help="A Hugging Face checkpoint, by default the recipe's.")
    ] = None,
    seed: SeedOption = None,
) -> None:
    """Fine-tune only a recipe's teacher, a cross-encoder, on human grades."""
    from twinbert.training import recipe as recipes

    changes = _given(seed=seed) | ({"teacher": {"checkpoint": checkpoint}} if checkpoint else {})
    loaded = recipes.load(recipe, budget=budget, changes=changes)
    with _reporting() as report:
        recipes.run(loaded, recipes.Inputs(train=data, dev=dev, test=test), output, students=(), report=report)
    for folder in recipes.teacher_folders(loaded, output):
        typer.echo(f"{folder.name}\t{folder / 'model'}")


@app.command()
def student(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Students of the recipe.", show_default=False)],
    *,
    recipe: RecipeOption,
    output: OutputOption,
    budget: BudgetOption = None,
    data: DataOption = None,
    dev: DevOption = None,
    test: TestOption = None,
    seed: SeedOption = None,
) -> None:
    """Train only the students named, and before them the recipe's teacher where it is not there yet."""
    from twinbert.training import recipe as recipes

    loaded = recipes.load(recipe, budget=budget, changes=_given(seed=seed))
    inputs = recipes.Inputs(train=data, dev=dev, test=test)
    with _reporting() as report:
        bundles = recipes.run(loaded, inputs, output, students=names, report=report)
    for name, bundle in bundles.items():
        typer.echo(f"{name}\t{bundle}")


def _given(**values: Any) -> dict[str, Any]:  # noqa: ANN401 - what options can be
    """The options that were given."""
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def _reporting() -> Iterator[Report]:
    from twinbert.training.loop import new_accelerator
    from twinbert.training.report import reporting

    with reporting(speaks=new_accelerator().is_main_process) as report:
        yield report
