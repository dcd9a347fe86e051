"""Messages as our real clients send them, kept by a proxy between them and a real server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from twinbert.client import Deletion, Document, EncoderClient, ScorerClient, Task

SCORE, RETRIEVE, DESCRIBE = (f"/twinbert.v1.ScorerService/{name}" for name in ("Score", "Retrieve", "Describe"))
ENCODE, REFRESH = (f"/twinbert.v1.EncoderService/{name}" for name in ("Encode", "Refresh"))

Calls = list[list[bytes]]
"""The messages of each call."""


class _Proxy(grpc.GenericRpcHandler):
    """Passes calls on to a server, and keeps their messages by method."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.calls: dict[str, Calls] = {}
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method

        def passed(requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
            messages: list[bytes] = []
            self.calls.setdefault(method, []).append(messages)

            def kept() -> Iterator[bytes]:
                for request in requests:
                    messages.append(request)
                    yield request

            call: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(method)
            yield from call(kept())

        return grpc.stream_stream_rpc_method_handler(passed)


@contextmanager
def _recording(address: str) -> Iterator[tuple[str, Mapping[str, Calls]]]:
    """A proxy's address, and what has passed it."""
    with grpc.insecure_channel(address) as channel:
        proxy, server = _Proxy(channel), grpc.server(ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((proxy,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}", proxy.calls
        finally:
            server.stop(None).wait()


def record_scorer(address: str) -> Mapping[str, Calls]:
    """Calls of a scorer, of every method and with every option."""
    with _recording(address) as (proxy, calls), ScorerClient(proxy) as scorer:
        tasks = [Task(query, [f"d{n}" for n in range(1, 30, 3)]) for query in ("red shoes", "pizza", "lists of é")]
        generation = scorer.describe().current.name
        scorer.score(tasks[0])
        scorer.score(tasks, crossing="cosine")
        scorer.score(tasks[:2], generation=generation, allow_partial=True)
        scorer.retrieve(["red shoes", "pizza"], limit=5)
        scorer.retrieve("a list", generation=generation)
    return calls


def record_encoder(address: str) -> Mapping[str, Calls]:
    """Calls of an encoder: of both towers, of a full refresh and of a delta."""
    with _recording(address) as (proxy, calls), EncoderClient(proxy) as encoder:
        encoder.encode(["red shoes", "pizza"], "query")
        encoder.encode(["a list of running shoes"], "document")
        documents = [Document(f"d{number}", f"list {number} of shoes", 1_700_000_000_000) for number in range(30)]
        for _ in encoder.refresh(documents, encoding="float32", force=True):
            pass
        for _ in encoder.refresh([Document("d1", "pizza"), Document("new", "csv"), Deletion("d2")], delta=True):
            pass
    return calls
