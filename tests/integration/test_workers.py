"""Several scorer processes under one supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from tests.servers import COMMAND, Server, free_ports, refresh, twinbert, write_documents
from twinbert.client import ScorerClient, Task
from twinbert.recorded import read_missed, read_requests
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1 import scorer_pb2_grpc


@pytest.fixture(scope="module")
def store(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three documents, called like our package, in a folder with a file called like another's."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "numpy.py").write_text("raise SystemExit('a file of the working directory was imported')")
    documents = write_documents(folder / "documents.jsonl", {"a": "red shoe", "b": "blue hat", "c": "green coat"})
    refresh(tiny_bundle, folder / "store", documents)
    return folder / "store"


@contextmanager
def supervised(bundle: Path, store: Path, *options: str) -> Iterator[Server]:
    """`twinbert serve --workers 2`, in a process group of its own, as a shell starts it in the folder of the store."""
    words = [COMMAND, "serve", "--bundle", str(bundle), "--store", str(store), "--workers", "2", *options]
    process = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        cwd=store.parent,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    server = Server(process)
    try:
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)
        server._reader.join(timeout=60)
        assert process.stderr is not None
        process.stderr.close()


def test_a_worker_that_dies_is_started_again_and_clients_do_not_see_it(tiny_bundle: Path, store: Path) -> None:
    """Workers listen on consecutive ports; one killed under a client costs it no call, and comes back on its port."""
    first, metrics = free_ports(2), free_ports(2)
    ports = ("--address", f"127.0.0.1:{first}", "--metrics-port", str(metrics))
    with supervised(tiny_bundle, store, *ports) as server:
        pids = [server.wait_for("worker_started")["pid"] for _ in range(2)]
        addresses = {server.wait_for("serving")["address"] for _ in range(2)}
        assert addresses == {f"127.0.0.1:{first}", f"127.0.0.1:{first + 1}"}
        with ScorerClient(sorted(addresses)) as client:
            expected = client.score(Task("shoe", ["a", "b"])).results[0].scores.tolist()
            for address in addresses:  # both answer
                with ScorerClient(address) as one:
                    assert one.score(Task("shoe", ["a", "b"])).results[0].scores.tolist() == expected
            os.kill(pids[0], signal.SIGKILL)
            for _ in range(50):
                assert client.score(Task("shoe", ["a", "b"])).results[0].scores.tolist() == expected
        assert server.wait_for("worker_died")["code"] == -signal.SIGKILL
        assert server.wait_for("worker_started")["start"] == 2
        assert server.wait_for("serving")["address"] in addresses
        assert server.stop() == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_each_worker_records_to_files_of_its_own(tiny_bundle: Path, store: Path, tmp_path: Path) -> None:
    """Requests and misses of all workers are read from the names that the supervisor was given."""
    files = {name: tmp_path / f"{name}.jsonl" for name in ("requests", "misses")}
    recording = [word for name, file in files.items() for word in (f"--record-{name}", str(file))]
    ports = ("--address", "127.0.0.1:0", "--metrics-port", "0")
    with supervised(tiny_bundle, store, *ports, *recording) as server:
        for address in [server.wait_for("serving")["address"] for _ in range(2)]:
            with ScorerClient(address) as client:
                client.score(Task(f"shoe {address}", ["a", f"not at {address}"]))
        assert server.stop() == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{file.name}.worker-{number}" for file in files.values() for number in range(2)
    }
    assert len(read_requests(files["requests"], "string", 9)) == 2
    assert len(read_missed(files["misses"], "string")) == 2


def test_workers_end_with_a_supervisor_that_is_killed(tiny_bundle: Path, store: Path) -> None:
    """No worker stays behind, holding ports that nobody watches."""
    with supervised(tiny_bundle, store, "--address", "127.0.0.1:0", "--metrics-port", "0") as server:
        for _ in range(2):
            server.wait_for("serving")
        server.process.kill()
        for _ in range(2):
            server.wait_for("stopped")


def test_ctrl_c_drains_every_worker(tiny_bundle: Path, store: Path) -> None:
    """SIGINT to the whole group, as from a terminal: requests in flight are answered, and the exit code is 0."""
    words = "shoe " * 800  # read whole, which takes time: a worker's calls last for half a second
    requests = [
        pb.ScoreRequest(tasks=[pb.ScoreTask(query=f"{call} {task} {words}", document_ids=["a"]) for task in range(64)])
        for call in range(20)
    ]
    options = ("--address", "127.0.0.1:0", "--metrics-port", "0", "--engines", "1", "--queue", "10000")
    with supervised(tiny_bundle, store, *options) as server, ExitStack() as stack:
        stubs = {}
        for _ in range(2):
            server.started()
            channel = stack.enter_context(grpc.insecure_channel(server.address))
            stubs[server.metrics_port] = scorer_pb2_grpc.ScorerServiceStub(channel)
        calls = [stub.Score.future(request) for request in requests for stub in stubs.values()]
        for server.metrics_port in stubs:
            while server.metrics()['twinbert_rpc_received_total{method="Score"}'] < len(requests):
                pass
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(timeout=60) == 0
        assert all(len(call.result().results) == 64 for call in calls)


def test_ctrl_c_at_the_start_is_no_error(tiny_bundle: Path, store: Path) -> None:
    """Workers that have not set up their own handling of signals yet end with the supervisor, whose exit code is 0."""
    with supervised(tiny_bundle, store, "--address", "127.0.0.1:0", "--metrics-port", "0") as server:
        for _ in range(2):
            server.wait_for("worker_started")
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("before_it_runs", "said"),
    [
        ("_end_with(supervisor)", "it runs\n0\n"),
        ("_end_with(supervisor + 1)", "1\n"),
        ("_end_with(supervisor), os.kill(os.getpid(), signal.SIGTERM)", "-15\n"),
    ],
)
def test_no_worker_outlives_a_supervisor_killed_as_it_starts_one(before_it_runs: str, said: str) -> None:
    """A worker ends at once if its supervisor was gone before, or is ended by the signal of that before it runs."""
    script = f"""
import os, signal, subprocess, sys
from scorer_server.supervisor import _end_with
signal.signal(signal.SIGTERM, lambda *_: None)  # as a supervisor does
supervisor = os.getpid()
worker = [sys.executable, "-c", "print('it runs')"]
print(subprocess.run(worker, preexec_fn=lambda: ({before_it_runs})).returncode)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == said


def test_bad_settings_end_the_supervisor_with_their_message(tiny_bundle: Path, tmp_path: Path) -> None:
    """What every worker would refuse is said once and ends the command with code 2; it is not tried again."""
    words = ("--bundle", str(tiny_bundle), "--store", str(tmp_path / "none"), "--workers", "2")
    done = twinbert("serve", *words, "--address", "127.0.0.1:0", "--metrics-port", "0")
    assert done.returncode == 2
    assert "none" in done.stderr
    assert '"start": 2' not in done.stderr


def test_ports_beyond_the_last_are_refused(tiny_bundle: Path, store: Path) -> None:
    """Workers that would have no port are refused before one is started."""
    words = ("--bundle", str(tiny_bundle), "--store", str(store), "--workers", "2", "--address", "127.0.0.1:65535")
    done = twinbert("serve", *words)
    assert done.returncode == 2
    assert "2 workers from port 65535 need ports beyond 65535" in done.stderr
