"""An encoder as its clients meet it: a process of its own, over gRPC."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from store.store import Store
from tests.servers import Server, running, twinbert, write_documents
from twinbert.runtime import Runtime
from twinbert.v1 import encoder_pb2 as pb
from twinbert.v1 import encoder_pb2_grpc

TEXTS = {f"d{number}": f"{word} pizza {number}" for number, word in enumerate(["red", "blue", "green"] * 40)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(scope="module")
def shared(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """An encoder for tests that leave its store as it is, or only add to it."""
    path = tmp_path_factory.mktemp("encoder") / "store"
    with running("encoder", tiny_bundle, path) as server:
        yield server, path


@pytest.fixture
def server(shared: tuple[Server, Path]) -> Server:
    return shared[0]


@pytest.fixture
def stub(server: Server) -> Iterator[Any]:
    with connected(server) as stub:
        yield stub


class connected:  # noqa: N801 - used as a function is
    """A stub, in a `with`."""

    def __init__(self, server: Server) -> None:
        self._channel = grpc.insecure_channel(server.address)

    def __enter__(self) -> Any:
        return encoder_pb2_grpc.EncoderServiceStub(self._channel)

    def __exit__(self, *exception: object) -> None:
        self._channel.close()


def start(encoding: pb.Encoding = pb.ENCODING_UNSPECIFIED, *, force: bool = False) -> pb.RefreshRequest:
    return pb.RefreshRequest(start=pb.RefreshStart(mode=pb.REFRESH_MODE_FULL, encoding=encoding, force=force))


def batch(*documents: pb.Document) -> pb.RefreshRequest:
    return pb.RefreshRequest(batch=pb.DocumentBatch(documents=documents))


def documents(texts: dict[str, str]) -> list[pb.Document]:
    return [pb.Document(id=id_, text=text, time_ms=1_000) for id_, text in texts.items()]


COMMIT = pb.RefreshRequest(commit=pb.RefreshCommit())


def error_of(call: Any) -> tuple[grpc.StatusCode, str, str, str]:
    """Code, message, reason and field of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    trailing = dict(error.trailing_metadata())
    details = status_pb2.Status.FromString(trailing["grpc-status-details-bin"]).details
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for packed in details:
        packed.Unpack(info)
        packed.Unpack(bad)
    field = bad.field_violations[0].field if bad.field_violations else ""
    return error.code(), error.details(), info.reason, field


class Sending:
    """A Refresh whose requests are sent one by one."""

    def __init__(self, stub: Any) -> None:
        self._requests: queue.SimpleQueue[pb.RefreshRequest | None] = queue.SimpleQueue()
        self.call = stub.Refresh(iter(self._requests.get, None))

    def send(self, request: pb.RefreshRequest) -> None:
        self._requests.put(request)

    def end(self) -> None:
        self._requests.put(None)


def assert_current(path: Path, runtime: Runtime, texts: dict[str, str]) -> None:
    """The current generation is these documents, each with its own embedding."""
    opened = Store(path)
    generation = opened.open(opened.current())
    try:
        assert generation.manifest.documents == len(texts)
        rows = generation.read(generation.locate(list(texts)))
        np.testing.assert_allclose(rows, runtime.encode(list(texts.values()), "document"), rtol=0, atol=1e-5)
    finally:
        generation.close()


@pytest.mark.parametrize(("tower", "name"), [(pb.TOWER_QUERY, "query"), (pb.TOWER_DOCUMENT, "document")])
def test_encode(stub: Any, runtime: Runtime, tower: pb.Tower, name: Any) -> None:
    """Encode gives what the tower asked for gives, row by row, and names model and fingerprint."""
    texts = ["running shoes", "a list", "a much longer text about pizza without duplicates " * 5]
    response = stub.Encode(pb.EncodeRequest(tower=tower, texts=texts))
    embeddings = np.frombuffer(response.embeddings, "<f4").reshape(3, response.dimension)
    np.testing.assert_allclose(embeddings, runtime.encode(texts, name), rtol=0, atol=1e-6)
    assert (response.model, response.fingerprint) == (runtime.bundle.model, runtime.bundle.fingerprint)


@pytest.mark.parametrize(
    ("request_", "field", "message"),
    [
        (pb.EncodeRequest(texts=["a"]), "tower", "TOWER_QUERY or TOWER_DOCUMENT"),
        (pb.EncodeRequest(tower=9, texts=["a"]), "tower", "TOWER_QUERY or TOWER_DOCUMENT"),
        (pb.EncodeRequest(tower=pb.TOWER_QUERY), "texts", "0 were given: give 1 to 256"),
        (pb.EncodeRequest(tower=pb.TOWER_QUERY, texts=["a"] * 257), "texts", "257 were given: give 1 to 256"),
        (pb.EncodeRequest(tower=pb.TOWER_QUERY, texts=["a", " \t"]), "texts[1]", "is blank"),
    ],
)
def test_a_bad_encode_names_its_field(stub: Any, request_: pb.EncodeRequest, field: str, message: str) -> None:
    """What breaks the contract is INVALID_ARGUMENT, with the field and what to give instead."""
    code, details, reason, found = error_of(lambda: stub.Encode(request_))
    assert (code, reason, found) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", field)
    assert message in details


