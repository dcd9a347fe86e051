"""Tables for readers on a terminal; tab-separated lines for everything else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import typer


def on_terminal() -> bool:
    """Whether someone reads standard output as it is written."""
    from rich.console import Console

    return Console().is_terminal


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    title: str | None = None,
    caption: str | None = None,
) -> None:
    """Prints a table for a terminal; the columns named in `right` are numbers."""
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if title:
        console.print(Text(title, "bold"))
    console.print(Padding(table, (0, 0, 0, 1), expand=False))
    if caption:
        console.print(Text(caption, "dim"))


def print_lines(rows: Iterable[Sequence[str]]) -> None:
    """Prints one row a line, its cells separated by tabs; white space inside a cell becomes a space."""
    for row in rows:
        typer.echo("\t".join(" ".join(cell.split()) for cell in row))
