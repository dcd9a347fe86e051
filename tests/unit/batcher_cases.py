"""An engine whose gate the test holds, and a batcher around it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from scorer_server.batcher import Batcher
from scorer_server.metrics import Metrics
from scorer_server.settings import Settings
from scorer_server.tickets import Ticket
from twinbert.runtime import Floats, TokenBatch

D = 4


class GatedRuntime:
    """Behind the interface of Runtime: encodes a text as its length, once the gate is open, "quick" ones at once;
    "broken" and "unreadable" ones fail.
    """

    bundle: Any = None
    engine = "float32"
    query_digest = "tower"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.batches: list[list[str]] = []
        self._texts: dict[int, list[str]] = {}

    def max_tokens(self, tower: str) -> int:
        return 16

    def tokenize(self, texts: Sequence[str], tower: str = "query") -> TokenBatch:
        if any("unreadable" in text for text in texts):
            raise ValueError("the tokenizer broke")
        tokens = TokenBatch([np.zeros(3, dtype=np.int64) for _ in texts], np.array([len(text) > 40 for text in texts]))
        self._texts[id(tokens)] = list(texts)
        return tokens

    def embed(self, tokens: TokenBatch, tower: str = "query") -> Floats:
        texts = self._texts.pop(id(tokens))
        self.batches.append(texts)
        assert all("quick" in text for text in texts) or self.gate.wait(30)
        if any("broken" in text for text in texts):
            raise ValueError("the model broke")
        return np.array([[len(text)] * D for text in texts], dtype=np.float32)


def run(test: Callable[[Batcher, GatedRuntime, Metrics], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Runs a test on an event loop of its own."""

    async def main() -> None:
        runtime, metrics = GatedRuntime(), Metrics()
        batcher = Batcher(Settings(**({"engines": 1, "threads": 1} | settings)), metrics)
        try:
            await asyncio.wait_for(test(batcher, runtime, metrics), 60)
        finally:
            runtime.gate.set()
            batcher.close()

    asyncio.run(main())


async def started(runtime: GatedRuntime, batches: int) -> None:
    """Waits until so many batches have reached the engine."""
    while len(runtime.batches) < batches:
        await asyncio.sleep(0)


def values(ticket: Ticket) -> list[float | None]:
    return [None if one is None else float(one[0]) for one in ticket.embeddings]
