"""Commands about bundles: `bundle import` and `bundle show`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from twinbert.cli.options import JsonOption
from twinbert.cli.tables import on_terminal, print_lines, print_table

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


def _rows(content: Mapping[str, Any], *where: str) -> Iterator[tuple[str, str]]:
    """bundle.json for readers: a row for each value at its top, and one for each object with all its values."""
    values = {name: _text(value) for name, value in content.items() if not isinstance(value, dict)}
    if not where:
        yield from values.items()
    elif values:
        yield " ".join(where), ", ".join(f"{name} {text}" for name, text in values.items())
    for name, inner in content.items():
        if isinstance(inner, dict):
            yield from _rows(inner, *where, name)


def _text(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
