"""`twinbert health`: ask a server on this host whether it takes requests."""

from __future__ import annotations

import http.client
from typing import Annotated

import typer

from twinbert.cli.options import SCORER_METRICS_PORT


def health(
    *,
    metrics_port: Annotated[
        int, typer.Option(metavar="PORT", min=1, max=65535, help="The server's metrics port.")
    ] = SCORER_METRICS_PORT,
    metrics_host: Annotated[str, typer.Option(metavar="HOST", help="Where it listens.")] = "127.0.0.1",
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.001, max=3600, help="How long to wait.")] = 3.0,
) -> None:
    """Ask a server whether it takes requests, for health checks of containers: exit code 0 if it does, 1 if not.

    It asks over HTTP on the metrics port, so it needs neither certificate nor token.
    """
    where = f"{metrics_host}:{metrics_port}"
    connection = http.client.HTTPConnection(metrics_host, metrics_port, timeout=timeout)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        problem = str(error) or "it answers nothing"
    else:
        problem = "" if status == http.HTTPStatus.OK else "it starts, drains, or hangs"
    finally:
        connection.close()
    typer.echo(f"{where}: {f'not serving: {problem}' if problem else 'serving'}", err=bool(problem))
    if problem:
        raise typer.Exit(1)