def test_a_refresh_publishes(tiny_bundle: Path, store: Path, runtime: Runtime) -> None:
    """Progress comes after each batch, the generation last; a second refresh reuses what is unchanged."""
    with running("encoder", tiny_bundle, store) as server, connected(server) as stub:
        sent = documents(TEXTS)
        responses = list(stub.Refresh(iter([start(), batch(*sent[:50]), batch(*sent[50:]), COMMIT])))
        assert [(one.received, one.generation != "") for one in responses] == [(50, False), (120, False), (120, True)]
        last = responses[-1]
        assert (last.encoded, last.reused, last.rejected, last.deleted) == (120, 0, 0, 0)
        assert last.generation == Store(store).current()
        assert_current(store, runtime, TEXTS)
        changed = TEXTS | {"d7": "another text", "new": "running shoes"}
        *_, last = stub.Refresh(iter([start(), batch(*documents(changed | {"d3": "x"})), batch(*sent[3:4]), COMMIT]))
        assert (last.encoded, last.reused, last.duplicates) == (2, 119, 1)
        assert_current(store, runtime, changed)


def test_bad_documents_are_rejected_one_by_one(tiny_bundle: Path, store: Path, runtime: Runtime) -> None:
    """A document without key or text, with too long an id or one of the other type is left out, with its place."""
    good = documents({"a": "red", "b": "blue"})
    bad = [
        pb.Document(text="no key"),
        pb.Document(id="", text="an empty key"),
        pb.Document(id="x" * 512, text="a long key"),
        pb.Document(number=7, text="a number"),
        pb.Document(id="blank", text=" \n"),
    ]
    with running("encoder", tiny_bundle, store) as server, connected(server) as stub:
        requests = [start(), batch(*bad[:3], good[0], *bad[3:]), batch(bad[4], good[1]), COMMIT]
        first, second, last = stub.Refresh(iter(requests))
        reasons = [(one.position, one.document_id, one.reason) for one in first.rejections]
        assert [place for place, _, _ in reasons] == [0, 1, 2, 4, 5]
        words = ["no id", "the id is empty", "at most 511 are allowed", "of type integer", "the text is blank"]
        assert [word in reason for word, (_, _, reason) in zip(words, reasons, strict=True)] == [True] * 5
        assert reasons[4][1] == "blank"
        assert [(one.position, one.document_id) for one in second.rejections] == [(6, "blank")]
        assert (last.received, last.rejected, len(last.rejections)) == (8, 6, 0)
        assert_current(store, runtime, {"a": "red", "b": "blue"})
        code, details, reason, _ = error_of(lambda: list(stub.Refresh(iter([start(), batch(bad[4]), COMMIT]))))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_DOCUMENTS")
        assert "the first because the text is blank" in details


def test_very_many_rejections_come_in_several_responses(stub: Any) -> None:
    """No response outgrows what a client with gRPC's default limit takes, and every rejection is listed once."""
    nothing = [pb.Document(id=f"{number:0500}", text=" ") for number in range(9000)]
    call = stub.Refresh(iter([start(), batch(*nothing)]))
    positions = [one.position for response in call for one in response.rejections]
    assert positions == list(range(9000))


def test_integer_ids_and_encoding(tiny_bundle: Path, store: Path) -> None:
    """A new store takes the id type of the first document, and the encoding that the start asks for."""
    with running("encoder", tiny_bundle, store) as server, connected(server) as stub:
        numbers = [pb.Document(number=number, text=f"list {number}") for number in (0, 7, (1 << 64) - 1)]
        *_, last = stub.Refresh(iter([start(pb.ENCODING_UINT8), batch(*numbers), COMMIT]))
        manifest = Store(store).manifest(last.generation)
        assert (manifest.id_type, manifest.encoding, manifest.documents) == ("integer", "uint8", 3)
        first, _ = stub.Refresh(iter([start(), batch(pb.Document(id="a", text="b"), *numbers), COMMIT]))
        assert (first.rejected, Store(store).manifest(Store(store).current()).encoding) == (1, "uint8")


