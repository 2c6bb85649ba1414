from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from defense import Omega

KEY = Omega.of("0123456789abcdef", 7, "judge", [3], 1)
MANY = torch.empty(1, 20_000)

elements = st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), min_size=1, max_size=6)


def batch(pairs: list[tuple[int, int]]) -> Omega:
    return replace(KEY, image_ids=tuple(image for image, _ in pairs), draws=tuple(draw for _, draw in pairs))


def test_the_stream_of_one_key_is_pinned() -> None:
    like = torch.empty(1, 4)
    torch.testing.assert_close(
        KEY.normal("reverse", 5, like),
        torch.tensor([[-0.9695349931716919, 0.15843795239925385, -0.024588171392679214, 1.3301055431365967]]),
    )
    torch.testing.assert_close(
        replace(KEY, noise=1).normal("reverse", 5, like),
        torch.tensor([[-0.9923989176750183, 0.7347261309623718, -0.6525536775588989, -0.08903046697378159]]),
    )
    torch.testing.assert_close(
        KEY.uniform("guidance", 0, like),
        torch.tensor([[0.6179414391517639, 0.37651634216308594, 0.9307606816291809, 0.2743014097213745]]),
    )


@given(elements, st.integers(0, 5000))
def test_the_same_key_gives_the_same_numbers_and_leaves_the_global_generator_alone(
    pairs: list[tuple[int, int]], step: int
) -> None:
    like, before = torch.empty(len(pairs), 3), torch.get_rng_state()
    assert torch.equal(batch(pairs).normal("forward", step, like), batch(pairs).normal("forward", step, like))
    assert torch.equal(torch.get_rng_state(), before)


@given(elements, st.randoms(use_true_random=False))
def test_a_row_does_not_depend_on_its_place_in_the_batch(
    pairs: list[tuple[int, int]], random: np.random.RandomState
) -> None:
    order = list(range(len(pairs)))
    random.shuffle(order)
    like = torch.empty(len(pairs), 2, 3)
    whole = batch(pairs).normal("forward", 0, like)
    assert torch.equal(batch([pairs[i] for i in order]).normal("forward", 0, like), whole[order])


@given(elements, st.data())
def test_a_part_of_the_batch_gets_the_rows_of_the_whole(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(pairs)))
    stop = data.draw(st.integers(start, len(pairs)))
    like = torch.empty(len(pairs), 3)
    whole, part = batch(pairs), batch(pairs).part(start, stop)
    assert torch.equal(part.normal("reverse", 9, like[start:stop]), whole.normal("reverse", 9, like)[start:stop])
    assert torch.equal(part.uniform("reverse", 9, like[start:stop]), whole.uniform("reverse", 9, like)[start:stop])


@pytest.mark.parametrize(
    ("omega", "purpose", "step"),
    [
        pytest.param(replace(KEY, spec_id="0123456789abcdee"), "reverse", 5, id="spec"),
        pytest.param(replace(KEY, seed=8), "reverse", 5, id="seed"),
        pytest.param(replace(KEY, seed=-7), "reverse", 5, id="sign of the seed"),
        pytest.param(replace(KEY, role="attacker"), "reverse", 5, id="role"),
        pytest.param(replace(KEY, image_ids=(4,)), "reverse", 5, id="image"),
        pytest.param(replace(KEY, draws=(2,)), "reverse", 5, id="draw"),
        pytest.param(replace(KEY, image_ids=(1,), draws=(3,)), "reverse", 5, id="image and draw swapped"),
        pytest.param(replace(KEY, draws=(5,)), "reverse", 1, id="draw and step swapped"),
        pytest.param(KEY, "forward", 5, id="purpose"),
        pytest.param(KEY, "reverse", 6, id="step"),
    ],
)
def test_any_other_part_of_the_key_gives_unrelated_numbers(omega: Omega, purpose: str, step: int) -> None:
    here, there = KEY.normal("reverse", 5, MANY)[0], omega.normal(purpose, step, MANY)[0]
    assert not np.intersect1d(here[:1000].numpy(), there.numpy()).size > 5  # float32 repeats a few by chance
    assert abs(torch.corrcoef(torch.stack([here, there]))[0, 1].item()) < 4 / len(here) ** 0.5


def test_parts_of_the_key_do_not_run_into_each_other() -> None:
    like = torch.empty(1, 4)
    glued = [
        Omega.of("ab", 1, "c", [0]).normal("d", 0, like),
        Omega.of("a", 1, "bc", [0]).normal("d", 0, like),
        Omega.of("ab", 1, "", [0]).normal("cd", 0, like),
        Omega.of("ab1", 1, "c", [0]).normal("d", 0, like),
        Omega.of("ab", 11, "c", [0]).normal("d", 0, like),
    ]
    assert len({tuple(row[0].tolist()) for row in glued}) == len(glued)


def test_normal_numbers_are_standard_normal_within_and_across_streams() -> None:
    within = KEY.normal("forward", 0, MANY)[0].double()
    across = Omega.of("spec", 0, "judge", range(2000)).normal("forward", 0, torch.empty(2000, 1))[:, 0].double()
    for sample in (within, across):
        assert kstest(sample.numpy(), "norm").pvalue > 1e-3
        assert sample.mean().item() == pytest.approx(0, abs=4 / len(sample) ** 0.5)
        assert sample.var().item() == pytest.approx(1, abs=4 * (2 / len(sample)) ** 0.5)
    assert ((within**4).mean() / within.var() ** 2).item() == pytest.approx(3, abs=4 * (24 / len(within)) ** 0.5)


def test_uniform_numbers_fill_the_half_open_unit_interval() -> None:
    sample = KEY.uniform("forward", 0, MANY)[0]
    assert 0 <= sample.min() < 1e-3 and 1 - 1e-3 < sample.max() < 1
    assert kstest(sample.numpy(), "uniform").pvalue > 1e-3


def test_float64_replays_the_float32_numbers() -> None:
    like = torch.empty(1, 100)
    double = KEY.normal("reverse", 5, like.double())
    assert double.dtype == torch.float64
    assert torch.equal(double, KEY.normal("reverse", 5, like).double())


def test_an_explicit_shape_is_a_stream_prefix_of_the_image_shape() -> None:
    like = torch.empty(1, 2, 5)
    flat = KEY.normal("forward", 0, like, shape=(10,))
    assert torch.equal(flat.view(1, 2, 5), KEY.normal("forward", 0, like))


def test_one_draw_stands_for_the_whole_batch() -> None:
    assert Omega.of("spec", 0, "judge", [4, 5], 2) == Omega.of("spec", 0, "judge", [4, 5], [2, 2])


@pytest.mark.parametrize(("images", "draws"), [([-1], [0]), ([0], [-1]), ([0, 3, -2], [0, 0, 0])])
def test_negative_ids_are_refused(images: list[int], draws: list[int]) -> None:
    with pytest.raises(ValueError, match="count from 0"):
        Omega.of("spec", 0, "judge", images, draws)


def test_mismatched_sizes_and_negative_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="2 image ids but 1 draws"):
        Omega.of("spec", 0, "judge", [0, 1], [0])
    with pytest.raises(ValueError, match="a batch of 2 with the randomness of 1"):
        KEY.normal("forward", 0, torch.empty(2, 3))
    with pytest.raises(ValueError, match="step -1 is negative"):
        KEY.normal("forward", -1, torch.empty(1, 3))
