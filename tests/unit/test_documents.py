"""Document sources: every format read in order, every bad document rejected alone, every bad file refused whole."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoder_server.documents import Deletion, Document, DocumentSource, Rejection
from encoder_server.documents.document import MAX_DOCUMENT_BYTES, MAX_ID_BYTES
from store import format as store_format
from twinbert.errors import UsageError
from twinbert.text import is_blank

GOOD = b'{"id": "a", "text": "one"}\n'


class Settings(TypedDict, total=False):
    """Settings of a DocumentSource beside its path."""

    format: str
    id_column: str
    text_columns: Sequence[str]
    time_column: str
    id_type: str
    delta: bool


def read(path: Path | str, **settings_: Unpack[Settings]) -> list[Document | Deletion | Rejection]:
    """All that comes from this path."""
    return list(DocumentSource(path=path, **settings_))


def read_bytes(
    folder: Path, content: bytes, name: str = "docs.jsonl", **settings_: Unpack[Settings]
) -> list[Document | Deletion | Rejection]:
    """All that comes from a file of this content."""
    path = folder / name
    path.write_bytes(content)
    return read(path, **settings_)


def read_table(
    folder: Path, columns: dict[str, Any], **settings_: Unpack[Settings]
) -> list[Document | Deletion | Rejection]:
    """All that comes from a Parquet file of these columns."""
    pq.write_table(pa.table(columns), folder / "docs.parquet")
    return read(folder / "docs.parquet", **settings_)


def the_rejection(items: Iterable[Document | Deletion | Rejection]) -> Rejection:
    """The only rejection among them."""
    [rejection] = [item for item in items if isinstance(item, Rejection)]
    return rejection


# Documents, in every format.

RawDocument = tuple[str | int, str, int | None]  # id, text, Unix seconds
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80).filter(lambda text: not is_blank(text))
TIMES = st.none() | st.integers(-62_135_596_800, 253_402_300_799)
NO_TSV_CHARACTERS = str.maketrans({"\t": "_", "\n": "_", "\r": "_"})


def jsonl_bytes(rows: list[RawDocument], ensure_ascii: bool) -> bytes:
    """As JSON Lines."""
    lines = (json.dumps({"id": k, "text": t, "time": s}, ensure_ascii=ensure_ascii) for k, t, s in rows)
    return "".join(line + "\n" for line in lines).encode()


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
        f"{tmp_path / 'docs.parquet'}:9001", 9_000, "d9000", 'no text: "text" is missing or null'
    )


# Documents rejected one by one.


@pytest.mark.parametrize(
    ("line", "document_id", "reason"),
    [
        (b'{"id": "b", "text": "\xff"}', "", "not UTF-8: byte 0xff at 21"),
        (b"{'id': 'b'}", "", "not JSON: Expecting property name"),
        (b'{"id": "b", "text": "x", "time": NaN}', "", "NaN is not a JSON value"),
        (b'{"id": ' + b"1" * 5000 + b"}", "", "not JSON that can be read"),
        (b"[" * 100_000, "", "not JSON that can be read"),
        (b'["b", "text"]', "", "not a JSON object: ['b', 'text']"),
        (b"null", "", "not a JSON object: None"),
        (b'{"text": "x"}', "", 'no id: "id" is missing or null'),
        (b'{"id": null, "text": "x"}', "", 'no id: "id" is missing or null'),
        (b'{"id": 7, "text": "x"}', "", "the id is of type integer, not string: 7"),
        (b'{"id": true, "text": "x"}', "", "neither a string nor an integer: True"),
        (b'{"id": 7.0, "text": "x"}', "", "neither a string nor an integer: 7.0"),
        (b'{"id": ["b"], "text": "x"}', "", "neither a string nor an integer: ['b']"),
        (b'{"id": "", "text": "x"}', "", "the id is empty"),
        ('{"id": "' + "é" * 256 + '", "text": "x"}', "", "the id has 512 bytes, at most 511 are allowed"),
        (b'{"id": "\\ud800", "text": "x"}', "", "the id has a lone surrogate: '\\ud800' at 0"),
        (b'{"id": "b"}', "b", 'no text: "text" is missing or null'),
        (b'{"id": "b", "text": null}', "b", 'no text: "text" is missing or null'),
        (b'{"id": "b", "text": ""}', "b", "the text is blank"),
        (b'{"id": "b", "text": " \\n\\t"}', "b", "the text is blank"),
        (b'{"id": "b", "text": ["x"]}', "b", "the text \"text\" is not a string: ['x']"),
        (b'{"id": "b", "text": "x\\udc00"}', "b", "the text has a lone surrogate: '\\udc00' at 1"),
        (b'{"id": "b", "text": "x", "time": "yesterday"}', "b", "the time is neither RFC 3339"),
        (b'{"id": "b", "text": "x", "time": "2024-05-31T12:00:00"}', "b", "the time is neither RFC 3339"),
        (b'{"id": "b", "text": "x", "time": "2024-02-30T12:00:00Z"}', "b", "the time does not exist"),
        (b'{"id": "b", "text": "x", "time": true}', "b", "the time is neither RFC 3339"),
        (b'{"id": "b", "text": "x", "time": 1717156800000}', "b", "the time is outside the years 1 to 9999"),
        (b'{"id": "b", "text": "x", "time": 1e999}', "b", "the time is outside the years 1 to 9999"),
        (b'{"id": "b", "deleted": true}', "b", "a deletion needs a delta refresh"),
        (b'{"id": "b", "text": "x", "deleted": 0}', "b", '"deleted" is neither true nor false: 0'),
    ],
)
def test_bad_json_line_is_rejected_alone(tmp_path: Path, line: bytes | str, document_id: str, reason: str) -> None:
    """A bad line is left out with its place and the reason, and the lines around it are read."""
    raw = line.encode() if isinstance(line, str) else line
    first, second, third = read_bytes(tmp_path, GOOD + raw + b'\n{"id": "c", "text": "c\\u0000", "deleted": false}\n')
    assert first == Document("a", "one", None)
    assert isinstance(second, Rejection)
    assert (second.where, second.position) == (f"{tmp_path / 'docs.jsonl'}:2", 1)
    assert second.document_id == document_id
    assert reason in second.reason
    assert len(second.reason) < 200
    assert third == Document("c", "c\0", None)


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


@pytest.mark.parametrize(
    ("key", "reason"),
    [("-1", "outside 0 to 2^64 - 1"), (str(2**64), "outside 0 to 2^64 - 1"), ('"7"', "type string, not integer")],
)
def test_bad_integer_id_is_rejected(tmp_path: Path, key: str, reason: str) -> None:
    """An integer id stands for itself up to 2^64 - 1; beyond, and as a string, it is rejected."""
    last = b'{"id": 18446744073709551615, "text": "one"}\n'
    items = read_bytes(tmp_path, last + b'{"id": %b, "text": "x"}' % key.encode())
    assert items[0] == Document(2**64 - 1, "one", None)
    assert reason in the_rejection(items).reason


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


@pytest.mark.parametrize(
    ("line", "document_id", "reason"),
    [
        (b"b\tx", "", "2 tab-separated fields, the header has 4"),
        (b"b\tx\t\t\t", "", "5 tab-separated fields, the header has 4"),
        (b"\tx\t\t", "", "the id is empty"),
        (b"b\t\t\t", "b", "the text is blank"),
        (b"b\tx\tsoon\t", "b", "the time is neither RFC 3339"),
        (b"b\tx\t\ttrue", "b", "a deletion needs a delta refresh"),
        (b"b\tx\t\tno", "b", "\"deleted\" is neither true nor false: 'no'"),
        (b"b\t\xe9\t\t", "", "not UTF-8: byte 0xe9 at 2"),
    ],
)
def test_bad_tsv_line_is_rejected_alone(tmp_path: Path, line: bytes, document_id: str, reason: str) -> None:
    """So it is with TSV, which knows no quoting: a quote is a character."""
    content = b'id\ttext\ttime\tdeleted\na\t"one\t\tfalse\n' + line + b"\nc\tx\\t\t0\t\n"
    first, second, third = read_bytes(tmp_path, content, "docs.tsv")
    assert first == Document("a", '"one', None)
    assert isinstance(second, Rejection)
    assert (second.where, second.position, second.document_id) == (f"{tmp_path / 'docs.tsv'}:3", 1, document_id)
    assert reason in second.reason
    assert third == Document("c", "x\\t", 0)


@pytest.mark.parametrize("key", ["x", "-1", "1_0", "١", "9" * 21, "7.0", ""])
def test_tsv_integer_id_is_digits(tmp_path: Path, key: str) -> None:
    """Asked for integers, TSV rejects an id that is not written in digits."""
    first, second = read_bytes(tmp_path, f"id\ttext\n7\tx\n{key}\tx".encode(), "docs.tsv", id_type="integer")
    assert first == Document(7, "x", None)
    assert isinstance(second, Rejection)


def test_bad_parquet_rows_are_rejected_alone(tmp_path: Path) -> None:
    """A bad cell costs its own row only, even if its bytes are no UTF-8."""
    latin_1 = pa.array([b"x", b"\xe9", b"x", b"x", b"x", b"x"]).view(pa.string())
    columns = {
        "id": pa.array([-1, 2, None, 4, 5, 6], pa.int64()),
        "text": latin_1,
        "time": [1.0, 1.0, 1.0, float("inf"), None, None],
        "deleted": [False, False, False, False, True, None],
    }
    *rejections, last = read_table(tmp_path, columns)
    assert last == Document(6, "x", None)
    reasons = [
        "the id is outside",
        "not UTF-8: byte 0xe9 at 0",
        "no id",
        "the time is outside",
        "a deletion needs a delta refresh",
    ]
    for position, (rejection, reason) in enumerate(zip(rejections, reasons, strict=True)):
        assert isinstance(rejection, Rejection)
        assert (rejection.where, rejection.position) == (f"{tmp_path / 'docs.parquet'}:{position + 1}", position)
        assert reason in rejection.reason


def test_long_line_is_rejected_unread(tmp_path: Path) -> None:
    """A line over 16 MiB is rejected without being held in memory, and the longest allowed one is read."""
    path = tmp_path / "docs.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(b" " * (1 << 20))
        file.write(b"\n" + GOOD + GOOD[:-1].ljust(MAX_DOCUMENT_BYTES) + b"\n" + GOOD[:-1].ljust(MAX_DOCUMENT_BYTES + 1))
    tracemalloc.start()
    try:
        first, *good, last = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * MAX_DOCUMENT_BYTES
    assert good == [Document("a", "one", None)] * 2
    assert isinstance(first, Rejection)
    assert isinstance(last, Rejection)
    assert first.where == f"{path}:1"
    assert first.reason == last.reason == "the line has over 16,777,216 bytes"


def test_long_parquet_text_is_rejected(tmp_path: Path) -> None:
    """A text has the same limit in Parquet."""
    items = read_table(tmp_path, {"id": ["a", "b"], "text": ["x" * (MAX_DOCUMENT_BYTES + 1), "x"]})
    assert the_rejection(items).reason == "the text has 16,777,217 bytes, at most 16,777,216 are allowed"


# Where documents come from.


@pytest.mark.parametrize(
    ("name", "content"),
    [("docs", GOOD), ("docs.dat", gzip.compress(GOOD)), ("docs.txt", b"id\ttext\na\tone\n"), ("x.JSONL", GOOD)],
)
def test_format_is_told_by_content_where_the_name_does_not(tmp_path: Path, name: str, content: bytes) -> None:
    """A single file of any name is read if its first bytes tell the format; gzip is told by its bytes alone."""
    assert read_bytes(tmp_path, content, name) == [Document("a", "one", None)]


def test_parquet_is_told_by_content(tmp_path: Path) -> None:
    """Parquet too is told by its first bytes."""
    pq.write_table(pa.table({"id": ["a"], "text": ["one"]}), tmp_path / "docs")
    assert read(tmp_path / "docs") == [Document("a", "one", None)]


def test_given_format_wins_over_the_name(tmp_path: Path) -> None:
    """A format that is given is taken, for a file and for all of a folder."""
    assert read_bytes(tmp_path, b"id\ttext\na\tone", "docs.jsonl", format="tsv") == [Document("a", "one", None)]
    assert read(tmp_path, format="tsv") == [Document("a", "one", None)]


def test_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    """A folder is one input: its files in order of their names, positions counted through, hidden ones skipped."""
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(GOOD) + gzip.compress(b"{}\n"))  # two members are one file
    (tmp_path / "1.tsv").write_bytes(b"id\ttext\nb\ttwo\n")
    pq.write_table(pa.table({"id": ["c"], "text": ["three"]}), tmp_path / "3.parquet")
    for name in ("_SUCCESS", ".2.jsonl.swp", "4.tsv", "5.jsonl"):
        (tmp_path / name).touch()
    source = DocumentSource(path=tmp_path)
    assert (source.total_bytes, source.bytes_read) == (sum(file.stat().st_size for file in tmp_path.iterdir()), 0)
    first, second, third, fourth = source
    assert [first, second] == [Document("b", "two", None), Document("a", "one", None)]
    assert fourth == Document("c", "three", None)
    assert isinstance(third, Rejection)
    assert (third.where, third.position) == (f"{tmp_path / '2.jsonl.gz'}:2", 2)
    assert source.bytes_read == source.total_bytes
    assert source.id_type == "string"


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.jsonl.gz", "docs.parquet"])
def test_progress_counts_stored_bytes(tmp_path: Path, name: str) -> None:
    """The bytes that were read grow from 0 to the input's size as it is stored, in several steps."""
    path = tmp_path / name
    keys = [f"d{i * 2654435761 % 2**32:08x}" for i in range(50_000)]
    if name.endswith("parquet"):
        pq.write_table(pa.table({"id": keys, "text": keys}), path)
    else:
        content = jsonl_bytes([(key, key, None) for key in keys], True)
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    source = DocumentSource(path=path)
    steps = [source.bytes_read]
    for _ in source:
        if source.bytes_read != steps[-1]:
            steps.append(source.bytes_read)
    steps.append(source.bytes_read)
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, source.total_bytes)
    assert len(steps) > 3


