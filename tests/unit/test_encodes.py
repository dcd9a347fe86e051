"""Encode under load: its queue is bounded, and nothing is encoded that nobody waits for, over real gRPC."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from encoder_server.encodes import Encodes
from encoder_server.metrics import Metrics
from encoder_server.service import EncoderService
from encoder_server.settings import Settings
from store.store import Store
from tests.serving_fake import Served, serve
from twinbert.errors import DeadlineError
from twinbert.runtime import Runtime, TokenBatch
from twinbert.v1 import encoder_pb2 as pb
from twinbert.v1.encoder_pb2_grpc import EncoderServiceStub


class GatedRuntime:
    """A real one that begins with "wait" when the gate is open; `begun` is what was begun, by its first text."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.gate = threading.Event()
        self.begun: list[str] = []

    def tokenize(self, texts: Sequence[str], tower: Any) -> TokenBatch:
        self.begun.append(texts[0])
        assert texts[0] != "wait" or self.gate.wait(30)
        return self._runtime.tokenize(texts, tower)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


class Encoder(EncoderService):
    """The real service, as `serve` runs it."""

    def __init__(self, folder: Path, runtime: Any, settings: Settings) -> None:
        store, metrics = Store(folder / "store"), Metrics()
        store.create()
        super().__init__(store, runtime, settings, metrics)
        self.registry, self.released = metrics.registry, asyncio.Event()


Ask = Callable[..., "Future[pb.EncodeResponse]"]


def run(folder: Path, runtime: Runtime, test: Callable[[Served, GatedRuntime, Ask], None], waiting: int) -> None:
    """A server with one worker, which is at "wait" when the test begins."""
    gated = GatedRuntime(runtime)

    def testing(served: Served) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel, ThreadPoolExecutor(4) as pool:
            stub: Any = EncoderServiceStub(channel)

            def ask(text: str, timeout: float | None = None) -> Future[pb.EncodeResponse]:
                return pool.submit(stub.Encode, pb.EncodeRequest(tower=pb.TOWER_QUERY, texts=[text]), timeout=timeout)

            served.wait_for("serving")
            gated.begun.clear()
            first = ask("wait")
            try:
                while not gated.begun:
                    pass
                test(served, gated, ask)
            finally:
                gated.gate.set()
                assert first.result().dimension == 32

    serve(testing, lambda: Encoder(folder, gated, Settings(workers=1, waiting=waiting)))


def refusal(future: Future[pb.EncodeResponse]) -> tuple[grpc.StatusCode, str, bool]:
    """Code, reason, and whether it is said when to try again."""
    error: Any = future.exception(60)
    details = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]).details
    info = error_details_pb2.ErrorInfo()
    details[0].Unpack(info)
    return error.code(), info.reason, any(one.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for one in details)


def received(served: Served, count: int) -> None:
    """Waits until so many calls are being answered or wait."""
    while served.metric("twinbert_rpc_received_total", method="Encode") < count:
        pass


def test_a_full_queue_refuses_at_once(tmp_path: Path, runtime: Runtime) -> None:
    """One more than may wait is RESOURCE_EXHAUSTED with a time to retry, and counted; the others are answered."""

    def test(served: Served, gated: GatedRuntime, ask: Ask) -> None:
        queued = ask("queued")
        received(served, 2)
        assert refusal(ask("refused")) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", True)
        assert served.metric("twinbert_rpc_refused_total", method="Encode", reason="encodes") == 1
        gated.gate.set()
        assert queued.result().dimension == 32
        assert ask("later").result().dimension == 32
        assert gated.begun == ["wait", "queued", "later"]

    run(tmp_path, runtime, test, waiting=1)


def test_what_expires_in_the_queue_is_never_begun(tmp_path: Path, runtime: Runtime) -> None:
    """Its caller has DEADLINE_EXCEEDED, its place is free again, and no worker looks at it."""

    def test(served: Served, gated: GatedRuntime, ask: Ask) -> None:
        error: Any = ask("expired", timeout=0.05).exception(60)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while served.metric("twinbert_rpc_duration_seconds_count", method="Encode", code="DEADLINE_EXCEEDED") < 1:
            pass
        queued = ask("queued")
        received(served, 3)
        gated.gate.set()
        assert queued.result().dimension == 32
        assert gated.begun == ["wait", "queued"]

    run(tmp_path, runtime, test, waiting=1)


