"""The client of EncoderService: encodes a few texts, and streams a corpus into the next generation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import grpc
import numpy as np
import numpy.typing as npt

from twinbert.client.channel import MESSAGE_BYTES, Endpoint
from twinbert.errors import InvalidRequestError, RemoteError
from twinbert.v1 import encoder_pb2 as pb
from twinbert.v1.encoder_pb2_grpc import EncoderServiceStub

ENCODE_TIMEOUT_S = 10.0  # 256 long texts on one core
REFRESH_TIMEOUT_S = 24 * 3600.0  # a corpus of millions on a small machine

_BATCH_DOCUMENTS = 1_000  # progress comes once a batch
_BATCH_BYTES = MESSAGE_BYTES // 4  # so that a long text still fits behind the others


@dataclass(frozen=True, slots=True)
class Document:
    """A document to encode. `time_ms`: when its source last changed it, Unix milliseconds; None: now."""

    id: str | int
    text: str
    time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Deletion:
    """A document that a delta deletes; it is no error if there is no such document."""

    id: str | int


@dataclass(frozen=True, eq=False, slots=True)
class Embeddings:
    """Embeddings of texts, with the model and the fingerprint of the bundle that made them (64 hex digits each).

    Attributes:
        embeddings_ND: [N, D] float32, in the order of the texts.
    """

    embeddings_ND: npt.NDArray[np.float32]
    model: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """A document that was left out: its id (empty if it has none), its place in the stream from 0, and why."""

    document_id: str
    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A refresh so far: totals since its start, those rejected since the last report, the generation once published.

    `received` counts deletions too; `absent` are those of ids that were not there, known at the end.
    """

    received: int
    encoded: int
    reused: int
    rejected: int
    duplicates: int
    rejections: tuple[Rejection, ...]
    generation: str
    deleted: int = 0
    absent: int = 0


class EncoderClient:
    """Encodes texts and refreshes the store over gRPC. Threads may share it; close it, or use it in a `with`.

    Args and errors of the constructor are those of `ScorerClient`.
    """

    def __init__(self, address: str | Sequence[str], *, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._endpoint = Endpoint(address, credentials)
        self._channel = self._endpoint.channel()
        self._stub = EncoderServiceStub(self._channel)

    def encode(
        self, texts: Iterable[str], tower: Literal["query", "document"], *, timeout: float = ENCODE_TIMEOUT_S
    ) -> Embeddings:
        """Encodes texts with one tower.

        Args:
            texts: 1 to 256 texts (the server's setting).
            tower: The query tower or the document tower.
            timeout: Deadline in seconds, retries included.

        Raises:
            InvalidRequestError: A text that is not a string.
            RemoteError: The server refused, failed, was not reached, or missed the deadline.
        """
        try:
            request = pb.EncodeRequest(tower=f"TOWER_{tower.upper()}", texts=list(texts))
        except (TypeError, ValueError) as error:
            raise InvalidRequestError("texts", f"texts are strings, tower is 'query' or 'document': {error}") from error
        with self._endpoint.errors(timeout):
            response = self._stub.Encode(request, timeout=timeout)
        flat = np.frombuffer(response.embeddings, "<f4").astype(np.float32)
        return Embeddings(flat.reshape(-1, response.dimension), response.model, response.fingerprint)

    def refresh(
        self,
        documents: Iterable[Document | Deletion],
        *,
        delta: bool = False,
        encoding: Literal["float32", "float16", "uint8"] | None = None,
        force: bool = False,
        timeout: float = REFRESH_TIMEOUT_S,
    ) -> Iterator[Progress]:
        """Makes `documents` the whole corpus, or with `delta` what changes in it: streams them in batches and yields
        progress after each; the last report names the generation that was published.

        The corpus is never held in memory. When reading `documents` raises, or the caller stops iterating, nothing is
        published, and what was encoded is reused by the next refresh.

        Args:
            documents: The corpus, or in a delta changes of it; of two with one id the last wins.
            delta: Change the current generation, which must have the server's fingerprint. If nothing changes, the last
                report names the current generation.
            encoding: How embeddings are stored; None: as in the current generation, else float32. A delta cannot change
                it.
            force: Publish although the swap gate refuses the generation.
            timeout: Deadline in seconds. A refresh is never retried by itself.

        Raises:
            InvalidRequestError: A document that the request cannot hold.
            RemoteError: As from `encode`; FAILED_PRECONDITION, reason STORE_LOCKED, when another refresh is running,
                reason GENERATION_DRIFT, when the swap gate refuses the generation.
        """
        # gRPC reads the requests in a thread of its own and hides what they raise: it is kept here, for the caller.
        failures: list[Exception] = []
        start = pb.RefreshStart(
            mode=pb.REFRESH_MODE_DELTA if delta else pb.REFRESH_MODE_FULL,
            encoding=f"ENCODING_{(encoding or 'unspecified').upper()}",
            force=force,
        )
        call = self._stub.Refresh(_refresh_requests(start, documents, failures), timeout=timeout)
        try:
            with self._endpoint.errors(timeout):
                for response in call:
                    yield _progress(response)
        except RemoteError:
            if not failures:
                raise
        finally:
            call.cancel()
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Closes the connections; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refresh_requests(
    start: pb.RefreshStart, documents: Iterable[Document | Deletion], failures: list[Exception]
) -> Iterator[pb.RefreshRequest]:
    """The requests of one refresh. When `documents` fails, so that the stream must not be committed, it just ends."""
    try:
        yield pb.RefreshRequest(start=start)
        for batch in _batches(documents):
            yield pb.RefreshRequest(batch=batch)
    except Exception as error:  # noqa: BLE001 - the edge of gRPC's thread
        failures.append(error)
    else:
        yield pb.RefreshRequest(commit=pb.RefreshCommit())


def _batches(documents: Iterable[Document | Deletion]) -> Iterator[pb.DocumentBatch]:
    """In a batch deletions come after the documents, so one that is followed by its document begins another batch."""
    batch, deleted, size, count = pb.DocumentBatch(), set[str | int](), 0, 0
    for position, document in enumerate(documents):
        message = _document(document, position)
        more = message.ByteSize()
        again = isinstance(document, Document) and document.id in deleted
        if again or count == _BATCH_DOCUMENTS or (count and size + more > _BATCH_BYTES):
            yield batch
            batch, deleted, size, count = pb.DocumentBatch(), set(), 0, 0
        if isinstance(document, Document):
            batch.documents.append(message)
        else:
            deleted.add(document.id)
            if message.HasField("id"):
                batch.deleted_ids.append(message.id)
            else:
                batch.deleted_numbers.append(message.number)
        size, count = size + more, count + 1
    if count:
        yield batch


def _document(document: Document | Deletion, position: int) -> pb.Document:
    """The message of a document; of a deletion, one with its id."""
    key = {"id": document.id} if isinstance(document.id, str) else {"number": document.id}
    try:
        if isinstance(document, Deletion):
            return pb.Document(**key)
        return pb.Document(**key, text=document.text, time_ms=document.time_ms)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"documents[{position}]", f"an id is a string or an integer from 0 to 2^64 - 1, a text is a string: {error}"
        ) from error


def _progress(response: pb.RefreshResponse) -> Progress:
    return Progress(
        received=response.received,
        encoded=response.encoded,
        reused=response.reused,
        deleted=response.deleted,
        absent=response.absent,
        rejected=response.rejected,
        duplicates=response.duplicates,
        rejections=tuple(Rejection(one.document_id, one.position, one.reason) for one in response.rejections),
        generation=response.generation,
    )
