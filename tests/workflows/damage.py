"""Seeded damage to files: bytes that are lost, changed or from elsewhere, and values of another kind."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e308, 10**30, "", "x", "\ud7ff", "${NO_SUCH_VARIABLE}", "../../etc", "2001-13-45"),
    *([], {}, [[]], {"": None}, [None, 1], {"a": {"b": []}}, float("nan"), float("inf")),
)


def torn(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def flipped(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(chance.randrange(1, 12)):
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def cut_out(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + data[start + chance.randrange(1, 60) :]


def holes(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + bytes(min(40, len(data) - start)) + data[start + 40 :]


def from_elsewhere(data: bytes, chance: random.Random) -> bytes:
    given = (b"", b"\xff\xfe\x00", b"[" * 5000, b"{" * 5000, b"\x80\x05.", b"null", b"- \n- :\n", b"\x00" * 64, b"[]")
    return chance.choice(given)


def repeated(data: bytes, chance: random.Random) -> bytes:
    return data + data


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(torn, flipped, cut_out, holes, from_elsewhere, repeated),
)


def damaged(data: bytes, seed: int) -> bytes:
    """The bytes of a file with damage of a kind that the seed chooses."""
    chance = random.Random(seed)
    return BYTES[seed % len(BYTES)](data, chance)


def other_values(value: Any, seed: int) -> Any:
    """Plain values in which one to three, anywhere, are of another kind."""
    chance = random.Random(seed)
    value = json.loads(json.dumps(value))
    for _ in range(chance.randrange(1, 4)):
        places = list(_places(value))
        if not places:
            return chance.choice(STRANGE)
        holder, key = chance.choice(places)
        if chance.random() < 0.2:
            del holder[key]
        else:
            holder[key] = chance.choice(STRANGE)
    return value


def _places(value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
