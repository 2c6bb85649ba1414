"""The common part of guided purifiers: a distance to the input, and its networks."""

from typing import Self

from pydantic import Field, model_validator
from torch import nn

from defense.errors import InvalidInput
from defense.guidance import Distance, DistanceName, distance
from defense.lpips import LpipsConfig
from defense.models import Models
from defense.purifiers.reverse import StandardReverseConfig

__all__ = ["DistanceGuidedConfig"]


class DistanceGuidedConfig(StandardReverseConfig):
    """A reverse process guided by a distance between state and noised input.

    Arguments:
        distance: ``mse`` (summed over the pixels of an image), ``ssim`` (1 - SSIM) or ``lpips``.
        scale: s, the factor of the potential's gradient; with the potential per image.
        lpips: The network of ``lpips``.
    """

    distance: DistanceName = "mse"
    scale: float = Field(ge=0)
    lpips: LpipsConfig | None = None

    @model_validator(mode="after")
    def _lpips_if_asked_for(self) -> Self:
        if (self.distance == "lpips") != (self.lpips is not None):
            raise InvalidInput(
                "distance lpips and `lpips` go together: `lpips: {weights: PATH}` names torchvision's AlexNet "
                "checkpoint, which is never fetched silently."
            )
        return self

    @property
    def guided(self) -> bool:
        """By the distance."""
        return True

    @property
    def pulls_to(self) -> str | None:
        """The input, unless the scale is 0."""
        return "the input" if self.scale > 0 else None

    def build_distance(self, models: Models) -> tuple[Distance, nn.Module | None]:
        """Return the distance, and the network in it."""
        network = None if self.lpips is None else models.load(self.lpips)
        return distance(self.distance, network), network
