"""Files of documents in every format, plain and compressed."""

from __future__ import annotations

import gzip
import io
import random
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from encoder_server.documents import DocumentSource
from faults.inputs.mutation import mutated, overwritten
from twinbert.errors import UsageError


def recorded() -> Mapping[str, bytes]:
    """Good files by format."""
    lines = b"".join(b'{"id": "d%d", "text": "red shoes %d", "time": 17%08d}\n' % (n, n, n) for n in range(12))
    tsv = b"id\ttext\ttime\n" + b"d1\tred shoes\t2026-01-01T00:00:00Z\n" * 12
    table = pa.table(
        {
            "id": [f"d{number}" for number in range(12)],
            "text": pa.array(["red shoes", "pizza"] * 6).dictionary_encode(),
            "time": pa.array(range(12), pa.timestamp("us")),
            "deleted": [None, False] * 6,
        }
    )
    parquet = io.BytesIO()
    pq.write_table(table, parquet, row_group_size=5, compression="zstd")
    return {"jsonl": lines, "tsv": tsv, "parquet": parquet.getvalue()}


def read_documents(path: Path, files: Mapping[str, bytes], chance: random.Random, count: int) -> Counter[str]:
    """Reads mutated files, each by way of this path, to their end."""
    outcomes = Counter[str]()
    for _ in range(count):
        kind = chance.choice([*files])
        compressed = kind != "parquet" and chance.random() < 0.3
        content = files[kind]
        if compressed:
            # Its checksum finds nearly any change, so what is in it is changed first, half of the times.
            content = gzip.compress(content if chance.random() < 0.5 else mutated(content, chance), 1)
        if not compressed or chance.random() < 0.5:
            content = chance.choice((mutated, overwritten))(content, chance)
        path.write_bytes(content)
        label = f"documents, {kind}{' gzip' if compressed else ''}"
        try:
            deque(DocumentSource(path=path, format=kind, delta=chance.random() < 0.5), maxlen=0)
            outcomes[f"{label}: read, bad ones rejected"] += 1
        except UsageError:
            outcomes[f"{label}: UsageError"] += 1
    return outcomes
