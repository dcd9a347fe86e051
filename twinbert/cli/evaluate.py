"""Commands that measure what was trained: `train baselines`, `train evaluate`, `train parity`."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from twinbert.cli.sharing import shares
from twinbert.errors import UsageError

if TYPE_CHECKING:
    from twinbert.training.evaluation import System
    from twinbert.training.recipe import Inputs, Recipe

DocumentsOption = Annotated[Path | None, typer.Option(metavar="FILE", help="More documents, without grades.")]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", metavar="NAME", help="Says what the data is where there is no run.")
]
SplitOption = Annotated[Literal["test", "dev"], typer.Option("--split", help="Pairs to measure on.")]
PrecisionOption = Annotated[
    Literal["float32", "bf16"] | None,
    typer.Option(
        "--precision", help="Of training, by default bf16 where the processor multiplies it; resume with the same."
    ),
]


def inputs_of(
    *,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Graded pairs, as for `train run`.")
    ] = None,
    dev: Annotated[Path | None, typer.Option(metavar="FILE", help="Graded pairs to calibrate on.")] = None,
    test: Annotated[Path | None, typer.Option(metavar="FILE", help="Graded pairs to measure on.")] = None,
) -> Inputs:
    """Files of graded pairs, for `twinbert.cli.sharing.shares`."""
    from twinbert.training.recipe import Inputs

    return Inputs(train=data, dev=dev, test=test)


@shares({"inputs": inputs_of})
def baselines(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run whose teacher is there.")],
    *,
    inputs: Inputs,
    precision: PrecisionOption = None,
) -> None:
    """Train what students are compared with: C-DSSM on their pairs and losses, and a cross-encoder of 3 layers.

    Unlabelled texts are those that the run has kept, and so are the teacher's scores if --precision is the run's.
    """
    from twinbert.training.devices import new_accelerator
    from twinbert.training.follow import read_kept
    from twinbert.training.report import reporting
    from twinbert.training.systems import train_baselines

    main = new_accelerator(precision).is_main_process
    dataset = read_kept(run, inputs)
    with reporting(speaks=main) as report:
        train_baselines(run, dataset, report)


@shares({"inputs": inputs_of})
def evaluate(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]…", help="Folders of runs; several are seeds of one recipe.")
    ] = None,
    *,
    inputs: Inputs,
    documents: DocumentsOption = None,
    recipe: RecipeOption = None,
    split: SplitOption = "test",
    bundle: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="One more bundle, as rows of that name.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help="Row that every other is compared with, paired.")
    ] = None,
    corpus: Annotated[
        Literal["split", "all", "none"],
        typer.Option(help="What recall is measured over: the split's documents, all, or not at all."),
    ] = "split",
    resamples: Annotated[int, typer.Option(metavar="N", min=2, help="Resamples of the bootstrap.")] = 1000,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where tables and plots go.")],
) -> None:
    """Measure everything that runs have trained, and the baselines, on human grades: a table, JSON and plots."""
    from twinbert.training import evaluation
    from twinbert.training.follow import read
    from twinbert.training.systems import TEACHER, of_bundle, systems

    more = list(map(_named, bundle or []))
    followed = named_recipe(recipe, runs or [])
    dataset = read(followed, dataclasses.replace(inputs, documents=documents), runs=runs or [])
    rows = list(systems(dataset, followed, runs or []))
    for name, directory in more:
        rows += of_bundle(name, directory)
    pairs = dataset.dev if split == "dev" else dataset.test
    corpora = {"all": dataset.corpus(), "split": list(dict.fromkeys(pair.document for pair in pairs.pairs)), "none": []}
    table = evaluation.evaluate(
        rows,
        pairs,
        teacher=TEACHER if runs else None,
        against=against or ([TEACHER] if runs else []),
        corpus=corpora[corpus],
        resamples=resamples,
        scored=_say,
    )
    evaluation.save(table, output)
    typer.echo(table.to_markdown(), nl=False)


@shares({"inputs": inputs_of})
def parity(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or a bundle.")],
    *,
    inputs: Inputs,
    recipe: RecipeOption = None,
    split: SplitOption = "test",
    student: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Student of the run; by default every one.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the reports go.")],
) -> None:
    """Measure what is lost from the teacher over torch, ONNX and the stored encodings to a live Score request.

    Fails where scores that are not rounded differ by more than 1e-4.
    """
    from twinbert.bundle import BUNDLE_JSON
    from twinbert.training import parity as report
    from twinbert.training.follow import read
    from twinbert.training.systems import bundles_of, teacher_of

    alone = (run / BUNDLE_JSON).exists()
    trained = [] if alone else [run]
    dataset = read(named_recipe(recipe, trained), inputs, runs=trained)
    bundles = {run.name: run} if alone else bundles_of(run, student)
    scorer = None if alone else teacher_of(run)
    output.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, path in bundles.items():
        with tempfile.TemporaryDirectory() as folder:
            pairs = dataset.dev if split == "dev" else dataset.test
            found[name] = report.parity(path, pairs, folder=Path(folder), teacher=scorer)
        (output / f"parity-{name}.json").write_text(found[name].to_json(), encoding="utf-8")
        (output / f"parity-{name}.md").write_text(found[name].to_markdown(), encoding="utf-8")
        typer.echo(f"{name}: {found[name].to_markdown()}")
    for one in found.values():
        one.check()


def named_recipe(name: str | None, runs: list[Path]) -> Recipe:
    """The recipe of runs, or else the one of this name."""
    from twinbert.training import follow
    from twinbert.training import recipe as recipes

    if runs:
        return follow.recipe_of(runs[0])
    if name is None:
        raise UsageError("without the folder of a run nothing says what the data is; give --recipe, e.g. pairs")
    return recipes.load(name)


def _named(option: str) -> tuple[str, Path]:
    name, equals, directory = option.partition("=")
    if not (name and equals and directory):
        raise UsageError(f"--bundle {option}: is not NAME=DIR; give a name for the row and the bundle's directory")
    return name, Path(directory)


def _say(system: System, seconds: float) -> None:
    sys.stderr.write(f"{system.name}: scored in {seconds:,.1f} s\n")
