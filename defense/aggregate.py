r"""From the answers on K draws to the one answer of a defence.

With class probabilities :math:`p_k = \mathrm{softmax}(f(D(x;\omega_k)))`:

* ``single``: :math:`\arg\max p_1`, a defence that answers each query with one draw;
* ``mean-probability``: :math:`\arg\max \sum_k p_k`;
* ``majority-vote``: the class with most votes :math:`\arg\max p_k`; a tie goes to the class whose first vote
  came first, so that ties favour neither low class numbers nor the right answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["AGGREGATIONS", "Aggregation", "aggregate", "majority_vote"]

Aggregation = Literal["single", "mean-probability", "majority-vote"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)


def majority_vote(votes: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the winning class of each row of votes.

    Arguments:
        votes: Class numbers, shape (N, K), K >= 1.

    Returns:
        Class numbers, shape (N,).
    """
    import numpy as np  # here, so that importing the library does not import it

    votes = np.asarray(votes)
    # counts[n, k]: how many votes agree with vote k. argmax takes the first maximum, hence the first vote.
    counts = (votes[:, :, None] == votes[:, None, :]).sum(-1)
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
