"""What the teacher is asked, the cache of its answers, and the blocks that students learn from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from twinbert.tokenizer import TokenBatch
from twinbert.training import pairs as pairs_
from twinbert.training import synthetic
from twinbert.training.blocks import Blocks, chunks, neighbourly
from twinbert.training.data import Dataset, Pair, Split
from twinbert.training.pairs import Floats, Pairs, PairsConfig, ScoreCache, choose, judged, pair_key, score
from twinbert.training.report import Silent

DATASET = synthetic.dataset(queries=60)


class Teacher:
    """Scores a pair by the length of its texts, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        self.asked += pairs
        return np.array([len(query) - 2 * len(document) for query, document in pairs], dtype=np.float32)


def test_a_query_meets_judged_near_and_random_documents() -> None:
    """Judged pairs are there with their mean grade, neighbours share a word with the query, no pair comes twice."""
    pairs = choose(DATASET, PairsConfig(bm25=3, random=2), seed=1)
    grades: dict[tuple[str, str], list[float]] = {}
    for pair in DATASET.train.pairs:
        grades.setdefault((pair.query, pair.document), []).append(pair.grade)
    found = dict(zip(pairs.texts(), pairs.grade_P.tolist(), strict=True))
    assert len(found) == len(pairs)
    assert {key: value for key, value in found.items() if not np.isnan(value)} == pytest.approx(
        {key: np.mean(values) for key, values in grades.items()}
    )
    assert len(grades) < len(found) <= len(grades) + 5 * len(DATASET.train.by_query())
    near = choose(DATASET, PairsConfig(bm25=3, random=0), seed=1)
    assert all(set(q.split()) & set(d.split()) for q, d in near.texts() if (q, d) not in grades)
    assert (np.diff(pairs.query_P) >= 0).all()


def test_documents_without_a_word_are_nobodys_neighbours() -> None:
    """BM25 counts words of two letters; where no document has one, it finds nothing, and says nothing of it."""
    train = Split("train", [Pair("red bolt", "a", 1.0), Pair("b", "–", 0.0)])
    assert len(choose(replace(DATASET, train=train), PairsConfig(bm25=3, random=0), seed=1)) == 2


def test_held_out_queries_are_never_asked_about() -> None:
    """No pair has a query of dev or test."""
    asked = {query for query, _ in choose(DATASET, PairsConfig(), seed=1).texts()}
    assert asked == set(DATASET.train.by_query())


def test_parts_of_documents_stand_in_for_queries() -> None:
    """Each is a run of words of a document, which it meets with others, and nobody graded; what was chosen without
    them is chosen still. None is a query of dev or test, and where documents are few, so are they.
    """
    config = PairsConfig(bm25=3, random=1)
    without, more = choose(DATASET, config, seed=1), choose(DATASET, replace(config, spans=20), seed=1)
    assert set(without.texts()) < set(more.texts())
    stand_ins = more.queries[len(without.queries) :]
    assert 10 < len(stand_ins) <= 20
    documents = DATASET.corpus()
    assert all(any(f" {span} " in f" {document} " for document in documents) for span in stand_ins)
    new = [
        (query, grade) for query, grade in zip(more.query_P, more.grade_P, strict=True) if query >= len(without.queries)
    ]
    assert {query for query, _ in new} == set(range(len(without.queries), len(more.queries)))
    assert all(np.isnan(grade) for _, grade in new)
    assert more.queries == choose(DATASET, replace(config, spans=20), seed=1).queries
    single = Split("test", [Pair(span.upper(), "a", 1.0) for span in stand_ins])
    assert not set(stand_ins) & set(choose(replace(DATASET, test=single), replace(config, spans=20), seed=1).queries)
    every = choose(DATASET, replace(config, spans=10**6), seed=1)
    assert len(every.queries) <= len(without.queries) + len(documents)


def test_choice_follows_from_the_seed() -> None:
    """Equal seeds give equal pairs, others other random documents."""
    first, same, other = (choose(DATASET, PairsConfig(), seed=seed).texts() for seed in (1, 1, 2))
    assert first == same != other


