"""The encoder's client against a real gRPC server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from twinbert.client import Deletion, Document, EncoderClient, Progress, Rejection
from twinbert.client.channel import MESSAGE_BYTES
from twinbert.errors import InvalidRequestError, RemoteError
from twinbert.v1 import encoder_pb2 as pb
from twinbert.v1.encoder_pb2_grpc import EncoderServiceServicer, add_EncoderServiceServicer_to_server

GENERATION = "000013-0badcafe"


class FakeEncoder(EncoderServiceServicer):
    """Encodes a text as its length and its number of words; takes every document but those with a blank text.

    Attributes:
        refusals: How many of the next calls are answered UNAVAILABLE.
        steps: Every RefreshRequest that arrived.
    """

    def __init__(self) -> None:
        self.refusals = 0
        self.calls = 0
        self.steps: list[pb.RefreshRequest] = []

    def Encode(self, request: pb.EncodeRequest, context: grpc.ServicerContext) -> pb.EncodeResponse:
        """[length, words] of each text."""
        self._arrived(context)
        assert request.tower == pb.TOWER_DOCUMENT
        embeddings = np.array([[len(text), len(text.split())] for text in request.texts], "<f4")
        return pb.EncodeResponse(embeddings=embeddings.tobytes(), dimension=2, model="8d" * 32, fingerprint="fe" * 32)

    def Refresh(
        self, requests: Iterator[pb.RefreshRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.RefreshResponse]:
        """Reports after each batch, and the generation after the commit."""
        self._arrived(context)
        received = 0
        rejections = []
        for request in requests:
            self.steps.append(request)
            for document in request.batch.documents:
                if not document.text.strip():
                    rejections.append(
                        pb.Rejection(document_id=document.id, position=received, reason="the text is blank")
                    )
                received += 1
            if request.WhichOneof("step") != "start":
                generation = GENERATION if request.HasField("commit") else ""
                yield pb.RefreshResponse(
                    received=received, rejected=len(rejections), rejections=rejections, generation=generation
                )

    def _arrived(self, context: grpc.ServicerContext) -> None:
        self.calls += 1
        assert context.time_remaining() < 10**6  # a call without a deadline has centuries left
        if self.refusals:
            self.refusals -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")


@pytest.fixture
def encoder() -> FakeEncoder:
    """The server's side."""
    return FakeEncoder()


