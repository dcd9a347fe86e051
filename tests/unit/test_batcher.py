"""The batcher, with an engine whose gate the test holds: what batches form, who shares them, and what is cached."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from scorer_server.batcher import Batcher
from scorer_server.metrics import Metrics
from scorer_server.tickets import Pending, Ticket
from tests.unit.batcher_cases import GatedRuntime, run, started, values


def test_an_idle_engine_starts_at_once_and_a_batch_forms_while_it_is_busy() -> None:
    """The first query goes alone; those that come meanwhile go together."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        first = batcher.submit(["a"], runtime)
        await started(runtime, 1)
        others = [batcher.submit([text], runtime) for text in ("bb", "ccc", "dddd")]
        runtime.gate.set()
        for ticket in (first, *others):
            await ticket.done
        assert runtime.batches == [["a"], ["bb", "ccc", "dddd"]]
        assert [values(ticket) for ticket in (first, *others)] == [[1], [2], [3], [4]]

    run(test)


def test_a_query_that_is_asked_for_twice_is_encoded_once() -> None:
    """Within a request, across requests in flight, and later from the cache."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        first, second = batcher.submit(["same", "same"], runtime), batcher.submit(["other", "same"], runtime)
        runtime.gate.set()
        await asyncio.gather(first.done, second.done)
        third = batcher.submit(["same"], runtime)
        assert third.done.done()
        assert (values(first), values(second), values(third)) == ([4, 4], [5, 4], [4])
        assert sorted(text for batch in runtime.batches for text in batch) == ["other", "same"]
        assert third.cached == 1

    run(test)


def test_a_query_that_nobody_waits_for_is_never_started() -> None:
    """A cancelled caller's query is dropped and counted; one that another caller wants too is kept."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        first = batcher.submit(["first"], runtime)
        await started(runtime, 1)
        with batcher.submit(["gone", "shared"], runtime):
            kept = batcher.submit(["shared"], runtime)
        runtime.gate.set()
        await asyncio.gather(first.done, kept.done)
        assert runtime.batches == [["first"], ["shared"]]
        assert metrics.registry.get_sample_value("twinbert_queries_dropped_total") == 1

    run(test)


@pytest.mark.parametrize(("text", "message"), [("broken", "the model broke"), ("unreadable", "the tokenizer broke")])
def test_a_query_that_breaks_the_model_fails_alone(text: str, message: str) -> None:
    """Its neighbours in the batch are encoded, the engine goes on, and nothing is learned of what batches cost."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        first = batcher.submit(["first"], runtime)
        await started(runtime, 1)
        good, bad = batcher.submit(["good"], runtime), batcher.submit([text], runtime)
        runtime.gate.set()
        await first.done
        learned = batcher.cost.seconds(2, 1024)
        await good.done
        with pytest.raises(ValueError, match=message):
            await bad.done
        assert batcher.cost.seconds(2, 1024) == learned
        later = batcher.submit(["later"], runtime)
        await later.done
        assert (values(good), values(later)) == ([4], [5])

    run(test)


def test_a_slow_query_holds_up_its_engine_alone() -> None:
    """While one engine is at work on it, all others are answered by the other one."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        slow = batcher.submit(["slow"], runtime)
        await started(runtime, 1)
        quick = [batcher.submit([f"quick {number}"], runtime) for number in range(20)]
        await asyncio.gather(*(ticket.done for ticket in quick))
        assert not slow.done.done()
        runtime.gate.set()
        await slow.done

    run(test, engines=2)


def test_who_joins_a_query_that_waits_has_waited_since_then() -> None:
    """Not since it came first: times of stages lie within the request's own."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        pending = Pending(("tower", "shared"), runtime, tokens=2, arrived=10.0)
        ticket = Ticket(1, math.inf, lambda _: None)
        ticket.submitted = 50.0
        ticket.waited(pending, 60.0)
        assert ticket.queue_s == 10

    run(test)


def test_a_batch_is_bounded_in_tokens() -> None:
    """Queries beyond the bound wait for the next batch; one that is over it alone still goes."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        first = batcher.submit(["first"], runtime)
        await started(runtime, 1)
        others = batcher.submit(["x" * 60, "a", "b", "c", "d", "e"], runtime)  # 16 tokens, then 2 each
        runtime.gate.set()
        await asyncio.gather(first.done, others.done)
        assert [len(batch) for batch in runtime.batches] == [1, 1, 4, 1]

    run(test, batch_tokens=8)


def test_bundles_share_neither_batches_nor_embeddings() -> None:
    """The same text for another query tower is encoded again, in a batch of its own; for the same tower it is not."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        runtimes: Any = runtime, GatedRuntime(), GatedRuntime(), GatedRuntime()
        _, other, alike, third = runtimes
        other.query_digest = "other tower"
        other.gate.set()
        first = batcher.submit(["first"], runtime)
        await started(runtime, 1)
        texts = ["a", "bb"]
        mixed = [batcher.submit([text], one) for text in texts for one in (runtime, other, alike)]
        runtime.gate.set()
        for ticket in (first, *mixed):
            await ticket.done
        assert runtime.batches == [["first"], texts]
        assert (other.batches, alike.batches) == ([texts], [])
        assert [values(ticket) for ticket in mixed] == [[1]] * 3 + [[2]] * 3
        cached = [batcher.submit(texts, one).cached for one in (runtime, other, alike)]
        assert cached == [2, 2, 2]
        third.query_digest = "third tower"
        third.gate.set()
        new = batcher.submit(texts, third)
        await new.done
        assert new.cached == 0

    run(test)


def test_the_cache_is_bounded_in_bytes() -> None:
    """The least recently used goes first, and the gauge shows what is used."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        runtime.gate.set()
        for text in ("aa", "bb", "aa", "cc", "aa", "bb"):  # room for two
            await batcher.submit([text], runtime).done
        assert [batch[0] for batch in runtime.batches] == ["aa", "bb", "cc", "bb"]
        used = metrics.registry.get_sample_value("twinbert_query_cache_bytes")
        assert used is not None
        assert 0 < used <= 700

    run(test, cache_bytes=700)
