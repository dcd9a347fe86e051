"""Commands that ask a running scorer: `score` and `retrieve`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from twinbert.cli.connecting import asks
from twinbert.cli.options import SCORER_ADDRESS, GenerationOption, JsonOption, TimeoutOption
from twinbert.cli.rankings import Rankings
from twinbert.errors import UsageError


@asks(address=SCORER_ADDRESS)
def score(
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="The query.", show_default=False)] = None,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Its candidates.", show_default=False)] = None,
    *,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="FILE", help='Take queries and ids from JSON Lines {"query", "ids"}; -: standard input.'),
    ] = None,
    server: dict[str, Any],
    numbers: Annotated[
        bool | None,
        typer.Option("--numbers/--strings", help="Ids are integers, or strings; by default the server is asked."),
    ] = None,
    generation: GenerationOption = "",
    crossing: Annotated[
        Literal["cosine", "residual"] | None, typer.Option(help="Crossing layer; by default the bundle's.")
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="At the deadline, take what is finished instead of failing.")
    ] = False,
    timeout: TimeoutOption = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Score documents for a query.

    Prints the best first, those that are not in the store last; with --json one object a query, in the order given.
    Every line of --tasks is a call of its own, answered before the next line is read.
    """
    from twinbert.client import ScorerClient, Task

    if (tasks is None) == (query is None):
        raise UsageError("give either QUERY and its IDs, or --tasks FILE; see twinbert score --help")
    given = [(query or "", ids or [])] if tasks is None else _read_tasks(tasks)
    rankings = Rankings(as_json=as_json)
    with ScorerClient(**server) as client:
        if numbers is None:
            numbers = client.describe().id_type == "integer"
        for text, candidates in given:
            documents = _integers(candidates) if numbers else [str(candidate) for candidate in candidates]
            reply = client.score(
                Task(text, documents),
                generation=generation,
                crossing=crossing,
                allow_partial=allow_partial,
                timeout=timeout,
            )
            [result] = reply.results
            rankings.add(text, documents, result.scores, result.statuses, reply)


@asks(address=SCORER_ADDRESS)
def retrieve(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The query.", show_default=False)],
    *,
    limit: Annotated[int, typer.Option("--limit", "-k", metavar="N", min=1, help="Documents wanted.")] = 10,
    server: dict[str, Any],
    generation: GenerationOption = "",
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Find the best documents of the whole store for a query."""
    from twinbert.client import ScorerClient, Status

    with ScorerClient(**server) as client:
        reply = client.retrieve(query, limit, generation=generation, timeout=timeout)
    [hits] = reply.results
    Rankings(as_json=as_json).add(query, hits.documents, hits.scores, [Status.OK] * len(hits.documents), reply)


def _integers(candidates: Sequence[str | int]) -> list[int]:
    for candidate in candidates:
        if not str(candidate).isdecimal():
            raise UsageError(f"id {candidate!r} is not an integer, which the store's ids are, or --numbers says so")
    return [int(candidate) for candidate in candidates]


def _read_tasks(path: str) -> Iterator[tuple[str, list[str | int]]]:
    """Query and ids of each line; `-` is standard input."""
    with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _read_task(line, f"{'standard input' if path == '-' else path}, line {number}")


def _read_task(line: bytes, where: str) -> tuple[str, list[str | int]]:
    try:
        task = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: is not JSON: {error}") from error
    match task:
        case {"query": str(query), "ids": list(ids)} if all(type(one) in (str, int) for one in ids):
            return query, ids
    raise UsageError(f'{where}: expected {{"query": "…", "ids": […]}}, ids being strings or integers')
