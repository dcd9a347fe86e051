"""Reading what is learned from: formats, splits, and complaints that say where."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twinbert.errors import UsageError
from twinbert.training.data import (
    Columns,
    Dataset,
    Pair,
    Split,
    add_unlabelled,
    query_key,
    read_dataset,
    read_home_depot,
    read_pairs,
    read_texts,
    sample,
    split_by_query,
    split_of,
)
from twinbert.training.texts import TextFile

ROWS = [("red shoes", "a red shoe", 3.0), ("red shoes", "a blue hat", 1.0), ("hat", "a blue hat", 2.0)]
SCALE = Columns(query="q", document="d", grade="r", lowest=1, highest=3)
PAIRS = [Pair(query, document, (grade - 1) / 2) for query, document, grade in ROWS]


def write(path: Path) -> Path:
    """The rows in the format that the name says."""
    dicts = [dict(zip("qdr", row, strict=True)) for row in ROWS]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(dicts), path)
        return path
    lines = "".join(json.dumps(row) + "\n" for row in dicts)
    if ".tsv" in path.name:
        lines = "".join("\t".join(map(str, row)) + "\r\n" for row in [("q", "d", "r"), *ROWS])
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else b"\xef\xbb\xbf" + lines.encode())
    return path


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz", "pairs.jsonl", "pairs.jsonl.gz", "pairs.parquet"])
def test_every_format_gives_the_same_pairs(name: str, tmp_path: Path) -> None:
    """TSV, JSON Lines and Parquet, plain or gzip, give the same pairs with grades from 0 to 1."""
    assert list(read_pairs(write(tmp_path / name), SCALE)) == PAIRS


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("q\td\n", 'no column "r" among q, d; .*--grade-column'),
        ("q\td\tr\na\tb\t4\n", ":2: the grade 4 is outside 1 to 3; .*--lowest-grade"),
        ("q\td\tr\na\tb\tnan\n", ":2: the grade nan is outside 1 to 3"),
        ("q\td\tr\na\tb\tgood\n", ":2: the grade 'good' is no number"),
        ("q\td\tr\n \tb\t2\n", ":2: \"q\" is ' ', not a text"),
        ("q\td\tr\na\t2\n", ":2: has 2 fields, the header 3"),
        ("q\td\tr\n\u200b\tb\t2\n", r":2: \"q\" is '\\u200b', not a text"),
    ],
)
def test_a_row_that_is_no_pair_is_named(content: str, complaint: str, tmp_path: Path) -> None:
    """A missing column, a grade out of range, a blank text: the message has file, line and remedy."""
    path = tmp_path / "pairs.tsv"
    path.write_text(content)
    with pytest.raises(UsageError, match=complaint):
        list(read_pairs(path, SCALE))


def test_half_a_character_is_named(tmp_path: Path) -> None:
    """A lone surrogate, which JSON can name and no file can hold, is found where it is read."""
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"q": "a"}\n{"q": "a \\ud83d"}\n')
    with pytest.raises(UsageError, match=r'pairs.jsonl:2: "q" is .a .ud83d., which has half a character; mend or'):
        list(read_texts(path, "q"))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Missing, of unknown format, not JSON, not UTF-8, damaged Parquet or gzip: a UsageError with the path."""
    contents = {"a.tsv": None, "b.csv": b"", "c.jsonl": b"{", "d.tsv": b"\xff", "e.parquet": b"PAR1"}
    contents["f.tsv.gz"] = gzip.compress(b"")[:10] + b"\xff" * 9  # a header, and what is no deflate stream
    for name, content in contents.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=str(path)):
            list(read_pairs(path, SCALE))


