"""The batcher, with an engine whose gate the test holds."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import numpy as np
import pytest

from scorer_server.batcher import Batcher
from scorer_server.cost import CAUTION
from scorer_server.metrics import Metrics
from scorer_server.settings import Settings
from scorer_server.tickets import Pending, Ticket
from twinbert.errors import DeadlineError, QueueFullError
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


def test_a_full_queue_refuses_and_says_when_to_try_again() -> None:
    """What is queued is answered; a request that finds the queue empty is taken whatever its size."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        first = batcher.submit(["first"], runtime)
        await started(runtime, 1)
        queued = batcher.submit(["a", "bb", "ccc"], runtime)
        with pytest.raises(QueueFullError, match="3 queries are waiting, 3 may") as caught:
            batcher.submit(["dddd"], runtime)
        assert caught.value.retry_after_s > 0
        assert metrics.registry.get_sample_value("twinbert_queue_depth") == 3
        runtime.gate.set()
        await asyncio.gather(first.done, queued.done)
        many = batcher.submit([f"text {number}" for number in range(9)], runtime)
        await many.done
        assert metrics.registry.get_sample_value("twinbert_queue_depth") == 0

    run(test, queue=3)


def test_a_query_that_would_come_too_late_is_refused_at_once() -> None:
    """What waits, and what is at work, is estimated from batches before; who has time, or sets no limit, is taken."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        batcher.cost.observe(tokens=2, seconds=100.0)
        first = batcher.submit(["a"], runtime, remaining=1)  # an idle engine is tried, whatever the estimate
        await started(runtime, 1)
        with pytest.raises(DeadlineError, match="and the call has 1000 ms left") as caught:
            batcher.submit(["b"], runtime, remaining=1)
        assert 90 < caught.value.retry_after_s <= 100
        assert caught.value.what == "deadline"
        second, third = batcher.submit(["b"], runtime, remaining=300), batcher.submit(["c"], runtime)
        with pytest.raises(DeadlineError):
            batcher.submit(["d"], runtime, remaining=180)
        assert batcher.submit(["a"], runtime, remaining=1) is not None  # shares what is at work
        runtime.gate.set()
        await asyncio.gather(first.done, second.done, third.done)
        assert [text for batch in runtime.batches for text in batch] == ["a", "b", "c"]

    run(test)


def test_a_batch_is_one_engines_work_however_many_there_are() -> None:
    """What waits is expected after a whole batch of the engine that is free first, with a quarter kept for chance."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        batcher.cost.observe(tokens=2, seconds=100.0)
        at_work = [batcher.submit([text], runtime) for text in "ab"]
        await started(runtime, 2)
        for remaining in (180, 240):  # two batches of 100 s, one after the other
            with pytest.raises(DeadlineError):
                batcher.submit(["c"], runtime, remaining=remaining)
        taken = batcher.submit(["c"], runtime, remaining=251)
        runtime.gate.set()
        await asyncio.gather(*(one.done for one in (*at_work, taken)))

    run(test, engines=2)


def test_a_batch_makes_none_of_its_queries_late() -> None:
    """Whoever was let in earlier is not held up by a batch that grew; what does not fit comes with the next one."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        first = batcher.submit(["first"], runtime)
        await started(runtime, 1)
        patient = [batcher.submit([f"text {number}"], runtime) for number in range(3)]
        hurried = batcher.submit(["hurried"], runtime, remaining=100)
        later = [batcher.submit([f"more {number}"], runtime) for number in range(9)]
        for tokens, seconds in ((4, 16.0), (8, 32.0)):  # 4 s a token
            batcher.cost.observe(tokens, seconds)
        runtime.gate.set()
        await asyncio.gather(*(ticket.done for ticket in (first, *patient, hurried, *later)))
        # 16 tokens take 64 s, and a quarter is kept; with another query it would be 100 s.
        assert runtime.batches[1] == ["text 0", "text 1", "text 2", "hurried"]

    run(test)


def test_an_estimate_that_was_too_high_is_put_right() -> None:
    """One slow batch does not shut a server: when an engine is idle again the next request is taken, and measured."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        runtime.gate.set()
        batcher.cost.observe(tokens=2, seconds=100.0)
        for number in range(200):
            await batcher.submit([f"{number}"], runtime, remaining=5).done
        assert batcher.cost.seconds(2, 1024) < 1

    run(test)


