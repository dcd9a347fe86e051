"""`twinbert serve`: run a scorer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from twinbert.cli.options import (
    SCORER_ADDRESS,
    SCORER_METRICS_PORT,
    BindOption,
    BundleOption,
    MetricsPortOption,
    StoreOption,
)


def serve(
    context: typer.Context,
    *,
    bundle: BundleOption,
    store: StoreOption,
    address: BindOption = SCORER_ADDRESS,
    metrics_port: MetricsPortOption = SCORER_METRICS_PORT,
    metrics_host: Annotated[str, typer.Option(metavar="HOST", help="Where /metrics listens.")] = "127.0.0.1",
    workers: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Processes, each on the next port of both kinds; one that dies is started again."
        ),
    ] = 1,
    engines: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Batches that a process encodes at a time; by default one a core, up to 4."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads that encode one batch.")] = 1,
    queue: Annotated[int, typer.Option(metavar="N", min=1, help="Queries that may wait for an engine.")] = 512,
    max_candidates_waiting: Annotated[
        int, typer.Option(metavar="N", min=1, help="Candidates of all requests being answered.")
    ] = 100_000,
    max_retrievals: Annotated[int, typer.Option(metavar="N", min=1, help="Retrieve requests at a time.")] = 8,
    cache_bytes: Annotated[int, typer.Option(metavar="BYTES", min=0, help="Memory of the query cache.")] = 64 << 20,
    max_tasks: Annotated[int, typer.Option(metavar="N", min=1, help="Tasks of one request.")] = 64,
    max_candidates: Annotated[int, typer.Option(metavar="N", min=1, help="Candidates of one request.")] = 10_000,
    max_message_bytes: Annotated[int, typer.Option(metavar="BYTES", min=1024, help="Largest message.")] = 8 << 20,
    max_id_bytes: Annotated[int, typer.Option(metavar="BYTES", min=1, max=511, help="Longest document id.")] = 511,
    max_query_bytes: Annotated[int, typer.Option(metavar="BYTES", min=1, help="Longest query.")] = 4096,
    max_hits: Annotated[int, typer.Option(metavar="N", min=1, help="Hits of one retrieved query.")] = 1000,
    hold_generations: Annotated[
        int, typer.Option(metavar="N", min=0, help="Superseded generations that requests may still name…")
    ] = 2,
    hold_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="…and how long each stays at least.")
    ] = 600.0,
    drain_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Time for requests in flight when told to stop.")
    ] = 20.0,
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
    from twinbert.serving.lifecycle import Listening

    run(
        bundle=bundle,
        store=store,
        listening=Listening(
            address=address,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            message_bytes=max_message_bytes,
            drain_s=drain_seconds,
        ),
        settings=Settings(
            limits=Limits(
                tasks=max_tasks,
                candidates=max_candidates,
                id_bytes=max_id_bytes,
                query_bytes=max_query_bytes,
                hits=max_hits,
            ),
            engines=engines or default_engines(),
            threads=threads,
            queue=queue,
            candidates=max_candidates_waiting,
            retrievals=max_retrievals,
            cache_bytes=cache_bytes,
            hold_generations=hold_generations,
            hold_seconds=hold_seconds,
        ),
    )


def _supervise(context: typer.Context, workers: int) -> int:
    from scorer_server.settings import default_engines
    from scorer_server.supervisor import Ports, consecutive, supervise

    given = dict(context.params)
    given["engines"] = given["engines"] or default_engines(workers)

    def command(ports: Ports) -> list[str]:
        own = {"address": ports.address, "metrics_port": ports.metrics_port, "workers": 1}
        return [sys.executable, "-m", "twinbert", "serve", *_words(context, given | own)]

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
