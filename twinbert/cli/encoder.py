"""`twinbert encoder`: run an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from twinbert.cli.gate import gate_of
from twinbert.cli.listening import listening_of
from twinbert.cli.options import ENCODER_ADDRESS, ENCODER_METRICS_PORT, BundleOption, StoreOption, ThreadsOption
from twinbert.cli.sharing import shares

if TYPE_CHECKING:
    from encoder_server.settings import GateSettings
    from twinbert.serving.listening import Listening

# A Refresh is one call, which may take days, and a connection that reaches its age ends its calls.
_CONNECTION_AGE_S = 14 * 24 * 3600


@shares(
    {"listening": listening_of, "gate": gate_of},
    address=ENCODER_ADDRESS,
    metrics_port=ENCODER_METRICS_PORT,
    connection_age=_CONNECTION_AGE_S,
)
def encoder(
    *,
    bundle: BundleOption,
    store: StoreOption,
    listening: Listening,
    gate: GateSettings,
    threads: ThreadsOption = None,
    max_texts: Annotated[int, typer.Option(metavar="N", min=1, max=100_000, help="Texts of one Encode.")] = 256,
    queue: Annotated[int, typer.Option(metavar="N", min=0, max=100_000, help="Encode requests that may wait.")] = 64,
    idle_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.1, max=30 * 86400, help="A Refresh that sends nothing for this long is ended."
        ),
    ] = 600.0,
    max_segments: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Merge segments in the background when there are more.")
    ] = 4,
    max_dead_share: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Merge all when more of the rows are dead.")
    ] = 0.25,
) -> None:
    """Serve Encode and Refresh over gRPC, and Prometheus metrics; compact the store in the background."""
    from encoder_server.server import serve
    from encoder_server.settings import Settings, default_workers

    serve(
        bundle=bundle,
        store=store,
        listening=listening,
        settings=Settings(
            workers=threads or default_workers(),
            texts=max_texts,
            waiting=queue,
            idle_s=idle_seconds,
            max_segments=max_segments,
            max_dead_share=max_dead_share,
            gate=gate,
        ),
    )
