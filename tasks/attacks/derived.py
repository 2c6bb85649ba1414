"""Attacks that are made of the images of other attacks.

A stage reads the images of its sources from the store, so that an attack that is also a cell of its own, or a source
of two, is computed once.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks.base import AttackConfig, AttackResult
from tasks.attacks.target import Target

__all__ = ["DerivedAttackConfig", "Given"]


@dataclass(frozen=True)
class Given:
    """The result of a source for one batch.

    Arguments:
        images: Adversarial images, shape (B, C, H, W).
        columns: Columns of its rows by name, those of the attack itself without their prefix, shape (B, ...).
    """

    images: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)


class DerivedAttackConfig(AttackConfig):
    """An attack that submits images of other attacks, or something made of them."""

    @abstractmethod
    def combine(self, target: Target, x: Tensor, given: Sequence[Given]) -> AttackResult:
        """Make the images of one batch from those of the sources.

        Arguments:
            target: The attacked function, with the true labels.
            x: Clean images in [0, 1], shape (B, C, H, W).
            given: Results of the sources, in their order.
        """

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """Refuse to run without sources.

        Raises:
            InvalidInput: Always.
        """
        raise InvalidInput(
            f"attack {self.attack!r} is made of the images of other attacks: call `combine` with them."
        )
