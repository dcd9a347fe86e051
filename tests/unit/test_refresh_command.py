"""`twinbert refresh`: what it prints, what it leaves out and why, and how it is interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from encoder_server import window
from encoder_server.command import refresh
from encoder_server.documents import DocumentSource, Rejection
from encoder_server.refresh import Refresh
from encoder_server.report import JsonLines, Pace, Rejections, reporting_pace
from store.store import Store
from tests.servers import COMMAND, twinbert, write_documents
from twinbert.bundle import Bundle
from twinbert.cli import main
from twinbert.errors import UsageError
from twinbert.runtime import Runtime
from twinbert.serving import log

TEXTS = {f"d{number}": f"{word} pizza {number}" for number, word in enumerate(["red", "blue", "green"] * 40)}


class Recorder:
    """A report that keeps what it is told."""

    interval_s = 60.0

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.paces: list[Pace] = []

    def event(self, name: str, text: str, **fields: Any) -> None:
        self.events.append((name, text, fields))

    def pace(self, pace: Pace) -> None:
        self.paces.append(pace)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def run(bundle: Path, store: Path, documents: Path | str, *options: str) -> subprocess.CompletedProcess[str]:
    return twinbert("refresh", "--bundle", f"{bundle}", "--store", f"{store}", "--documents", f"{documents}", *options)


def events(process: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.stderr.splitlines() if line.startswith("{")]


def test_a_refresh_from_files_to_a_generation(tiny_bundle: Path, store: Path, tmp_path: Path) -> None:
    """Each line is a document; events go to standard error, one JSON line each, and the summary to standard output."""
    documents = write_documents(tmp_path / "documents.jsonl", TEXTS)
    with documents.open("a") as file:
        file.write('{nonsense\n{"id": "x", "text": " "}\n{"id": "d0", "text": "the last of d0"}\n')
    rejected = tmp_path / "rejected.jsonl"
    done = run(tiny_bundle, store, documents, "--encoding", "uint8", "--rejected", str(rejected), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["generation"] == Store(store).current()
    counts = {name: result[name] for name in ("documents", "received", "encoded", "reused", "duplicates", "encoding")}
    assert counts == {
        **{"documents": 120, "received": 123, "encoded": 120, "reused": 0, "duplicates": 1},
        "encoding": "uint8",
    }
    assert result["rejected"] == {"not JSON": 1, "the text is blank": 1}
    assert result["quality"]["sample"] == 64
    told = events(done)
    assert [one["event"] for one in told] == ["started", "rejected", "rejected", "progress", "published"]
    assert told[1]["where"] == f"{documents}:121"
    assert told[3]["bytes_done"] == told[3]["bytes_total"] == documents.stat().st_size
    kept = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [(one["where"], one["position"], one["document_id"]) for one in kept] == [
        (f"{documents}:121", 120, ""),
        (f"{documents}:122", 121, "x"),
    ]


def test_standard_input_and_readable_summary(tiny_bundle: Path, store: Path) -> None:
    """Without --json the summary is one fact a line, tab-separated where nobody looks on."""
    lines = "".join(json.dumps({"id": number, "text": f"pizza {number}"}) + "\n" for number in range(3))
    words = ["refresh", "--bundle", str(tiny_bundle), "--store", str(store), "--documents", "-"]
    done = subprocess.run([COMMAND, *words], input=lines, capture_output=True, text=True, check=True)
    facts = dict(line.split("\t") for line in done.stdout.splitlines())
    assert facts["documents"] == "3"
    assert facts["generation"] == Store(store).current()
    assert facts["stored as"].startswith("float32: scores differ by ")
    assert Store(store).manifest(facts["generation"]).id_type == "integer"


def test_columns_of_a_table(tiny_bundle: Path, store: Path, tmp_path: Path) -> None:
    """A TSV with columns of other names: several texts are joined, integer ids are asked for, times are kept."""
    table = tmp_path / "table.tsv"
    table.write_text("sku\ttitle\tbody\tchanged\n7\tred\tpizza\t2026-05-31T12:00:00Z\n8\t\tshoes\t1700000000\n")
    columns = ("--id-column", "sku", "--text-column", "title", "--text-column", "body", "--time-column", "changed")
    done = run(tiny_bundle, store, table, *columns, "--id-type", "integer")
    assert done.returncode == 0, done.stderr
    opened = Store(store)
    generation = opened.open(opened.current())
    rows = generation.read(generation.locate(np.array([7, 8], dtype=np.uint64))).copy()
    generation.close()
    exact = Runtime(Bundle.open(tiny_bundle), towers=("document",)).encode(["red\npizza", "shoes"], "document")
    np.testing.assert_allclose(rows, exact, rtol=0, atol=1e-5)
    assert opened.manifest(opened.current()).watermark_ms == 1_780_228_800_000
    # The store knows what its ids are: nobody has to say it again.
    assert run(tiny_bundle, store, table, *columns).returncode == 0


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        ((), "", "there is no document in it"),
        ((), '{"id": "a"}\n', "all 1 documents were rejected, the first because no text"),
        (("--text-column", "body"), "id\ttext\na\tb\n", 'there is no column "body"'),
        (("--rejected", "/nowhere/x"), '{"id": "a", "text": "b"}\n', "/nowhere/x cannot be written"),
        (("--delta",), '{"id": "a", "text": "b"}\n', "is not a store; `twinbert refresh` makes one"),
        (("--encoding", "int4"), '{"id": "a", "text": "b"}\n', "'int4' is not one of"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tiny_bundle: Path, tmp_path: Path, options: tuple[str, ...], content: str, message: str
) -> None:
    """The last line on standard error says what is wrong, and nothing is published."""
    documents = tmp_path / ("documents.tsv" if "\t" in content else "documents.jsonl")
    documents.write_text(content)
    done = run(tiny_bundle, tmp_path / "store", documents, *options)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store" / "CURRENT").exists()


def test_ids_of_the_other_type(tiny_bundle: Path, store: Path, tmp_path: Path) -> None:
    """A store keeps its id type: documents of the other are rejected one by one, and asking for it is an error."""
    assert run(tiny_bundle, store, write_documents(tmp_path / "a.jsonl", TEXTS)).returncode == 0
    mixed = write_documents(tmp_path / "b.jsonl", {1: "red", "two": "blue"})
    done = run(tiny_bundle, store, mixed, "--force", "--json")
    assert json.loads(done.stdout)["rejected"] == {"the id is of type integer, not string": 1}
    done = run(tiny_bundle, store, mixed, "--id-type", "integer")
    assert (done.returncode, done.stderr.splitlines()[-1].count("strings, not integers")) == (2, 1)


def test_a_store_that_is_being_refreshed(tiny_bundle: Path, store: Path, tmp_path: Path) -> None:
    """The command does not wait: it says who refreshes."""
    runtime = Runtime(Bundle.open(tiny_bundle), towers=("query", "document"))
    with Refresh(Store(store), runtime, id_type="string"):
        done = run(tiny_bundle, store, write_documents(tmp_path / "a.jsonl", TEXTS))
    assert done.returncode == 2
    assert f"process {os.getpid()} on" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_it_encodes(
    tiny_bundle: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Ctrl-C ends the refresh in order, as a scheduler does: the lock is free, the next run reuses what is encoded."""
    monkeypatch.setattr(window, "_DOCUMENTS", 32)
    documents = write_documents(tmp_path / "documents.jsonl", TEXTS | {"blank": " "} | {"more": "red shoes"})

    class Interrupting(Recorder):
        def event(self, name: str, text: str, **fields: Any) -> None:
            super().event(name, text, **fields)
            if name == "rejected":  # the documents before it are added next
                os.kill(os.getpid(), number)

    monkeypatch.setattr("encoder_server.command._READ_AT_ONCE", 16)
    before, report = signal.getsignal(number), Interrupting()
    with pytest.raises(KeyboardInterrupt):
        refresh(bundle=tiny_bundle, store=store, documents=documents, report=report)
    assert report.events[-1][0] == "interrupted"
    assert signal.getsignal(number) is before
    assert not (store / "CURRENT").exists()
    result = refresh(bundle=tiny_bundle, store=store, documents=documents, report=Recorder())
    assert result.reused == report.paces[-1].documents - 1 > 0  # all but the blank one
    assert result.documents == len(TEXTS) + 1


