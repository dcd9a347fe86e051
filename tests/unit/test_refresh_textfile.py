"""`twinbert refresh --metrics-file`: what monitoring learns of runs that end before anybody could ask them."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from encoder_server.textfile import recording_run
from store.store import Store
from tests.servers import COMMAND, twinbert, write_documents
from twinbert.errors import DriftError

TEXTS = {f"d{number}": f"{word} pizza {number}" for number, word in enumerate(["red", "blue", "green"] * 4)}


class Silent:
    """A report that keeps the events it is told."""

    interval_s = 60.0

    def __init__(self) -> None:
        self.events: list[str] = []

    def event(self, name: str, text: str, **fields: object) -> None:
        self.events.append(text)

    def pace(self, pace: object) -> None:
        pass


def read(path: Path) -> dict[str, float]:
    """The file's samples, by name without prefix, and by outcome where they have one."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            assert sample.labels["store"].startswith("/")
            outcome = sample.labels.get("outcome", "")
            found[f"{sample.name.removeprefix('twinbert_refresh_')}{outcome and ' '}{outcome}"] = sample.value
    return found


def outcome(samples: dict[str, float]) -> str:
    """How the run ended."""
    (name,) = (name for name, value in samples.items() if name.startswith("outcome ") and value == 1)
    return name.removeprefix("outcome ")


def test_runs_that_succeed_and_fail(tiny_bundle: Path, tmp_path: Path) -> None:
    """A run that published says what of and when; one that fails replaces all of that but the last success."""
    store, path, documents = tmp_path / "store", tmp_path / "refresh.prom", tmp_path / "documents.jsonl"
    write_documents(documents, TEXTS)
    with documents.open("a") as file:
        file.write(json.dumps({"id": "late", "text": "late", "time": 4_000_000_000}) + '\n{"id": "bad"}\n')
    words = ("refresh", "--bundle", str(tiny_bundle), "--store", str(store), "--metrics-file", str(path), "--documents")
    before = time.time()
    assert twinbert(*words, str(documents)).returncode == 0
    first = read(path)
    assert outcome(first) == "published"
    assert {name: first[f"documents {name}"] for name in ("encoded", "reused", "deleted", "rejected", "duplicate")} == {
        "encoded": 13,
        "reused": 0,
        "deleted": 0,
        "rejected": 1,
        "duplicate": 0,
    }
    assert first["watermark_timestamp_seconds"] == 4_000_000_000
    assert first["generation_documents"] == 13
    assert before <= first["last_success_timestamp_seconds"] == first["end_timestamp_seconds"] <= time.time()
    assert 0 < first["duration_seconds"] < time.time() - before

    assert twinbert(*words, str(tmp_path / "missing.jsonl")).returncode == 2
    second = read(path)
    assert outcome(second) == "failed"
    assert second["documents encoded"] == 0
    assert second["last_success_timestamp_seconds"] == first["last_success_timestamp_seconds"]
    assert second["end_timestamp_seconds"] > first["end_timestamp_seconds"]
    assert second["watermark_timestamp_seconds"] == 4_000_000_000
    assert {one.name for one in tmp_path.iterdir()} == {"store", "refresh.prom", "documents.jsonl"}

    unwritable = twinbert(*words[:-2], str(tmp_path / "no" / "refresh.prom"), "--documents", str(documents))
    assert unwritable.returncode == 2
    assert "--metrics-file" in unwritable.stderr
    assert len(Store(store).generations()) == 1


@pytest.mark.parametrize(("error", "expected"), [(DriftError, "refused"), (KeyboardInterrupt, "interrupted")])
def test_runs_that_are_stopped(tmp_path: Path, error: type[BaseException], expected: str) -> None:
    """A run that the gate refuses and one that is interrupted are told apart, before any success too."""
    path = tmp_path / "refresh.prom"
    with pytest.raises(error), recording_run(path, Store(tmp_path / "store"), Silent()):
        raise error
    samples = read(path)
    assert outcome(samples) == expected
    assert samples["last_success_timestamp_seconds"] == 0
    assert "watermark_timestamp_seconds" not in samples


@pytest.mark.parametrize(
    ("number", "code", "last"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 130, "interrupted"), ("SIGKILL", -9, "")]
)
def test_runs_that_are_ended_from_outside(tiny_bundle: Path, tmp_path: Path, number: str, code: int, last: str) -> None:
    """What ends a run in order is told, and keeps the last success; a SIGKILL leaves the file as the run before did."""
    path, documents = tmp_path / "refresh.prom", write_documents(tmp_path / "documents.jsonl", TEXTS)
    words = ["refresh", "--bundle", str(tiny_bundle), "--store", str(tmp_path / "store"), "--metrics-file", str(path)]
    assert twinbert(*words, "--documents", str(documents)).returncode == 0
    first = read(path)
    with subprocess.Popen(
        [COMMAND, *words, "--documents", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["event"] == "started"
        process.send_signal(signal.Signals[number])
        assert process.wait(timeout=60) == code
        assert ("twinbert: interrupted\n" in process.stderr.read()) == bool(last)
    second = read(path)
    assert second["last_success_timestamp_seconds"] == first["last_success_timestamp_seconds"]
    assert outcome(second) == (last or "published")
    assert (second == first) == (not last)
    assert {one.name for one in tmp_path.iterdir()} == {"store", "refresh.prom", "documents.jsonl"}


def test_a_run_that_is_ended_while_it_loads(tmp_path: Path) -> None:
    """SIGTERM ends a run before it reads documents too, and means afterwards what it meant before."""
    path = tmp_path / "refresh.prom"
    with pytest.raises(KeyboardInterrupt), recording_run(path, Store(tmp_path / "store"), Silent()):
        signal.raise_signal(signal.SIGTERM)
    assert outcome(read(path)) == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_file_that_cannot_be_replaced(tmp_path: Path) -> None:
    """What a run published stays published where its metrics cannot be written; the report says so."""
    path, report = tmp_path / "refresh.prom", Silent()
    with recording_run(path, Store(tmp_path / "store"), report):
        path.mkdir()
    (event,) = report.events
    assert f"{path} could not be written" in event
    assert not list(path.iterdir())
