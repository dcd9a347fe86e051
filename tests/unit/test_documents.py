"""Every format is read whole and in order: documents, and in a delta what it deletes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from document_cases import RawDocument, Settings, jsonl_bytes, read, read_bytes, read_table, the_rejection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoder_server.documents import Deletion, Document, DocumentSource, Rejection
from encoder_server.documents.document import MAX_ID_BYTES
from store import format as store_format
from twinbert.errors import UsageError
from twinbert.text import is_blank

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80).filter(lambda text: not is_blank(text))
TIMES = st.none() | st.integers(-62_135_596_800, 253_402_300_799)
NO_TSV_CHARACTERS = str.maketrans({"\t": "_", "\n": "_", "\r": "_"})


def tsv_bytes(rows: list[RawDocument]) -> bytes:
    """As TSV, with the line ends of Windows."""
    lines = ["text\ttime\tid"] + [f"{text}\t{'' if time is None else time}\t{key}" for key, text, time in rows]
    return "".join(line + "\r\n" for line in lines).encode()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(KEYS, TEXTS, TIMES), min_size=1)
    | st.lists(st.tuples(st.integers(0, 2**64 - 1), TEXTS, TIMES), min_size=1),
    zipped=st.booleans(),
    ensure_ascii=st.booleans(),
)
def test_documents_read_back(tmp_path: Path, rows: list[RawDocument], zipped: bool, ensure_ascii: bool) -> None:
    """Documents written as JSON Lines, TSV or Parquet, plain or gzip, read back equal and in order."""
    id_type = "integer" if isinstance(rows[0][0], int) else "string"
    pack: Callable[[bytes], bytes] = gzip.compress if zipped else bytes
    wanted = [Document(key, text, None if time is None else time * 1000) for key, text, time in rows]
    assert read_bytes(tmp_path, pack(jsonl_bytes(rows, ensure_ascii))) == wanted

    keys, texts, times = zip(*rows, strict=True)
    key_type = pa.uint64() if id_type == "integer" else pa.string()
    columns = {"id": pa.array(keys, key_type), "text": list(texts), "time": pa.array(times, pa.int64())}
    assert read_table(tmp_path, columns) == wanted

    plain = [
        (key.translate(NO_TSV_CHARACTERS) if isinstance(key, str) else key, text.translate(NO_TSV_CHARACTERS), time)
        for key, text, time in rows
    ]
    wanted = [Document(key, text, None if time is None else time * 1000) for key, text, time in plain]
    assert read_bytes(tmp_path, pack(tsv_bytes(plain)), "docs.tsv", id_type=id_type) == wanted


def test_id_limit_is_the_stores() -> None:
    """The longest id that is read is the longest that the store takes."""
    assert MAX_ID_BYTES == store_format.MAX_ID_BYTES


def test_bom_blank_lines_and_missing_last_newline(tmp_path: Path) -> None:
    """A byte order mark, empty lines and a last line without its end change no document and no line's number."""
    content = b'\xef\xbb\xbf{"id": "a", "text": "one"}\r\n\n\r\n{"id": "b"}\n{"id": "c", "text": "three"}'
    first, second, third = read_bytes(tmp_path, content)
    assert first == Document("a", "one", None)
    assert isinstance(second, Rejection)
    assert (second.where, second.position) == (f"{tmp_path / 'docs.jsonl'}:4", 1)
    assert third == Document("c", "three", None)
    assert read_bytes(tmp_path, b"\xef\xbb\xbfid\ttext\na\tone\n", "docs.tsv") == [Document("a", "one", None)]


def test_named_columns_are_joined(tmp_path: Path) -> None:
    """Several text columns are joined by a newline in the order of their naming, those blank or missing left out."""
    names: Settings = {"id_column": "sku", "text_columns": ["title", "body"], "time_column": "changed"}
    wanted = [Document("a", "T\nB", 5000), Document("b", "T", None), Document("c", "B", None)]
    content = (
        b'{"sku": "a", "body": "B", "title": "T", "changed": 5}\n'
        b'{"sku": "b", "body": " ", "title": "T"}\n'
        b'{"sku": "c", "body": "B", "title": null, "changed": null}\n'
    )
    assert read_bytes(tmp_path, content, **names) == wanted
    content = b"body\tsku\ttitle\tchanged\nB\ta\tT\t5\n \tb\tT\t\nB\tc\t\t\n"
    assert read_bytes(tmp_path, content, "docs.tsv", **names) == wanted
    columns = {"sku": ["a", "b", "c"], "title": ["T", "T", None], "body": ["B", " ", "B"], "changed": [5, None, None]}
    assert read_table(tmp_path, columns, **names) == wanted


