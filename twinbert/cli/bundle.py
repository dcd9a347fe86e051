"""Commands about bundles: `bundle import`, `bundle show`, `bundle quantize` and `bundle tune`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinbert.cli.evaluate import RecipeOption, SplitOption, inputs_of, named_recipe
from twinbert.cli.options import JsonOption, TuningOption
from twinbert.cli.sharing import shares
from twinbert.cli.tables import on_terminal, print_lines, print_table
from twinbert.errors import UsageError

if TYPE_CHECKING:
    from twinbert.training.recipe import Inputs

QueriesOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Queries, one a line; by default built-in ones.")
]

app = typer.Typer(help="Make and read bundles: all that serving one trained TwinBERT needs.")


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A Hugging Face BERT directory, or the name of a known package.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE", help="Directory to make.")],
) -> None:
    """Make a bundle from a BERT checkpoint: both towers, and a cosine crossing that is not calibrated."""
    from twinbert.importing import import_bundle

    bundle = import_bundle(source, output)
    typer.echo(f"{bundle.path}: model {bundle.model}")


@app.command()
def show(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's directory.", show_default=False)],
    *,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle and print what it holds."""
    from twinbert.bundle import Bundle

    opened = Bundle.open(bundle)
    content = {"path": str(opened.path), "model": opened.model, **opened.configuration}
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False))
        return
    files = content.pop("files")
    about = [*_rows(content)]
    listed = [
        (name, f"{file['size']:,}", file["sha256"][:16], "" if (opened.path / name).exists() else "not in this copy")
        for name, file in files.items()
    ]
    if on_terminal():
        print_table(("", ""), about, title=f"bundle {bundle}")
        print_table(("file", "bytes", "sha256", ""), listed, right=("bytes",))
    else:
        print_lines([*about, *listed])


@app.command()
@shares({"inputs": inputs_of})
def quantize(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle with its weights.", show_default=False)],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE", help="Directory to make.")],
    queries: QueriesOption = None,
    recipe: RecipeOption = None,
    inputs: Inputs,
    split: SplitOption = "test",
    max_score_largest: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="Largest difference of a score that is allowed.")
    ] = 0.1,
    max_score_mean: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="Mean difference of a score that is allowed.")
    ] = 0.01,
    min_cosine: Annotated[
        float, typer.Option(metavar="X", min=-1, max=1, help="Least cosine of a query's two embeddings.")
    ] = 0.97,
    min_overlap: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Least share of ten best documents that stay.")
    ] = 0.95,
    max_auc2_loss: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="Area that may be lost on labelled pairs.")
    ] = 0.002,
) -> None:
    """Copy a bundle and add query towers for packed texts, in float32 and int8, with a certificate of what int8 costs.

    Its cost in area is measured where labelled pairs are given, as for `train evaluate`: --recipe says what they are.
    Without them the certificate says that it was not measured.
    """
    from twinbert.bundle import Bundle
    from twinbert.quantize import Limits, Texts, quantize

    opened = Bundle.open(bundle)
    labelled = None
    if recipe is not None:
        from twinbert.training.engines import engine_areas
        from twinbert.training.follow import read

        dataset = read(named_recipe(recipe, []), inputs)
        labelled = partial(engine_areas, split=dataset.dev if split == "dev" else dataset.test)
    elif inputs.train or inputs.dev or inputs.test:
        raise UsageError("labelled pairs need --recipe, which says what they are, e.g. pairs")
    made = quantize(
        opened,
        output,
        texts=Texts(source=queries.name, queries=_read_queries(queries)) if queries else None,
        labelled=labelled,
        limits=Limits(
            score_largest=max_score_largest,
            score_mean=max_score_mean,
            cosine_smallest=min_cosine,
            top10_overlap=min_overlap,
            auc2_loss=max_auc2_loss,
        ),
    )
    print_lines(_rows({"int8": made.quality["int8"]}, "quality"))
    typer.echo(f"{made.path}: model {made.model}")


@app.command()
def tune(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's directory.", show_default=False)],
    *,
    queries: QueriesOption = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, max=1024, help="Threads that encode one batch; by default 1, 2, 4… cores."),
    ] = None,
    tuning: TuningOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a bundle's kinds of engine, float32 and int8, on this host; keep the fastest for `serve --engine auto`.

    As many encode at a time as `serve --engines` has by default. It takes a few seconds for each kind and number of
    threads; nothing else should run meanwhile.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as `twinbert serve` does
    from scorer_server.settings import default_engines
    from twinbert import tuning as tuning_
    from twinbert.bundle import Bundle

    opened = Bundle.open(bundle)
    cores = len(os.sched_getaffinity(0))
    timings = tuning_.measure(
        opened,
        _read_queries(queries) if queries else tuning_.TYPICAL,
        threads=threads or [1 << power for power in range(cores.bit_length())],
        callers=default_engines(),
    )
    choice = tuning_.best(timings)
    path = tuning_.keep(opened, choice, tuning or tuning_.default_folder())
    if as_json:
        typer.echo(json.dumps({"kept": str(path), "timings": [asdict(one) for one in timings], **asdict(choice)}))
        return
    columns = ("engine", "threads", "one query, ms", "queries/s", "")
    rows = [
        (
            one.choice.engine,
            str(one.choice.threads),
            f"{1000 * one.alone_s:.2f}",
            f"{one.rate:,.0f}",
            "kept" if one.choice == choice else "",
        )
        for one in timings
    ]
    if on_terminal():
        print_table(columns, rows, right=columns[1:4], caption=f"kept in {path}")
    else:
        print_lines([columns, *rows])
        typer.echo(f"kept in {path}", err=True)


def _read_queries(path: Path) -> list[str]:
    """A text a line; blank lines are none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise UsageError(f"{path}: has no query; give one a line")
    return found


def _rows(content: Mapping[str, Any], *where: str) -> Iterator[tuple[str, str]]:
    """bundle.json for readers: a row for each value at its top, and one for each object with all its values."""
    absent = "not measured" if where[:1] == ("quality",) else "none"
    values = {name: _text(value, absent) for name, value in content.items() if not isinstance(value, dict)}
    if not where:
        yield from values.items()
    elif values:
        yield " ".join(where), ", ".join(f"{name} {text}" for name, text in values.items())
    for name, inner in content.items():
        if isinstance(inner, dict):
            yield from _rows(inner, *where, name)


def _text(value: object, absent: str) -> str:
    if value is None:
        return absent
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
