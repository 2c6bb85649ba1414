from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from defense import AGGREGATIONS, aggregate, majority_vote

ballots = arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4))


def first_most_common(votes: list[int]) -> int:
    counts = Counter(votes)
    return next(vote for vote in votes if counts[vote] == max(counts.values()))


@given(ballots)
def test_the_majority_wins_and_a_tie_goes_to_the_class_voted_for_first(votes: np.ndarray) -> None:
    assert majority_vote(votes).tolist() == [first_most_common(row) for row in votes.tolist()]


@pytest.mark.parametrize(
    ("votes", "winner"),
    [([7, 3, 3, 7], 7), ([3, 7, 7, 3], 3), ([9, 1, 2], 9), ([1, 2, 2], 2), ([5], 5), ([0, 4, 4, 0, 4], 4)],
)
def test_ties_favour_no_class_number(votes: list[int], winner: int) -> None:
    assert majority_vote([votes]).tolist() == [winner]


@given(ballots)
def test_single_is_the_first_draw_and_one_draw_makes_the_vote_single(votes: np.ndarray) -> None:
    anything = np.zeros((len(votes), 5))
    assert aggregate(votes, anything, "single").tolist() == [row[0] for row in votes.tolist()]
    assert aggregate(votes[:, :1], anything, "majority-vote").tolist() == votes[:, 0].tolist()


def test_the_three_aggregations_can_all_disagree() -> None:
    # Draw 1 says class 2, draws 2 and 3 say class 1 narrowly, and the mean lies with class 0.
    probabilities = np.array([[[0.40, 0.15, 0.45], [0.45, 0.50, 0.05], [0.45, 0.50, 0.05]]])
    votes, mean = probabilities.argmax(2), probabilities.mean(1)
    answers = {how: aggregate(votes, mean, how).tolist() for how in AGGREGATIONS}
    assert answers == {"single": [2], "mean-probability": [0], "majority-vote": [1]}
