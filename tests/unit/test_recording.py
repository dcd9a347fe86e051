"""Files that a server records to beside its work."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from scorer_server.metrics import Metrics
from scorer_server.recording import Recorder
from scorer_server.sampling import Misses, MissSampler, RequestSampler
from twinbert.errors import UsageError
from twinbert.recorded import MissReason, Request, older, read_missed, read_requests
from twinbert.v1 import scorer_pb2 as pb


class Recording:
    """A recorder and what it counted."""

    def __init__(self, path: Path, limit: int = 1 << 20) -> None:
        metrics = Metrics()
        self.path = path
        self._registry = metrics.registry
        counters = metrics.recorded["requests"], metrics.dropped_recordings["requests"]
        self.recorder = Recorder(path, limit, *counters)

    def counted(self, name: str) -> float | None:
        return self._registry.get_sample_value(f"twinbert_{name}_total", {"file": "requests"})

    def lines(self) -> list[Any]:
        """What is in both files, once all that was offered is written."""
        self.recorder.close()
        texts = [path.read_text() for path in (older(self.path), self.path) if path.exists()]
        return [json.loads(line) for text in texts for line in text.splitlines()]


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path / "requests.jsonl")


def request(*tasks: tuple[str, list[Any]]) -> pb.ScoreRequest:
    return pb.ScoreRequest(tasks=[pb.ScoreTask(query=query, document_ids=ids) for query, ids in tasks])


def missed(*ids: str, task: int = 0) -> Misses:
    return Misses(ids, np.full(len(ids), task), ["deleted" if id_.startswith("old") else "never_seen" for id_ in ids])


def test_both_files_together_are_bounded_and_hold_the_latest(tmp_path: Path) -> None:
    """However much is recorded, the files stay within the limit, lose only the oldest lines and cut none."""
    recording = Recording(tmp_path / "requests.jsonl", 4000)
    for number in range(500):
        accepted = threading.Event()
        recording.recorder.offer(partial(noted, number, accepted))
        assert accepted.wait(30)
    numbers = [line["number"] for line in recording.lines()]
    assert numbers == list(range(numbers[0], 500))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert 2000 < sum(sizes) <= 4000
    assert recording.counted("recorded_lines") == 500


def noted(number: int, accepted: threading.Event) -> Iterator[dict[str, int]]:
    accepted.set()
    yield {"number": number}


def test_a_slow_disk_holds_nobody_up(recording: Recording) -> None:
    """What is offered while the writer is stuck waits up to a bound; beyond it is dropped and counted."""
    stuck, go = threading.Event(), threading.Event()

    def slow() -> Iterator[dict[str, str]]:
        stuck.set()
        assert go.wait(30)
        yield {"is": "slow"}

    recording.recorder.offer(slow)
    assert stuck.wait(30)
    for _ in range(1000):
        recording.recorder.offer(lambda: [{"is": "quick"}])
    go.set()
    written, dropped = len(recording.lines()), recording.counted("recordings_dropped")
    assert written + (dropped or 0) == 1001
    assert 1 < written < 100


def test_a_disk_that_fails_costs_a_record_and_no_more(tmp_path: Path) -> None:
    """When the full file cannot be moved the line is dropped and counted; when it can again, recording goes on."""
    recording = Recording(tmp_path / "requests.jsonl", 200)
    older(recording.path).mkdir()
    (older(recording.path) / "in the way").touch()
    for _ in range(3):
        recording.recorder.offer(lambda: [{"text": "x" * 60}])
    while recording.counted("recordings_dropped") != 2:
        pass
    (older(recording.path) / "in the way").unlink()
    older(recording.path).rmdir()
    recording.recorder.offer(lambda: [{"text": "y" * 60}])
    assert [line["text"][0] for line in recording.lines()] == ["x", "y"]


@pytest.mark.parametrize("moved", [True, False])
def test_a_file_that_is_gone_is_made_again(recording: Recording, tmp_path: Path, moved: bool) -> None:
    """Whoever moves the file away, or removes it, loses no line that comes after, and nobody else may read those."""
    recording.recorder.offer(lambda: [{"text": "before"}])
    while recording.counted("recorded_lines") != 1:
        pass
    away = tmp_path / "moved"
    recording.path.rename(away)
    if not moved:
        away.unlink()
    recording.recorder.offer(lambda: [{"text": "after"}])
    assert recording.lines() == [{"text": "after"}]
    assert stat.S_IMODE(recording.path.stat().st_mode) == 0o600
    assert not moved or away.read_text() == '{"text": "before"}\n'


@pytest.mark.parametrize("failing", ["os.open", "fcntl.flock"])
def test_a_file_that_cannot_be_opened_is_tried_again(tmp_path: Path, failing: str) -> None:
    """After the full file was moved the next cannot be made: lines are dropped, none that was written is lost, and when
    it can be made recording goes on.
    """
    recording = Recording(tmp_path / "requests.jsonl", 200)
    recording.recorder.offer(lambda: [{"text": "x" * 60}])
    while recording.counted("recorded_lines") != 1:
        pass
    with mock.patch(f"scorer_server.recording.{failing}", side_effect=OSError(errno.EMFILE, "too many open files")):
        for _ in range(2):
            recording.recorder.offer(lambda: [{"text": "y" * 60}])
        while recording.counted("recordings_dropped") != 2:
            pass
    recording.recorder.offer(lambda: [{"text": "z" * 60}])
    assert [line["text"][0] for line in recording.lines()] == ["x", "z"]


def test_only_the_owner_reads_and_one_server_writes(recording: Recording, tmp_path: Path) -> None:
    """The file says what users asked for; a second server is told to take another, and so is one without rights."""
    assert stat.S_IMODE(recording.path.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="another server writes it; name another file"):
        Recording(recording.path)
    with pytest.raises(UsageError, match="cannot be recorded to"):
        Recording(tmp_path / "none" / "requests.jsonl")
    recording.recorder.close()
    Recording(recording.path).recorder.close()


@pytest.mark.parametrize("mode", [0o644, 0o620, 0o604])
def test_a_file_that_others_could_read_becomes_the_owners(tmp_path: Path, mode: int) -> None:
    """Also what was recorded before, in both files: nothing is written where somebody else may read along."""
    path = tmp_path / "requests.jsonl"
    for there in (path, older(path)):
        there.write_text('{"query": "before"}\n')
        there.chmod(mode)
    recording = Recording(path)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, older(path))] == [0o600, 0o600]
    recording.recorder.offer(lambda: [{"query": "after"}])
    assert [line["query"] for line in recording.lines()] == ["before", "before", "after"]


def test_what_is_no_plain_file_keeps_its_mode(tmp_path: Path) -> None:
    """Whoever records to /dev/null, here a pipe, wants nothing recorded, and others need it too."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    path.chmod(0o644)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        Recording(path).recorder.close()
    finally:
        os.close(reader)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_request_is_read_as_it_was_recorded(recording: Recording) -> None:
    """Query, candidates in their order, and crossing; integers stay integers, and the other id type is left out."""
    numbers = pb.ScoreRequest(tasks=[pb.ScoreTask(query="größe 40\nred", document_numbers=[2**64 - 1, 0])])
    for one in (request(("red shoe", ["b", "a"])), numbers):
        RequestSampler(recording.recorder, rate=1e9).offer(one, "cosine")
    recording.recorder.close()
    assert read_requests(recording.path, "string", 9) == [Request("red shoe", ["b", "a"], "cosine")]
    assert read_requests(recording.path, "integer", 9) == [Request("größe 40\nred", [2**64 - 1, 0], "cosine")]