def test_what_would_come_too_late_is_refused_at_once(tmp_path: Path, runtime: Runtime) -> None:
    """By what a text took of late: DEADLINE_EXCEEDED with a time to retry; who sets no deadline is taken."""

    def test(served: Served, gated: GatedRuntime, ask: Ask) -> None:
        served.service._encodes._text_s = 100.0
        assert refusal(ask("late", timeout=150)) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE", True)
        assert served.metric("twinbert_rpc_refused_total", method="Encode", reason="deadline") == 1
        patient, timeless = ask("patient", timeout=250), ask("timeless")
        received(served, 4)
        gated.gate.set()
        assert {patient.result().dimension, timeless.result().dimension} == {32}

    run(tmp_path, runtime, test, waiting=9)


def test_a_call_without_time_left_is_not_encoded(runtime: Runtime) -> None:
    """Also where a worker is free, and nobody has cancelled it yet."""

    async def test() -> None:
        gated: Any = GatedRuntime(runtime)
        encodes = Encodes(gated, Settings(workers=1), Metrics())
        with pytest.raises(TimeoutError, match="before a worker was free"):
            await encodes.encode(["expired"], "query", 0.0)
        assert await encodes.encode(["a", "b"], "query", 60) == runtime.encode(["a", "b"], "query").tobytes()
        assert gated.begun == ["a"]
        encodes.close()

    asyncio.run(test())


class Texts(list[str]):
    """Texts that can be seen to go."""


def test_a_call_that_was_given_up_takes_its_texts_with_it(runtime: Runtime) -> None:
    """While the workers are busy nothing is kept of callers who have left; who stays is answered."""

    async def test() -> None:
        gated: Any = GatedRuntime(runtime)
        encodes = Encodes(gated, Settings(workers=1, waiting=9), Metrics())
        first = asyncio.ensure_future(encodes.encode(["wait"], "query", None))
        while not gated.begun:
            await asyncio.sleep(0)
        texts = Texts(["left"])
        gone = weakref.ref(texts)
        left, stays = (asyncio.ensure_future(encodes.encode(one, "query", None)) for one in (texts, ["stays"]))
        del texts
        await asyncio.sleep(0)
        first.cancel()
        left.cancel()
        await asyncio.wait((first, left))
        del left
        gc.collect()
        assert gone() is None
        gated.gate.set()
        assert len(await stays) == 4 * 32
        assert gated.begun == ["wait", "stays"]
        encodes.close()

    asyncio.run(test())


@pytest.mark.parametrize("given_up", [False, True])
def test_what_a_text_takes_is_learned(runtime: Runtime, given_up: bool) -> None:
    """After slow calls a wait is estimated longer, by the text, and a call is ahead as long as a worker is at it: also
    where callers have given up.
    """

    async def test() -> None:
        now, gated = 0.0, GatedRuntime(runtime)

        class Slow:
            def __getattr__(self, name: str) -> Any:
                return getattr(gated, name)

            def embed(self, tokens: Any, tower: Any) -> Any:
                nonlocal now
                now += 200.0
                return gated.embed(tokens, tower)

        slow: Any = Slow()
        encodes = Encodes(slow, Settings(workers=1, waiting=9), Metrics(), clock=lambda: now)

        async def begun(*texts: str) -> None:
            gated.begun.clear()
            call = asyncio.ensure_future(encodes.encode([*texts], "query", None))
            while not gated.begun:
                await asyncio.sleep(0)
            if given_up:
                call.cancel()
                await asyncio.wait((call,))

        for _ in range(100):
            await begun("wait", "b")
            gated.gate.set()
            while encodes._free.locked():
                await asyncio.sleep(0)
            gated.gate.clear()
        await begun("wait")
        with pytest.raises(DeadlineError, match="1 texts are ahead"):
            await encodes.encode(["c", "d"], "query", 290.0)
        in_time = asyncio.ensure_future(encodes.encode(["c", "d"], "query", 310.0))
        gated.gate.set()
        assert len(await in_time) == 2 * 4 * 32
        encodes.close()

    asyncio.run(test())
