"""Who is let into the queue: its length, what an answer would cost, and how late answers have been."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from scorer_server.batcher import Batcher
from scorer_server.cost import CAUTION
from scorer_server.metrics import Metrics
from scorer_server.tickets import Pending
from tests.unit.batcher_cases import run, started
from twinbert.errors import DeadlineError, QueueFullError


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
