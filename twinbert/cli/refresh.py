"""The command `refresh`: documents become the store's next generation."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from twinbert.cli.gate import ForceOption, gate_of
from twinbert.cli.options import BundleOption, EncodingOption, JsonOption, StoreOption, ThreadsOption
from twinbert.cli.sharing import shares
from twinbert.cli.tables import on_terminal, print_lines, print_table

if TYPE_CHECKING:
    from encoder_server.command import Result
    from encoder_server.report import Report
    from encoder_server.settings import GateSettings


@shares({"gate": gate_of})
def refresh(
    *,
    bundle: BundleOption,
    store: StoreOption,
    gate: GateSettings,
    documents: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="JSON Lines, TSV or Parquet, plain or gzip: a file, a folder of them, or - for standard input.",
        ),
    ],
    format: Annotated[  # noqa: A002 - names the option
        Literal["auto", "jsonl", "tsv", "parquet"], typer.Option(help="Format of the documents.")
    ] = "auto",
    id_column: Annotated[str, typer.Option(metavar="NAME", help="Column of the id.")] = "id",
    text_column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Column of the text, by default text; several are joined by a newline."),
    ] = None,
    time_column: Annotated[str, typer.Option(metavar="NAME", help="Column of the source time.")] = "time",
    id_type: Annotated[
        Literal["string", "integer"] | None,
        typer.Option(help="What ids are; by default as in the store, else as the documents have them."),
    ] = None,
    encoding: EncodingOption = None,
    threads: ThreadsOption = None,
    rejected: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the documents that are left out here, as JSON Lines.")
    ] = None,
    delta: Annotated[
        bool, typer.Option("--delta", help="The documents are what changed; deleted: true deletes one.")
    ] = False,
    missing: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A delta of those documents that a scorer recorded here as missing."),
    ] = None,
    force: ForceOption = False,
    metrics_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what the run did, for node exporter's textfile collector: *.prom."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Encode documents and publish them as the store's next generation.

    The documents are the whole corpus: what they lack is gone; with --delta they are what changed. Unchanged ones are
    not encoded again, and a run that was interrupted is taken up by the next. Progress goes to standard error: a bar on
    a terminal, JSON lines elsewhere.

    Before it is published the generation is compared with the one in service: where it lost documents, or scores and
    ranks otherwise than the limits allow, nothing is published and the exit code is 3.
    """
    from encoder_server import command
    from encoder_server.textfile import recording_run
    from store.store import Store

    with ExitStack() as stack:
        report = open_report(stack)
        result = command.refresh(
            bundle=bundle,
            store=store,
            documents=documents,
            report=report,
            format=format,
            id_column=id_column,
            text_columns=text_column or ["text"],
            time_column=time_column,
            id_type=id_type,
            encoding=encoding,
            workers=threads,
            rejected=rejected,
            delta=delta,
            missing=missing,
            gate=dataclasses.replace(gate, force=force),
            run=stack.enter_context(recording_run(metrics_file, Store(store), report)),
        )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
    elif on_terminal():
        print_table(("", ""), _summary(result), title=f"generation {result.generation}")
    else:
        print_lines(_summary(result))


def open_report(stack: ExitStack) -> Report:
    """What is told of a refresh: a bar on a terminal, JSON lines elsewhere."""
    from encoder_server.report import Bar, JsonLines
    from twinbert.serving import log

    if sys.stderr.isatty():
        return stack.enter_context(Bar())
    log.configure()
    return JsonLines()


def _summary(result: Result) -> list[tuple[str, str]]:
    rejected = "".join(f"\n{count:,} × {reason}" for reason, count in result.rejected.items())
    quality = result.quality
    rows = [
        ("generation", result.generation),
        ("documents", f"{result.documents:,}"),
        ("encoded", f"{result.encoded:,}, {result.truncated:,} of them longer than the tower reads"),
        ("reused", f"{result.reused:,}"),
        ("duplicates", f"{result.duplicates:,}"),
        ("rejected", f"{sum(result.rejected.values()):,}{rejected}"),
        ("time", f"{result.seconds:,.1f} s, {result.documents_per_s:,.0f} documents/s"),
    ]
    if result.deleted:
        rows.insert(4, ("deleted", f"{result.deleted:,}, {result.absent:,} of which were not there"))
    if quality["sample"]:
        mean, largest = quality["mean_score_difference"], quality["max_score_difference"]
        cost = f"scores differ by {mean:g} on average, {largest:g} at most ({quality['sample']} documents sampled)"
        rows.append(("stored as", f"{result.encoding}: {cost}"))
    return rows
