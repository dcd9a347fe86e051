"""Settings of the servers that are out of range."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer

from twinbert.cli import command, main

_NUMBERS = {"N", "BYTES", "SECONDS", "SHARE", "PORT"}
_SERVERS = {name: command().commands[name] for name in ("serve", "encoder")}
_ASKING = {name: command().commands[name] for name in ("score", "retrieve")}
_FILES = ["--bundle", "/no/bundle", "--store", "/no/store"]  # not there: nothing looks at them


def numbers() -> list[Any]:
    """The options of each server that take a number."""
    return [
        pytest.param(server, one.opts[0], id=f"{server} {one.opts[0]}")
        for server in _SERVERS
        for one in _SERVERS[server].params
        if one.metavar in _NUMBERS
    ]


@pytest.mark.parametrize("value", ["-1", f"{10**30}", "nan", "inf", "many", ""])
@pytest.mark.parametrize(("server", "option"), numbers())
def test_a_number_out_of_range_is_refused(server: str, option: str, value: str) -> None:
    """Every number has a least and a most, and the complaint names its option."""
    with pytest.raises(typer.BadParameter) as caught:
        _SERVERS[server].make_context(server, [*_FILES, f"{option}={value}"])
    assert f"'{option}'" in caught.value.format_message()


@pytest.mark.parametrize("value", ["0", "-1", "1e30", "nan", "inf"])
@pytest.mark.parametrize("asking", _ASKING)
def test_a_deadline_out_of_range_is_refused(asking: str, value: str) -> None:
    """A call that could not be made is not said to have taken too long."""
    words = ["query", "d1"] if asking == "score" else ["query"]
    with pytest.raises(typer.BadParameter) as caught:
        _ASKING[asking].make_context(asking, [*words, f"--timeout={value}"])
    assert "'--timeout'" in caught.value.format_message()


def test_kind_and_number_of_engines_are_told_apart() -> None:
    """The help of `--engine` and that of `--engines` name each other: one says which kind, the other how many."""
    about = {one.opts[0]: one.help for one in _SERVERS["serve"].params if isinstance(one, typer.core.TyperOption)}
    for option, says, other in (("--engine", "which kind", "--engines"), ("--engines", "how many", "--engine")):
        said = (about[option] or "").lower()
        assert said.startswith(says)
        assert re.search(rf"{other}\b", said)


@pytest.mark.parametrize("server", _SERVERS)
def test_it_is_one_line_and_exit_code_2(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is started."""
    assert main([server, *_FILES, "--connection-age", "0"]) == 2
    printed = capsys.readouterr()
    [line] = printed.err.splitlines()
    assert line.startswith("twinbert: invalid value for '--connection-age'")
    assert printed.out == ""
