"""Every alert, caused: real servers, a real Prometheus, our rules with shorter windows.

Slow, about a minute: it starts and kills servers, and Prometheus has to see each thing happen.
"""

from __future__ import annotations

import datetime
import fcntl
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.prometheus import RULES, Ask, alerts, free_port, node_exporter, prometheus
from tests.servers import COMMAND, Server, refresh, running, twinbert, write_documents
from tests.serving_fake import Certified
from twinbert.cli import main
from twinbert.client import Document, EncoderClient, ScorerClient, Task, tls_credentials
from twinbert.errors import RemoteError

pytestmark = [
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("prometheus-node-exporter")),
        reason="prometheus or its node exporter is not installed",
    ),
    pytest.mark.timeout(600),
]

WORDS = "red blue green small large shoe boot table chair lamp paper glass metal wood".split()
CORPUS = {f"d{number}": f"{WORDS[number % 14]} {WORDS[number % 11]}" for number in range(100)}

# The command; but SIGUSR1 makes its event loop hang, which runs in the main thread, as handlers of signals do.
BLOCKABLE = (
    sys.executable,
    "-c",
    "import signal, sys, threading; signal.signal(signal.SIGUSR1, lambda *_: threading.Event().wait());"
    "from twinbert.cli import main; sys.exit(main())",
)

# What only a refresh that is a job of its own can cause: the second test does.
OF_JOBS = {"TwinbertRefreshOld"}


def quick_rules() -> str:
    """Our rules as they are, but that a window is 10 seconds, and nothing has to last."""
    text = re.sub(r"\[\d+[mhd]\]", "[10s]", RULES.read_text())
    text = re.sub(r"changes\((.*?)\[10s\]\)", r"changes(\1[5m])", text)
    text = text.replace("interval: 30s", "interval: 1s")
    return re.sub(r"for: \d+[mh]", "for: 0s", text)


class Watch:
    """What has fired so far."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.fired: set[str] = set()

    def look(self) -> None:
        self.fired |= {one["metric"]["alertname"] for one in self._ask('ALERTS{alertstate="firing"}')}

    def until(self, name: str, cause: Callable[[], Any] = lambda: None) -> None:
        """Causes something again and again until an alert fires; the test's timeout ends what never does."""
        while name not in self.fired:
            cause()
            self.look()


@contextmanager
def lock_of(store: Path) -> Iterator[None]:
    """Holds the lock of a store, as another refresh does."""
    with (store / "LOCK").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def old_generation(bundle: Path, store: Path, documents: Path) -> None:
    """A refresh of two days ago."""
    two_days = 2 * 86400 * 10**9
    with mock.patch("time.time_ns", return_value=time.time_ns() - two_days):
        assert main(["refresh", "--bundle", str(bundle), "--store", str(store), "--documents", str(documents)]) == 0


def burst(scorer: Server, number: int) -> None:
    """More queries that were never asked than the queue holds: some wait long, the others are refused."""

    def ask(one: int) -> None:
        with suppress(RemoteError):
            client.score([Task(f"{' '.join(WORDS)} {number} {one} {n}", ["d1"]) for n in range(32)], timeout=60)

    with ScorerClient(scorer.address) as client, ThreadPoolExecutor(64) as pool:
        list(pool.map(ask, range(128)))