def test_answers_that_came_late_make_it_more_careful() -> None:
    """Who waits, and is answered far later than was estimated, counts for those who ask next; who found an engine idle,
    or gave up before, does not.
    """

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        batcher.cost.observe(tokens=2, seconds=1e-6)
        with batcher.submit(["idle"], runtime) as first:
            await started(runtime, 1)
            with batcher.submit(["given up"], runtime):
                pass
            assert batcher.lateness.factor == CAUTION
            with batcher.submit(["waits"], runtime) as second:
                runtime.gate.set()
                await asyncio.gather(first.done, second.done)
        assert batcher.lateness.factor > CAUTION

    run(test)


def test_what_a_request_does_after_its_last_query_is_no_lateness() -> None:
    """A scan of all documents, or a large crossing, while the ticket is held says nothing of the engines."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        batcher.cost.observe(tokens=2, seconds=100.0)
        with batcher.submit(["idle"], runtime) as first:
            await started(runtime, 1)
            with batcher.submit(["waits"], runtime) as second:
                runtime.gate.set()
                await asyncio.gather(first.done, second.done)
                second.submitted -= 10_000  # as if it were held for hours from here on
        assert batcher.lateness.factor == CAUTION

    run(test)


def test_a_refusal_does_not_look_through_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only when somebody gave up, and then once: thousands of refusals a second must not cost what answers need."""
    looks = 0
    is_wanted = cast("property", Pending.is_wanted).__get__

    def look(pending: Pending) -> bool:
        nonlocal looks
        looks += 1
        return bool(is_wanted(pending))

    monkeypatch.setattr(Pending, "is_wanted", property(look))

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        def refuse() -> None:
            for _ in range(20):
                with pytest.raises(DeadlineError):
                    batcher.submit(["refused"], runtime, remaining=1)

        batcher.cost.observe(tokens=2, seconds=100.0)
        first = batcher.submit(["first"], runtime)
        await started(runtime, 1)
        queued = [batcher.submit([f"text {number}"], runtime) for number in range(50)]
        before = looks
        refuse()
        assert looks == before
        with batcher.submit(["given up"], runtime):
            pass
        refuse()
        assert looks == before + 51
        runtime.gate.set()
        await asyncio.gather(first.done, *(ticket.done for ticket in queued))

    run(test)


def test_who_joins_a_query_that_waits_has_waited_since_then() -> None:
    """Not since it came first: times of stages lie within the request's own."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        pending = Pending(("tower", "shared"), runtime, tokens=2, arrived=10.0)
        ticket = Ticket(1, math.inf, lambda _: None)
        ticket.submitted = 50.0
        ticket.waited(pending, 60.0)
        assert ticket.queue_s == 10

    run(test)


def test_what_has_expired_is_never_begun() -> None:
    """A call without time left is refused, and one that runs out of time in the queue is dropped and told so."""

    async def test(batcher: Batcher, runtime: Any, metrics: Metrics) -> None:
        with pytest.raises(DeadlineError, match="0 ms left"):
            batcher.submit(["late"], runtime, remaining=0)
        first = batcher.submit(["first"], runtime)
        await started(runtime, 1)
        late = batcher.submit(["second"], runtime, remaining=1e-9)
        runtime.gate.set()
        await first.done
        with pytest.raises(TimeoutError):
            await late.done
        assert runtime.batches == [["first"]]
        assert metrics.registry.get_sample_value("twinbert_queries_dropped_total") == 1
        cached = batcher.submit(["first"], runtime, remaining=0)
        assert cached.done.done()

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