def test_a_stream_without_commit_publishes_nothing(tiny_bundle: Path, store: Path) -> None:
    """Ended or cancelled, it leaves the current generation and frees the store for the next refresh at once."""
    with running("encoder", tiny_bundle, store) as server, connected(server) as stub:
        *_, published = stub.Refresh(iter([start(), batch(*documents(TEXTS)), COMMIT]))
        assert [one.generation for one in stub.Refresh(iter([start(), batch(*documents({"a": "b"}))]))] == [""]
        cancelled = Sending(stub)
        cancelled.send(start())
        cancelled.send(batch(*documents({"a": "b"})))
        assert next(cancelled.call).received == 1
        cancelled.call.cancel()
        cancelled.end()
        assert server.wait_for("refresh_abandoned")["received"] == 1
        assert server.wait_for("refresh_abandoned")["received"] == 1
        assert Store(store).current() == published.generation
        *_, last = stub.Refresh(iter([start(force=True), batch(*documents({"a": "b"})), COMMIT]))
        assert last.generation == Store(store).current()
        metrics = server.metrics()
        assert metrics['twinbert_encoder_refreshes_total{outcome="abandoned"}'] == 2
        assert metrics['twinbert_encoder_refreshes_total{outcome="published"}'] == 2


def test_one_refresh_at_a_time(tiny_bundle: Path, store: Path, tmp_path: Path) -> None:
    """While one runs, another over gRPC and the command are refused with the holder; the first is undisturbed."""
    with running("encoder", tiny_bundle, store) as server, connected(server) as stub:
        first = Sending(stub)
        first.send(start())
        first.send(batch(*documents({"a": "b"})))
        assert next(first.call).received == 1
        code, details, reason, _ = error_of(lambda: list(stub.Refresh(iter([start(), batch(*documents(TEXTS))]))))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STORE_LOCKED")
        assert f"(process {server.process.pid} on " in details
        file = write_documents(tmp_path / "documents.jsonl", TEXTS)
        words = ("--bundle", str(tiny_bundle), "--store", str(store), "--documents", str(file))
        refused = twinbert("refresh", *words)
        assert refused.returncode == 2
        assert f"(process {server.process.pid} on " in refused.stderr
        first.send(COMMIT)
        first.end()
        assert next(first.call).generation == Store(store).current()


@pytest.mark.parametrize(
    ("requests", "code", "message"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT, "start: is missing"),
        ([COMMIT], grpc.StatusCode.INVALID_ARGUMENT, "start: is missing"),
        ([start(), start()], grpc.StatusCode.INVALID_ARGUMENT, "step: is start"),
        ([start(), pb.RefreshRequest()], grpc.StatusCode.INVALID_ARGUMENT, "step: is empty"),
        ([pb.RefreshRequest(start=pb.RefreshStart())], grpc.StatusCode.INVALID_ARGUMENT, "start.mode: is unspecified"),
        ([pb.RefreshRequest(start=pb.RefreshStart(mode=7))], grpc.StatusCode.INVALID_ARGUMENT, "REFRESH_MODE_DELTA"),
        ([start(9)], grpc.StatusCode.INVALID_ARGUMENT, "start.encoding: 9 is unknown"),
        ([start(), COMMIT], grpc.StatusCode.FAILED_PRECONDITION, "no document came"),
        (
            [pb.RefreshRequest(start=pb.RefreshStart(mode=pb.REFRESH_MODE_DELTA))],
            grpc.StatusCode.FAILED_PRECONDITION,
            "has no current generation",
        ),
        (
            [start(), pb.RefreshRequest(batch=pb.DocumentBatch(deleted_ids=["a"]))],
            grpc.StatusCode.INVALID_ARGUMENT,
            "batch: has deletions, which need REFRESH_MODE_DELTA",
        ),
        (
            [start(), pb.RefreshRequest(batch=pb.DocumentBatch(deleted_numbers=[1]))],
            grpc.StatusCode.INVALID_ARGUMENT,
            "batch: has deletions, which need REFRESH_MODE_DELTA",
        ),
    ],
)
def test_a_bad_refresh(stub: Any, requests: list[pb.RefreshRequest], code: grpc.StatusCode, message: str) -> None:
    """What breaks the contract, or asks for what is not there yet, fails with the right code and says what to do."""
    found, details, _, _ = error_of(lambda: list(stub.Refresh(iter(requests))))
    assert (found, message in details) == (code, True), details


def test_text_that_is_not_utf8(server: Server) -> None:
    """A batch that cannot be parsed ends the refresh as the client's fault."""
    good = batch(pb.Document(id="a", text="QQ")).SerializeToString()
    requests = [start().SerializeToString(), good, good.replace(b"QQ", b"\xff\xfe")]
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream("/twinbert.v1.EncoderService/Refresh", lambda message: message, bytes)
        code, details, _, _ = error_of(lambda: list(call(iter(requests))))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "bad UTF-8" in details