def test_every_alert_fires_when_its_cause_is_there(tiny_bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    """Each cause that the runbook names is brought about, and the alert for it fires."""
    documents = write_documents(tmp_path / "documents.jsonl", CORPUS)
    store, aged, merged = tmp_path / "store", tmp_path / "aged", tmp_path / "merged"
    first = refresh(tiny_bundle, store, documents)
    old_generation(tiny_bundle, aged, documents)
    certified = Certified(tmp_path)
    soon = datetime.datetime.now() + datetime.timedelta(days=3)
    certificate, key = certified.issue("server", not_after=soon)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ranker read {'r' * 32}\n")
    guard = ["--tls-cert", str(certificate), "--tls-key", str(key), "--tokens", str(tokens)]
    restarted = free_port()
    in_two = in_two_segments(tiny_bundle, merged, documents)
    with ExitStack() as stack:
        guarded = stack.enter_context(running("serve", tiny_bundle, aged, *guard, program=BLOCKABLE))
        scorer = stack.enter_context(running("serve", tiny_bundle, store, "--queue", "300", "--cache-bytes", "0"))
        encoder = stack.enter_context(running("encoder", tiny_bundle, store))
        merger = stack.enter_context(running("encoder", tiny_bundle, merged, "--max-segments", "1"))
        targets = {
            "twinbert-scorer": [guarded.metrics_port, scorer.metrics_port],
            "twinbert-encoder": [encoder.metrics_port, merger.metrics_port, restarted],
        }
        ask = stack.enter_context(prometheus(targets, quick_rules(), tmp_path))
        watch = Watch(ask)

        for name in ("TwinbertCertificateExpires", "TwinbertGenerationOld", "TwinbertGenerationsDiffer"):
            watch.until(name)

        def call_without_token() -> None:
            address = f"localhost:{guarded.address.rpartition(':')[2]}"
            with ScorerClient(address, credentials=tls_credentials(ca=certified.ca)) as client, suppress(RemoteError):
                client.describe()

        watch.until("TwinbertCallersRefused", call_without_token)
        tokens.write_text("nonsense\n")
        watch.until("TwinbertReloadFailed")

        bursts = iter(range(10_000))
        for name in ("TwinbertSheds", "TwinbertScoreErrorsBurnFast", "TwinbertScoreErrorsBurnSlow"):
            watch.until(name, lambda: burst(scorer, next(bursts)))
        for name in ("TwinbertScoreLatencyBurnFast", "TwinbertScoreLatencyBurnSlow"):
            watch.until(name, lambda: burst(scorer, next(bursts)))
        with ScorerClient(scorer.address) as client:
            watch.until("TwinbertCandidatesMissing", lambda: client.score(Task("shoe", ["gone"] * 5000), timeout=60))
        watch.until("TwinbertZeroTraffic")

        with EncoderClient(encoder.address) as client:

            def refresh_with(count: int) -> None:
                with suppress(RemoteError):
                    list(client.refresh(Document(*one) for one in list(CORPUS.items())[:count]))

            with lock_of(store):
                watch.until("TwinbertRefreshFailed", lambda: refresh_with(100))
            watch.until("TwinbertRefreshRefused", lambda: refresh_with(5))

        (tmp_path / "other").mkdir()
        for name, bundle in (("TwinbertGenerationRefused", other_bundle), ("TwinbertChecksumFailure", tiny_bundle)):
            foreign = refresh(bundle, tmp_path / "other" / name, write_documents(tmp_path / "d.jsonl", {"a": name}))
            give(tmp_path / "other" / name, store, foreign, damaged=name == "TwinbertChecksumFailure")
            watch.until(name)
            (store / "CURRENT").write_text(f"{first}\n")

        guarded.process.send_signal(signal.SIGUSR1)
        watch.until("TwinbertNotServing")
        seen: set[str] = set()
        for _ in range(4):
            with running("encoder", tiny_bundle, tmp_path / "none", "--metrics-port", str(restarted)):
                while len(found := seen | starts(ask, restarted)) == len(seen):
                    watch.look()
                seen = found
        watch.until("TwinbertRestarts")
        (merged / "CURRENT").write_text(f"{in_two}\n")
        watch.until("TwinbertCompactionFailed")
        scorer.process.send_signal(signal.SIGKILL)
        watch.until("TwinbertTargetDown")
        watch.fired.discard("TwinbertNoScorer")  # there was none before Prometheus had looked for the first time
        watch.until("TwinbertNoScorer")  # one is killed, the other hangs
    assert watch.fired == set(alerts()) - OF_JOBS


def test_alerts_of_a_refresh_job(tiny_bundle: Path, tmp_path: Path) -> None:
    """A run that fails, is refused or interrupted, or comes no more fires an alert that names the store; the next that
    succeeds ends it.
    """
    store, documents = tmp_path / "store", write_documents(tmp_path / "documents.jsonl", CORPUS)
    words = ["refresh", "--bundle", str(tiny_bundle), "--store", str(store)]
    words += ["--metrics-file", str(tmp_path / "refresh.prom"), "--documents"]
    with mock.patch("time.time", return_value=time.time() - 2 * 86400):
        assert main([*words, str(documents)]) == 0
    with node_exporter(tmp_path) as port, prometheus({"node": [port]}, quick_rules(), tmp_path) as ask:

        def wait_for(*expected: tuple[str, str]) -> None:
            while firing(ask) != {(*one, str(store)) for one in expected}:
                pass

        wait_for(("TwinbertRefreshOld", ""))
        with lock_of(store):
            assert twinbert(*words, str(documents)).returncode == 2
        wait_for(("TwinbertRefreshOld", ""), ("TwinbertRefreshFailed", "failed"))
        few = write_documents(tmp_path / "few.jsonl", dict(list(CORPUS.items())[:5]))
        assert twinbert(*words, str(few)).returncode == 3
        wait_for(("TwinbertRefreshOld", ""), ("TwinbertRefreshRefused", "refused"))
        with subprocess.Popen([COMMAND, *words, "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            process.stderr.readline()  # started: it waits for documents
            process.terminate()
        wait_for(("TwinbertRefreshOld", ""), ("TwinbertRefreshFailed", "interrupted"))
        assert twinbert(*words, str(documents)).returncode == 0
        wait_for()


def firing(ask: Ask) -> set[tuple[str, str, str]]:
    """The alerts of stores that fire now: name, how the run ended, store."""
    found = [one["metric"] for one in ask('ALERTS{alertstate="firing", store!=""}')]
    return {(one["alertname"], one.get("outcome", ""), one["store"]) for one in found}


def starts(ask: Ask, port: int) -> set[str]:
    """When the process at a metrics port was started, if it is up."""
    found = ask(f'process_start_time_seconds{{instance="127.0.0.1:{port}"}}')
    return {one["value"][1] for one in found}


def in_two_segments(bundle: Path, store: Path, documents: Path) -> str:
    """A store that serves a generation of one segment, and has another whose second segment is damaged; its name."""
    one = refresh(bundle, store, documents)
    segments = set((store / "segments").iterdir())
    delta = write_documents(documents.with_name("delta.jsonl"), {"d1": "another shoe"})
    two = refresh(bundle, store, delta, "--delta")
    (new,) = set((store / "segments").iterdir()) - segments
    damage(new)
    (store / "CURRENT").write_text(f"{one}\n")
    return two


def damage(segment: Path) -> None:
    """Flips a bit in the middle."""
    content = bytearray((segment / "data.mdb").read_bytes())
    content[len(content) // 2] ^= 1
    (segment / "data.mdb").write_bytes(content)


def give(source: Path, store: Path, name: str, *, damaged: bool) -> None:
    """Copies a generation into another store, and makes it the current one."""
    for segment in (source / "segments").iterdir():
        copied = shutil.copytree(segment, store / "segments" / segment.name)
        if damaged:
            damage(copied)
    shutil.copy(source / "generations" / f"{name}.json", store / "generations")
    (store / "CURRENT").write_text(f"{name}\n")
