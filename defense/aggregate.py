r"""From the answers on K draws to the one answer of a defence.

With class probabilities :math:`p_k = \mathrm{softmax}(f(D(x;\omega_k)))`:

* ``single``: :math:`\arg\max p_1`, a defence that answers each query with one draw;
* ``mean-probability``: :math:`\arg\max \sum_k p_k`;
* ``majority-vote``: the class with most votes :math:`\arg\max p_k`; a tie goes to the class whose first vote
  came first, so that ties favour neither low class numbers nor the right answer.

Draws are asked one after the other, and may stop where the rest of K cannot change what is asked *until*:

* ``vote``: the majority vote. A class with b votes can still pass the leading one, which has a, if
  :math:`b + r > a` with r draws left, or if :math:`b + r = a` and its first vote came before;
* ``worst``: whether all K are right. The first wrong draw says no.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "AGGREGATIONS",
    "UNASKED",
    "Aggregation",
    "Until",
    "aggregate",
    "certain_answer",
    "majority_vote",
    "still_to_ask",
]

Aggregation = Literal["single", "mean-probability", "majority-vote"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)

Until = Literal["vote", "worst"]
"""What is certain of an image when its draws stop."""

UNASKED = -1
"""In place of the class of a draw that was not asked."""


def majority_vote(votes: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the winning class of each row of votes.

    Arguments:
        votes: Class numbers, shape (N, K), K >= 1; :data:`UNASKED` is no vote.

    Returns:
        Class numbers, shape (N,).
    """
    import numpy as np  # here, so that importing the library does not import it

    votes = np.asarray(votes)
    # counts[n, k]: how many votes agree with vote k. argmax takes the first maximum, hence the first vote.
    counts = _counts(votes)
    winner: npt.NDArray[np.int64] = votes[np.arange(len(votes)), counts.argmax(1)].astype(np.int64)
    return winner


def aggregate(votes: npt.ArrayLike, mean_probability: npt.ArrayLike, how: Aggregation) -> npt.NDArray[np.int64]:
    """Return the answer of a defence to each image.

    Arguments:
        votes: Predicted class per draw, shape (N, K).
        mean_probability: Class probabilities averaged over the draws, shape (N, C).
        how: One of :data:`AGGREGATIONS`.

    Returns:
        Class numbers, shape (N,).
    """
    import numpy as np

    if how == "single":
        return np.asarray(votes)[:, 0].astype(np.int64)
    if how == "mean-probability":
        best: npt.NDArray[np.int64] = np.asarray(mean_probability).argmax(1).astype(np.int64)
        return best
    if how == "majority-vote":
        return majority_vote(votes)
    raise ValueError(f"unknown aggregation {how!r}; one of {', '.join(AGGREGATIONS)}")


def certain_answer(votes: npt.ArrayLike, labels: npt.ArrayLike, until: Until) -> npt.NDArray[np.int64]:
    """Return one answer to each image, of which :func:`still_to_ask` has no draw: that of all K draws.

    Arguments:
        votes: Predicted class per draw, shape (N, K), :data:`UNASKED` where a draw was not asked.
        labels: True classes, shape (N,).
        until: ``vote`` gives the majority vote, ``worst`` the first wrong class, or the label where there is none.

    Returns:
        Class numbers, shape (N,).
    """
    import numpy as np

    votes, labels = np.asarray(votes), np.asarray(labels)
    if until == "vote":
        return majority_vote(votes)
    wrong = (votes != labels[:, None]) & (votes != UNASKED)
    first = votes[np.arange(len(votes)), wrong.argmax(1)]
    answer: npt.NDArray[np.int64] = np.where(wrong.any(1), first, labels).astype(np.int64)
    return answer


def still_to_ask(votes: npt.ArrayLike, labels: npt.ArrayLike, until: Until) -> npt.NDArray[np.int64]:
    """Return how many more draws an image needs at least before its answer can be certain; 0 where it is.

    None of them is in vain: with one fewer the rest could still change the answer, whatever they say.

    Arguments:
        votes: Predicted class per draw, shape (N, K), :data:`UNASKED` for draws that were not asked, the last ones.
        labels: True classes, shape (N,).
        until: What shall be certain.

    Returns:
        Numbers of draws, shape (N,).
    """
    import numpy as np

    votes, labels = np.asarray(votes), np.asarray(labels)
    asked = votes != UNASKED
    left = (~asked).sum(1)
    if until == "worst":
        wrong = (asked & (votes != labels[:, None])).any(1)
        needed: npt.NDArray[np.int64] = np.where(wrong, 0, np.minimum(left, 1)).astype(np.int64)
        return needed
    # counts[n, c] votes for class c, the first of them first[n, c]; what was not asked is in a last column that goes.
    rows, draws = np.arange(len(votes)), votes.shape[1]
    shape = len(votes), max(int(votes.max(initial=0)), 0) + 2
    counts, first = np.zeros(shape, dtype=np.int64), np.full(shape, draws)
    np.add.at(counts, (rows[:, None], votes), 1)
    np.minimum.at(first, (rows[:, None], votes), np.arange(draws))
    counts, first = counts[:, :-1], first[:, :-1]
    winner = (counts * (draws + 1) - first).argmax(1)
    # A rival whose first vote came before the winner's needs a vote less, here: has half of one more.
    rivals = np.where(counts > 0, counts + 0.5 * (first < first[rows, winner][:, None]), 0.0)
    most = counts[rows, winner]
    rivals[rows, winner] = 0.0
    # The least n with most + n >= rivals + (left - n), where all n are for the winner.
    more = np.ceil((left + rivals.max(1) - most) / 2).astype(np.int64)
    clipped: npt.NDArray[np.int64] = np.clip(more, 0, left)
    return clipped


def _counts(votes: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return how many votes agree with each, shape (N, K); none with a draw that was not asked."""
    same: npt.NDArray[np.int64] = (votes[:, :, None] == votes[:, None, :]).sum(-1)
    same[votes == UNASKED] = 0
    return same
