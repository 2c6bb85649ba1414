r"""Standard normal numbers from words of 32 bits, in integers, so that every device has the same bits.

.. math:: z = \mp \Phi^{-1}\left(\frac{m}{2^{32}}\right), \quad m \in \{1, 3, ..., 2^{31} - 1\}

A word with its lowest bit set is a signed number :math:`\pm m`. It is converted to float32, a rounding that IEEE 754
fixes. The exponent of that and the ten leading bits of its mantissa number one of 31 * 1024 segments at whose ends
the quantile is known in steps of :math:`2^{-28}`; the thirteen bits that are left say how far in its segment a number
lies. In between is a straight line in integers of 32 bits: no product is rounded, so that whether a device fuses
multiplication and addition does not matter. The result is rounded to float32 once more.

Of the rounded number the line is at most :math:`7 \times 10^{-8}` away from the quantile, and no z is further than
6.24 from 0. The table is a file, since quantile functions of two libraries differ in their last bits; its checksum is
asserted when it is read. The quantile is smooth, so that the file holds third differences modulo 2^32, sign last
(0, -1, 1, -2, ... as 0, 1, 2, 3, ...), by the bytes of equal weight, deflated: 8 KB for 127, to the bit.
"""

import hashlib
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["FRACTION_BITS", "SEGMENT_BITS", "UNIT_BITS", "fill_normals", "fill_uniforms", "normals", "quantiles"]

SEGMENT_BITS = 10
"""Leading bits of the mantissa that number the segments of an octave."""

FRACTION_BITS = 13
"""Bits of the mantissa that say how far in its segment a number is: float32 has 23."""

UNIT_BITS = 28
"""The quantile is known in units of 2 to the minus this."""

_FILE = Path(__file__).parent / "assets" / "noise" / "normal-quantile.zlib"
_SHA256 = "fb8edd817c494edf0d3ec16c60b85716f0522e3d8b1169b1d68a02aa9440063d"
_BLOCK = 1 << 16  # numbers at a time: more would leave the caches, fewer would be mostly calls of functions
_EXPONENT_OF_ONE = 127 << SEGMENT_BITS


@cache
def quantiles() -> npt.NDArray[np.int32]:
    """Return the ends of all segments, shape (31 * 1024 + 2,): upper normal quantiles in units of 2^-28.

    Entry ``i`` belongs to the probability ``2^(i // 1024 - 32) * (1 + (i % 1024) / 1024)``; the last is only there so
    that each entry has a next one.

    Raises:
        RuntimeError: The file is not the one that belongs to this version.
    """
    data = _FILE.read_bytes()
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise RuntimeError(f"{_FILE} is damaged: noise made with it would be wrong. Install puregrid again.")
    planes = np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(4, -1)
    coded = np.ascontiguousarray(planes.T).view("<u4")[:, 0].astype(np.uint32)
    table = (coded >> np.uint32(1)) ^ (-(coded & np.uint32(1)).astype(np.int32)).view(np.uint32)
    for _ in range(3):
        table = np.cumsum(table, dtype=np.uint32)
    return table.view(np.int32)


class _Tables(NamedTuple):
    """Where a segment begins and how far it reaches, by sign, exponent and leading bits of a float32."""

    begin: npt.NDArray[np.int32]
    reach: npt.NDArray[np.int32]


@cache
def _tables() -> _Tables:
    ends = quantiles()
    # Of these 4 MiB only what belongs to exponents that occur is ever written or read.
    tables = _Tables(*(np.zeros(1 << (9 + SEGMENT_BITS), dtype=np.int32) for _ in range(2)))
    for sign, first in ((1, _EXPONENT_OF_ONE), (-1, _EXPONENT_OF_ONE + (1 << (8 + SEGMENT_BITS)))):
        tables.begin[first : first + len(ends) - 1] = sign * ends[:-1]
        tables.reach[first : first + len(ends) - 1] = sign * np.diff(ends)
    return tables


def fill_normals(words: npt.NDArray[np.int32], out: npt.NDArray[np.float32]) -> None:
    """Fill ``out`` with one standard normal number a word.

    Arguments:
        words: Uniform words of 32 bits; the lowest bit of each is not used.
        out: Contiguous, of the same shape.
    """
    begin, reach = _tables()
    flat, made = np.ascontiguousarray(words).reshape(-1), out.reshape(-1)
    size = min(_BLOCK, flat.size)
    whole, part = (np.empty(size, dtype=np.int32) for _ in range(2))
    number, place = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.int64)
    for first in range(0, flat.size, max(size, 1)):
        piece = made[first : first + size]
        n = piece.size
        m, t, x, i = whole[:n], part[:n], number[:n], place[:n]
        np.bitwise_or(flat[first : first + n], 1, out=m)
        np.copyto(x, m, casting="same_kind")
        np.right_shift(x.view(np.uint32), FRACTION_BITS, out=i)
        np.bitwise_and(x.view(np.int32), (1 << FRACTION_BITS) - 1, out=t)
        # With "clip" no index is checked, and none is out of range: there are entries for all of 19 bits.
        reach.take(i, out=m, mode="clip")
        np.multiply(t, m, out=t)
        np.right_shift(t, FRACTION_BITS, out=t)
        begin.take(i, out=m, mode="clip")
        np.add(t, m, out=t)
        np.copyto(piece, t, casting="same_kind")
        np.multiply(piece, np.float32(2.0**-UNIT_BITS), out=piece)


def fill_uniforms(words: npt.NDArray[np.int32], out: npt.NDArray[np.float32]) -> None:
    """Fill ``out`` with one number of [0, 1) a word: its upper 24 bits, as NumPy's generators make them."""
    np.copyto(out, words.view(np.uint32) >> np.uint32(8), casting="same_kind")
    np.multiply(out, np.float32(2.0**-24), out=out)


def normals(words: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Return what :func:`fill_normals` makes of some words."""
    out = np.empty(words.shape, dtype=np.float32)
    fill_normals(words, out)
    return out
