"""Commands about bundles: `bundle import` and `bundle show`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

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
    about = [(" ".join(where), text) for where, text in _flat(content)]
    listed = [
        (name, f"{file['size']:,}", file["sha256"][:16], "" if (opened.path / name).exists() else "absent")
        for name, file in files.items()
    ]
    if on_terminal():
        print_table(("", ""), about, title=f"bundle {bundle}")
        print_table(("file", "bytes", "sha256", ""), listed, right=("bytes",))
    else:
        print_lines([*about, *listed])


def _flat(value: object, *where: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each leaf of a JSON value, with the path to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, *where, name)
    else:
        yield where, f"{value:.6g}" if isinstance(value, float) else str(value)
