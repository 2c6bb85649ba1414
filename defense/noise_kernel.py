"""The kernel of :mod:`defense.device_noise`. Importing this needs Triton; nothing else imports it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def philox_normals(  # type: ignore[no-untyped-def]
    out, places, quantiles, key0, key1, step, rows, count, BLOCKS: tl.constexpr
):
    """Fill ``out`` (rows, count): program (r, j) makes the numbers of BLOCKS blocks of Philox for element r."""
    row = tl.program_id(0)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    image = tl.load(places + row).to(tl.uint64)
    draw = tl.load(places + rows + row).to(tl.uint64)
    # NumPy counts on before it makes a block: the first has 1 in the lowest word.
    x0 = block.to(tl.uint64) + 1
    x1 = tl.zeros([BLOCKS], tl.uint64) + step.to(tl.uint64)
    x2 = tl.zeros([BLOCKS], tl.uint64) + draw
    x3 = tl.zeros([BLOCKS], tl.uint64) + image
    k0 = tl.zeros([BLOCKS], tl.uint64) + key0.to(tl.uint64)
    k1 = tl.zeros([BLOCKS], tl.uint64) + key1.to(tl.uint64)
    m0 = tl.full([BLOCKS], 0xD2E7470EE14C6C93, tl.uint64)
    m1 = tl.full([BLOCKS], 0xCA5A826395121157, tl.uint64)
    w0 = tl.full([BLOCKS], 0x9E3779B97F4A7C15, tl.uint64)
    w1 = tl.full([BLOCKS], 0xBB67AE8584CAA73B, tl.uint64)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(m0, x0), m0 * x0
        high1, low1 = tl.umulhi(m1, x2), m1 * x2
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0 += w0
        k1 += w1
    first = block.to(tl.int64) * 8
    _store(out, quantiles, x0, row, first, count)
    _store(out, quantiles, x1, row, first + 2, count)
    _store(out, quantiles, x2, row, first + 4, count)
    _store(out, quantiles, x3, row, first + 6, count)


@triton.jit
def _store(out, quantiles, word, row, place, count):  # type: ignore[no-untyped-def]
    """Store the two numbers of a word: of its lower half, and of its upper half behind it."""
    target = out + row.to(tl.int64) * count + place
    tl.store(target, _normal(quantiles, word.to(tl.uint32)), mask=place < count)
    tl.store(target + 1, _normal(quantiles, (word >> 32).to(tl.uint32)), mask=place + 1 < count)


@triton.jit
def _normal(quantiles, word):  # type: ignore[no-untyped-def]
    """As ``defense.normals.normals``, where the constants are explained: 13, 127 << 10 and 2^-28."""
    number = (word | 1).to(tl.int32, bitcast=True)
    bits = number.to(tl.float32).to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    segment = (size >> 13) - (127 << 10)
    begin = tl.load(quantiles + segment)
    reach = tl.load(quantiles + segment + 1) - begin
    begin = tl.where(number < 0, -begin, begin)
    reach = tl.where(number < 0, -reach, reach)
    units = begin + (((size & 0x1FFF) * reach) >> 13)
    return units.to(tl.float32) * 3.725290298461914e-09