@pytest.mark.parametrize(
    ("time", "time_ms"),
    [
        (1_717_156_800, 1_717_156_800_000),
        (1_717_156_800.123, 1_717_156_800_123),
        (-1, -1000),
        ("1717156800.5", 1_717_156_800_500),
        ("2024-05-31T12:00:00Z", 1_717_156_800_000),
        ("2024-05-31t12:00:00.123456789z", 1_717_156_800_123),
        ("2024-05-31 14:30:00+02:30", 1_717_156_800_000),
    ],
)
def test_times(tmp_path: Path, time: object, time_ms: int) -> None:
    """A time is RFC 3339 or Unix seconds, whole or with a fraction, in JSON as in TSV."""
    line = json.dumps({"id": "a", "text": "one", "time": time}).encode()
    assert read_bytes(tmp_path, line) == [Document("a", "one", time_ms)]
    assert read_bytes(tmp_path, f"id\ttext\ttime\na\tone\t{time}".encode(), "a.tsv") == [Document("a", "one", time_ms)]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([datetime(2024, 5, 31)], pa.timestamp("ns")),
        pa.array([datetime(2024, 5, 31, tzinfo=UTC)], pa.timestamp("us", "Europe/Berlin")),
        pa.array([date(2024, 5, 31)], pa.date32()),
        pa.array([1_717_113_600.0], pa.float64()),
        pa.array(["2024-05-31T00:00:00Z"], pa.large_string()),
        pa.array(["2024-05-31T00:00:00Z"]).dictionary_encode(),
    ],
    ids=lambda times: str(times.type),
)
def test_parquet_times(tmp_path: Path, times: pa.Array) -> None:
    """Parquet's own kinds of time are read too."""
    assert read_table(tmp_path, {"id": ["a"], "text": ["one"], "time": times}) == [Document("a", "one", 1717113600000)]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_parquet_kinds_of_string(tmp_path: Path, kind: pa.DataType) -> None:
    """Strings are read whatever their layout, over many batches, numbered by row."""
    count = 10_000
    columns = {
        "id": pa.array([f"d{i}" for i in range(count)]).cast(kind),
        "text": pa.array([f"text {i}" if i != 9_000 else None for i in range(count)]).cast(kind),
        "other": [[1]] * count,
    }
    items = read_table(tmp_path, columns)
    assert items[:9000] == [Document(f"d{i}", f"text {i}", None) for i in range(9_000)]
    assert the_rejection(items) == Rejection(
        f"{tmp_path / 'docs.parquet'}:9001", 9_000, "d9000", 'no text, "text" is missing or null'
    )


def test_deletions_of_a_delta(tmp_path: Path) -> None:
    """In a delta `deleted: true` deletes, in every format, whatever else the row says; its id is checked."""
    lines = (
        b'{"id": "a", "deleted": true}\n{"id": "b", "text": "x"}\n{"id": "c", "text": 5, "time": [], "deleted": true}\n'
    )
    expected = [Deletion("a"), Document("b", "x", None), Deletion("c")]
    assert read_bytes(tmp_path, lines, delta=True) == expected
    table = b"id\ttext\ttime\tdeleted\na\t\t\ttrue\nb\tx\t\tfalse\nc\tx\tsoon\ttrue\n"
    assert read_bytes(tmp_path, table, "docs.tsv", delta=True) == expected
    columns = {"id": ["a", "b", "c"], "text": [None, "x", "x"], "deleted": [True, None, True]}
    assert read_table(tmp_path, columns, delta=True) == expected
    for line in (b'{"deleted": true}', b'{"id": "", "deleted": true}', b'{"id": 7, "deleted": true}'):
        assert isinstance(read_bytes(tmp_path, line, delta=True, id_type="string")[0], Rejection)
    assert read_bytes(tmp_path, b'{"id": 7, "deleted": true}\n{"id": "x", "deleted": true}', delta=True)[0] == Deletion(
        7
    )


def test_a_delta_may_be_empty(tmp_path: Path) -> None:
    """A delta in which nothing changed is no error, in every format, and without a byte to tell the format by."""
    for name in ("docs.jsonl", "docs.tsv", "docs.parquet", "docs"):
        assert read_bytes(tmp_path, b"", name, delta=True) == []
        with pytest.raises(UsageError):
            read_bytes(tmp_path, b"", name)
    assert read_table(tmp_path, {"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}, delta=True) == []
    assert read_bytes(tmp_path, b"id\ttext\n", "docs.tsv", delta=True) == []


def test_first_good_document_decides_the_id_type(tmp_path: Path) -> None:
    """Where JSON Lines does not name the type of its ids, the first document that is read does."""
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": 7, "text": "x"}\n{"id": "b", "text": "x"}\n')
    source = DocumentSource(path=path)
    id_type_before = source.id_type
    first, second, third = source
    assert (id_type_before, source.id_type) == (None, "integer")
    assert isinstance(first, Rejection)
    assert second == Document(7, "x", None)
    assert isinstance(third, Rejection)
    assert the_rejection(read(path, id_type="string")[1:2]).reason == "the id is of type integer, not string: 7"