def test_the_teacher_is_asked_once(tmp_path: Path) -> None:
    """Scores are kept by pair: a second call asks for nothing, one with more pairs only for those."""
    teacher = Teacher()
    few, many = judged(DATASET), choose(DATASET, PairsConfig(), seed=1)
    with ScoreCache(tmp_path, "a") as cache:
        scored = score(few, teacher, cache, Silent())
    assert sorted(teacher.asked) == sorted(few.texts())
    with ScoreCache(tmp_path, "a") as cache:
        again = score(few, teacher, cache, Silent())
        score(many, teacher, cache, Silent())
    assert sorted(teacher.asked) == sorted(many.texts())
    np.testing.assert_array_equal(scored.teacher_P, [len(q) - 2 * len(d) for q, d in few.texts()])
    np.testing.assert_array_equal(scored.teacher_P, again.teacher_P)
    with ScoreCache(tmp_path, "b") as cache:
        assert len(cache) == 0


def test_processes_share_what_the_teacher_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two each asks about its blocks and knows all scores; the first writes them, as one alone would."""
    monkeypatch.setattr(pairs_, "_SCORED_AT_ONCE", 18)
    many = choose(DATASET, PairsConfig(), seed=1)
    alone = Teacher()
    with ScoreCache(tmp_path / "alone", "a") as cache:
        expected = score(many, alone, cache, Silent()).teacher_P
    barrier, said = threading.Barrier(2), {}

    def exchange(process: Any, value: Any) -> list[Any]:
        said[process.process_index] = value
        barrier.wait(10)
        found = [said[0], said[1]]
        barrier.wait(10)
        return found

    monkeypatch.setattr(pairs_, "gathered", exchange)
    teachers = [Teacher(), Teacher()]

    def work(rank: int) -> Floats:
        process: Any = SimpleNamespace(num_processes=2, process_index=rank)
        with ScoreCache(tmp_path / "both", "a", writes=rank == 0) as cache:
            return score(many, teachers[rank], cache, Silent(), accelerator=process).teacher_P

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(work, (0, 1)))
    for teacher_P in found:
        np.testing.assert_array_equal(teacher_P, expected)
    assert -(-len(alone.asked) // 18) % 2  # an odd number of blocks: in the end the second process has none
    assert sorted(teachers[0].asked + teachers[1].asked) == sorted(alone.asked)
    assert abs(len(teachers[0].asked) - len(teachers[1].asked)) <= 18
    assert (tmp_path / "both" / "a.scores").read_bytes() == (tmp_path / "alone" / "a.scores").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "cut between", "flip", "head"])
def test_a_damaged_cache_keeps_what_is_whole(damage: str, tmp_path: Path) -> None:
    """Where a kill has cut it short, also between two records, or a byte is flipped, the cache ends with the append
    before: what is scored again has the company that it had.
    """
    keys = [pair_key("query", str(n)) for n in range(10)]
    with ScoreCache(tmp_path, "a") as cache:
        for first, last in ((0, 4), (4, 9), (9, 10)):
            cache.add(keys[first:last], np.arange(first, last, dtype=np.float32))
        path = cache.path
    content = bytearray(path.read_bytes())
    record = 24
    cuts = {"cut": 5, "cut between": 2 * record}
    if damage in cuts:
        del content[-cuts[damage] :]
    else:
        content[-3 * record if damage == "flip" else 3] ^= 1
    path.write_bytes(content)
    kept = {"cut": 9, "cut between": 4, "flip": 4, "head": 0}[damage]
    with ScoreCache(tmp_path, "a") as cache:
        assert len(cache) == kept
        assert [cache[key] for key in keys[:kept]] == list(range(kept))
        cache.add(keys[kept:], np.arange(kept, 10, dtype=np.float32))
    with ScoreCache(tmp_path, "a") as cache:
        assert [cache[key] for key in keys] == list(range(10))


def test_texts_that_join_alike_are_different_pairs() -> None:
    """The key is of both texts, not of what they make together."""
    assert pair_key("ab", "c") != pair_key("a", "bc")


def pairs_of(lists: Sequence[Sequence[int]]) -> Pairs:
    """Pairs of query q with the documents in `lists[q]`."""
    query_P = np.array([q for q, row in enumerate(lists) for _ in row], dtype=np.int64)
    document_P = np.array([d for row in lists for d in row], dtype=np.int64)
    return Pairs(
        queries=[f"q{n}" for n in range(len(lists))],
        documents=[f"d{n}" for n in range(document_P.max() + 1)],
        query_P=query_P,
        document_P=document_P,
        grade_P=np.full(len(query_P), np.nan, np.float32),
        teacher_P=np.arange(len(query_P), dtype=np.float32),
    )


def tokens_of(count: int) -> TokenBatch:
    """Text n as 1 + n % 5 times the id n + 1."""
    return TokenBatch(
        [np.full(1 + n % 5, n + 1, dtype=np.int64) for n in range(count)], np.zeros(count, dtype=np.bool_)
    )


def blocks_of(pairs: Pairs, **options: int) -> Blocks:
    settings = {"documents": 12, "group": 2, "together": 4, "seed": 3} | options
    return Blocks(pairs, tokens_of(len(pairs.queries)), tokens_of(len(pairs.documents)), **settings)


def test_an_epoch_has_every_pair_once_in_blocks_of_bounded_size() -> None:
    """Blocks are made of whole queries, and the same epoch is always the same."""
    generator = np.random.default_rng(0)
    pairs = pairs_of([sorted(generator.choice(60, 5, replace=False)) for _ in range(30)])
    blocks = blocks_of(pairs)
    for epoch in range(3):
        batches = blocks.batches(epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(pairs)))
        assert all(len(set(pairs.document_P[rows])) <= 12 for rows in batches)
        assert [rows.tolist() for rows in batches] == [rows.tolist() for rows in blocks_of(pairs).batches(epoch)]
    assert [rows.tolist() for rows in blocks.batches(0)] != [rows.tolist() for rows in blocks.batches(1)]


def test_a_text_is_encoded_once_in_a_block_and_serves_all_its_pairs() -> None:
    """A block's chunks have each text once, and its pairs point at the right ones."""
    pairs = pairs_of([[0, 1, 2, 3], [1, 2, 3, 4], [0, 4, 5, 6]])
    block = blocks_of(pairs).collate(np.arange(12))
    for side, count in (("queries", 3), ("documents", 7)):
        rows = torch.cat([ids[:, 0] for ids, _ in block[side]["chunks"]])
        assert sorted(rows.tolist()) == list(range(1, count + 1))
        assert rows[block[side]["places"]].tolist() == list(range(1, count + 1))
    np.testing.assert_array_equal(block["query_P"], pairs.query_P)
    np.testing.assert_array_equal(block["document_P"], pairs.document_P)
    np.testing.assert_array_equal(block["teacher_P"], pairs.teacher_P)


def test_chunks_hold_texts_of_like_length() -> None:
    """Chunks are padded only to the longest text in them, which is of nearly their length."""
    texts = chunks(tokens_of(20), range(20), 4)
    assert [ids.shape[1] for ids, _ in texts["chunks"]] == [1, 2, 3, 4, 5]
    assert all(mask.all() for _, mask in texts["chunks"])


def test_queries_that_share_documents_become_neighbours() -> None:
    """Shuffled queries of separate topics come back topic by topic; queries without pairs are left out."""
    topics = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 6))
    order = neighbourly(pairs_of([[], *([3 * topic, 3 * topic + 1, 3 * topic + 2] for topic in topics)]))
    ordered = topics[order - 1]
    assert sorted(order) == list(range(1, 31))
    assert (np.diff(ordered) != 0).sum() == 4


def test_pairs_judged_twice_have_their_mean_grade() -> None:
    """Two raters of one pair make one pair."""
    train = Split("train", [Pair("a", "x", 1.0), Pair("a", "x", 0.5)])
    dataset = Dataset(train=train, dev=Split("dev", [Pair("b", "x", 1)]), test=Split("test", [Pair("c", "x", 1)]))
    assert judged(dataset).grade_P.tolist() == [0.75]
