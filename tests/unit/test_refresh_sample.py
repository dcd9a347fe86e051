"""The sample of a refresh, apart from encoding."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from encoder_server.sample import Sample


def sampled(sample: Sample) -> dict[str | int, str]:
    return sample._texts


@given(st.lists(st.tuples(st.lists(st.integers(0, 150), max_size=60), st.sets(st.integers(0, 150))), max_size=20))
def test_a_sampled_document_is_the_last_of_its_id(windows: Sequence[tuple[Sequence[int], set[int]]]) -> None:
    """Whatever ids repeat or are deleted, in a window or later, the sample holds the text that the store will hold."""
    sample, last = Sample(), dict[int, str]()
    for number, (keys, deleted) in enumerate(windows):
        sample.forget(deleted)
        last |= dict.fromkeys(deleted.intersection(last), "")
        texts = [f"{number} {place}" for place in range(len(keys))]
        sample.offer(keys, texts)
        last |= dict(zip(keys, texts, strict=True))
    assert sampled(sample).items() <= last.items()
    assert len(sampled(sample)) <= 64
    assert sampled(sample) or not last


def test_every_document_has_the_same_chance() -> None:
    """The sample of a long input comes from all of it, and is the same each time."""
    first, second = Sample(), Sample()
    for sample in (first, second):
        for start in range(0, 6400, 100):
            keys = list(range(start, start + 100))
            sample.offer(keys, [str(key) for key in keys])
    assert sampled(first) == sampled(second)
    assert len(sampled(first)) == 64
    quarters = [sum(start <= int(key) < start + 1600 for key in sampled(first)) for start in range(0, 6400, 1600)]
    assert min(quarters) >= 8  # 16 expected, deviation 3.5


def test_huge_texts_are_not_kept() -> None:
    """A text of over a million characters takes no room in the sample, also where it replaces a sampled one."""
    sample = Sample()
    sample.offer(["a", "b"], ["x" * 2_000_000, "short"])
    sample.offer(["b"], ["y" * 2_000_000])
    assert not [text for text in sampled(sample).values() if len(text) > 1_000_000]
