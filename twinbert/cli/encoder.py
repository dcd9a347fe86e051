"""`twinbert encoder`: run an encoder."""

from __future__ import annotations

from typing import Annotated

import typer

from twinbert.cli.gate import (
    BundlesOption,
    MaxLostOption,
    MaxShiftOption,
    MinOverlapOption,
    MinTauOption,
    ReplayOption,
    gate_settings,
)
from twinbert.cli.options import (
    ENCODER_ADDRESS,
    ENCODER_METRICS_PORT,
    BindOption,
    BundleOption,
    MetricsPortOption,
    StoreOption,
    ThreadsOption,
)

# A Refresh is one call, which may take days, and a connection that reaches its age ends its calls.
_CONNECTION_AGE_S = 14 * 24 * 3600


def encoder(
    *,
    bundle: BundleOption,
    store: StoreOption,
    address: BindOption = ENCODER_ADDRESS,
    metrics_port: MetricsPortOption = ENCODER_METRICS_PORT,
    metrics_host: Annotated[str, typer.Option(metavar="HOST", help="Where /metrics listens.")] = "127.0.0.1",
    threads: ThreadsOption = None,
    max_texts: Annotated[int, typer.Option(metavar="N", min=1, help="Texts of one Encode.")] = 256,
    max_message_bytes: Annotated[int, typer.Option(metavar="BYTES", min=1024, help="Largest message.")] = 8 << 20,
    queue: Annotated[int, typer.Option(metavar="N", min=0, help="Encode requests that may wait.")] = 64,
    idle_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="A Refresh that sends nothing for this long is ended.")
    ] = 600.0,
    max_segments: Annotated[
        int, typer.Option(metavar="N", min=1, help="Merge segments in the background when there are more.")
    ] = 5,
    max_dead_share: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Merge all when more of the rows are dead.")
    ] = 0.25,
    replay: ReplayOption = None,
    bundles: BundlesOption = None,
    max_lost: MaxLostOption = None,
    min_tau: MinTauOption = None,
    min_overlap: MinOverlapOption = None,
    max_shift: MaxShiftOption = None,
    drain_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Time for requests in flight when told to stop.")
    ] = 20.0,
) -> None:
    """Serve Encode and Refresh over gRPC, and Prometheus metrics; compact the store in the background."""
    from encoder_server.server import serve
    from encoder_server.settings import Settings, default_workers
    from twinbert.serving.lifecycle import Listening

    serve(
        bundle=bundle,
        store=store,
        listening=Listening(
            address=address,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            message_bytes=max_message_bytes,
            connection_age_s=_CONNECTION_AGE_S,
            drain_s=drain_seconds,
        ),
        settings=Settings(
            workers=threads or default_workers(),
            texts=max_texts,
            waiting=queue,
            idle_s=idle_seconds,
            max_segments=max_segments,
            max_dead_share=max_dead_share,
            gate=gate_settings(
                replay=replay,
                bundles=bundles,
                max_lost=max_lost,
                min_tau=min_tau,
                min_overlap=min_overlap,
                max_shift=max_shift,
            ),
        ),
    )
