"""The budget holds exactly: every float32 image that leaves a region, measured in float64, is inside it."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyautoattack.autopgd_base import L1_projection
from scipy import stats
from torch import Tensor

from defense.randomness import Omega
from tasks.attacks import Norm, perturbation_norms
from tasks.attacks.region import Region, _nearer, largest_signs

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
Array = npt.NDArray[np.float32]

shapes = st.sampled_from([(1, 1, 1), (1, 1, 2), (1, 2, 2), (3, 4, 4), (1, 8, 8)])
budgets = st.one_of(
    st.floats(1e-9, 40.0, exclude_min=True),
    st.integers(1, 255).map(lambda k: k / 255),
    # One unit in the last place of float64 off a number that float32 has.
    st.sampled_from([np.nextafter(v, w) for v in (2**-7, 0.125, 0.5, 1.0) for w in (0.0, 2.0)]).map(float),
)


def pixels(shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    return hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32), fill=st.floats(0, 1, width=32))


def anywhere(shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    """Points of any size, far outside the range included."""
    far = st.floats(-(2.0**60), 2.0**60, width=32)
    near = st.floats(-0.5, 1.5, width=32)
    return hnp.arrays(np.float32, shape, elements=st.one_of(near, far), fill=near)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """An image, any point, a radius."""
    shape = (1, *draw(shapes))
    return torch.from_numpy(draw(pixels(shape))), torch.from_numpy(draw(anywhere(shape))), draw(budgets)


def outside(found: Tensor, x: Tensor, norm: Norm, eps: float) -> float:
    """By how much the farthest image leaves ball or range, in float64; at most 0 if none does."""
    assert found.dtype == torch.float32
    image, centre = found.double().numpy(), x.double().numpy()
    delta = (image - centre).reshape(len(image), -1)
    size = {
        "linf": lambda row: np.abs(row).max(),
        "l2": lambda row: math.sqrt(math.fsum(row * row)),
        "l1": lambda row: math.fsum(np.abs(row)),
    }[norm]
    return float(max(max(size(row) - eps for row in delta), (image - 1).max(), (-image).max()))


def flat(value: float, side: int = 32) -> Tensor:
    return torch.full((1, 3, side, side), value)


@pytest.mark.parametrize("norm", NORMS)
@given(case=cases())
# All pixels alike: their roundings add up instead of cancelling.
@example(case=(flat(0.7), flat(1.0), 1.2345))
@example(case=(flat(0.7), flat(0.3), 0.5))
@example(case=(torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, 1, 1, 1), float(np.nextafter(0.125, 0))))
def test_any_projected_point_is_inside_ball_and_range(norm: Norm, case: tuple[Tensor, Tensor, float]) -> None:
    x, point, eps = case
    assert outside(Region(x, norm, eps).project(point), x, norm, eps) <= 0


@pytest.mark.parametrize("side", [32, 224])
def test_l2_projection_of_flat_images_of_real_size_never_leaves_the_ball(side: int) -> None:
    for value, target, eps in [(0.7, 1.0, 0.5), (0.7, 0.0, 3.3), (0.55, 1.0, 1.01), (0.9, 0.2, 2.0)]:
        x = flat(value, side)
        found = Region(x, "l2", eps).project(flat(target, side))
        norm = float(perturbation_norms(found, x)["l2"])
        # No more is given away than one float32 step of every pixel.
        assert eps - math.sqrt(x.numel()) * 2**-24 * 2 <= norm <= eps


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@given(case=cases(), share=st.floats(0, 0.999))
def test_points_inside_stay_where_they_are(norm: Norm, case: tuple[Tensor, Tensor, float], share: float) -> None:
    x, point, eps = case
    delta = (point.double().clamp(0, 1) - x.double()).flatten(1)
    size = float(delta.abs().amax() if norm == "linf" else delta.norm(p=int(norm[1])))
    scale = share * min(1.0, eps / size) if size else 0.0
    inside = (x.double() + (scale * delta).view_as(x)).float().clamp(0, 1)
    if outside(inside, x, norm, eps) <= 0:
        assert torch.equal(Region(x, norm, eps).project(inside), inside)
    assert torch.equal(Region(x, norm, eps).project(x), x)


@pytest.mark.parametrize("norm", NORMS)
@given(case=cases())
def test_projecting_twice_changes_nothing(norm: Norm, case: tuple[Tensor, Tensor, float]) -> None:
    x, point, eps = case
    once = Region(x, norm, eps).project(point)
    assert torch.equal(Region(x, norm, eps).project(once), once)


@given(case=cases())
def test_linf_projection_is_the_nearest_float32_of_the_region(case: tuple[Tensor, Tensor, float]) -> None:
    x, point, eps = case
    found = Region(x, "linf", eps).project(point).numpy()
    centre, wanted = x.double().numpy(), point.double().numpy()
    brute = np.clip(wanted, np.maximum(centre - eps, 0), np.minimum(centre + eps, 1))
    assert (np.abs(found - brute) <= np.spacing(np.abs(brute).astype(np.float32))).all()
    # Where it moved the point, the next float32 towards the point is outside, in exact arithmetic.
    closer = np.nextafter(found, point.numpy())
    for pixel, target, neighbour, middle in zip(*map(np.ravel, (found, point, closer, x)), strict=True):
        distance = abs(Fraction(float(neighbour)) - Fraction(float(middle)))
        assert pixel == target or distance > Fraction(eps) or not 0 <= neighbour <= 1


@given(case=cases())
def test_l2_projection_lies_on_the_way_to_the_point_and_reaches_the_sphere(
    case: tuple[Tensor, Tensor, float],
) -> None:
    x, point, eps = case
    point = point.clamp(0, 1)  # so that the range cuts nothing off
    delta = point.double().numpy() - x.double().numpy()
    size = np.linalg.norm(delta)
    expected = x.double().numpy() + delta * min(1.0, eps / size if size else 1.0)
    found = Region(x, "l2", eps).project(point).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.2e-7)


def nearest_by_hand(x: Tensor, point: Tensor, eps: float) -> npt.NDArray[np.float64]:
    """The projection on the l_1 region by the conditions of optimality alone: the multiplier by plain bisection."""
    centre, delta = x.double().numpy().ravel(), (point.double() - x.double()).numpy().ravel()
    room = np.where(delta > 0, 1 - centre, centre)

    def shrunk(multiplier: float) -> npt.NDArray[np.float64]:
        return np.sign(delta) * np.clip(np.abs(delta) - multiplier, 0, room)

    low, high = 0.0, float(np.abs(delta).max())
    if np.abs(shrunk(low)).sum() <= eps:
        return shrunk(low)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.abs(shrunk(middle)).sum() > eps else (low, middle)
    return shrunk(high)


@given(data=st.data(), shape=shapes, eps=st.floats(1e-4, 40.0))
def test_l1_projection_is_the_nearest_point_of_the_region(
    data: st.DataObject, shape: tuple[int, ...], eps: float
) -> None:
    x = torch.from_numpy(data.draw(pixels((1, *shape))))
    near = hnp.arrays(np.float32, (1, *shape), elements=st.floats(-4, 4, width=32))
    point = torch.from_numpy(data.draw(near))
    found = (Region(x, "l1", eps).project(point).double() - x.double()).numpy().ravel()
    np.testing.assert_allclose(found, nearest_by_hand(x, point, eps), rtol=0, atol=1.2e-7 + 2e-9 * eps)


@pytest.mark.parametrize("eps", [0.5, 3.0, 12.0, 1e4])
def test_l1_projection_is_the_reference_s(eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 3, 8, 8, generator=generator)
    delta = torch.randn(16, 3, 8, 8, generator=generator)
    theirs = x + delta + L1_projection(x, delta, eps)
    found = Region(x, "l1", eps).project(x + delta)
    # Theirs is the running sum of float32 numbers; ours is held to 1e-7 above.
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-4)
    assert outside(found, x, "l1", eps) <= 0
    if eps < 1e4:  # which is no bound at all
        np.testing.assert_allclose(perturbation_norms(found, x)["l1"], eps, rtol=1e-4)
        # The nearest point is not the clamped point, shrunk until it fits.
        clamped = Region(x, "l1", eps).project((x + delta).clamp(0, 1))
        assert float((found - clamped).abs().max()) > 0.05


@pytest.mark.parametrize("side", [32, 224])
def test_l1_projection_of_flat_images_of_real_size_never_leaves_the_ball(side: int) -> None:
    for value, target, eps in [(0.7, 1.0, 12.0), (0.7, 0.0, 3.3), (0.55, 1.0, 255.0), (0.9, 0.2, 60.0)]:
        x = flat(value, side)
        found = Region(x, "l1", eps).project(flat(target, side))
        assert outside(found, x, "l1", eps) <= 0
        # No more is given away than one float32 step of every pixel.
        assert eps - x.numel() * 2**-24 * 2 <= float(perturbation_norms(found, x)["l1"]) <= eps


@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data(), eps=budgets, seed=st.integers(0, 2**40))
def test_random_starts_are_inside(norm: Norm, data: st.DataObject, eps: float, seed: int) -> None:
    x = torch.from_numpy(data.draw(pixels((3, 1, 2, 2))))
    omega = Omega.of("attack", seed, "attack", [0, 5, 9])
    assert outside(Region(x, norm, eps).random_start(omega), x, norm, eps) <= 0


@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data(), eps=budgets, size=st.floats(1e-6, 100.0))
def test_ascended_images_are_inside(norm: Norm, data: st.DataObject, eps: float, size: float) -> None:
    shape = (1, 1, 2, 2)
    x = torch.from_numpy(data.draw(pixels(shape)))
    finite: Any = st.floats(-(2.0**100), 2.0**100, width=32)
    gradient = torch.from_numpy(data.draw(hnp.arrays(np.float32, shape, elements=finite)))
    region = Region(x, norm, eps)
    current = region.project(torch.from_numpy(data.draw(anywhere(shape))))
    assert outside(region.ascend(current, gradient, size), x, norm, eps) <= 0


def starts(norm: Norm, shape: tuple[int, int, int], count: int, eps: float) -> npt.NDArray[np.float64]:
    """Random starts around grey images, where the range cuts nothing off, in units of eps."""
    x = torch.full((count, *shape), 0.5)
    found = Region(x, norm, eps).random_start(Omega.of("spec", 3, "attack", range(count)))
    return ((found.double() - x.double()) / eps).flatten(1).numpy()


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 2), (1, 8, 8)])
def test_l2_random_start_is_uniform_in_the_ball(shape: tuple[int, int, int]) -> None:
    found = starts("l2", shape, 3000, 0.3)
    radius = np.linalg.norm(found, axis=1)
    dimension = found.shape[1]
    assert stats.kstest(radius**dimension, "uniform").pvalue > 0.01
    # No direction is preferred: a coordinate of a uniform direction has this law in every dimension.
    direction = (found / radius[:, None])[:, -1]
    law = stats.beta((dimension - 1) / 2, (dimension - 1) / 2, loc=-1, scale=2)
    assert stats.kstest(direction, law.cdf).pvalue > 0.01
    # Radius and direction are drawn from different keys, hence independent.
    for coordinate in (found / radius[:, None]).T:
        for part in (coordinate, np.abs(coordinate)):
            assert stats.spearmanr(radius, part).pvalue > 1e-4


def test_l1_random_start_is_uniform_in_the_ball() -> None:
    found = starts("l1", (1, 2, 2), 3000, 0.3)
    radius = np.abs(found).sum(1)
    assert stats.kstest(radius**4, "uniform").pvalue > 0.01
    # Shares of the norm are uniform on the simplex, and all orthants are alike.
    for share in (np.abs(found) / radius[:, None]).T:
        assert stats.kstest(share, stats.beta(1, 3).cdf).pvalue > 0.01
        assert stats.spearmanr(radius, share).pvalue > 1e-3
    orthants = np.bincount((found > 0) @ [1, 2, 4, 8], minlength=16)
    assert stats.chisquare(orthants).pvalue > 0.01


def test_linf_random_start_is_uniform_in_the_cube() -> None:
    found = starts("linf", (1, 2, 2), 3000, 0.3)
    for coordinate in found.T:
        assert stats.kstest(coordinate, stats.uniform(-1, 2).cdf).pvalue > 0.01
    correlation = np.corrcoef(found.T) - np.eye(4)
    assert np.abs(correlation).max() < 4 / math.sqrt(3000)


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_belongs_to_the_image_not_to_its_place_in_the_batch(norm: Norm) -> None:
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    ids = [11, 2, 7, 30, 4, 9]

    def start(order: list[int]) -> Tensor:
        omega = Omega.of("spec", 0, "attack", [ids[i] for i in order])
        return Region(images[order], norm, 0.2).random_start(omega)

    whole = start(list(range(6)))
    for order in ([5, 3, 1], [2], [4, 0, 1, 2, 3, 5]):
        assert torch.equal(start(order), whole[order])
    other = Region(images, norm, 0.2).random_start(Omega.of("spec", 1, "attack", ids))
    assert (other != whole).flatten(1).any(1).all()


@given(data=st.data())
def test_nearer_is_the_neighbouring_float_where_asked_and_the_same_elsewhere(data: st.DataObject) -> None:
    floats = hnp.arrays(np.float32, (1, 8), elements=st.floats(-2, 2, width=32))
    x, goal = data.draw(floats), data.draw(floats)
    where = data.draw(hnp.arrays(np.bool_, (1, 8)))
    found = _nearer(torch.from_numpy(x), torch.from_numpy(goal), torch.from_numpy(where))
    np.testing.assert_array_equal(found.numpy(), np.where(where, np.nextafter(x, goal), x))


def test_linf_ascent_moves_every_pixel_by_the_step_along_the_sign() -> None:
    x = torch.full((1, 1, 2, 2), 0.5)
    region = Region(x, "linf", 0.25)
    gradient = torch.tensor([[[[3e-30, -7.0], [0.0, 1e20]]]])
    assert region.ascend(x, gradient, 0.125).flatten().tolist() == [0.625, 0.375, 0.5, 0.625]
    assert region.ascend(x, gradient, 4.0).flatten().tolist() == [0.75, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e30])
def test_l2_ascent_moves_by_the_step_along_the_gradient_however_small_it_is(scale: float) -> None:
    x = torch.full((2, 1, 1, 2), 0.5)
    gradient = torch.tensor([[0.6, -0.8], [-8.0, 6.0]]).view(2, 1, 1, 2) * scale
    found = Region(x, "l2", 1.0).ascend(x, gradient, 0.25).flatten(1).double().numpy()
    np.testing.assert_allclose(found, [[0.65, 0.3], [0.3, 0.65]], rtol=0, atol=1e-6)


def test_l1_ascent_moves_the_pixel_of_largest_gradient_by_the_step() -> None:
    x = torch.full((2, 1, 1, 3), 0.5)
    gradient = torch.tensor([[0.6, -0.8, 0.1], [2e-30, -1e-30, 0.0]]).view(2, 1, 1, 3)
    found = Region(x, "l1", 0.25).ascend(x, gradient, torch.tensor([0.125, 1.0]).view(2, 1, 1, 1)).flatten(1)
    assert found[0].tolist() == [0.5, 0.375, 0.5]
    assert found[1].tolist() == pytest.approx([0.75, 0.5, 0.5], abs=1e-7)


def test_the_largest_signs_have_unit_norm() -> None:
    gradient = torch.tensor([[3.0, -4.0, 0.5, 4.0], [0.0, 0.0, -1.0, 0.0]]).view(2, 1, 2, 2)
    for count, expected in [
        (1, [[0, -1 / 2, 0, 1 / 2], [0, 0, -1, 0]]),  # two are largest
        (3, [[1 / 3, -1 / 3, 0, 1 / 3], [0, 0, -1, 0]]),
        (4, [[1 / 4, -1 / 4, 1 / 4, 1 / 4], [0, 0, -1, 0]]),
    ]:
        found = largest_signs(gradient, torch.tensor([count, count])).flatten(1)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert torch.equal(largest_signs(torch.zeros(1, 1, 1, 2), torch.tensor([1])), torch.zeros(1, 1, 1, 2))


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_moves_nothing(norm: Norm) -> None:
    x = torch.tensor([[[[0.2, 0.9], [0.0, 1.0]]]])
    assert torch.equal(Region(x, norm, 0.1).ascend(x, torch.zeros_like(x), 0.1), x)
