"""What a part of the benchmark found: figures by round, tables, and what could not be measured. Kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from bench.report import spread


@dataclass(kw_only=True, slots=True)
class Table:
    """Rows of text under a header."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def add(self, name: str, *values: Sequence[float] | float | str) -> None:
        """A row; a value by round is shown as its median and quartiles."""
        self.rows.append([name, *(_cell(value) for value in values)])

    def lines(self) -> list[str]:
        """Markdown."""
        ruled = ["---"] * len(self.header)
        return [f"**{self.title}**", "", *(f"| {' | '.join(row)} |" for row in (self.header, ruled, *self.rows)), ""]


@dataclass(kw_only=True, slots=True)
class Findings:
    """Of one part.

    Attributes:
        setting: what was done, in a sentence or two.
        figures: by key, the value of each round.
        sides: by key, what was divided by what.
        tables: the rest.
        missing: what was not measured: name → why.
    """

    setting: str
    figures: dict[str, list[float]] = field(default_factory=dict)
    sides: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def figure(self, key: str, values: Sequence[float], sides: str) -> None:
        """Adds a figure."""
        self.figures[key], self.sides[key] = [float(value) for value in values], sides

    def save(self, path: Path) -> None:
        """Writes it in one step."""
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(self), indent=1))
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Findings:
        """Reads what `save` wrote."""
        fields = json.loads(path.read_text())
        return cls(**fields | {"tables": [Table(**table) for table in fields["tables"]]})


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """One divided by the other, round by round."""
    return [float(ratio) for ratio in np.asarray(over) / np.asarray(under)]


def _cell(value: Sequence[float] | float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.2f}" if isinstance(value, (int, float)) else spread(value)
