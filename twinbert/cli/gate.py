"""Options of the swap gate, for the commands that publish generations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from encoder_server.settings import GateSettings

ForceOption = Annotated[
    bool, typer.Option("--force", help="Publish although the swap gate refuses; the manifest says so.")
]


def gate_of(
    *,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay", metavar="FILE", help="Requests that a scorer recorded, to compare the generations on."
        ),
    ] = None,
    bundles: Annotated[
        Path | None,
        typer.Option(
            "--bundles", metavar="DIR", help="Where the bundle in service is found; by default beside the new one."
        ),
    ] = None,
    max_lost: Annotated[
        float | None,
        typer.Option(
            "--gate-max-lost", metavar="SHARE", min=0, max=1, help="Documents and candidates that may be gone; 0.1."
        ),
    ] = None,
    min_tau: Annotated[
        float | None,
        typer.Option(
            "--gate-min-tau", metavar="TAU", min=-1, max=1, help="Least mean Kendall's τ; 0.7, between models 0.3."
        ),
    ] = None,
    min_overlap: Annotated[
        float | None,
        typer.Option(
            "--gate-min-overlap",
            metavar="SHARE",
            min=0,
            max=1,
            help="Least mean share of the 10 best that stay so; 0.7, between models 0.3.",
        ),
    ] = None,
    max_shift: Annotated[
        float | None,
        typer.Option(
            "--gate-max-shift",
            metavar="DISTANCE",
            min=0,
            max=1,
            help="Largest Kolmogorov-Smirnov distance of the scores; 0.1, between models 0.3.",
        ),
    ] = None,
) -> GateSettings:
    """The swap gate's settings, for `twinbert.cli.sharing.shares`."""
    from encoder_server.settings import GateSettings

    limits = {"lost": max_lost, "tau": min_tau, "overlap": min_overlap, "shift": max_shift}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return GateSettings(replay=replay, bundles=bundles, limits=given)
