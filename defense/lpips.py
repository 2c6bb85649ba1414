"""LPIPS (Zhang et al., "The unreasonable effectiveness of deep features", arXiv 1801.03924), from local weights.

The ``lpips`` package ships the calibrated linear layers; its backbone, torchvision's AlexNet or VGG16 trained on
ImageNet, it would download without asking. Here the backbone's checkpoint is a file that the user names.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from defense.checkpoints import SHA256, assert_sha256, load_state_dict
from defense.errors import InvalidInput, inside
from defense.files import path_of
from defense.packages import installed
from defense.reading import reading
from defense.spec import Spec
from defense.torchvision_cpu import allow_torchvision_import
from defense.weight_matching import load_tensors, match

__all__ = ["LpipsConfig", "LpipsDistance"]

_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}


class LpipsDistance(nn.Module):
    """LPIPS of two batches in diffusion units ([-1, 1] images).

    Arguments:
        net: The package's network.
        smallest: Least height and width that the backbone can take.
    """

    def __init__(self, net: nn.Module, smallest: int) -> None:
        super().__init__()
        self.net = net
        self.smallest = smallest

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances, shape (B,), of images of shape (B, 3 or 1, H, W)."""
        if min(a.shape[2:]) < self.smallest:
            raise InvalidInput(
                f"LPIPS takes images of at least {self.smallest} pixels a side, not {tuple(a.shape[2:])}."
            )
        value: Tensor = self.net(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1))
        return value.flatten()


class LpipsConfig(Spec):
    """The config of LPIPS: the backbone's weights.

    Arguments:
        net: ``alex`` (what the paper's authors recommend for measuring) or ``vgg``.
        weights: torchvision's checkpoint of the backbone.
        sha256: Its sha256, at least 8 hex digits; filled in from the file.
    """

    named_by: ClassVar[str | None] = "weights"
    net: Literal["alex", "vgg"] = "alex"
    weights: str | None = Field(default=None, exclude=True)
    sha256: str | None = SHA256

    def resolved(self, base: Path) -> Self:
        """This config with its file found, hashed and checked.

        Raises:
            InvalidInput: No file is named, it is missing, or it has another hash.
        """
        if self.weights is None:
            raise InvalidInput(
                f"lpips needs `weights`: the ImageNet checkpoint of its backbone ({_FILES[self.net]} of "
                "torchvision), which is never fetched silently."
            )
        with inside("weights"):
            path = path_of(self.weights, "lpips backbone", base=base)
            if not path.exists():
                file = _FILES[self.net]
                raise InvalidInput(
                    f"lpips backbone {str(path)!r} is not there. It is torchvision's {file}, from "
                    f"https://download.pytorch.org/models/{file}; its sha256 begins with {file[-12:-4]}. Nothing is "
                    "fetched silently; a relative path starts at the folder of the sweep file."
                )
        digest = assert_sha256(path, self.sha256, what="lpips backbone")
        return self.model_copy(update={"weights": str(path), "sha256": digest})

    def build(self) -> LpipsDistance:
        """Load the network, frozen."""
        if self.weights is None or self.sha256 is None:
            raise ValueError("resolve the config before building")
        assert_sha256(self.weights, self.sha256, what="lpips backbone")
        allow_torchvision_import()
        with installed("distance lpips"):
            import lpips

        with reading(self.weights, "lpips backbone"):
            net: Any = lpips.LPIPS(net=self.net, pnet_rand=True, verbose=False)
            stored = load_state_dict(self.weights, what="lpips backbone")
            # The network's names are sliceK.N.weight, where N counts the layers of torchvision's `features`.
            names = {key: "features." + key.split(".", 1)[1] for key in net.net.state_dict()}
            state = {key: stored[name] for key, name in names.items() if name in stored}
            backbone = net.net
            what, advice = f"torchvision's {self.net} backbone", f"The file is {_FILES[self.net]}."
            state = match(backbone.state_dict(), {"": state}, self.weights, what, advice=advice)
            load_tensors(backbone, state, self.weights)
        return LpipsDistance(net.eval().requires_grad_(False), 31 if self.net == "alex" else 16).eval()
