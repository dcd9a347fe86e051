"""What every command has in common: help, the environment, errors, exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from scorer_fake import FakeScorer, serving

from twinbert import __version__
from twinbert.cli import command, main

HEAVY = {"torch", "onnx", "onnxruntime", "lmdb", "pyarrow", "tokenizers", "prometheus_client", "xxhash"}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside, and lines long enough to be searched."""
    for name in [name for name in os.environ if name.startswith("TWINBERT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "300")


def commands() -> Iterator[tuple[list[str], list[Any]]]:
    """Every command and group: the words that call it, and its options."""
    waiting: list[tuple[list[str], Any]] = [([], command())]
    while waiting:
        words, node = waiting.pop()
        yield words, [one for one in node.params if one.param_type_name == "option" and not one.is_eager]
        waiting.extend(([*words, name], child) for name, child in getattr(node, "commands", {}).items())


@pytest.mark.parametrize(("words", "options"), [pytest.param(*one, id=" ".join(one[0]) or "-") for one in commands()])
def test_every_option_is_in_the_environment_and_in_the_help(
    words: list[str], options: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option of every command reads TWINBERT_<its long name>, and --help says so."""
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in options:
        long = next(name for name in option.opts if name.startswith("--"))
        assert option.envvar == "TWINBERT_" + long[2:].upper().replace("-", "_")
        assert f"[env var: {option.envvar}]" in shown


def test_options_are_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option given only as TWINBERT_<NAME> counts, and the command line wins over it."""
    servicer = FakeScorer(["a", "b", "c"])
    with serving(servicer) as address:
        monkeypatch.setenv("TWINBERT_ADDRESS", address)
        monkeypatch.setenv("TWINBERT_LIMIT", "2")
        monkeypatch.setenv("TWINBERT_JSON", "1")
        assert main(["retrieve", "shoes"]) == 0
        assert main(["retrieve", "shoes", "-k", "1"]) == 0
    assert [request.limit for request in servicer.requests] == [2, 1]
    assert capsys.readouterr().out.startswith("{")


def test_version_and_bare_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the version, and the command by itself prints its help."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"twinbert {__version__}\n"
    assert main([]) == 0
    assert "Usage: twinbert" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["scor"], "no such command 'scor'.* see twinbert --help"),
        (["bundle"], "missing command; see twinbert bundle --help"),
        (["score", "q", "a", "--fast"], "no such option: --fast.*; see twinbert score --help"),
        (["retrieve"], "missing argument 'QUERY'; see twinbert retrieve --help"),
        (["retrieve", "q", "-k", "0"], "invalid value for '--limit'.*; see twinbert retrieve --help"),
        (["score", "q", "a", "--crossing", "x"], "invalid value for '--crossing'.*; see twinbert score --help"),
        (["bundle", "import", "x"], "missing option '--output'.*; see twinbert bundle import --help"),
        (["score"], "give either QUERY and its IDs, or --tasks FILE; see twinbert score --help"),
        (["score", "q", "a", "--tasks", "-"], "give either QUERY and its IDs, or --tasks FILE; see .*"),
        (["score", "q", "a", "--address", "nowhere"], "address 'nowhere': expected HOST:PORT.*"),
        (["score", "--tasks", "/no/such/file", "--strings"], ".*'/no/such/file'"),
        (["bundle", "show", "/no/such/bundle"], "/no/such/bundle: does not exist.*"),
        (["store", "list", "--store", "/no/such/store"], ".*/no/such/store.*"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Usage errors and our own errors are one line on standard error that says what to do, and exit code 2."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert re.fullmatch(f"twinbert: {line}\n", printed.err), printed.err


def test_a_bad_value_in_the_environment_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever set the variable is told its name."""
    monkeypatch.setenv("TWINBERT_TIMEOUT", "soon")
    assert main(["score", "q", "a"]) == 2
    assert "TWINBERT_TIMEOUT" in capsys.readouterr().err


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["score", "shoes", "a"], ["retrieve", "shoes", "--json"]], ids=lambda words: words[0]
)
def test_asking_a_scorer_imports_nothing_heavy(arguments: list[str]) -> None:
    """Help and the commands that ask a scorer run in the base install, without torch, onnxruntime or lmdb."""
    with serving(FakeScorer(["a"])) as address:
        words = [*arguments, *(["--address", address] if arguments != ["--help"] else [])]
        ran = python(
            f"import sys; from twinbert.cli import main; code = main({words!r});"
            f"print(code, sorted({HEAVY!r} & sys.modules.keys()))"
        )
    assert ran.stdout.splitlines()[-1] == "0 []", ran.stderr


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("lmdb", "serve", ["serve", "--bundle", "b", "--store", "s"]),
        ("onnxruntime", "serve", ["encoder", "--bundle", "b", "--store", "s"]),
        ("onnxruntime", "serve", ["refresh", "--bundle", "b", "--store", "s", "--documents", "d"]),
        ("torch", "train", ["bundle", "import", "x", "--output", "y"]),
    ],
    ids=["serve", "encoder", "refresh", "import"],
)
def test_a_missing_extra_is_named(module: str, extra: str, arguments: list[str]) -> None:
    """Where a library of an extra is absent, the one line says what to install."""
    ran = python(
        f"import sys; sys.modules[{module!r}] = None; from twinbert.cli import main; sys.exit(main({arguments}))"
    )
    assert ran.returncode == 2
    assert ran.stderr == f"twinbert: this needs {module}: pip install 'twinbert[{extra}]', in a checkout '.[{extra}]'\n"


def test_a_missing_module_of_no_extra_is_a_bug() -> None:
    """An ImportError that no extra mends keeps its trace."""
    ran = python(
        "import sys; sys.modules['twinbert.importing'] = None;"
        "from twinbert.cli import main; sys.exit(main(['bundle', 'import', 'x', '-o', 'y']))"
    )
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """Starts the command as a process of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from twinbert.cli import main; sys.exit(main())", *arguments],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
    )


def test_an_interrupt_is_one_line() -> None:
    """Ctrl-C in the middle of a call ends with one line and exit code 130."""
    servicer = FakeScorer(["a"])
    with serving(servicer) as address, start("score", "wait", "a", "--timeout", "100", "--address", address) as process:
        servicer.waiting.wait()
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate()
    assert process.returncode == 130
    assert complaint == b"twinbert: interrupted\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    """When the reader of the output has seen enough, the command ends without a word."""
    with (
        serving(FakeScorer(["a"])) as address,
        start("score", "--tasks", "-", "--json", "--address", address) as process,
    ):
        assert process.stdout
        process.stdout.close()
        _, complaint = process.communicate(b'{"query": "shoes", "ids": ["a"]}\n' * 3)
    assert process.returncode == 1
    assert complaint == b""
