"""Options of the swap gate, for the commands that publish generations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from encoder_server.settings import GateSettings

ReplayOption = Annotated[
    Path | None,
    typer.Option("--replay", metavar="FILE", help="Requests that a scorer recorded, to compare the generations on."),
]
BundlesOption = Annotated[
    Path | None,
    typer.Option(
        "--bundles", metavar="DIR", help="Where the bundle in service is found; by default beside the new one."
    ),
]
MaxLostOption = Annotated[
    float | None,
    typer.Option(
        "--gate-max-lost", metavar="SHARE", min=0, max=1, help="Documents and candidates that may be gone; 0.1."
    ),
]
MinTauOption = Annotated[
    float | None,
    typer.Option(
        "--gate-min-tau", metavar="TAU", min=-1, max=1, help="Least mean Kendall's τ; 0.7, between models 0.3."
    ),
]
MinOverlapOption = Annotated[
    float | None,
    typer.Option(
        "--gate-min-overlap",
        metavar="SHARE",
        min=0,
        max=1,
        help="Least mean share of the 10 best that stay so; 0.7, between models 0.3.",
    ),
]
MaxShiftOption = Annotated[
    float | None,
    typer.Option(
        "--gate-max-shift",
        metavar="DISTANCE",
        min=0,
        max=1,
        help="Largest Kolmogorov-Smirnov distance of the scores; 0.1, between models 0.3.",
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Publish although the swap gate refuses; the manifest says so.")
]


def gate_settings(
    *,
    replay: Path | None,
    bundles: Path | None,
    max_lost: float | None,
    min_tau: float | None,
    min_overlap: float | None,
    max_shift: float | None,
    force: bool = False,
) -> GateSettings:
    """The settings that the options say."""
    from encoder_server.settings import GateSettings

    limits = {"lost": max_lost, "tau": min_tau, "overlap": min_overlap, "shift": max_shift}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return GateSettings(replay=replay, bundles=bundles, limits=given, force=force)
