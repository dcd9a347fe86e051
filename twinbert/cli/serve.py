"""`twinbert serve`: run a scorer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from twinbert.cli.listening import listening_of
from twinbert.cli.options import SCORER_ADDRESS, SCORER_METRICS_PORT, StoreOption, TuningOption
from twinbert.cli.sharing import shares

if TYPE_CHECKING:
    from scorer_server.supervisor import Ports
    from twinbert.serving.listening import Listening


@shares({"listening": listening_of}, address=SCORER_ADDRESS, metrics_port=SCORER_METRICS_PORT)
def serve(
    context: typer.Context,
    *,
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The bundle that serves every generation, or else…")
    ] = None,
    bundles: Annotated[
        Path | None, typer.Option(metavar="DIR", help="…a folder of bundles: each generation is served by its own.")
    ] = None,
    store: StoreOption,
    listening: Listening,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=1024,
            help="Processes, each on the next port of both kinds; one that dies is started again.",
        ),
    ] = 1,
    engines: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=1024,
            help="How many batches a process encodes at a time, each with --engine; by default one a core, up to 4.",
        ),
    ] = None,
    engine: Annotated[
        Literal["auto", "float32", "int8"],
        typer.Option(
            help="Which kind encodes queries (how many: --engines); auto is what `twinbert bundle tune` kept on this "
            "host, else float32."
        ),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=1024, help="Threads that encode one batch; by default those kept, else one."
        ),
    ] = None,
    tuning: TuningOption = None,
    queue: Annotated[
        int, typer.Option(metavar="N", min=1, max=1_000_000, help="Queries that may wait for an engine.")
    ] = 512,
    max_candidates_waiting: Annotated[
        int, typer.Option(metavar="N", min=1, max=100_000_000, help="Candidates of all requests being answered.")
    ] = 100_000,
    max_retrievals: Annotated[
        int, typer.Option(metavar="N", min=1, max=10_000, help="Retrieve requests at a time.")
    ] = 8,
    cache_bytes: Annotated[
        int, typer.Option(metavar="BYTES", min=0, max=1 << 40, help="Memory of the query cache.")
    ] = 64 << 20,
    max_tasks: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="Tasks of one request.")] = 64,
    max_candidates: Annotated[
        int, typer.Option(metavar="N", min=1, max=10_000_000, help="Candidates of one request.")
    ] = 10_000,
    max_id_bytes: Annotated[int, typer.Option(metavar="BYTES", min=1, max=511, help="Longest document id.")] = 511,
    max_query_bytes: Annotated[int, typer.Option(metavar="BYTES", min=1, max=1 << 20, help="Longest query.")] = 4096,
    max_hits: Annotated[
        int, typer.Option(metavar="N", min=1, max=1_000_000, help="Hits of one retrieved query.")
    ] = 1000,
    hold_generations: Annotated[
        int, typer.Option(metavar="N", min=0, max=1000, help="Superseded generations that requests may still name…")
    ] = 2,
    hold_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, max=30 * 86400, help="…and how long each stays at least.")
    ] = 600.0,
    max_lost_share: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0, max=1, help="Share of its documents that a new generation may lack."),
    ] = 0.3,
    record_requests: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Record a sample of requests, queries and ids, for the swap gate to replay."),
    ] = None,
    record_requests_bytes: Annotated[
        int,
        typer.Option(metavar="BYTES", min=1 << 16, max=1 << 40, help="Size of that file and the older one, FILE.1."),
    ] = 16 << 20,
    record_requests_rate: Annotated[
        float, typer.Option(metavar="N", min=0.001, max=100_000, help="Requests a second that are recorded at most.")
    ] = 1.0,
    record_misses: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Record ids of candidates that were not found, for refresh --missing."),
    ] = None,
    record_misses_bytes: Annotated[
        int,
        typer.Option(metavar="BYTES", min=1 << 16, max=1 << 40, help="Size of that file and the older one, FILE.1."),
    ] = 16 << 20,
    record_misses_queries: Annotated[
        bool, typer.Option("--record-misses-queries", help="Record the queries of misses too.")
    ] = False,
) -> None:
    """Serve a store: Score, Retrieve and Describe over gRPC, and Prometheus metrics."""
    if workers > 1:
        raise typer.Exit(_supervise(context, workers))
    # A matrix product of Retrieve would otherwise take every core from Score; it is read when numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Queries are short: spreading their tokenising over threads costs more than it saves.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from scorer_server.server import serve as run
    from scorer_server.settings import Limits, Settings, default_engines

    run(
        bundle=bundle,
        bundles=bundles,
        store=store,
        listening=listening,
        settings=Settings(
            limits=Limits(
                tasks=max_tasks,
                candidates=max_candidates,
                id_bytes=max_id_bytes,
                query_bytes=max_query_bytes,
                hits=max_hits,
            ),
            engines=engines or default_engines(),
            engine=engine,
            threads=threads,
            tuning=tuning,
            queue=queue,
            candidates=max_candidates_waiting,
            retrievals=max_retrievals,
            cache_bytes=cache_bytes,
            hold_generations=hold_generations,
            hold_seconds=hold_seconds,
            max_lost_share=max_lost_share,
            requests_file=record_requests,
            requests_bytes=record_requests_bytes,
            requests_rate=record_requests_rate,
            misses_file=record_misses,
            misses_bytes=record_misses_bytes,
            misses_queries=record_misses_queries,
        ),
    )


def _supervise(context: typer.Context, workers: int) -> int:
    from scorer_server.settings import default_engines
    from scorer_server.supervisor import consecutive, supervise
    from twinbert.recorded import of_worker

    given = dict(context.params)
    given["engines"] = given["engines"] or default_engines(workers)
    recordings = {name: path for name in ("record_requests", "record_misses") if (path := given[name]) is not None}

    def command(number: int, ports: Ports) -> list[str]:
        own: dict[str, Any] = {"address": ports.address, "metrics_port": ports.metrics_port, "workers": 1}
        own |= {name: of_worker(path, number) for name, path in recordings.items()}
        # -P: nothing that lies in the working directory is imported, such as a store that is called `store`.
        return [sys.executable, "-P", "-m", "twinbert", "serve", *_words(context, given | own)]

    return supervise(command, consecutive(given["address"], given["metrics_port"], workers))


def _words(context: typer.Context, values: dict[str, Any]) -> Iterator[str]:
    """Options as words of a command line."""
    for option in context.command.params:
        value = values.get(option.name or "")
        if isinstance(value, bool):
            names = option.opts if value else option.secondary_opts
            yield from names[:1]
        elif value is not None:
            yield from (option.opts[0], str(value))
