"""The figures that the benchmark is for, what is wanted of them, and the two files that say what came out.

The JSON has every key of `FIGURES`, in this order; the value is null where one was not measured, and `why` says why.
`FURTHER` ones are wanted too, and stand in the report alone.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import environments, report
from bench.findings import Findings
from bench.parts import Part


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure: its key, what it is, and what is wanted: at least, or at most, so much."""

    key: str
    title: str
    wanted: float
    at_most: bool = False

    def reached(self, value: float) -> bool:
        """Whether a value is what is wanted."""
        return value <= self.wanted if self.at_most else value >= self.wanted


FIGURES = (
    Figure(
        key="cross_encoder_over_score_6_layers", title="cross-encoder ÷ Score, the paper's 6-layer tower", wanted=1000
    ),
    Figure(key="cross_encoder_over_score_3_layers", title="the same, its 3-layer version", wanted=1500),
    Figure(key="cross_encoder_over_score_cached", title="the same, 6 layers, warm query cache", wanted=3000),
    Figure(
        key="score_minus_encode_over_noop", title="Score minus encode alone, over a no-op RPC", wanted=1.5, at_most=True
    ),
    Figure(key="infinity_over_score_p50", title="infinity on torch ÷ ours, p50 alone", wanted=4),
    Figure(key="infinity_over_score_throughput", title="the same, throughput at 16 clients", wanted=5),
    Figure(key="textbook_over_score_p50", title="textbook build ÷ ours, p50 alone", wanted=4),
    Figure(key="textbook_over_score_throughput", title="the same, throughput at 16 clients", wanted=5),
    Figure(key="throughput_over_engine", title="saturated throughput over the engine's own maximum", wanted=0.75),
    Figure(key="p99_over_p50_half_load", title="p99 ÷ p50 at half of saturation, Poisson", wanted=4, at_most=True),
    Figure(key="goodput_3x_over_peak", title="goodput at 3 × overload over the peak", wanted=0.85),
    Figure(key="p99_swap_over_quiet", title="p99 with a hot swap every 5 s ÷ p99 without", wanted=1.5, at_most=True),
    Figure(key="lookup_over_take", title="lookup of 100 ids ÷ numpy take of 100 rows", wanted=6, at_most=True),
    Figure(key="get_over_lookup", title="one LMDB get a document ÷ lookup", wanted=7),
    Figure(
        key="growth_10k_to_10m",
        title="growth of Score p50, 10 thousand to 10 million documents",
        wanted=1.2,
        at_most=True,
    ),
)

FURTHER = (
    Figure(key="infinity_onnx_over_score_p50", title="infinity on ONNX Runtime ÷ ours, p50 alone", wanted=2),
    Figure(key="infinity_onnx_over_score_throughput", title="the same, throughput at 16 clients", wanted=2),
    Figure(key="lookup_us", title="lookup of 100 string ids, p50 in µs", wanted=60, at_most=True),
)


def as_json(parts: Sequence[Part], found: Mapping[str, Findings]) -> dict[str, Any]:
    """`{"figures": {KEY: {"value": x, "spread": [lo, hi]}}}`: medians and quartiles over rounds.

    Args:
        parts: all that there are.
        found: what was done, by the part's name.
    """
    return {"figures": {figure.key: _measured(figure, parts, found) for figure in FIGURES}}


def _measured(figure: Figure, parts: Sequence[Part], found: Mapping[str, Findings]) -> dict[str, Any]:
    part = next(part for part in parts if figure.key in part.keys)
    findings = found.get(part.name)
    values = findings.figures.get(figure.key) if findings else None
    if not values:
        return {"value": None, "spread": None, "why": _why(part, findings)}
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"value": middle, "spread": [low, high]}


def _why(part: Part, findings: Findings | None) -> str:
    if findings is None:
        return f"the part {part.name} was not run"
    reasons = [f"{name}: {reason}" for name, reason in findings.missing.items()]
    return "; ".join(reasons) or "a quick run does less than this figure is defined for"


def as_markdown(parts: Sequence[Part], found: Mapping[str, Findings], *, quick: bool) -> str:
    """The report: the figures, then each part's tables."""
    packages = ("grpcio", "onnxruntime", "torch", "numpy", "lmdb")
    lines = ["# Score beside what people use, and beside its limits", ""]
    if quick:
        lines += ["A quick run: too few rounds to rely on.", ""]
    lines += [*report.machine(*packages), *(f"- {environments.versions(name)}" for name in environments.REQUIREMENTS)]
    lines += [
        "- load generators run on the same cores; a server is stopped (SIGSTOP) while it is not measured",
        "- queries are phrases of the demo's corpus, no real ones, as long as those of a product search",
        "- each ratio's sides take turns in rounds; medians over rounds, quartiles in brackets",
    ]
    lines += _table("figure", FIGURES, parts, found) + _table("further figure", FURTHER, parts, found)
    for part in (part for part in parts if part.name in found):
        lines += ["", f"## {part.title} (`--only {part.name}`)", "", found[part.name].setting, ""]
        for table in found[part.name].tables:
            lines += table.lines()
        if found[part.name].missing:
            lines += ["Not measured:", ""]
            lines += [f"- {name}: {reason}" for name, reason in found[part.name].missing.items()]
    return "\n".join(lines).rstrip() + "\n"


def _table(what: str, figures: Sequence[Figure], parts: Sequence[Part], found: Mapping[str, Findings]) -> list[str]:
    """Of those whose part was run."""
    sides = {key: text for findings in found.values() for key, text in findings.sides.items()}
    done = {key for part in parts if part.name in found for key in part.keys}
    rows = []
    for figure in (figure for figure in figures if figure.key in done):
        measured = _measured(figure, parts, found)
        wanted = f"{'≤' if figure.at_most else '≥'} {figure.wanted:,g}"
        if measured["value"] is None:
            rows.append(f"| {figure.title} | {wanted} | – | not measured | |")
            continue
        low, high = measured["spread"]
        reached = "yes" if figure.reached(measured["value"]) else "no"
        shown = f"{_number(measured['value'])} ({_number(low)} to {_number(high)})"
        rows.append(f"| {figure.title} | {wanted} | {shown} | {reached} | {sides[figure.key]} |")
    head = ["", f"| {what} | wanted | measured | reached | what was measured |", "| --- | --- | --- | --- | --- |"]
    return [*head, *rows] if rows else []


def write(folder: Path, parts: Sequence[Part], found: Mapping[str, Findings], *, quick: bool) -> Path:
    """Writes `score_<date>.md` and `.json` into a folder; returns the former's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"score_{datetime.datetime.now(tz=datetime.UTC).date().isoformat()}.md"
    path.write_text(as_markdown(parts, found, quick=quick))
    path.with_suffix(".json").write_text(json.dumps(as_json(parts, found), indent=2, ensure_ascii=False) + "\n")
    return path


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"
