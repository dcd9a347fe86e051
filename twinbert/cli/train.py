"""Commands that train: `train run`, `train teacher`, `train student`; those that measure join them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinbert.cli.evaluate import PrecisionOption, baselines, evaluate, parity
from twinbert.cli.sharing import shares

if TYPE_CHECKING:
    from twinbert.training.devices import Precision
    from twinbert.training.recipe import Inputs, Recipe
    from twinbert.training.report import Report

app = typer.Typer(help="Train: a teacher on human grades, students on the teacher; and measure both.")
app.command()(evaluate)
app.command()(baselines)
app.command()(parity)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a training command follows, on what, and where."""

    recipe: Recipe
    inputs: Inputs
    output: Path
    precision: Precision | None


def _plan(
    *,
    recipe: Annotated[
        str,
        typer.Option("--recipe", metavar="NAME", help="homedepot, pairs, tiny, variants, or the path of a TOML file."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="RUN", help="The run's folder. One that was left is taken up again."),
    ],
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="NAME", help="small or another budget of the recipe; full is the whole recipe."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Graded pairs: what to learn from.")
    ] = None,
    dev: Annotated[Path | None, typer.Option(metavar="FILE", help="Graded pairs to calibrate on.")] = None,
    test: Annotated[Path | None, typer.Option(metavar="FILE", help="Graded pairs to measure on.")] = None,
    queries: Annotated[Path | None, typer.Option(metavar="FILE", help="More queries, without grades.")] = None,
    documents: Annotated[Path | None, typer.Option(metavar="FILE", help="More documents, without grades.")] = None,
    query_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column of the query.")] = None,
    document_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column of the document.")] = None,
    grade_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column of the grade.")] = None,
    lowest_grade: Annotated[
        float | None, typer.Option(metavar="GRADE", help="Grade of an irrelevant document.")
    ] = None,
    highest_grade: Annotated[float | None, typer.Option(metavar="GRADE", help="Grade of a perfect document.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Hugging Face checkpoint of the teacher, by default the recipe's."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="Of everything random.")] = None,
    precision: PrecisionOption = None,
) -> _Plan:
    from twinbert.training import recipe as recipes

    columns = _given(
        query=query_column, document=document_column, grade=grade_column, lowest=lowest_grade, highest=highest_grade
    )
    changes = _given(seed=seed) | {"columns": columns, "teacher": _given(checkpoint=checkpoint)}
    return _Plan(
        recipe=recipes.load(recipe, budget=budget, changes=changes),
        inputs=recipes.Inputs(train=data, dev=dev, test=test, queries=queries, documents=documents),
        output=output,
        precision=precision,
    )


@app.command()
@shares({"plan": _plan})
def run(*, plan: _Plan) -> None:
    """Follow a recipe: teacher, pairs, students, calibration, bundles.

    Killed at any time, the same command goes on. Several GPUs: accelerate launch $(which twinbert) train run …
    """
    _train(plan)


@app.command()
@shares({"plan": _plan})
def teacher(*, plan: _Plan) -> None:
    """Train only a recipe's teacher on human grades: cross-encoders, and what teaches along."""
    from twinbert.training.teaching import lexical_folder, teacher_folders

    _train(plan, students=())
    made = {folder.name: folder / "model" for folder in teacher_folders(plan.recipe, plan.output)}
    if plan.recipe.lexical is not None:
        made["lexical"] = lexical_folder(plan.output)
    _print(made)


@app.command()
@shares({"plan": _plan})
def student(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME", help="Students of the recipe; NAME@SEED: again, from that seed.", show_default=False
        ),
    ],
    *,
    plan: _Plan,
) -> None:
    """Train only the students named, and before them the recipe's teacher where it is not there yet."""
    _train(plan, students=names)


def _train(plan: _Plan, *, students: Sequence[str] | None = None) -> None:
    from twinbert.training import follow

    with _reporting(plan.precision) as report:
        bundles = follow.run(plan.recipe, plan.inputs, plan.output, students=students, report=report)
    _print(bundles)


def _print(made: Mapping[str, Path]) -> None:
    """Once, where several processes train."""
    from twinbert.training.devices import new_accelerator

    if new_accelerator().is_main_process:
        for name, path in made.items():
            typer.echo(f"{name}\t{path}")


def _given(**values: Any) -> dict[str, Any]:  # noqa: ANN401 - what options can be
    """The options that were given."""
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def _reporting(precision: Precision | None) -> Iterator[Report]:
    from twinbert.training.devices import new_accelerator
    from twinbert.training.report import reporting

    with reporting(speaks=new_accelerator(precision).is_main_process) as report:
        yield report
