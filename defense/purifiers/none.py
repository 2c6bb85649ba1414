"""No purifier: the bare classifier, D(x) = x. Every table needs it to say what a defence adds."""

from typing import Literal

from torch import Tensor

from defense.models import Models
from defense.purifiers.base import PURIFIERS, FilterConfig, Purifier
from defense.randomness import Omega

__all__ = ["Identity", "NoPurifierConfig"]


class Identity(Purifier):
    """Returns its input."""

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        """``x`` itself."""
        return x


@PURIFIERS.register("none")
class NoPurifierConfig(FilterConfig):
    """The bare classifier."""

    purifier: Literal["none"] = "none"

    def label(self) -> str:
        """``none``."""
        return "none"

    def build(self, models: Models | None = None) -> Identity:
        """Return the identity."""
        return Identity().eval()
