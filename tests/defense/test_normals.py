"""Normal numbers of version 2: words to quantiles, the same bits on every device."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import ndtri
from scipy.stats import chisquare, kstest, norm

import defense.normals
from defense import Omega
from defense.normals import FRACTION_BITS, SEGMENT_BITS, UNIT_BITS, normals, quantiles
from defense.randomness import relabelled

EDGES = np.array(
    [0, 1, 2, 3, -1, -2, -3, 2**31 - 1, 2**31 - 2, -(2**31), -(2**31) + 1, 2**30, 2**24 + 1], dtype=np.int32
)
KEY = Omega.of("0123456789abcdef", 7, "judge", [3, 2**33], [1, 0])

KERNEL = """
import torch
from defense import Omega, device_noise
cpu = torch.device("cpu")
device_noise._believe(cpu)
omega, like = Omega.of("spec", 3, "judge", [0, 1, 99999, 2**40], [0, 4, 2, 1]), torch.zeros(4, 3, 9, 7)
made = device_noise._launch(cpu, omega._key("reverse"), 9, omega._places(), 189).reshape(like.shape)
assert torch.equal(made, omega.normal("reverse", 9, like))
print("equal")
"""


def some_words(count: int) -> npt.NDArray[np.int32]:
    return np.random.Philox(key=2026).random_raw(count // 2).astype("<u8").view(np.int32)


def in_whole_numbers(word: int) -> float:
    """The definition, one word at a time, in Python's integers."""
    m = word | 1
    size = int(np.float32(abs(m)))
    exponent = size.bit_length() - 1
    mantissa = (size << 23 >> exponent) - (1 << 23)
    segment = (exponent << SEGMENT_BITS) + (mantissa >> FRACTION_BITS)
    first, second = map(int, quantiles()[segment : segment + 2])
    sign = -1 if m < 0 else 1
    units = sign * first + (mantissa % (1 << FRACTION_BITS) * sign * (second - first) >> FRACTION_BITS)
    return float(np.float32(units)) / 2**UNIT_BITS


def test_the_table_is_the_one_that_it_was_before_it_was_packed() -> None:
    table = quantiles()
    assert table.dtype == np.int32 and table.shape == (31 * 1024 + 2,)
    packed = "3463caf3a10dafa196d76fc8be8bff0c59c779f7f665ee4b6c67625a5a2c3750"
    assert hashlib.sha256(table.astype("<i4").tobytes()).hexdigest() == packed


def test_the_bits_of_a_fixed_set_of_words_are_kept() -> None:
    assert hashlib.sha256(normals(EDGES).tobytes()).hexdigest()[:16] == "2478bae07fd86e8d"
    assert hashlib.sha256(normals(some_words(1 << 20)).tobytes()).hexdigest()[:16] == "3420e67bc507cc59"


def test_whole_blocks_equal_the_definition_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.concatenate([EDGES, some_words(4000)])
    made = normals(words)
    assert made.tolist() == [in_whole_numbers(int(word)) for word in words]
    monkeypatch.setattr(defense.normals, "_BLOCK", 7)
    assert np.array_equal(normals(words), made)


def test_the_table_is_the_quantile_and_no_product_leaves_32_bits() -> None:
    ends = quantiles().astype(np.int64)
    index = np.arange(len(ends) - 1)
    p = np.ldexp(1 + index % 1024 / 1024, index // 1024 - 32)
    assert np.abs(ends[:-1] + ndtri(p) * 2**UNIT_BITS).max() <= 0.51
    reach = np.diff(ends)
    assert (reach <= 0).all() and (np.abs(reach) * ((1 << FRACTION_BITS) - 1)).max() < 2**31
    assert np.abs(ends).max() < 2**31


def test_every_number_is_the_quantile_of_its_word() -> None:
    words = np.concatenate([EDGES, some_words(1 << 20)])
    m = (words | 1).astype(np.float32).astype(np.float64)
    exact = -np.sign(m) * ndtri(np.abs(m) / 2**32)
    assert (np.abs(normals(words) - exact) <= 7e-8 + np.spacing(np.float32(np.abs(exact)))).all()
    assert np.abs(normals(EDGES)).max() == pytest.approx(-ndtri(2.0**-32), abs=1e-6)


def test_damaged_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defense.normals, "_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="is damaged: noise made with it would be wrong"):
        quantiles.__wrapped__()


@pytest.mark.slow
def test_numbers_are_standard_normal_out_to_their_tails() -> None:
    z = normals(some_words(1 << 21)).astype(np.float64)
    n = len(z)
    assert kstest(z, "norm").pvalue > 1e-3
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - expected) < 4 * (variance / n) ** 0.5
    for sigma in (2, 3, 4, 4.5):
        for tail in (z > sigma, z < -sigma):
            expected_count = n * norm.sf(sigma)
            assert abs(tail.sum() - expected_count) < 4 * expected_count**0.5
    counts, _ = np.histogram(z, norm.ppf(np.linspace(0, 1, 1025)))
    assert chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 4 / n**0.5


def test_words_are_those_of_the_counter_whatever_is_made_together(monkeypatch: pytest.MonkeyPatch) -> None:
    like = torch.empty(2, 3, 5, 7)
    words = np.stack([bits.bit_generator.random_raw(53) for bits in KEY.generators("reverse", 5)]).astype("<u8")
    expected = normals(words.view(np.int32)[:, :105]).reshape(like.shape)
    assert np.array_equal(KEY.normal("reverse", 5, like).numpy(), expected)
    monkeypatch.setattr("defense.randomness._TOGETHER", 1)
    assert np.array_equal(KEY.normal("reverse", 5, like).numpy(), expected)


def test_first_version_is_numpys_and_uniform_numbers_are_the_same_in_both() -> None:
    old, like = replace(KEY, noise=1), torch.empty(2, 11)
    for law in ("standard_normal", "random"):
        numbers = [getattr(generator, law)(11, dtype=np.float32) for generator in KEY.generators("reverse", 5)]
        made = old.normal("reverse", 5, like) if law == "standard_normal" else old.uniform("reverse", 5, like)
        assert np.array_equal(made.numpy(), np.stack(numbers))
    assert torch.equal(old.uniform("reverse", 5, like), KEY.uniform("reverse", 5, like))
    assert not torch.equal(old.normal("reverse", 5, like), KEY.normal("reverse", 5, like))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_of_several_steps_are_those_of_each(dtype: torch.dtype, version: int) -> None:
    key, like = replace(KEY, noise=version), torch.zeros(2, 3, 5, 7, dtype=dtype)
    with relabelled(key, role="attacker", offset=2**40) as shown:
        for omega in (key, shown):
            made = omega.normals("reverse", [9, 5, 7], like)
            assert len(made) == 3
            for step, each in zip([9, 5, 7], made, strict=True):
                assert each.dtype == dtype and torch.equal(each, key.normal("reverse", step, like))
    with pytest.raises(ValueError, match="step -1 is negative"):
        key.normals("reverse", [3, -1], like)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no Triton")
def test_the_kernel_makes_the_same_bits_in_tritons_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KERNEL], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "equal\n", done.stderr