def test_an_interrupt_while_it_waits_for_input(tiny_bundle: Path, store: Path) -> None:
    """Ctrl-C does not wait for a producer that says nothing; the exit code is 130."""
    words = ["refresh", "--bundle", str(tiny_bundle), "--store", str(store), "--documents", "-"]
    with subprocess.Popen([COMMAND, *words], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["event"] == "started"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read().splitlines()[-1] == "twinbert: interrupted"


def test_an_interrupt_just_before_a_read_breaks_it_off(
    tiny_bundle: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that does not wake the read that follows it, as one that another thread is given, is not lost."""
    read, write = os.pipe()
    over, was_heard = threading.Event(), []

    def interrupt() -> None:
        while struct.unpack("i", fcntl.ioctl(read, termios.FIONREAD, b"    "))[0]:
            pass  # until the first line was read, and the next one is waited for
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        was_heard.append(over.wait(30))
        os.close(write)

    with os.fdopen(read, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", mock.Mock(buffer=stdin))
        os.write(write, b'{"id": "a", "text": "x"}\n')
        thread = threading.Thread(target=interrupt)
        thread.start()
        words = ["--bundle", str(tiny_bundle), "--store", str(store), "--documents", "-"]
        assert main(["refresh", *words]) == 130
        over.set()
        thread.join()
    assert was_heard == [True]


def test_an_interrupt_after_the_source_failed(
    tiny_bundle: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C then breaks into nothing: the refresh ends in order, and what is said is why it failed."""
    table, leave, left = tmp_path / "table.tsv", Refresh.__exit__, []
    table.write_text("id\ttext\n")

    def interrupted(pipeline: Refresh, *error: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        leave(pipeline, *error)
        left.append(error[0])

    monkeypatch.setattr(Refresh, "__exit__", interrupted)
    with pytest.raises((UsageError, KeyboardInterrupt)) as caught:
        refresh(bundle=tiny_bundle, store=store, documents=table, report=Recorder())
    assert (caught.type, left) == (UsageError, [UsageError])


def test_a_full_disk(tiny_bundle: Path, store: Path, tmp_path: Path) -> None:
    """The message says how much is needed, the current generation stays, and with space the next run goes through."""
    assert run(tiny_bundle, store, write_documents(tmp_path / "a.jsonl", TEXTS)).returncode == 0
    before = Store(store).current()
    many = write_documents(tmp_path / "b.jsonl", {f"d{number}": f"list {number}" for number in range(1000)})
    words = ["refresh", "--bundle", str(tiny_bundle), "--store", str(store), "--documents", str(many)]
    done = subprocess.run(
        [COMMAND, *words],
        capture_output=True,
        text=True,
        check=False,
        # No file beyond 100 kB: what a full disk does, without one.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "no space left in" in last
    assert "bytes are needed" in last
    opened = Store(store)
    assert opened.current() == before
    opened.open(before).close()
    assert run(tiny_bundle, store, many, "--force").returncode == 0
    assert Store(store).manifest(Store(store).current()).documents == 1000


def test_the_first_rejections_are_told_and_all_are_counted(tmp_path: Path) -> None:
    """Twenty are shown; reasons are counted without what is about one document, and their number is bounded."""
    report = Recorder()
    with Rejections(report, None) as rejections:
        for number in range(3000):
            rejections.add(Rejection(f"a.jsonl:{number}", number, "", f"not JSON: at column {number}"))
            rejections.add(Rejection(f"a.jsonl:{number}", number, "", f"the id has {number} bytes"))
    assert [text for _, text, _ in report.events[:2]] == [
        "a.jsonl:0: not JSON: at column 0",
        "a.jsonl:0: the id has 0 bytes",
    ]
    assert len(report.events) == 20
    assert rejections.by_reason["not JSON"] == 3000
    assert rejections.by_reason.total() == 6000
    assert len(rejections.by_reason) <= 1001


QUOTED = [
    '["a secret"]',
    '"a secret"',
    '{"id": "b", "text": "a secret',
    '{"id": "b", "text": ["a secret"]}',
    '{"id": "b", "text": "a secret\\ud800"}',
    '{"id": ["a secret"], "text": "x"}',
    json.dumps({"id": "a secret" * 100, "text": "x"}),
    '{"id": "b", "text": "x", "time": "a secret"}',
    '{"id": "b", "text": "x", "deleted": "a secret"}',
]


@pytest.mark.parametrize("line", QUOTED)
def test_no_text_of_a_document_reaches_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Where and why a document was left out is logged, with not a word of it; that is for the file of --rejected."""
    documents, rejected = tmp_path / "documents.jsonl", tmp_path / "rejected.jsonl"
    documents.write_text(line + "\n")
    log.configure()
    [rejection] = DocumentSource(path=documents, format="jsonl")
    assert isinstance(rejection, Rejection)
    with Rejections(JsonLines(), rejected) as rejections:
        rejections.add(rejection)
    [logged] = map(json.loads, capsys.readouterr().err.splitlines())
    assert (logged["event"], logged["where"]) == ("rejected", f"{documents}:1")
    assert rejection.reason.startswith(logged["reason"])
    assert logged["message"] == f"{documents}:1: {logged['reason']}"
    assert "secret" not in str(logged)
    assert json.loads(rejected.read_text())["reason"] == rejection.reason


def test_the_pace_knows_the_end(tiny_bundle: Path, store: Path, tmp_path: Path) -> None:
    """Bytes are counted as far as their documents are finished, so that the time left is that of encoding."""
    documents = write_documents(tmp_path / "documents.jsonl", TEXTS)
    source, report = DocumentSource(path=documents), Recorder()
    runtime = Runtime(Bundle.open(tiny_bundle), towers=("query", "document"))
    with Refresh(Store(store), runtime) as pipeline_, reporting_pace(pipeline_, source, report):

        def read() -> Iterator[Any]:
            yield from source

        pipeline_.add(read())
    [pace] = report.paces
    assert (pace.documents, pace.bytes_done, pace.bytes_total) == (0, 0, documents.stat().st_size)
    assert pace.eta_s is None
