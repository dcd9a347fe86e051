"""The `twinbert` command: parses, calls, prints, and turns what goes wrong into one line and an exit code.

    scorer      score, retrieve          ask a running scorer
    bundle      bundle import | show | quantize | tune    make and read bundles
    refresh     refresh                  make documents the next generation of a store
    serve       serve                    run a scorer
    encoder     encoder                  run an encoder
    health      health                   ask a server on this host whether it serves
    store       store list | verify | rollback | pin | unpin | gc | compact | copy | adopt
    train       train run | teacher | student | evaluate | baselines | parity

Commands import what they need when they run, so that asking a scorer needs neither torch nor onnxruntime.

Exit codes: 0 done · 1 the reader of the output went away, a server is not healthy, or a bug, with its trace
· 2 bad input, or an error that a user can mend · 3 the swap gate refused a generation · 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer
from typer.core import TyperOption
from typer.main import get_command

from store.errors import StoreError
from twinbert import __version__
from twinbert.cli import bundle, scorer, store, train
from twinbert.cli.encoder import encoder
from twinbert.cli.health import health
from twinbert.cli.refresh import refresh
from twinbert.cli.serve import serve
from twinbert.errors import DriftError, TwinbertError

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
app.command()(scorer.score)
app.command()(scorer.retrieve)
app.command()(refresh)
app.command()(serve)
app.command()(encoder)
app.command()(health)
app.add_typer(bundle.app, name="bundle")
app.add_typer(store.app, name="store")
app.add_typer(train.app, name="train")

# Typer exports one of its usage errors; the parent of that one is the class of them all.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)

_EXTRAS = {
    **dict.fromkeys(
        (
            "grpc_health",
            "grpc_reflection",
            "lmdb",
            "onnxruntime",
            "prometheus_client",
            "pyarrow",
            "tokenizers",
            "xxhash",
        ),
        "serve",
    ),
    **dict.fromkeys(
        (
            "accelerate",
            "bm25s",
            "matplotlib",
            "onnx",
            "onnxscript",
            "safetensors",
            "scipy",
            "sklearn",
            "torch",
            "transformers",
        ),
        "train",
    ),
    "opentelemetry": "otel",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: What follows the program's name; None: sys.argv.

    Returns:
        The exit code.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core would add lines of its own to standard error
    code = 2
    try:
        return _run([*(sys.argv[1:] if arguments is None else arguments)])
    except BrokenPipeError:
        # The reader has seen enough. Python flushes once more at exit, and must not complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except _UsageError as error:
        message = _usage(error)
    except ImportError as error:
        message = _missing_extra(error)
    except DriftError as error:
        message, code = str(error), 3
    except (TwinbertError, StoreError, OSError) as error:
        message = str(error)
    typer.echo(f"twinbert: {' '.join(message.split())}", err=True)
    return code


def _run(arguments: list[str]) -> int:
    try:
        with command().make_context("twinbert", arguments) as context:
            context.command.invoke(context)
    except typer.Exit as end:  # so do --help and --version end
        return end.exit_code
    finally:
        sys.stdout.flush()  # where a broken pipe can still be caught
    return 0


def _usage(error: typer.BadParameter) -> str:
    message = error.format_message().rstrip(".")
    path = error.ctx.command_path if error.ctx else "twinbert"
    return f"{message[:1].lower()}{message[1:]}; see {path} --help"


def _missing_extra(error: ImportError) -> str:
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    if extra is None:
        raise error
    return f"this needs {error.name}: pip install 'twinbert[{extra}]', in a checkout '.[{extra}]'"


def command() -> Any:  # noqa: ANN401 - typer does not export the class
    """The tree of commands, in which every option also reads TWINBERT_<NAME> from the environment."""
    root = get_command(app)
    _read_environment(root)
    return root


def _read_environment(node: Any) -> None:  # noqa: ANN401 - typer does not export the class
    for option in node.params:
        if isinstance(option, TyperOption) and not option.is_eager:  # --version is no setting
            name = next(name for name in option.opts if name.startswith("--"))
            option.envvar = "TWINBERT_" + name[2:].replace("-", "_").upper()
    for child in getattr(node, "commands", {}).values():
        _read_environment(child)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"twinbert {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _twinbert(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and leave.")
    ] = False,
) -> None:
    """Encode documents offline, score them online.

    Every option can also be set in the environment: --metrics-port is TWINBERT_METRICS_PORT.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
