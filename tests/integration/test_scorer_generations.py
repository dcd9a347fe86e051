"""A scorer beside publishing: it follows the store, and refuses what it cannot serve."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import threading
from pathlib import Path

import grpc
import pytest
from scorer_cases import WORDS, one_task

from tests.servers import refresh, running, twinbert, write_documents
from twinbert.v1 import scorer_pb2 as pb
from twinbert.v1 import scorer_pb2_grpc


def test_a_new_generation_is_picked_up(tiny_bundle: Path, tmp_path: Path) -> None:
    """After a publish requests see the new documents; one that names the old generation keeps the old bits."""
    store = tmp_path / "store"
    first = refresh(tiny_bundle, store, write_documents(tmp_path / "a.jsonl", {"a": "red shoe", "b": "blue boot"}))
    with running("serve", tiny_bundle, store) as server, grpc.insecure_channel(server.address) as channel:
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        before = stub.Score(one_task("shoe", "a", "c"))
        assert before.generation == first
        documents = {"a": "a green lamp", "c": "glass table"}
        second = refresh(tiny_bundle, store, write_documents(tmp_path / "b.jsonl", documents))
        server.wait_for("generation_swapped")
        after = stub.Score(one_task("shoe", "a", "c"))
        assert after.generation == second
        assert list(after.results[0].statuses) == [pb.DOCUMENT_STATUS_OK] * 2
        assert after.results[0].scores[0] != before.results[0].scores[0]
        pinned = one_task("shoe", "a", "c")
        pinned.generation = first
        again = stub.Score(pinned)
        assert again.generation == first
        assert again.results[0].scores[0] == before.results[0].scores[0]
        assert [one.name for one in stub.Describe(pb.DescribeRequest()).held] == [second, first]
        twinbert("store", "rollback", "--store", str(store))
        server.wait_for("generation_swapped")
        assert stub.Score(one_task("shoe", "a")).generation == first


def test_no_request_fails_while_generations_change(tiny_bundle: Path, tmp_path: Path) -> None:
    """Under load, through several publishes, every response is whole and from one generation."""
    store = tmp_path / "store"

    def documents(version: int) -> Path:
        return write_documents(tmp_path / "d.jsonl", {f"d{n}": WORDS[(n + version) % len(WORDS)] for n in range(50)})

    scores: dict[str, tuple[float, ...]] = {}
    refresh(tiny_bundle, store, documents(0))
    with running("serve", tiny_bundle, store) as server, grpc.insecure_channel(server.address) as channel:
        stub, stop = scorer_pb2_grpc.ScorerServiceStub(channel), threading.Event()
        request = one_task("shoe", *(f"d{n}" for n in range(50)))

        def load() -> int:
            count = 0
            while not stop.is_set():
                response = stub.Score(request)
                row = tuple(response.results[0].scores)
                assert scores.setdefault(response.generation, row) == row
                count += 1
            return count

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            loads = [pool.submit(load) for _ in range(3)]
            try:
                for version in range(1, 4):
                    refresh(tiny_bundle, store, documents(version))
                    server.wait_for("generation_swapped")
            finally:
                stop.set()
            assert all(one.result() > 0 for one in loads)
    assert len(scores) == 4


@pytest.mark.parametrize("damage", ["segment cut", "segment flipped", "manifest flipped", "current garbage", "other"])
def test_a_generation_that_cannot_be_served_is_refused(
    tiny_bundle: Path, other_bundle: Path, tmp_path: Path, damage: str
) -> None:
    """The server says so in metric and log, keeps the generation that it has, and goes on when the store is mended."""
    store = tmp_path / "store"
    first = refresh(tiny_bundle, store, write_documents(tmp_path / "a.jsonl", {"a": "red shoe"}))
    with running("serve", tiny_bundle, store) as server, grpc.insecure_channel(server.address) as channel:
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        published_by(other_bundle if damage == "other" else tiny_bundle, store, tmp_path, damage)
        event = server.wait_for("generation_refused")
        assert event["serving"] == first
        assert stub.Score(one_task("shoe", "a")).generation == first
        reason = "mismatch" if damage == "other" else "unverified"
        series = f'twinbert_generation_refused{{reason="{reason}"}}'
        assert (event["reason"], server.metrics()[series]) == (reason, 1)
        refused = stub.Describe(pb.DescribeRequest()).refused
        assert (refused.name, refused.reason, refused.message) == (event["refused"], reason, event["why"])
        (store / "CURRENT").write_text(f"{first}\n")
        mended = refresh(tiny_bundle, store, write_documents(tmp_path / "c.jsonl", {"a": "wood"}))
        server.wait_for("generation_swapped")
        assert stub.Score(one_task("shoe", "a")).generation == mended
        assert server.metrics()[series] == 0
        assert not stub.Describe(pb.DescribeRequest()).HasField("refused")


def test_a_start_beside_damage(tiny_bundle: Path, tmp_path: Path) -> None:
    """A server that starts on a current generation that is damaged serves the one before, and says so from the first
    moment in log, metric and Describe, until somebody rolls back.
    """
    store = tmp_path / "store"
    first = refresh(tiny_bundle, store, write_documents(tmp_path / "a.jsonl", {"a": "red shoe"}))
    published_by(tiny_bundle, store, tmp_path, "segment flipped")
    with running("serve", tiny_bundle, store) as server, grpc.insecure_channel(server.address) as channel:
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        (event,) = (event for event in server.log if event["event"] == "generation_refused")
        assert (event["serving"], event["reason"]) == (first, "unverified")
        series = 'twinbert_generation_refused{reason="unverified"}'
        assert server.metrics()[series] == 1
        assert stub.Score(one_task("shoe", "a")).generation == first
        assert stub.Describe(pb.DescribeRequest()).refused.name == event["refused"]
        assert twinbert("store", "rollback", "--store", str(store)).returncode == 0
        while server.metrics()[series]:
            pass


def published_by(bundle: Path, store: Path, folder: Path, damage: str) -> None:
    """Publishes a generation that is damaged before the server can see it."""
    aside = folder / "aside"
    shutil.copytree(store, aside)
    name = refresh(bundle, aside, write_documents(folder / "b.jsonl", {"a": "blue boot", "b": "lamp"}))
    manifest = aside / "generations" / f"{name}.json"
    (segment,) = json.loads(manifest.read_text())["segments"]
    data = aside / "segments" / segment["id"] / "data.mdb"
    match damage:
        case "segment cut":
            data.write_bytes(data.read_bytes()[:-4096])
        case "segment flipped":
            content = bytearray(data.read_bytes())
            content[len(content) // 2] ^= 1
            data.write_bytes(content)
        case "manifest flipped":
            manifest.write_bytes(manifest.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    shutil.copytree(data.parent, store / "segments" / segment["id"])
    shutil.copy(manifest, store / "generations")
    (store / "CURRENT").write_text("nonsense" if damage == "current garbage" else f"{name}\n")
