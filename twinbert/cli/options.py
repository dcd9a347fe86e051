"""Options that several commands have. Each also reads TWINBERT_<NAME>, as every option of the command does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

# Loopback: nothing is open to the network unless someone says so.
SCORER_ADDRESS = "127.0.0.1:50051"
ENCODER_ADDRESS = "127.0.0.1:50052"
SCORER_METRICS_PORT = 9101
ENCODER_METRICS_PORT = 9102

BundleOption = Annotated[Path, typer.Option("--bundle", metavar="DIR", help="The bundle's directory.")]
StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", help="The store's directory.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, max=1024, help="Threads that encode; by default one a core."),
]
EncodingOption = Annotated[
    Literal["float32", "float16", "uint8"] | None,
    typer.Option("--encoding", help="How embeddings are stored; by default as they are now, else float32."),
]
GenerationOption = Annotated[
    str, typer.Option("--generation", metavar="NAME", help="Generation to ask; by default the current one.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.001, max=86_400, help="Deadline of a call.")
]
TuningOption = Annotated[
    Path | None,
    typer.Option(
        "--tuning", metavar="DIR", help="Where choices for this host are; by default $XDG_STATE_HOME/twinbert."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
