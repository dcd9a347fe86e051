"""`twinbert store …`: what an operator does to a store's files. No server needs to run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinbert.cli.gate import ForceOption, gate_of
from twinbert.cli.options import BundleOption, JsonOption, StoreOption
from twinbert.cli.sharing import shares

if TYPE_CHECKING:
    from encoder_server.settings import GateSettings
    from store.maintenance import Listed

app = typer.Typer(help="List, verify, roll back, pin, collect, compact, copy and adopt the generations of a store.")

GenerationArgument = Annotated[str, typer.Argument(metavar="GENERATION", help="The generation's name.")]
GenerationOption = Annotated[str | None, typer.Option(metavar="NAME", help="The generation's name.")]


@app.command("list")
def list_(*, store: StoreOption, as_json: JsonOption = False) -> None:
    """List the generations, oldest first: → is the current one, * are pinned."""
    from store.maintenance import list_generations
    from store.store import Store

    opened = Store(store)
    opened.require()
    listed = list_generations(opened)
    if as_json:
        typer.echo(json.dumps([_as_dict(one) for one in listed], indent=1))
    else:
        _print_list(listed)


@app.command()
def verify(*, store: StoreOption, generation: GenerationOption = None) -> None:
    """Read every byte of every generation, or of one, and compare it with what was written."""
    from store.errors import CorruptError, FormatError
    from store.store import Store
    from store.verification import verify as run

    opened = Store(store)
    opened.require()
    checked, damaged, newer = 0, 0, False
    for name, problem in run(opened, generation):
        typer.echo(f"{name}  {'ok' if problem is None else problem}")
        checked += 1
        damaged += problem is not None
        newer = newer or isinstance(problem, FormatError)
    if not checked:
        typer.echo(f"{store}: nothing was published yet, so there is nothing to verify")
    if newer:
        raise FormatError(
            f"{store}: a newer version wrote some of what was checked; update twinbert, or name a generation that this "
            "version wrote to `twinbert store rollback`"
        )
    if damaged:
        raise CorruptError(f"{store}: {damaged} of what was checked is damaged; roll back or refresh")


@app.command()
def rollback(
    generation: Annotated[
        str | None,
        typer.Argument(metavar="GENERATION", help="By default the parent of the current one."),
    ] = None,
    *,
    store: StoreOption,
) -> None:
    """Make an earlier generation the current one; running servers follow within a second.

    Where the parent of the current one does not verify, it is the latest before it that does. What was
    published on top of the current one while this verifies is left with it. A refresh that is running
    publishes nothing then.
    """
    from store.maintenance import rollback as run
    from store.store import Store

    opened = Store(store)
    opened.require()
    before, now = run(opened, generation)
    typer.echo(f"{store}: current is {now}, it was {before}")


@app.command()
def pin(generation: GenerationArgument, *, store: StoreOption) -> None:
    """Keep a generation from being collected, for a rollback or an experiment."""
    from store.maintenance import pin as run
    from store.store import Store

    run(Store(store), generation)
    typer.echo(f"{store}: {generation} is pinned")


@app.command()
def unpin(generation: GenerationArgument, *, store: StoreOption) -> None:
    """Let a generation be collected again."""
    from store.maintenance import unpin as run
    from store.store import Store

    run(Store(store), generation)
    typer.echo(f"{store}: {generation} is not pinned any more")


@app.command()
def gc(
    *,
    store: StoreOption,
    keep: Annotated[int, typer.Option(metavar="N", min=1, help="Latest generations to keep, at least.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove old generations, segments that nobody names, and what was abandoned.

    The current generation and its parent stay as well, for a rollback, and those that are pinned.
    """
    from store.maintenance import gc as run
    from store.store import Store

    opened = Store(store)
    opened.require()
    gone = run(opened, keep=keep, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    for kind, names in (("generation", gone.generations), ("segment", gone.segments), ("build", gone.builds)):
        for name in names:
            typer.echo(f"{verb} {kind} {name}")
    typer.echo(
        f"{store}: {verb} {len(gone.generations)} generations, {len(gone.segments)} segments, "
        f"{len(gone.builds)} builds: {gone.size:,} bytes"
    )


@app.command()
def compact(
    *,
    store: StoreOption,
    newest: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Merge only the newest N segments; by default all.")
    ] = None,
) -> None:
    """Merge the segments of the current generation, which deltas made, to one; an encoder does so by itself.

    The new generation has the same documents. Refreshes and deltas can go on meanwhile.
    """
    from store.compaction import compact as run
    from store.store import Store
    from twinbert import __version__

    opened = Store(store)
    opened.require()
    done = run(opened, software=f"twinbert {__version__}", newest=newest)
    if done is None:
        typer.echo(f"{store}: {opened.current()} has one segment, there is nothing to merge")
    else:
        typer.echo(
            f"{store}: current is {done.generation}, it was {done.before}: {done.segments} segments became one of "
            f"{done.documents:,} documents, {done.dropped:,} dead rows are left out"
        )


