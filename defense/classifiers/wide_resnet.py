"""Wide residual networks (Zagoruyko and Komodakis, "Wide residual networks", arXiv 1605.07146).

WRN-d-k has d = 6n + 4 layers: a 3x3 convolution with 16 channels, three groups of n pre-activation blocks with 16k,
32k and 64k channels at 32, 16 and 8 pixels, batch norm, ReLU, global average pooling, a linear layer. A block is
batch norm, ReLU, 3x3 convolution, twice, around a shortcut; where the shape changes, the shortcut is a 1x1
convolution of the activated input. WRN-28-10 has 36.5 million parameters, WRN-70-16 267 million.

Parameter names are those of the checkpoints in circulation (``block1.layer.0.conv1``, ``fc``). Images are not
normalised by default, as in TRADES; give ``mean`` and ``std`` for a checkpoint that was trained otherwise.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from defense.classifiers.base import FeatureNet, register_cifar

__all__ = ["WideResNet"]


class WideBlock(nn.Module):
    """Pre-activation block: batch norm and ReLU come before each convolution."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # A block that keeps its shape has no parameter here, nor a key in a checkpoint.
        self.convShortcut = (
            nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            if channels_in != channels or stride != 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C_in, H, W) to (B, C, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + shortcut


class WideGroup(nn.Module):
    """n blocks, the first of which may change the shape."""

    def __init__(self, blocks: int, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(channels_in, channels, stride)
        self.layer = nn.Sequential(first, *(WideBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C_in, H, W) to (B, C, H / stride, W / stride)."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(FeatureNet):
    """WRN-d-k for 32x32 images.

    Arguments:
        depth: d = 6n + 4.
        width: k.
        classes: Number of classes.
    """

    def __init__(self, depth: int, width: int, classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"a wide residual network has 6n + 4 layers, not {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = WideGroup(blocks, 16, 16 * width, 1)
        self.block2 = WideGroup(blocks, 16 * width, 32 * width, 2)
        self.block3 = WideGroup(blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)

    def latent(self, x: Tensor) -> Tensor:
        """Features, shape (B, 64k), of images, shape (B, 3, 32, 32)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return F.relu(self.bn1(x)).mean((2, 3))

    def classify(self, latent: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        logits: Tensor = self.fc(latent)
        return logits


for _depth, _width in ((28, 10), (70, 16)):
    register_cifar(f"wrn{_depth}-{_width}", partial(WideResNet, _depth, _width))