@pytest.fixture
def client(encoder: FakeEncoder) -> Iterator[EncoderClient]:
    """A client of `encoder`, over a real port."""
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES)]
    server = grpc.server(ThreadPoolExecutor(2), options=options)
    add_EncoderServiceServicer_to_server(encoder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with contextlib.closing(EncoderClient(f"127.0.0.1:{port}")) as connected:
        yield connected
    server.stop(None).wait()


def kinds(steps: list[pb.RefreshRequest]) -> list[str | None]:
    """Which step each request of a refresh is."""
    return [step.WhichOneof("step") for step in steps]


def test_encode_gives_a_row_a_text(client: EncoderClient) -> None:
    """Embeddings come as float32, one row a text in order, with model and fingerprint."""
    encoded = client.encode(["red", "red shoes"], "document")
    assert encoded.embeddings_ND.dtype == np.float32
    assert encoded.embeddings_ND.tolist() == [[3, 1], [9, 2]]
    assert (encoded.model, encoded.fingerprint) == ("8d" * 32, "fe" * 32)


@pytest.mark.parametrize(("texts", "tower"), [([1], "query"), (["a"], "both")], ids=["text", "tower"])
def test_what_encode_cannot_send_is_refused_here(client: EncoderClient, texts: Any, tower: Any) -> None:
    """A text that is no string, or a tower that does not exist, raises InvalidRequestError."""
    with pytest.raises(InvalidRequestError, match="texts are strings"):
        client.encode(texts, tower)


def test_encode_is_tried_again_and_refresh_is_not(client: EncoderClient, encoder: FakeEncoder) -> None:
    """UNAVAILABLE costs Encode a retry; a Refresh, half read by then, is the caller's to start again."""
    encoder.refusals = 1
    assert len(client.encode(["red"], "document").embeddings_ND) == 1
    assert encoder.calls == 2
    encoder.refusals = 1
    with pytest.raises(RemoteError, match="draining"):
        list(client.refresh([Document("a", "red")]))
    assert encoder.calls == 3


def test_refresh_streams_batches_and_ends_with_the_generation(client: EncoderClient, encoder: FakeEncoder) -> None:
    """2,500 documents go out as three batches between start and commit; progress comes with each, the name last."""
    documents = (Document(f"sku-{n}", "" if n == 7 else "shoes", time_ms=n) for n in range(2_500))
    reports = list(client.refresh(documents, encoding="float16"))

    assert kinds(encoder.steps) == ["start", "batch", "batch", "batch", "commit"]
    assert encoder.steps[0].start == pb.RefreshStart(mode=pb.REFRESH_MODE_FULL, encoding=pb.ENCODING_FLOAT16)
    assert encoder.steps[1].batch.documents[1] == pb.Document(id="sku-1", text="shoes", time_ms=1)
    assert [report.received for report in reports] == [1_000, 2_000, 2_500, 2_500]
    assert [report.generation for report in reports] == ["", "", "", GENERATION]
    assert reports[0] == Progress(1_000, 0, 0, 1, 0, (Rejection("sku-7", 7, "the text is blank"),), "")


def test_a_delta_keeps_the_order_of_its_changes(client: EncoderClient, encoder: FakeEncoder) -> None:
    """Deletions go out behind the documents of their batch, so what comes again after its deletion begins another."""
    changes = [Document("a", "red"), Deletion("b"), Document("c", "blue"), Deletion("a"), Document("b", "green")]
    list(client.refresh(changes, delta=True))
    assert encoder.steps[0].start.mode == pb.REFRESH_MODE_DELTA
    first, second = (step.batch for step in encoder.steps[1:-1])
    assert [one.id for one in first.documents] == ["a", "c"]
    assert list(first.deleted_ids) == ["b", "a"]
    assert [one.id for one in second.documents] == ["b"]
    encoder.steps.clear()
    list(client.refresh((Deletion(n) for n in range(1_500)), delta=True))
    assert [len(step.batch.deleted_numbers) for step in encoder.steps[1:-1]] == [1_000, 500]
    with pytest.raises(InvalidRequestError, match=r"documents\[0\]"):
        list(client.refresh([Deletion(-1)], delta=True))


def test_refresh_batches_stay_under_the_message_limit(client: EncoderClient, encoder: FakeEncoder) -> None:
    """Long texts make smaller batches, so that no message nears 8 MiB, and a document without a time has none."""
    reports = list(client.refresh(Document(n, "x" * 700_000) for n in range(8)))
    assert reports[-1].received == 8
    assert [len(step.batch.documents) for step in encoder.steps[1:-1]] == [2, 2, 2, 2]
    assert encoder.steps[1].batch.documents[0].number == 0
    assert not encoder.steps[1].batch.documents[0].HasField("time_ms")


def test_documents_that_fail_to_read_publish_nothing(client: EncoderClient, encoder: FakeEncoder) -> None:
    """What reading the documents raises reaches the caller as it is, and the stream ends without a commit."""

    def documents() -> Iterator[Document]:
        yield Document("a", "shoes")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(client.refresh(documents()))
    assert "commit" not in kinds(encoder.steps)


@pytest.mark.parametrize("bad", [Document(-1, "shoes"), Document("a", 7)], ids=["id", "text"])  # type: ignore[arg-type]  # 7 is no text
def test_a_document_that_cannot_be_sent_is_named(client: EncoderClient, encoder: FakeEncoder, bad: Document) -> None:
    """A document that the message cannot hold raises InvalidRequestError with its place, and nothing is published."""
    with pytest.raises(InvalidRequestError, match=r"documents\[1\]"):
        list(client.refresh([Document(1, "shoes"), bad]))
    assert "commit" not in kinds(encoder.steps)


def test_a_caller_who_stops_publishes_nothing(client: EncoderClient, encoder: FakeEncoder) -> None:
    """Closing the iterator cancels the stream before it is committed."""

    def documents() -> Iterator[Document]:
        for n in range(1_001):
            yield Document(n, "shoes")
        while reports.gi_frame is not None:  # until the caller has stopped
            yield Document(0, "shoes")

    reports: Any = client.refresh(documents())  # a generator
    next(reports)
    reports.close()
    client.encode(["red"], "document")
    assert "commit" not in kinds(encoder.steps)
