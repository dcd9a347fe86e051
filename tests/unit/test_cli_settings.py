"""Settings of the servers that are out of range."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import typer

from encoder_server.settings import Settings as EncoderSettings
from scorer_server.settings import Settings as ScorerSettings
from twinbert.cli import command, main
from twinbert.serving.listening import Listening

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


Listen = Callable[..., Listening]


@pytest.fixture(params=[("serve", "scorer_server"), ("encoder", "encoder_server")], ids=lambda param: param[0])
def listen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Listen:
    """Runs the command of a server with some options; gives where and how that server is told to listen."""
    name, package = request.param
    given: list[Listening] = []
    monkeypatch.setattr(f"{package}.server.serve", lambda *, listening, **_: given.append(listening))

    def run(*options: str) -> Listening:
        assert main([name, *_FILES, *options]) == 0
        return given.pop()

    return run


def test_servers_listen_on_loopback_unless_told_otherwise(listen: Listen) -> None:
    """gRPC and metrics alike; and nothing opens them to a network without being asked."""
    listening = listen()
    assert listening.address in ("127.0.0.1:50051", "127.0.0.1:50052")
    assert listening.metrics_host == Listening(address="127.0.0.1:0").metrics_host == "127.0.0.1"
    assert not listening.insecure


@pytest.mark.parametrize(
    ("server", "package", "settings", "own"),
    [
        ("serve", "scorer_server", ScorerSettings(engine="auto"), {}),
        ("encoder", "encoder_server", EncoderSettings(), {"connection_age_s": 14 * 24 * 3600}),
    ],
    ids=_SERVERS,
)
def test_defaults_are_those_of_the_settings(
    server: str, package: str, settings: object, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is told nothing works as its settings say, and those are what is tested and documented; what it has
    of its own is listed here.
    """
    given: dict[str, Any] = {}
    monkeypatch.setattr(f"{package}.server.serve", given.update)
    assert main([server, *_FILES]) == 0
    assert given["settings"] == settings
    listening = given["listening"]
    assert listening == Listening(address=listening.address, metrics_port=listening.metrics_port, **own)


@pytest.mark.parametrize(
    ("option", "value", "setting", "reached"),
    [
        ("--max-message-bytes", 4321, "grpc.max_receive_message_length", 4321),
        ("--max-message-bytes", 4321, "grpc.max_send_message_length", 4321),
        ("--max-connections", 21, "grpc.max_allowed_incoming_connections", 21),
        ("--max-streams", 43, "grpc.max_concurrent_streams", 43),
        ("--connection-age", 54, "grpc.max_connection_age_ms", 54_000),
        ("--connection-grace", 65, "grpc.max_connection_age_grace_ms", 65_000),
        ("--handshake-seconds", 76, "grpc.server_handshake_timeout_ms", 76_000),
        ("--ping-seconds", 87, "grpc.http2.min_ping_interval_without_data_ms", 87_000),
    ],
)
def test_what_is_said_of_connections_reaches_the_server(
    listen: Listen, option: str, value: int, setting: str, reached: int
) -> None:
    """Each option is the setting of gRPC that it names; that a server keeps to those is tested beside its limits."""
    assert dict(listen().channel_options())[setting] != reached
    assert dict(listen(option, str(value)).channel_options())[setting] == reached


def test_a_handshake_has_ten_seconds(listen: Listen) -> None:
    """Unless told otherwise."""
    for listening in (listen(), Listening(address="127.0.0.1:0")):
        assert dict(listening.channel_options())["grpc.server_handshake_timeout_ms"] == 10_000
