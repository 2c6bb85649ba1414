"""What attacks under a bound of perceptual distance share: the bound, and the network of LPIPS that measures it.

No image is far by LPIPS if a network does not see that it is; l_p balls have nothing to do with it. Tables and
auditor keep the norm ``lpips`` apart from the others.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from defense.errors import InvalidInput
from defense.lpips import LpipsConfig
from defense.spec import Spelling
from tasks.attacks.base import AttackConfig
from tasks.attacks.region import Norm

__all__ = ["PerceptualConfig", "network"]


class PerceptualConfig(AttackConfig):
    """An attack whose budget is a distance of LPIPS.

    Arguments:
        norm: ``lpips``.
        eps: Largest LPIPS to the clean image.
        lpips: The network of LPIPS.

    Raises:
        InvalidInput: No ``lpips``.
    """

    spellings: ClassVar[Mapping[str, Spelling]] = {}
    norms: ClassVar[tuple[Norm, ...]] = ("lpips",)
    bounded: ClassVar[bool] = False
    norm: Norm = "lpips"
    eps: float = Field(gt=0)
    lpips: LpipsConfig

    @model_validator(mode="before")
    @classmethod
    def _needs(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        lpips = data.get("lpips")
        if not isinstance(lpips, LpipsConfig) or (lpips.weights or lpips.sha256) is None:
            raise InvalidInput(
                f"{cls.model_fields['attack'].default} needs `lpips: {{net: vgg, weights: PATH}}`: PATH is "
                "torchvision's ImageNet checkpoint of that backbone (vgg16-397923af.pth, or with `net: alex` "
                "alexnet-owt-7be5be79.pth), which is never fetched silently."
            )
        return data

    def resolved(self, base: Path) -> Self:
        """With the weights of LPIPS found, hashed and checked."""
        return self.model_copy(update={"lpips": self.lpips.resolved(base)})


@lru_cache(maxsize=1)
def network(config: LpipsConfig) -> nn.Module:
    """LPIPS of images in [0, 1]; loaded once by a worker, not once a batch."""
    if config.weights is None or config.sha256 is None:
        raise InvalidInput("the weights of LPIPS have not been looked up; call `resolved(folder)`.")
    return _Unit(config.build())


class _Unit(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        distance: Tensor = self.net(2 * a - 1, 2 * b - 1)
        return distance