def test_pairs_are_split_by_query(tmp_path: Path) -> None:
    """Without files for dev and test, the sha256 of a query says where all its pairs go."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"query": f"query {n}", "document": f"text {m}", "grade": 0.5} for n in range(40) for m in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = read_dataset(path)
    for split in (dataset.train, dataset.dev, dataset.test):
        assert {split_of(query) for query in split.by_query()} == {split.name}
        assert all(len(pairs) == 2 for pairs in split.by_query().values())
    assert split_of("query 0") == "train"


def test_however_it_is_written_a_query_is_in_one_split(tmp_path: Path) -> None:
    """Case, spacing and Unicode form do not part the pairs of a query; where they did, the splits are refused."""
    path, written = tmp_path / "pairs.tsv", ("query {}", "Query  {}", " QUERY {}", "\uff51uery\u00a0{}")
    rows = [f"{form.format(number)}\ttext\t1" for number in range(40) for form in written]
    path.write_text("\n".join(["query\tdocument\tgrade", *rows]))
    dataset = read_dataset(path)
    for split in (dataset.train, dataset.dev, dataset.test):
        assert {split_of(query_key(query)) for query in split.by_query()} == {split.name}
    with pytest.raises(UsageError, match=r"the query .* is in the .* split, so the measure would be"):
        split_by_query(read_pairs(path, Columns()), verbatim=True)


def test_an_empty_split_and_a_query_in_two_splits_are_refused(tmp_path: Path) -> None:
    """Both are found when the dataset is made, and only one of dev and test is refused."""
    pairs = [Pair("a", "b", 1.0)]
    with pytest.raises(UsageError, match="the dev split is empty"):
        Dataset(train=Split("train", pairs), dev=Split("dev", []), test=Split("test", pairs))
    with pytest.raises(UsageError, match="the query 'a' is in the train and the test split"):
        Dataset(train=Split("train", pairs), dev=Split("dev", [Pair("c", "b", 1.0)]), test=Split("test", pairs))
    with pytest.raises(UsageError, match="both --dev and --test, or neither"):
        read_dataset(write(tmp_path / "pairs.tsv"), dev=tmp_path / "dev.tsv")


def test_a_sample_has_a_share_of_the_training_queries() -> None:
    """Whole queries, the same ones each time and fewer for a smaller share; dev and test stay whole."""
    pairs = [Pair(f"query {n}", text, 0.5) for n in range(400) for text in ("a", "b")]
    whole = Dataset(
        train=Split("train", pairs), dev=Split("dev", [Pair("d", "a", 1)]), test=Split("test", [Pair("t", "a", 1)])
    )
    half, quarter = sample(whole, 0.5), sample(whole, 0.25)
    assert 160 < len(half.train.by_query()) < 240
    assert set(quarter.train.pairs) < set(half.train.pairs) < set(pairs)
    assert all(len(of_query) == 2 for of_query in quarter.train.by_query().values())
    assert (half.dev, half.test) == (whole.dev, whole.test)
    with pytest.raises(UsageError, match="the train split is empty"):
        sample(whole, 1e-9)


@pytest.mark.parametrize("on_disk", [True, False])
def test_queries_of_dev_and_test_are_never_learned_from(tmp_path: Path, *, on_disk: bool) -> None:
    """Unlabelled queries that dev or test has, in any case, are left out; unlabelled documents belong to the corpus."""
    splits = [Split(name, [Pair(name, f"{name} text", 1.0)]) for name in ("train", "dev", "test")]
    queries, documents = tmp_path / "queries.tsv", tmp_path / "documents.jsonl"
    queries.write_text("q\nmore\ndev\nDEV \ntrain\n")
    documents.write_text('{"d": "new text"}\n{"d": "train text"}\n')
    dataset = add_unlabelled(
        Dataset(train=splits[0], dev=splits[1], test=splits[2]),
        columns=SCALE,
        queries=queries,
        documents=documents,
        folder=tmp_path / "texts" if on_disk else None,
    )
    assert dataset.training_queries() == ["train", "more"]
    assert dataset.training_queries(0) == ["train"]
    assert dataset.corpus() == ["train text", "dev text", "test text", "new text"]
    assert dataset.corpus(0) == ["train text", "dev text", "test text"]
    assert set(dataset.texts()) == {*dataset.training_queries(), *dataset.corpus()}


def test_the_home_depot_zip(tmp_path: Path) -> None:
    """Latin-1, quotes, relevance 1 to 3 → grades 0 to 1; another zip, or none, is refused with its path."""
    path = tmp_path / "train.csv.zip"
    lines = ["id,product_uid,product_title,search_term,relevance"]
    lines += [f'{n},{n},"bolt, ½ in. {n}",bolt {n},{1 + n % 3}' for n in range(60)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.csv", "\n".join(lines).encode("latin-1"))
    dataset = read_home_depot(path)
    pairs = [pair for split in (dataset.train, dataset.dev, dataset.test) for pair in split.pairs]
    assert len(pairs) == 60
    assert {pair.grade for pair in pairs} == {0, 0.5, 1}
    assert Pair("bolt 2", "bolt, ½ in. 2", 1.0) in pairs
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("test.csv", "")
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"PK\x01\x02") + 16] ^= 1  # of the sum of what is in it
    (tmp_path / "damaged.zip").write_bytes(damaged)
    with zipfile.ZipFile(tmp_path / "long.zip", "w") as archive:
        archive.writestr("train.csv", f"{lines[0]}\n1,1,{'x' * 200_000},bolt,2")
    locked = bytearray(path.read_bytes())
    locked[6] |= 1
    locked[locked.index(b"PK\x01\x02") + 8] |= 1  # both say that a password is needed
    (tmp_path / "locked.zip").write_bytes(locked)
    for other in ("other.zip", "none.zip", "damaged.zip", "long.zip", "locked.zip"):
        with pytest.raises(UsageError, match=str(tmp_path / other)):
            read_home_depot(tmp_path / other)


def test_texts_on_disk_are_read_by_position(tmp_path: Path) -> None:
    """A stream of texts, kept on disk, gives each text back, also to those who have it open when it is replaced."""
    texts = ["one", "zwei ½", "", "東京"]
    path = tmp_path / "texts"
    kept = TextFile.write(path, iter(texts))
    assert list(TextFile.write(path, ["other"])) == ["other"]
    assert list(kept) == texts
    assert kept.sizes.tolist() == [3, 7, 0, 6]
    assert (kept[-1], kept[1:3], len(kept)) == ("東京", texts[1:3], 4)
    assert not list(TextFile.write(tmp_path / "none", []))
    with pytest.raises(IndexError):
        kept[4]


def test_texts_of_a_column(tmp_path: Path) -> None:
    """Unlabelled texts need only their own column."""
    assert list(read_texts(write(tmp_path / "pairs.tsv"), "d")) == ["a red shoe", "a blue hat", "a blue hat"]
