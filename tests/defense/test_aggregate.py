from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from defense import AGGREGATIONS, aggregate, majority_vote
from defense.aggregate import UNASKED, Until, certain_answer, still_to_ask

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


def asked_until(full: np.ndarray, labels: np.ndarray, until: Until) -> np.ndarray:
    """The votes that are asked of all of them, round by round."""
    votes = np.full_like(full, UNASKED)
    while (more := still_to_ask(votes, labels, until)).any():
        have = (votes != UNASKED).sum(1)
        new = (np.arange(full.shape[1]) >= have[:, None]) & (np.arange(full.shape[1]) < (have + more)[:, None])
        votes[new] = full[new]
    return votes


@given(ballots, st.sampled_from(["vote", "worst"]), st.data())
def test_draws_that_stop_have_the_answer_of_all(full: np.ndarray, until: Until, data: st.DataObject) -> None:
    labels = data.draw(arrays(np.int64, len(full), elements=st.integers(0, 4)))
    votes = asked_until(full, labels, until)
    answer = certain_answer(votes, labels, until)
    if until == "vote":
        assert answer.tolist() == majority_vote(full).tolist() == majority_vote(votes).tolist()
    else:
        assert (answer == labels).tolist() == (full == labels[:, None]).all(1).tolist()
        wrong = answer != labels
        assert ((full == answer[:, None]).any(1) | ~wrong).all()


@pytest.mark.parametrize("until", ["vote", "worst"])
def test_no_draw_is_asked_in_vain(until: Until) -> None:
    """Before the last draw of a round, whatever was said, both a right and another answer are still possible."""
    full = np.array(list(product(range(3), repeat=5)))
    labels = np.zeros(len(full), dtype=np.int64)
    votes = asked_until(full, labels, until)
    answer = majority_vote(full) if until == "vote" else (full == 0).all(1)
    answers_after: dict[tuple[int, ...], set[int]] = {}
    for row, own in zip(full.tolist(), answer.tolist(), strict=True):
        for k in range(6):
            answers_after.setdefault(tuple(row[:k]), set()).add(own)
    for row, known in zip(full.tolist(), (votes != UNASKED).sum(1).tolist(), strict=True):
        assert len(answers_after[tuple(row[:known])]) == 1  # certain
        assert len(answers_after[tuple(row[: known - 1])]) > 1  # and not before
    assert (votes != UNASKED).mean() == pytest.approx({"vote": 0.8667, "worst": 0.2988}[until], abs=1e-4)


def test_a_vote_is_certain_where_the_rest_can_only_tie_and_would_lose_the_tie() -> None:
    def more(*votes: int) -> int:
        return int(still_to_ask(np.array([[*votes, *[UNASKED] * (6 - len(votes))]]), np.zeros(1), "vote")[0])

    assert more() == 3  # 3 of 6 at once: the other half may tie, and came later
    assert more(7, 7, 7) == 0
    assert more(2, 7, 7, 7) == 1  # 2 came first: a tie would be its
    assert more(7, 2, 7, 7) == 0
    assert more(1, 2, 3, 4, 5) == 1  # one more vote for any but the first passes it
