"""Several attacks as one attacker: by hand, and in simulations in which the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from answers import Matrix, matrices
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from defense.errors import InvalidInput
from workflows.statistics.combined import fixed_aa_any, fixed_aa_mean, lowest_per_image, selected_per_image
from workflows.statistics.proportions import Proportion, wilson, worst_of


def test_the_two_readings_of_fixed_autoattack() -> None:
    # Two attacks, three images, four draws.
    first = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 1, 1]], dtype=bool)
    second = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    # Means over draws and images 9/12 and 8/12; no image but the first is right on every draw of both.
    assert fixed_aa_mean([first, second]) == Proportion(8 / 12, *wilson(8 / 12, 3), n=3)
    assert fixed_aa_any([first, second]) == Proportion(1 / 3, *wilson(1 / 3, 3), n=3)
    # The minimum is over attacks for the data set: not 7/12, the mean of the lower share of each image.
    assert fixed_aa_mean([first]).value == 9 / 12 and fixed_aa_any([second]).value == 2 / 3


@given(correct=matrices(), data=st.data())
def test_any_is_never_above_mean_and_both_fall_with_more_attacks(correct: Matrix, data: st.DataObject) -> None:
    other = data.draw(hnp.arrays(np.bool_, (len(correct), 3), elements=st.booleans()))
    for reading in (fixed_aa_mean, fixed_aa_any):
        assert reading([correct, other]).value <= min(reading([correct]).value, reading([other]).value) + 1e-12
    assert fixed_aa_any([correct, other]).value <= fixed_aa_mean([correct, other]).value + 1e-12
    assert fixed_aa_any([correct]).value == pytest.approx(worst_of(correct, correct.shape[1]).mean())


def test_the_attack_of_each_image_is_bracketed_by_selection_with_and_without_its_draws() -> None:
    """Three attacks that are alike on average and not on each image: the truth is the mean of the lowest p."""
    generator = np.random.default_rng(10)
    lowest, selected = [], []
    p = generator.beta(2, 2, size=(3, 4000, 1))
    truth = float(p.min(0).mean())
    for _ in range(20):
        attacks = [generator.random((4000, 10)) < share for share in p]
        lowest.append(lowest_per_image(attacks).value)
        selected.append(selected_per_image(attacks).value)
    error = 3 * 0.5 / math.sqrt(20 * 4000)
    assert np.mean(lowest) < truth - 2 * error and np.mean(selected) > truth + 2 * error
    assert np.mean(selected) - truth < 0.1  # and far below the best single attack, which is at 1/2
    # The bias of the minimum is that of its draws, and goes with their number.
    many = [generator.random((4000, 400)) < share for share in p]
    assert lowest_per_image(many).value == pytest.approx(truth, abs=0.01)
    assert selected_per_image(many).value == pytest.approx(truth, abs=0.01)


def test_selection_by_hand() -> None:
    # One image, two attacks, four draws; draws 0 and 2 against draws 1 and 3.
    first = np.array([[0, 1, 0, 0]], dtype=bool)  # shares 0 and 1/2
    second = np.array([[1, 0, 0, 0]], dtype=bool)  # shares 1/2 and 0
    assert lowest_per_image([first, second]).value == 1 / 4
    # Chosen on the first half: the first attack, judged 1/2 on the second; and the other way round.
    assert selected_per_image([first, second]).value == 1 / 2
    assert selected_per_image([first]).value == lowest_per_image([first]).value == 1 / 4
    with pytest.raises(InvalidInput, match="one draw"):
        selected_per_image([first, first[:, :1]])


@pytest.mark.parametrize("attacks", [[], [np.ones((2, 3), bool), np.ones((3, 3), bool)], [np.ones((0, 3), bool)]])
def test_attacks_are_combined_on_the_same_images(attacks: list[Matrix]) -> None:
    for reading in (fixed_aa_mean, fixed_aa_any, lowest_per_image, selected_per_image):
        with pytest.raises(InvalidInput, match="same images"):
            reading(attacks)
