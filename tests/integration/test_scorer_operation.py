"""A scorer as operators meet it: metrics, health, its start and its end."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from scorer_cases import error_of, one_task

from tests.servers import Server, running, twinbert
from twinbert.bundle import Bundle
from twinbert.client import ScorerClient, Task
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1 import scorer_pb2_grpc

OK = 'twinbert_rpc_duration_seconds_count{code="OK",method="Score"}'


def test_every_series_is_there_from_the_start(tiny_bundle: Path, store: Path) -> None:
    """Before the first request, /metrics has every method, code, stage and status, at zero."""
    with running("serve", tiny_bundle, store) as server:
        metrics = server.metrics()
    for method in ("Score", "Retrieve", "Describe"):
        for code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL"):
            assert metrics[f'twinbert_rpc_duration_seconds_count{{code="{code}",method="{method}"}}'] == 0
    for stage in ("queue", "tokenize", "encode", "lookup", "cross"):
        assert metrics[f'twinbert_stage_duration_seconds_count{{stage="{stage}"}}'] == 0
    for status in ("ok", "not_found", "not_scored"):
        assert metrics[f'twinbert_candidates_total{{status="{status}"}}'] == 0
    for name in ("queries_total", "query_cache_hits_total", "batch_queries_count", "queue_depth"):
        assert metrics[f"twinbert_{name}"] == 0
    for reason in ("unverified", "bundle", "mismatch", "documents_lost", "error"):
        assert metrics[f'twinbert_generation_refused{{reason="{reason}"}}'] == 0
    assert metrics["twinbert_documents"] == 300
    assert metrics["twinbert_generation_age_seconds"] >= 0
    assert sum(name.startswith("twinbert_generation_info{") for name in metrics) == 1


def test_requests_are_counted(tiny_bundle: Path, store: Path) -> None:
    """RPCs by code, stages, queries, candidates by status, batches and cache hits."""
    with (
        running("serve", tiny_bundle, store) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        stub.Score(one_task("red", "d1", "nowhere"))
        stub.Score(one_task("red", "d1"))
        error_of(stub.Score, one_task("", "d1"))
        metrics = server.metrics()
    assert metrics['twinbert_rpc_duration_seconds_count{code="OK",method="Score"}'] == 2
    assert metrics['twinbert_rpc_duration_seconds_count{code="INVALID_ARGUMENT",method="Score"}'] == 1
    assert metrics['twinbert_candidates_total{status="ok"}'] == 2
    assert metrics['twinbert_candidates_total{status="not_found"}'] == 1
    assert (metrics["twinbert_queries_total"], metrics["twinbert_query_cache_hits_total"]) == (2, 1)
    assert (
        metrics["twinbert_batch_queries_count"] == metrics['twinbert_stage_duration_seconds_count{stage="encode"}'] == 1
    )


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_of(server: Server) -> None:
    """Names, types and help texts are as Prometheus wants them."""
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as response:
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=response.read(), capture_output=True, check=False
        )
    ours = [line for line in (checked.stdout + checked.stderr).decode().splitlines() if "twinbert" in line]
    assert ours == []


def test_health_is_told_for_each_service(server: Server) -> None:
    """The service by name, and the server as a whole."""
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "twinbert.v1.ScorerService"):
            status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
            assert status == health_pb2.HealthCheckResponse.SERVING


def test_series_stay_few(tiny_bundle: Path, store: Path) -> None:
    """Whatever callers make up adds no series; and none is a summary, which cannot be added up over replicas."""
    with running("serve", tiny_bundle, store) as server, grpc.insecure_channel(server.address) as channel:
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        stub.Score(one_task("red", "d1"))
        before = server.metrics()
        for number in range(20):
            unknown = channel.unary_unary(f"/twinbert.v1.ScorerService/Made{number}")
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                unknown(b"")
            error_of(stub.Score, pb.ScoreRequest(generation=f"made-{number}", tasks=one_task("red", "d1").tasks))
            stub.Score(one_task(f"query {number}", f"document {number}"), metadata=(("x-request-id", f"id-{number}"),))
        assert server.metrics().keys() == before.keys()
        assert "summary" not in {family.type for family in text_string_to_metric_families(server.exposition())}


def test_who_goes_on_calling_sees_nothing_of_a_drain(tiny_bundle: Path, store: Path) -> None:
    """While one of two scorers drains under load, callers of both are answered by the other, without one failure."""
    with running("serve", tiny_bundle, store) as leaving, running("serve", tiny_bundle, store) as staying:
        addresses, over = f"{leaving.address},{staying.address}", threading.Event()

        def ask(number: int) -> int:
            asked = 0
            while not over.is_set():
                client.score(Task(f"query {number} {asked}", ["d1", "d2"]), timeout=60)
                asked += 1
            return asked

        with ScorerClient(addresses) as client, ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(ask, number) for number in range(8)]
            try:
                for server in (leaving, staying):
                    while server.metrics()[OK] < 20:
                        pass
                assert leaving.stop() == 0
                done = staying.metrics()[OK]
                while staying.metrics()[OK] < done + 20:
                    pass
            finally:
                over.set()
            assert all(one.result() > 0 for one in asking)


def test_sigterm_drains(tiny_bundle: Path, store: Path) -> None:
    """Requests in flight are answered, and the exit code is 0."""
    with running("serve", tiny_bundle, store) as server, grpc.insecure_channel(server.address) as channel:
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        stub.Score(one_task("red", "d1"))
        ids = [f"d{number % 300}" for number in range(10_000)]
        request = pb.ScoreRequest(tasks=[pb.ScoreTask(query=f"q{n}", document_ids=ids[:150]) for n in range(60)])
        calls = [stub.Score.future(request) for _ in range(10)]
        while server.metrics()['twinbert_rpc_received_total{method="Score"}'] < 11:
            pass
        assert server.stop() == 0
        assert all(len(call.result().results) == 60 for call in calls)


def test_draining_does_not_wait_for_a_health_watch(tiny_bundle: Path, store: Path) -> None:
    """A client that watches health is told NOT_SERVING, and the server stops without waiting for it to leave."""
    with (
        running("serve", tiny_bundle, store, "--drain-seconds", "3600") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert server.stop() == 0
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_scorer_lets_no_thread_keep_the_interpreter(tiny_bundle: Path, store: Path) -> None:
    """Its threads have a tenth of a millisecond at a time, instead of Python's 5 ms, for as long as it runs."""
    script = """
import atexit, sys
from twinbert.cli import main
atexit.register(lambda: print(sys.getswitchinterval()))
sys.exit(main(sys.argv[1:]))
"""
    words = ["serve", "--bundle", str(tiny_bundle), "--store", str(store)]
    words += ["--address", "127.0.0.1:0", "--metrics-port", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        server = Server(process)
        server.started()
        assert server.stop() == 0
        assert process.stdout is not None
        assert float(process.stdout.read()) == pytest.approx(1e-4)


def fails_to_start(bundle: Path, store: Path, *options: str) -> str:
    """The one line that it says."""
    ports = ("--address", "127.0.0.1:0", "--metrics-port", "0")
    done = twinbert("serve", "--bundle", str(bundle), "--store", str(store), *ports, *options)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_it_refuses_to_start_on_what_it_cannot_serve(
    tiny_bundle: Path, other_bundle: Path, store: Path, tmp_path: Path
) -> None:
    """No store, no CURRENT, another bundle's store, a damaged segment: one line and exit code 2."""
    assert "is not a store" in fails_to_start(tiny_bundle, tmp_path / "none")
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    (copy / "CURRENT").unlink()
    assert "no current generation" in fails_to_start(tiny_bundle, copy)
    shutil.copy(store / "CURRENT", copy)
    other = fails_to_start(other_bundle, copy)
    assert Bundle.open(tiny_bundle).fingerprint in other
    assert Bundle.open(other_bundle).fingerprint in other
    (data,) = copy.glob("segments/*/data.mdb")
    content = bytearray(data.read_bytes())
    content[-5000] ^= 4
    data.write_bytes(content)
    assert str(data) in fails_to_start(tiny_bundle, copy)
    assert "no bundle" in fails_to_start(tmp_path, store)
    assert "either --bundle, or --bundles" in fails_to_start(tiny_bundle, store, "--bundles", str(tmp_path))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:99999", ":50051", "unix:/tmp/x", "127.0.0.1:http"])
def test_an_address_that_is_none_is_said(tiny_bundle: Path, store: Path, address: str) -> None:
    """It does not listen somewhere else instead."""
    assert "is not HOST:PORT" in fails_to_start(tiny_bundle, store, "--address", address)


def test_a_port_in_use_is_said(tiny_bundle: Path, store: Path, server: Server) -> None:
    """The gRPC port and the metrics port: one line that names the address."""
    assert server.address in fails_to_start(tiny_bundle, store, "--address", server.address)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = fails_to_start(tiny_bundle, store, "--address", "127.0.0.1:0", "--metrics-port", str(port))
    assert str(port) in line