def test_of_a_large_request_a_part_is_recorded(recording: Recording) -> None:
    """One task, and at most 200 of its candidates, as they stood in it."""
    tasks = [(f"query {number}", [f"{number}-{place:04}" for place in range(3000)]) for number in range(5)]
    RequestSampler(recording.recorder, rate=1e9).offer(request(*tasks), "")
    [line] = recording.lines()
    number = line["query"].removeprefix("query ")
    assert len(set(line["ids"])) == 200
    assert all(id_.startswith(f"{number}-") for id_ in line["ids"])
    assert line["ids"] == sorted(line["ids"])


def test_however_many_requests_come_few_are_recorded(recording: Recording) -> None:
    """The rate is a bound: of a burst only one is taken."""
    sampler = RequestSampler(recording.recorder, rate=1e-6)
    for _ in range(1000):
        sampler.offer(request(("q", ["a"])), "")
    assert len(recording.lines()) == 1


def test_a_miss_is_recorded_once_and_without_its_query(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """Id, reason and generation; the query only where that is allowed; an id again only after many others."""
    monkeypatch.setattr("scorer_server.sampling._MISSES_RATE", 1e9)
    monkeypatch.setattr("scorer_server.sampling._REMEMBERED", 3)
    asked = request(("first", ["x"]), ("second", ["y"]))
    silent, open_ = (MissSampler(recording.recorder, queries=queries) for queries in (False, True))
    silent.offer(asked, missed("a", "old"), "000001-00000000")
    silent.offer(asked, missed("old", "b", "c"), "000001-00000000")
    silent.offer(asked, missed("a"), "000002-00000000")
    open_.offer(asked, missed("d", task=1), "000002-00000000")
    lines = recording.lines()
    assert [(line["id"], line["reason"]) for line in lines] == [
        *(("a", "never_seen"), ("old", "deleted"), ("b", "never_seen"), ("c", "never_seen")),
        *(("a", "never_seen"), ("d", "never_seen")),
    ]
    assert {line["generation"] for line in lines[:4]} == {"000001-00000000"}
    assert [line.get("query") for line in lines] == [None] * 5 + ["second"]
    assert read_missed(recording.path, "string") == {"a", "b", "c", "d"}  # what was deleted stays deleted


def test_a_miss_is_recorded_for_each_reason(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was never there, came and was deleted is read as deleted: the latest line counts."""
    monkeypatch.setattr("scorer_server.sampling._MISSES_RATE", 1e9)
    sampler = MissSampler(recording.recorder, queries=False)
    reasons: list[MissReason] = ["never_seen", "deleted", "deleted"]
    for reason in reasons:
        sampler.offer(request(("q", ["a"])), Misses(["a"], np.zeros(1, np.int64), [reason]), "000001-00000000")
    assert [line["reason"] for line in recording.lines()] == ["never_seen", "deleted"]
    assert read_missed(recording.path, "string") == set()


def test_what_is_no_record_is_left_out(tmp_path: Path) -> None:
    """A line that was cut off, a blank query, ids of the other type: the others are read; no file at all is said."""
    path = tmp_path / "requests.jsonl"
    with pytest.raises(UsageError, match="does not exist; a scorer that is told to record there makes it"):
        read_requests(path, "string", 9)
    good = {"query": "q", "ids": ["a"]}
    bad = [{"query": " ", "ids": []}, {"query": "q", "ids": [1]}, {"query": 3}, {"query": "q", "ids": "abc"}, [], None]
    bad += [{"query": "q", "ids": [True]}, {"query": "q", "ids": [""]}, {"query": "q", "crossing": 3}]
    bad += [{"query": "a\ud800", "ids": ["a"]}, {"query": "q", "ids": ["a", "\ud800"]}]  # which have no UTF-8
    text = "".join(json.dumps(line) + "\n" for line in (*bad, good, {"query": "alone"}))
    path.write_bytes(b"\xff\xfe\n" + text.encode() + b"[" * 100_000 + b'\n{"query": "cut o')
    assert read_requests(path, "string", 9) == [Request("alone", [], ""), Request("q", ["a"], "")]
    assert read_requests(path, "integer", 9) == [Request("alone", [], ""), Request("q", [1], "")]
    assert read_requests(path, "string", 1) == [Request("alone", [], "")]
    path.write_text("".join(json.dumps({"id": id_}) + "\n" for id_ in ("\ud800", "a", "b\udfff", 1, "")))
    assert read_missed(path, "string") == {"a"}


def test_what_workers_recorded_is_read_as_one(tmp_path: Path) -> None:
    """The latest requests of all workers come first, from full files too; other files beside them are not read."""
    path = tmp_path / "requests.jsonl"
    lines = {
        "requests.jsonl.worker-0": [3, 5],
        "requests.jsonl.worker-0.1": [1],
        "requests.jsonl.worker-1.1": [2, 4],
        "requests.jsonl.worker-x": [9],
    }
    for name, times in lines.items():
        (tmp_path / name).write_text(
            "".join(json.dumps({"time_ms": time, "query": f"q{time}"}) + "\n" for time in times)
        )
    assert [request.query for request in read_requests(path, "string", 4)] == ["q5", "q4", "q3", "q2"]