@app.command()
def copy(
    destination: Annotated[Path, typer.Argument(metavar="DESTINATION", help="The other store; made if it is missing.")],
    *,
    store: StoreOption,
    generation: GenerationOption = None,
) -> None:
    """Copy a generation to another store and make it current there: how a store reaches another host."""
    from store.copying import copy as run
    from store.store import Store

    opened = Store(store)
    opened.require()
    name, copied = run(opened, Store(destination), generation)
    typer.echo(f"{destination}: current is {name}, {copied:,} bytes copied")


@app.command()
@shares({"gate": gate_of})
def adopt(
    *,
    bundle: BundleOption,
    store: StoreOption,
    gate: GateSettings,
    force: ForceOption = False,
) -> None:
    """Publish the current generation for another bundle of its fingerprint: a new query tower, nothing encoded again.

    The swap gate compares both bundles on recorded requests, and refuses as in a refresh.
    """
    from contextlib import ExitStack

    from encoder_server.adoption import adopt as run
    from twinbert.cli.refresh import open_report

    with ExitStack() as stack:
        name = run(bundle=bundle, store=store, report=open_report(stack), gate=dataclasses.replace(gate, force=force))
    typer.echo(f"{store}: current is {name}")


def _as_dict(one: Listed) -> dict[str, object]:
    manifest = one.manifest
    described: dict[str, object] = {
        "name": one.name,
        "current": one.current,
        "pinned": one.pinned,
        "problem": one.problem,
    }
    if manifest is not None:
        described |= {
            "created_ms": manifest.created_ms,
            "documents": manifest.documents,
            "segments": len(manifest.segments),
            "dead_share": round(manifest.dead_share, 4),
            "encoding": manifest.encoding,
            "bytes": one.size,
            "id_type": manifest.id_type,
            "fingerprint": manifest.fingerprint,
            "model": manifest.model,
            "parent": manifest.parent,
            "quality": dict(manifest.quality),
        }
    return described


def _print_list(listed: list[Listed]) -> None:
    from twinbert.cli.tables import on_terminal, print_lines, print_table

    columns = ("", "generation", "sealed (UTC)", "documents", "segments", "encoding", "MB", "model")
    rows = [_row(one) for one in listed]
    if on_terminal():
        print_table(columns, rows, right=("documents", "segments", "MB"))
    else:
        print_lines([("current", *columns[1:]), *rows])


def _row(one: Listed) -> tuple[str, ...]:
    from datetime import UTC, datetime

    mark, manifest = "→" * one.current + "*" * one.pinned, one.manifest
    if manifest is None:
        return mark, one.name, f"unreadable: {one.problem}", "", "", "", "", ""
    published = datetime.fromtimestamp(manifest.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    sizes = f"{manifest.documents:,}", str(len(manifest.segments)), manifest.encoding, f"{one.size / 1e6:,.0f}"
    return mark, one.name, published, *sizes, manifest.model[:8]