def test_a_silent_stream_does_not_hold_the_store(tiny_bundle: Path, store: Path) -> None:
    """A refresh that sends nothing for --idle-seconds is ended, and the next one can run."""
    with running("encoder", tiny_bundle, store, "--idle-seconds", "0.2") as server, connected(server) as stub:
        silent = Sending(stub)
        silent.send(start())
        silent.send(batch(*documents({"a": "b"})))
        code, details, _, _ = error_of(lambda: list(silent.call))
        silent.end()
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "sent nothing for 0.2 s" in details
        *_, last = stub.Refresh(iter([start(), batch(*documents({"a": "b"})), COMMIT]))
        assert last.generation


def test_backpressure(tiny_bundle: Path, store: Path) -> None:
    """A client that sends without pause is held back while a window is tokenised and encoded."""
    text, sent = "pizza" * 6_000, 0

    def requests() -> Iterator[pb.RefreshRequest]:
        nonlocal sent
        yield start()
        while True:
            yield batch(*(pb.Document(id=f"{number}", text=f"{number} {text}") for number in range(64)))
            sent += 1

    with running("encoder", tiny_bundle, store) as server, connected(server) as stub:
        call = stub.Refresh(requests())
        ahead = [sent - next(call).received // 64 for _ in range(12)]  # the ninth batch of 2 MB fills a window
        # Two or three batches fit between the generator and the server's count, not the hundreds it could make.
        assert max(ahead) < 10
        call.cancel()
        server.wait_for("refresh_abandoned")


def test_every_series_is_there_from_the_start(tiny_bundle: Path, store: Path) -> None:
    """Counters are exported at zero before anything happens, and count what happens."""
    with running("encoder", tiny_bundle, store) as server, connected(server) as stub:
        before = server.metrics()
        outcomes = {"documents": ("encoded", "reused", "deleted", "rejected", "duplicate")}
        outcomes["compactions"] = ("published", "superseded", "failed")
        outcomes["refreshes"] = ("published", "refused", "failed", "abandoned")
        for name, values in outcomes.items():
            for outcome in values:
                assert before[f'twinbert_encoder_{name}_total{{outcome="{outcome}"}}'] == 0
        for tower in ("query", "document"):
            assert before[f'twinbert_encoder_truncated_total{{tower="{tower}"}}'] == 0
        for method in ("Encode", "Refresh"):
            assert before[f'twinbert_rpc_duration_seconds_count{{code="OK",method="{method}"}}'] == 0
        for name in ("last_publish_timestamp_seconds", "segments", "dead_row_ratio"):
            assert before[f"twinbert_encoder_{name}"] == 0
        long = "a list " * 100
        stub.Encode(pb.EncodeRequest(tower=pb.TOWER_QUERY, texts=[long, "a"]))
        requests = [start(), batch(*documents({"a": "c", "b": long, "d": " "})), batch(*documents({"a": "e"})), COMMIT]
        *_, last = stub.Refresh(iter(requests))
        after = server.metrics()
        counts = [after[f'twinbert_encoder_documents_total{{outcome="{one}"}}'] for one in outcomes["documents"]]
        assert counts == [2, 0, 0, 1, 1]
        assert [after[f'twinbert_encoder_truncated_total{{tower="{one}"}}'] for one in ("query", "document")] == [1, 1]
        assert after["twinbert_encoder_refresh_duration_seconds_count"] == 1
        assert after["twinbert_encoder_last_publish_timestamp_seconds"] > 1.7e9
        assert after['twinbert_rpc_duration_seconds_count{code="OK",method="Refresh"}'] == 1
        assert [name for name in after if "_info" in name and last.generation in name]


def test_stopping_in_the_middle_of_a_refresh(tiny_bundle: Path, store: Path) -> None:
    """SIGTERM gives a refresh the time to drain, then ends it: nothing is published and the exit code is 0."""
    with running("encoder", tiny_bundle, store, "--drain-seconds", "0.1") as server, connected(server) as stub:
        refresh = Sending(stub)
        refresh.send(start())
        refresh.send(batch(*documents({"a": "b"})))
        assert next(refresh.call).received == 1
        assert server.stop() == 0
        with pytest.raises(grpc.RpcError):
            next(refresh.call)
        refresh.end()
    assert not (store / "CURRENT").exists()
    assert [one["event"] for one in server.log][-1] == "stopped"


def test_a_client_not_ours(server: Server) -> None:
    """grpcurl finds the service by reflection and calls it without our stubs."""
    grpcurl = str(Path(sys.executable).with_name("grpcurl"))
    listed = subprocess.run([grpcurl, "-plaintext", server.address, "list"], capture_output=True, text=True, check=True)
    assert "twinbert.v1.EncoderService" in listed.stdout
    call = [grpcurl, "-plaintext", "-d", "@", server.address, "twinbert.v1.EncoderService/Encode"]
    body = json.dumps({"tower": "TOWER_DOCUMENT", "texts": ["a list"]})
    answer = subprocess.run(call, input=body, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["dimension"] == 32
