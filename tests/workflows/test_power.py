"""The detectable drop against simulations of the test that has to find it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from workflows.statistics.paired import safe_t_test
from workflows.statistics.power import detectable


@pytest.mark.parametrize(("images", "spread"), [(200, 0.1), (1000, 0.0), (1000, 0.3), (5000, 0.1)])
def test_a_drop_of_the_detectable_size_is_found_in_80_percent_of_the_runs(images: int, spread: float) -> None:
    alpha, margin = 0.01, 0.01
    smallest = detectable(images, spread, alpha, margin)
    assert smallest is not None
    rng = np.random.default_rng(3)
    u, lost = rng.random((1000, images)), rng.random((1000, images)) < smallest
    noise = np.where(u < spread**2 / 2, 1.0, np.where(u > 1 - spread**2 / 2, -1.0, 0.0))
    power = (safe_t_test(np.where(lost, 1.0, noise), margin) <= alpha).mean()
    assert 0.77 <= power <= 0.9
    # Half of it is not.
    half = rng.random((1000, images)) < smallest / 2
    assert (safe_t_test(np.where(half, 1.0, noise), margin) <= alpha).mean() < 0.4


def test_what_few_images_cannot_see() -> None:
    assert detectable(5, 0.0, 0.05, 0.01) is None
    sizes = [detectable(n, 0.1, 0.05, 0.01) for n in (50, 100, 1000, 10_000)]
    assert all(a is not None and b is not None and a > b > 0.01 for a, b in itertools.pairwise(sizes))