READ_STANDARD_INPUT = """
import sys
from encoder_server.documents import DocumentSource
source = DocumentSource(path=sys.argv[1])
for item in source:
    print(item)
print(source.bytes_read, source.total_bytes, sorted({"numpy", "grpc", "pyarrow"} & set(sys.modules)))
"""


@pytest.mark.parametrize("path", ["-", "/dev/stdin"])
@pytest.mark.parametrize("content", [GOOD, gzip.compress(GOOD), b"id\ttext\na\tone\n"], ids=["jsonl", "gzip", "tsv"])
def test_streams_are_read_once(path: str, content: bytes) -> None:
    """Standard input and pipes are read, their size unknown, and no heavy library is imported for it."""
    process = subprocess.Popen(
        [sys.executable, "-c", READ_STANDARD_INPUT, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    process.stdin.write(content[:1])  # the first byte alone tells neither gzip nor the format
    process.stdin.flush()
    output, _ = process.communicate(content[1:])
    assert output.decode().splitlines() == ["Document(key='a', text='one', time_ms=None)", f"{len(content)} None []"]


def test_standard_input_is_named_in_rejections() -> None:
    """A rejection from standard input says so."""
    command = [sys.executable, "-c", READ_STANDARD_INPUT, "-"]
    process = subprocess.run(command, input=GOOD + b"{}\n", stdout=subprocess.PIPE, check=True)
    assert "where='<stdin>:2'" in process.stdout.decode()


# Inputs that are refused whole.


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
        ("a.jsonl.gz", gzip.compress(GOOD)[:-9], {}, "cannot be read to its end, so nothing was published"),
        ("a.jsonl.gz", gzip.compress(GOOD)[:-8] + b"12345678", {}, "cannot be read to its end"),
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
    [("a.jsonl", b""), ("a.jsonl", b"\n\n"), ("a.tsv", b""), ("a.tsv", b"id\ttext\n"), ("a.jsonl", gzip.compress(b""))],
)
def test_input_without_documents_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """An input without a single line of a document is an error, not an empty corpus."""
    with pytest.raises(UsageError, match="there is no document in it"):
        read_bytes(tmp_path, content, name)


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
