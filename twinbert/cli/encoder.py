"""`twinbert encoder`: run an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from twinbert.cli.listening import listens
from twinbert.cli.options import ENCODER_ADDRESS, ENCODER_METRICS_PORT, BundleOption, StoreOption, ThreadsOption

if TYPE_CHECKING:
    from twinbert.serving.listening import Listening

# A Refresh is one call, which may take days, and a connection that reaches its age ends its calls.
_CONNECTION_AGE_S = 14 * 24 * 3600


@listens(address=ENCODER_ADDRESS, metrics_port=ENCODER_METRICS_PORT, connection_age=_CONNECTION_AGE_S)
def encoder(
    *,
    bundle: BundleOption,
    store: StoreOption,
    listening: Listening,
    threads: ThreadsOption = None,
    max_texts: Annotated[int, typer.Option(metavar="N", min=1, max=100_000, help="Texts of one Encode.")] = 256,
    queue: Annotated[int, typer.Option(metavar="N", min=0, max=100_000, help="Encode requests that may wait.")] = 64,
    idle_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.1, max=30 * 86400, help="A Refresh that sends nothing for this long is ended."
        ),
    ] = 600.0,
) -> None:
    """Serve Encode and Refresh over gRPC, and Prometheus metrics."""
    from encoder_server.server import serve
    from encoder_server.settings import Settings, default_workers

    serve(
        bundle=bundle,
        store=store,
        listening=listening,
        settings=Settings(workers=threads or default_workers(), texts=max_texts, waiting=queue, idle_s=idle_seconds),
    )
