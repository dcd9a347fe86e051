"""`twinbert health`, against a server in each state."""

from __future__ import annotations

import socket

import pytest

from tests.serving_fake import Served, serve
from twinbert.cli import main


def test_it_says_whether_the_server_serves(capsys: pytest.CaptureFixture[str]) -> None:
    """Serving is exit code 0; draining, and a server that is not there, are 1 and a line that says why."""
    codes: list[int] = []

    def test(served: Served) -> None:
        words = ["health", "--metrics-port", str(served.wait_for("serving")["metrics_port"])]
        codes.append(main(words))
        served.service.state.set("draining")
        codes.append(main(words))

    serve(test)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        codes.append(main(["health", "--metrics-port", str(free.getsockname()[1])]))
    assert codes == [0, 1, 1]
    printed = capsys.readouterr()
    assert printed.out.endswith(": serving\n")
    assert [line.partition(": ")[2] for line in printed.err.splitlines()] == [
        "not serving: it starts, drains, or hangs",
        "not serving: [Errno 111] Connection refused",
    ]


def test_a_server_that_answers_nothing_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    """It is given up after --timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert main(["health", "--timeout", "0.05", "--metrics-port", str(silent.getsockname()[1])]) == 1
    assert "not serving: timed out" in capsys.readouterr().err
