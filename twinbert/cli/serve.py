"""`twinbert serve`: run a scorer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from twinbert.cli.listening import listens
from twinbert.cli.options import SCORER_ADDRESS, SCORER_METRICS_PORT, BundleOption, StoreOption

if TYPE_CHECKING:
    from twinbert.serving.listening import Listening


@listens(address=SCORER_ADDRESS, metrics_port=SCORER_METRICS_PORT)
def serve(
    *,
    bundle: BundleOption,
    store: StoreOption,
    listening: Listening,
    engines: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=1024, help="Batches encoded at a time; by default one a core, up to 4."),
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Threads that encode one batch.")] = 1,
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
) -> None:
    """Serve a store: Score, Retrieve and Describe over gRPC, and Prometheus metrics."""
    # A matrix product of Retrieve would otherwise take every core from Score; it is read when numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Queries are short: spreading their tokenising over threads costs more than it saves.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from scorer_server.server import serve as run
    from scorer_server.settings import Limits, Settings, default_engines

    run(
        bundle=bundle,
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
            threads=threads,
            queue=queue,
            candidates=max_candidates_waiting,
            retrievals=max_retrievals,
            cache_bytes=cache_bytes,
            hold_generations=hold_generations,
            hold_seconds=hold_seconds,
        ),
    )
