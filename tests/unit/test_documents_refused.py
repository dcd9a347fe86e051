"""An input that cannot be meant, or is damaged, is refused whole."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_cases import GOOD, GZIPPED, Settings, jsonl_bytes, read, read_bytes, read_table

from encoder_server.documents import Document, DocumentSource
from twinbert.errors import UsageError


@pytest.mark.parametrize(
    ("name", "content", "settings_", "message"),
    [
        ("a.tsv", b"sku\ttext\na\tone", {}, 'no column "id" among sku, text: choose with --id-column'),
        ("a.tsv", b"id\tbody\na\tone", {}, 'no column "text" among id, body: choose with --text-column'),
        ("a.tsv", b"id\ttext\n", {"time_column": "at"}, 'no column "at" among id, text: choose with --time-column'),
        ("a.tsv", b"id\ttext\tid\n", {}, 'more than one column is called "id"'),
        ("a.tsv", b"id\ttext\xff\n", {}, "a.tsv:1: the header cannot be read: not UTF-8"),
        ("a.csv", b"id,text\na,one\n", {}, "tells the format: give it with --format"),
        ("a", b"", {}, "it is empty"),
        ("a.parquet", b"PAR1 and no more", {}, "no Parquet file, or a damaged one"),
        ("a.parquet", b"", {}, "no Parquet file, or a damaged one"),
        ("a.jsonl.gz", GZIPPED[:-9], {}, "cannot be read to its end, so nothing was published"),
        ("a.jsonl.gz", GZIPPED[:-8] + b"12345678", {}, "cannot be read to its end"),
        ("a.jsonl", GOOD, {"format": "csv"}, 'the format "csv" is unknown: give one of auto, jsonl, tsv, parquet'),
        ("a.jsonl", GOOD, {"id_type": "uuid"}, 'the id type "uuid" is unknown: give one of auto, string, integer'),
        ("a.jsonl", GOOD, {"text_columns": []}, "no text column is named"),
    ],
)
def test_bad_file_is_refused_at_once(
    tmp_path: Path, name: str, content: bytes, settings_: Settings, message: str
) -> None:
    """A file whose head is wrong is refused before its first document, with its name and the remedy."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(message)):
        DocumentSource(path=path, **settings_)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", b"\n\n"),
        ("a.tsv", b""),
        ("a.tsv", b"id\ttext\n"),
        ("a.jsonl", gzip.compress(b"", mtime=0)),
    ],
)
def test_input_without_documents_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """An input without a single line of a document is an error, not an empty corpus."""
    with pytest.raises(UsageError, match="there is no document in it"):
        read_bytes(tmp_path, content, name)


def test_parquet_whose_columns_have_no_names_in_utf8_is_refused(tmp_path: Path) -> None:
    """In one line, though the library stumbles over them with an error of its own kind."""
    path = tmp_path / "docs.parquet"
    pq.write_table(pa.table({"id": ["a"], "text_": ["b"]}), path)
    path.write_bytes(path.read_bytes().replace(b"text_", b"text\xff"))
    with pytest.raises(UsageError, match="no Parquet file, or a damaged one"):
        DocumentSource(path=path)


def test_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    """So is a Parquet file without rows, whose columns may have no type."""
    with pytest.raises(UsageError, match="there is no document in it"):
        read_table(tmp_path, {"id": pa.array([], pa.null()), "text": pa.array([], pa.null())})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"]}, 'no column "text" among id'),
        ({"id": [1.0], "text": ["x"]}, 'column "id" is of type double: convert it to strings or integers'),
        ({"id": ["a"], "text": [b"x"]}, 'column "text" is of type binary: convert it to strings'),
        ({"id": ["a"], "text": ["x"], "time": [True]}, 'column "time" is of type bool: convert it to strings, Unix'),
        ({"id": ["a"], "text": ["x"], "deleted": [0]}, 'column "deleted" is of type int64: convert it to booleans'),
    ],
)
def test_parquet_of_wrong_columns_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    """A Parquet column of a type that cannot be meant is refused by its schema."""
    pq.write_table(pa.table(columns), tmp_path / "docs.parquet")
    with pytest.raises(UsageError, match=re.escape(message)):
        DocumentSource(path=tmp_path / "docs.parquet")


def test_missing_and_empty_paths_are_refused(tmp_path: Path) -> None:
    """A path that leads nowhere, and a folder without documents, are named."""
    with pytest.raises(UsageError, match=r"nowhere: no such file or folder of documents"):
        DocumentSource(path=tmp_path / "nowhere")
    (tmp_path / ".hidden.jsonl").write_bytes(GOOD)
    with pytest.raises(UsageError, match=r"there is no file in this folder"):
        DocumentSource(path=tmp_path)


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    """A folder that holds anything else is refused with a list of it, so that no document is forgotten silently."""
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.csv").touch()
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match=r"move away b\.csv, c$"):
        DocumentSource(path=tmp_path)


def test_mixed_id_types_are_refused(tmp_path: Path) -> None:
    """Files of one folder whose heads tell different types of ids are refused before the first document."""
    (tmp_path / "a.tsv").write_bytes(b"id\ttext\n7\tone\n")
    pq.write_table(pa.table({"id": [8], "text": ["two"]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=r"b\.parquet: the ids in column \"id\" are of type integer"):
        DocumentSource(path=tmp_path)
    assert read(tmp_path, id_type="integer") == [Document(7, "one", None), Document(8, "two", None)]


def test_parquet_from_a_stream_is_refused() -> None:
    """Parquet has its index at the end, so standard input cannot bring it."""
    with pytest.raises(UsageError, match="Parquet cannot be read from a stream"):
        read("/dev/zero", format="parquet")


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_gzip_damaged_in_the_middle_is_refused(tmp_path: Path, damage: str) -> None:
    """Damage that shows only on the way ends the reading with an error that says that nothing was published."""
    content = gzip.compress(jsonl_bytes([(f"d{i * 2654435761 % 2**32:08x}", "x", None) for i in range(50_000)], True))
    middle = len(content) // 2
    flipped = content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 64]) + content[middle + 64 :]
    path = tmp_path / "docs.jsonl.gz"
    path.write_bytes(content[:middle] if damage == "cut" else flipped)
    items = iter(DocumentSource(path=path))
    assert isinstance(next(items), Document)
    with pytest.raises(UsageError, match=r"docs\.jsonl\.gz: cannot be read to its end, so nothing was published"):
        list(items)


def test_parquet_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    """So it is with a Parquet file whose index is whole and whose pages are not."""
    path = tmp_path / "docs.parquet"
    keys = [f"d{i * 2654435761 % 2**32:08x}" for i in range(50_000)]
    pq.write_table(pa.table({"id": keys, "text": keys}), path, row_group_size=5_000, use_dictionary=False)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50_000] = b"\xff" * 50_000
    path.write_bytes(content)
    items = iter(DocumentSource(path=path))
    assert isinstance(next(items), Document)
    with pytest.raises(UsageError, match=r"docs\.parquet: no Parquet file, or a damaged one, so nothing was published"):
        list(items)
