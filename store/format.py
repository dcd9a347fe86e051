r"""Every name, key and byte layout of a store on disk, in one place. All numbers are little-endian.

    S/LOCK                             flock held by whoever changes the store; its text says who
    S/COMPACTION                       flock held by a compaction, besides; the same
    S/SWITCH                           flock held for the moment in which CURRENT is replaced; the same
    S/CURRENT                          "000012-9f3c01ab\n"
    S/generations/000012-9f3c01ab.json manifest; the hex digits are the first 8 of its sha256
    S/generations/000012-9f3c01ab.pin  empty: no collection removes this generation
    S/segments/<32 hex digits>/data.mdb  immutable LMDB environment
    S/building/<16 hex digits>/        a refresh in progress, named by what its rows depend on
    S/building/compaction/             a compaction in progress

docs/store-format.md explains the layout to readers of other languages; a test holds the two together.
"""

from __future__ import annotations

import re

import numpy as np

FORMAT = 1

LOCK = "LOCK"
COMPACTION = "COMPACTION"
SWITCH = "SWITCH"
CURRENT = "CURRENT"
GENERATIONS = "generations"
SEGMENTS = "segments"
PIN = ".pin"
BUILDING = "building"
COMPACTION_DRAFT = "compaction"
DATA = "data.mdb"

GENERATION_NAME = re.compile(r"(\d{6,})-([0-9a-f]{8})")
SEGMENT_ID = re.compile(r"[0-9a-f]{32}")

# Databases of a segment, and their keys. Every value is one array.
VECTORS = b"vectors"  # part number (4 ASCII digits) → rows, `rows_per_part` in every part but the last
INDEX = b"index"
KEYS = b"keys"  # u64[n + t], ascending: of n rows and t tombstones
ROWS = b"rows"  # u32[n + t], parallel to KEYS
BUCKETS = b"buckets"  # u32[2^b + 1]: keys whose top b bits are h stand at BUCKETS[h] to BUCKETS[h + 1]
DOCUMENTS = b"documents"
ID_OFFSETS = b"id_offsets"  # u64[n + 1] into ID_BYTES, where ids are strings
ID_BYTES = b"id_bytes"
NUMBERS = b"numbers"  # u64[n], where ids are integers
DIGESTS = b"digests"  # 16 bytes a row: BLAKE2b of the text
TIMES = b"times"  # i64[n], milliseconds since the Unix epoch
SCALES = b"scales"  # f32[n], where the encoding has them

U64 = np.dtype("<u8")
U32 = np.dtype("<u4")
I64 = np.dtype("<i8")
F32 = np.dtype("<f4")
DIGEST = np.dtype("V16")

TOMBSTONE = 0xFFFFFFFF  # a row number that means: deleted

# LMDB keeps a value's size in 32 bits, and a value's pages must be numbered within it too.
MAX_PART_BYTES = (4 << 30) - (64 << 10)
PAGE_HEADER = 16  # bytes before a value that has pages of its own; a page is as large as the writing host's

# Only vectors are cut into parts, so the other arrays bound a segment: digests are the widest, ids vary in length.
MAX_ROWS = MAX_PART_BYTES // DIGEST.itemsize
MAX_ID_BYTES = 511
MAX_ID_TEXT_BYTES = MAX_PART_BYTES  # of all ids of a segment

ID_TYPES = ("string", "integer")


def part_key(part: int) -> bytes:
    """Key of a part in VECTORS."""
    return b"%04d" % part


def generation_name(number: int, sha256: str) -> str:
    """Name of the generation whose manifest has this sha256 (hex)."""
    return f"{number:06d}-{sha256[:8]}"
