"""ResNet-18 and ResNet-50 for 32x32 images.

He et al., "Deep residual learning for image recognition", arXiv 1512.03385, table 1, with the stem that CIFAR-10
needs: a 3x3 convolution of stride 1 and no pooling after it, so that the four groups work at 32, 16, 8 and 4 pixels.
A basic block is two 3x3 convolutions, a bottleneck block a 1x1 one to c channels, a 3x3 one with the stride, and a
1x1 one to 4c, each with batch norm. Shortcuts that change shape are 1x1 convolutions with batch norm (option B).
ResNet-18 is the network that adversarial training is usually reported with (TRADES, arXiv 1901.08573; AWP, arXiv
2004.05884). Parameter names are those of the checkpoints in circulation. Images are not normalised by default, as in
TRADES; give ``mean`` and ``std`` for a checkpoint that was trained otherwise.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from defense.classifiers.base import FeatureNet, register_cifar

__all__ = ["CifarResNet", "ResNet18", "ResNet50"]


class ProjectionBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; the shortcut is projected where the shape changes."""

    expansion: ClassVar[int] = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C_in, H, W) to (B, C, H / stride, W / stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm; the shortcut is projected where the shape changes."""

    expansion: ClassVar[int] = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != 4 * channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, 4 * channels, 1, stride, bias=False), nn.BatchNorm2d(4 * channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C_in, H, W) to (B, 4 C, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class CifarResNet(FeatureNet):
    """A stem of stride 1 and four groups of blocks of 64, 128, 256 and 512 channels.

    Arguments:
        block: The block; it puts out ``block.expansion`` times its channels.
        counts: Blocks of each group.
        classes: Number of classes.
    """

    def __init__(self, block: type[ProjectionBlock] | type[BottleneckBlock], counts: Sequence[int], classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = 64
        groups: list[nn.Sequential] = []
        for channels, count in zip((64, 128, 256, 512), counts, strict=True):
            first = block(width, channels, 2 if groups else 1)
            width = channels * block.expansion
            rest = (block(width, channels, 1) for _ in range(count - 1))
            groups.append(nn.Sequential(first, *rest))
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.linear = nn.Linear(width, classes)

    def latent(self, x: Tensor) -> Tensor:
        """Features, shape (B, F), of images, shape (B, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))

    def classify(self, latent: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        logits: Tensor = self.linear(latent)
        return logits


class ResNet18(CifarResNet):
    """Groups of two basic blocks; 512 features."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(ProjectionBlock, (2, 2, 2, 2), classes)


class ResNet50(CifarResNet):
    """Groups of 3, 4, 6 and 3 bottleneck blocks; 2048 features."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(BottleneckBlock, (3, 4, 6, 3), classes)


register_cifar("resnet18", ResNet18)
register_cifar("resnet50", ResNet50)
