"""How scored documents are printed: a table on a terminal, tab-separated lines elsewhere, JSON when asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import typer

from twinbert.cli.tables import on_terminal, print_lines, print_table

if TYPE_CHECKING:
    import numpy as np

    from twinbert.client import RetrieveReply, ScoreReply, StageTimes

_COLUMNS = ("rank", "id", "score", "status")


class _Scored(NamedTuple):
    id: str | int
    score: float | None
    status: str


class Rankings:
    """Prints the answers to queries as they come, each with its generation, model and times."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._header_printed = False

    def add(
        self,
        query: str,
        documents: Sequence[str | int],
        scores: Iterable[np.float32],
        statuses: Iterable[int],
        reply: ScoreReply | RetrieveReply,
    ) -> None:
        """Prints one query's documents: in the order given as JSON, else best first and those without a score last."""
        scored = [*map(_scored, documents, scores, statuses)]
        if self._as_json:
            answer = {
                "query": query,
                "documents": [document._asdict() for document in scored],
                "generation": reply.generation,
                "model": reply.model,
                "times": asdict(reply.times),
            }
            typer.echo(json.dumps(answer, ensure_ascii=False))
            return
        rows = _ranked(scored)
        if on_terminal():
            caption = f"generation {reply.generation} · model {reply.model[:8]} · {_in_words(reply.times)}"
            print_table(_COLUMNS, rows, right=("rank", "score"), title=query, caption=caption)
            return
        if not self._header_printed:
            print_lines([("query", *_COLUMNS)])
            self._header_printed = True
        print_lines((query, *row) for row in rows)


def _scored(document: str | int, score: np.float32, status: int) -> _Scored:
    from twinbert.client import Status

    names = {known.value: known.name.lower() for known in Status}
    # str gives the fewest digits that name this float32.
    return _Scored(document, None if math.isnan(score) else float(str(score)), names.get(status, str(status)))


def _ranked(documents: Sequence[_Scored]) -> list[tuple[str, ...]]:
    """Rows of text, best first; a document without a score has no rank."""
    best_first = sorted(documents, key=lambda document: (document.score is None, -(document.score or 0)))
    return [
        (str(rank), str(document.id), f"{document.score:.4f}", document.status)
        if document.score is not None
        else ("", str(document.id), "", document.status.replace("_", " "))
        for rank, document in enumerate(best_first, 1)
    ]


def _in_words(times: StageTimes) -> str:
    stages = {
        "queue": times.queue_us,
        "tokenise": times.tokenize_us,
        "encode": times.encode_us,
        "lookup": times.lookup_us,
        "cross": times.cross_us,
    }
    parts = ", ".join(f"{stage} {microseconds / 1000:.2f}" for stage, microseconds in stages.items())
    cached = "; query from the cache" if times.cached_queries else ""
    return f"{times.total_us / 1000:.2f} ms at the server: {parts}{cached}"
