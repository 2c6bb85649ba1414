from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defense.certify import (
    ABSTAIN,
    Certificate,
    average_certified_radius,
    certified_accuracy,
    dataset_bound,
    envelope,
    summarise,
)
from defense.errors import InvalidInput

PUBLISHED = Path(__file__).parent / "data" / "cohen_cifar10.txt"
GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def certificate(prediction: int, radius: float, sigma: float = 0.25, n: int = 100_000) -> Certificate:
    return Certificate(prediction, radius, 0.9, 0.1, n, 0.001, sigma, "one-sided", "fixed-n")


def published(sigma: float) -> list[Certificate]:
    """Public per-image results, label 1 for all: a wrong class is 0."""
    found: list[Certificate] = []
    for line in PUBLISHED.read_text().splitlines():
        if line.startswith(f"{sigma} "):
            _, kind, *values = line.split()
            if kind == "abstained":
                found += [certificate(ABSTAIN, 0.0, sigma)] * int(values[0])
            else:
                found += [certificate(int(kind == "right"), int(value) / 1000, sigma) for value in values]
    assert len(found) == 500
    return found


# methods.md 5.1: CIFAR-10, ResNet-110, certified accuracy at the radii of GRID, abstentions.
@pytest.mark.parametrize(
    ("sigma", "accuracy", "abstentions", "largest"),
    [
        (0.12, (0.814, 0.586, 0, 0, 0, 0, 0), 19, 0.457),
        (0.25, (0.748, 0.600, 0.428, 0.266, 0, 0, 0), 43, 0.978),
        (0.5, (0.652, 0.546, 0.414, 0.320, 0.234, 0.152, 0.094), 83, 1.96),
        (1.0, (0.472, 0.392, 0.340, 0.278, 0.216, 0.174, 0.140), 145, 3.56),
    ],
)
def test_the_published_table(sigma: float, accuracy: tuple[float, ...], abstentions: int, largest: float) -> None:
    certificates = published(sigma)
    found = summarise([1] * 500, certificates, GRID)
    assert found.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert found.natural == accuracy[0] and found.radii == GRID and found.images == 500 and found.samples == 100_000
    assert found.abstained == abstentions / 500
    assert max(each.radius for each in certificates) == largest


def test_the_published_upper_envelope() -> None:
    found = envelope([summarise([1] * 500, published(sigma), GRID) for sigma in (1.0, 0.5, 0.12, 0.25)])
    assert found.accuracy == pytest.approx((0.814, 0.600, 0.428, 0.320, 0.234, 0.174, 0.140), abs=1e-12)
    assert found.sigma == (0.12, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0)


def test_abstentions_are_wrong_at_every_radius_and_wrong_classes_have_radius_0_in_the_acr() -> None:
    given_ = [certificate(1, 0.5), certificate(1, 0.2), certificate(0, 0.9), certificate(ABSTAIN, 0.0)]
    found = summarise([1, 1, 1, -1], given_, (0.0, 0.2, 0.21))
    assert found.accuracy == (0.5, 0.5, 0.25)
    assert found.acr == pytest.approx(0.7 / 4) and found.abstained == 0.25


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), min_size=1, max_size=40))
def test_certified_accuracy_falls_and_the_acr_is_its_area(images: list[tuple[bool, float]]) -> None:
    right, radii = np.array([r for r, _ in images]), np.array([v for _, v in images])
    edges = np.concatenate([[0.0], np.unique(radii[radii > 0])])
    shares = certified_accuracy(right, radii, edges)
    assert (np.diff(shares) <= 0).all() and shares[0] == right.mean()
    # The curve is a staircase that falls just past each radius.
    area = float((np.diff(edges) * shares[1:]).sum())
    assert average_certified_radius(right, radii) == pytest.approx(area, abs=1e-12)


def test_the_bound_of_a_line_is_that_of_its_shares() -> None:
    found = summarise([1] * 500, published(0.25), GRID)
    assert found.lower(0.01) == tuple(dataset_bound(share, 500, 0.001, 0.01) for share in found.accuracy)
    assert found.lower(0.01)[0] == pytest.approx(0.748 - 3 / 500)


@pytest.mark.parametrize(
    "change", [{"guarantee": "sequential"}, {"rule": "two-class"}, {"alpha": 0.01}, {"sigma": 0.5}]
)
def test_certificates_made_in_several_ways_are_not_averaged(change: dict) -> None:
    one = certificate(1, 0.5)
    with pytest.raises(InvalidInput, match="made in 2 ways"):
        summarise([1, 1], [one, replace(one, **change)], GRID)
    if "sigma" not in change:
        with pytest.raises(InvalidInput, match="differ in sigma alone"):
            envelope([summarise([1], [one], GRID), summarise([1], [replace(one, **change)], GRID)])


def test_what_makes_no_table_is_refused() -> None:
    with pytest.raises(InvalidInput, match="0 labels of 0 certificates"):
        summarise([], [], GRID)
    with pytest.raises(InvalidInput, match="1 labels of 2 certificates"):
        summarise([1], [certificate(1, 0.1)] * 2, GRID)
    with pytest.raises(InvalidInput, match="radii of 0 or more"):
        certified_accuracy([True], [0.5], [-0.1])
    with pytest.raises(InvalidInput, match="one radius for each image"):
        certified_accuracy([True, False], [0.5], [0.0])
    with pytest.raises(InvalidInput, match="0 kinds"):
        envelope([])
