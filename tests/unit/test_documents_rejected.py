"""A bad document is rejected alone, with its place and a reason."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from document_cases import GOOD, read, read_bytes, read_table, the_rejection

from encoder_server.documents import Document, Rejection
from encoder_server.documents.document import MAX_DOCUMENT_BYTES


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
        (b'{"text": "x"}', "", 'no id, "id" is missing or null'),
        (b'{"id": null, "text": "x"}', "", 'no id, "id" is missing or null'),
        (b'{"id": 7, "text": "x"}', "", "the id is of type integer, not string: 7"),
        (b'{"id": true, "text": "x"}', "", "neither a string nor an integer: True"),
        (b'{"id": 7.0, "text": "x"}', "", "neither a string nor an integer: 7.0"),
        (b'{"id": ["b"], "text": "x"}', "", "neither a string nor an integer: ['b']"),
        (b'{"id": "", "text": "x"}', "", "the id is empty"),
        ('{"id": "' + "é" * 256 + '", "text": "x"}', "", "the id has 512 bytes, at most 511 are allowed"),
        (b'{"id": "\\ud800", "text": "x"}', "", "the id has a lone surrogate: '\\ud800' at 0"),
        (b'{"id": "b"}', "b", 'no text, "text" is missing or null'),
        (b'{"id": "b", "text": null}', "b", 'no text, "text" is missing or null'),
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
