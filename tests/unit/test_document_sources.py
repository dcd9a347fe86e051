"""Where documents come from: files of any name, folders and streams."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_cases import GOOD, GZIPPED, jsonl_bytes, read, read_bytes

from encoder_server.documents import Document, DocumentSource, Rejection


@pytest.mark.parametrize(
    ("name", "content"),
    [("docs", GOOD), ("docs.dat", GZIPPED), ("docs.txt", b"id\ttext\na\tone\n"), ("x.JSONL", GOOD)],
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
@pytest.mark.parametrize("content", [GOOD, GZIPPED, b"id\ttext\na\tone\n"], ids=["jsonl", "gzip", "tsv"])
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
