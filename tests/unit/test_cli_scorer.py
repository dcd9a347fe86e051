"""`twinbert score` and `twinbert retrieve` against a real gRPC server."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scorer_fake import GENERATION, MODEL, FakeScorer, generation_not_held, serving

from twinbert.cli import main
from twinbert.v1 import scorer_pb2 as pb

Run = Callable[..., str]


@pytest.fixture
def scorer() -> FakeScorer:
    """The server's side."""
    return FakeScorer(["sku-7", "b[bold]", "c", "d"])


@pytest.fixture
def run(scorer: FakeScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command against `scorer`; gives what it printed."""
    with serving(scorer) as address:
        monkeypatch.setenv("TWINBERT_ADDRESS", address)

        def ran(*arguments: str, code: int = 0) -> str:
            assert main(arguments) == code
            printed = capsys.readouterr()
            return printed.err if code else printed.out

        yield ran


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes standard output a terminal of 100 columns; gives a function that takes colours and padding off a line."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return lambda shown: re.sub(r" *$", "", re.sub(r"\x1b\[[0-9;]*m", "", shown), flags=re.MULTILINE)


def test_scores_on_a_terminal_are_a_table(run: Run, terminal: Callable[[str], str]) -> None:
    """A reader sees the best document first, the missing one last, and where the answer came from; brackets stay."""
    shown = terminal(run("score", "red shoes", "c", "nope", "b[bold]", "sku-7"))
    assert shown == (
        "red shoes\n"
        "\n"
        "  rank   id         score   status\n"
        "  ───────────────────────────────────\n"
        "     1   sku-7     1.0000   ok\n"
        "     2   b[bold]   0.5000   ok\n"
        "     3   c         0.3333   ok\n"
        "         nope               not found\n"
        "\n"
        "generation 000012-9f3c01ab · model 8d8d8d8d · 3.20 ms at the server: queue 0.00, tokenise 0.02,\n"
        "encode 3.00, lookup 0.04, cross 0.01; query from the cache\n"
    )


def test_scores_elsewhere_are_lines_with_tabs(run: Run, scorer: FakeScorer) -> None:
    """Off a terminal the same ranking is one line a document under one header, and a tab in an id cannot break it."""
    scorer.scores["e\tf"] = 0.75
    assert run("score", "red shoes", "c", "nope", "e\tf") == (
        "query\trank\tid\tscore\tstatus\n"
        "red shoes\t1\te f\t0.7500\tok\n"
        "red shoes\t2\tc\t0.3333\tok\n"
        "red shoes\t\tnope\t\tnot found\n"
    )


def test_scores_as_json_keep_the_order_given(run: Run) -> None:
    """--json prints the documents in the order given, null for the score that is not there, and the server's times."""
    answer = json.loads(run("score", "red shoes", "nope", "c", "--json"))
    assert answer["documents"] == [
        {"id": "nope", "score": None, "status": "not_found"},
        {"id": "c", "score": 0.33333334, "status": "ok"},
    ]
    assert (answer["query"], answer["generation"], answer["model"]) == ("red shoes", GENERATION, MODEL)
    assert answer["times"]["encode_us"] == 3000


def test_tasks_come_from_a_file(run: Run, tmp_path: Path) -> None:
    """Each line of --tasks is a task; blank lines are none; ids of either JSON type fit the store's."""
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"query": "shoes", "ids": ["c"]}\n\n{"query": "Schuhe für mich", "ids": ["d", 7]}\n', "utf-8")
    answers = [json.loads(line) for line in run("score", "--tasks", str(tasks), "--json").splitlines()]
    assert [answer["query"] for answer in answers] == ["shoes", "Schuhe für mich"]
    assert [document["id"] for document in answers[1]["documents"]] == ["d", "7"]
    assert run("score", "--tasks", str(tasks)).count("query\trank") == 1


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "expected"),
        (b'{"query": 1, "ids": []}', "expected"),
        (b'{"query": "q", "ids": "a"}', "expected"),
        (b'{"query": "q", "ids": [1.5]}', "expected"),
        (b'{"query": "q"}', "expected"),
    ],
)
def test_a_bad_task_is_named_by_its_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, line: bytes, complaint: str
) -> None:
    """What is wrong with --tasks is said with the line; what came before it is answered."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"query": "q", "ids": ["c"]}\n' + line)))
    assert f"twinbert: standard input, line 2: {complaint}" in run("score", "--tasks", "-", code=2)


def test_integer_stores_get_integers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the server says that its ids are integers, ids are sent as such, and one that is none is named."""
    servicer = FakeScorer([12, 7])
    with serving(servicer) as address:
        monkeypatch.setenv("TWINBERT_ADDRESS", address)
        assert main(["score", "shoes", "7", "12"]) == 0
        assert "shoes\t1\t12\t1.0000\tok\n" in capsys.readouterr().out
        assert main(["retrieve", "shoes", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["documents"][0] == {"id": 12, "score": 1.0, "status": "ok"}
        assert main(["score", "shoes", "sku-7"]) == 2
        assert "'sku-7' is not an integer" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "field"), [("--numbers", "document_numbers"), ("--strings", "document_ids")])
def test_the_kind_of_ids_can_be_given(run: Run, scorer: FakeScorer, flag: str, field: str) -> None:
    """--numbers and --strings save the question to the server."""
    run("score", "shoes", "7", flag, "--json")
    [request] = scorer.requests
    assert len(getattr(request.tasks[0], field)) == 1


def test_settings_of_a_request_are_options(run: Run, scorer: FakeScorer) -> None:
    """--generation, --crossing, --allow-partial and --timeout reach the server."""
    shown = run(
        *("score", "late", "c", "--strings", "--generation", "000001-00000000"),
        *("--crossing", "residual", "--allow-partial", "--timeout", "50"),
    )
    [request] = scorer.requests
    assert (request.generation, request.crossing) == ("000001-00000000", pb.CROSSING_RESIDUAL)
    assert request.allow_partial
    assert 5 < scorer.deadlines[0] <= 51
    assert shown.endswith("late\t\tc\t\tnot scored\n")


def test_hits_are_printed_best_first(run: Run, terminal: Callable[[str], str]) -> None:
    """`retrieve` prints as many documents as asked for, in the table that `score` has."""
    shown = terminal(run("retrieve", "red shoes", "-k", "2"))
    assert "     1   sku-7     1.0000   ok\n     2   b[bold]   0.5000   ok\n\ngeneration" in shown


def test_an_error_of_the_server_is_one_line(run: Run, scorer: FakeScorer) -> None:
    """The server's words are the line, and the exit code is 2."""
    scorer.failures.append(generation_not_held())
    assert run("retrieve", "shoes", code=2) == "twinbert: generation 000001-00000000 is not held\n"
