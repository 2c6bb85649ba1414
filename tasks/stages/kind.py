"""Kinds of units: those that differ in cost by images and network evaluations alone."""

from typing import NamedTuple

__all__ = ["Kind"]


class Kind(NamedTuple):
    """Units that differ in cost by images x evaluations alone.

    Arguments:
        stage: Kind of stage.
        threat: Attack and its gradient, or corruption; "" if none.
        defence: Purifier; "" where there is none in the computation.
        model: Key of the model.
        name: In words.
    """

    stage: str
    threat: str
    defence: str
    model: str
    name: str
