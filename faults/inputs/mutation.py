"""Recorded inputs, changed: as bytes, and as JSON."""

from __future__ import annotations

import json
import random
from typing import Any

_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1 << 31, 1 << 63, 1 << 64, 10**30, 0.5, float("inf"), float("nan")),
    *("", "a", "..", "../../etc/passwd", "\0", "\ud800", "é" * 300, "9" * 5000, [], {}, [[]], [None], {"a": []}),
)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, removed, repeated, inserted, or exchanged for telling ones."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place, length = chance.randrange(len(changed) + 1), chance.choice((1, 1, 2, 4, 8, 64))
        match chance.randrange(6):
            case 0 if place < len(changed):
                changed[place] ^= 1 << chance.randrange(8)
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = changed[place : place + length]
            case 3:
                changed[place:place] = chance.randbytes(length)
            case 4:
                changed[place : place + length] = chance.choice(
                    (b"\xff" * 10, b"\0", b"\x80", b'"', b"\n", b"{", b"\t")
                )
            case _:
                del changed[place:]
    return bytes(changed)


def overwritten(content: bytes, chance: random.Random) -> bytes:
    """A few bytes exchanged for others: all else stays in its place, as offsets and lengths have it."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed))
        changed[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, changed[place] ^ 1 << chance.randrange(8)))
    return bytes(changed)


def altered(fields: Any, chance: random.Random) -> Any:  # noqa: ANN401 - JSON
    """JSON with one value, somewhere in it, exchanged, removed or doubled; a whole number may become the next one."""
    if isinstance(fields, dict) and fields and chance.random() < 0.9:
        key = chance.choice([*fields])
        match chance.randrange(8):
            case 0:
                return {name: value for name, value in fields.items() if name != key}
            case 1:
                return fields | {chance.choice(("", "extra", key.upper())): fields[key]}
            case _:
                return fields | {key: altered(fields[key], chance)}
    if isinstance(fields, list) and fields and chance.random() < 0.9:
        place = chance.randrange(len(fields))
        return [*fields[:place], altered(fields[place], chance), *fields[place + chance.randrange(2) :]]
    if type(fields) is int and chance.random() < 0.4:
        return fields + chance.choice((-1, 1))
    return chance.choice(_VALUES)


def altered_json(good: bytes, chance: random.Random) -> bytes:
    """A file of JSON with a value changed, written as ours are; or with bytes changed."""
    if chance.random() < 0.3:
        return mutated(good, chance)
    content = json.dumps(altered(json.loads(good), chance), indent=1, sort_keys=True, ensure_ascii=False)
    return content.encode(errors="surrogatepass") + b"\n"
