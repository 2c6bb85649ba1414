"""ResNet-50 for 32x32 images.

He et al., "Deep residual learning for image recognition", arXiv 1512.03385, table 1, with the stem that CIFAR-10
needs: a 3x3 convolution of stride 1 and no pooling after it. A bottleneck block is a 1x1 convolution to c channels, a
3x3 one, which has the stride, and a 1x1 one to 4c, each with batch norm; groups of 3, 4, 6 and 3 blocks have c = 64,
128, 256 and 512. Parameter names are those of the checkpoints in circulation, as of ``resnet18``. Images
are not normalised by default; give ``mean`` and ``std`` for a checkpoint that was trained otherwise.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from defense.classifiers.base import FeatureNet, register_cifar

__all__ = ["ResNet50"]


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm; the shortcut is projected where the shape changes."""

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


class ResNet50(FeatureNet):
    """Four groups of bottleneck blocks.

    Arguments:
        classes: Number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._group(3, 64, 64, 1)
        self.layer2 = self._group(4, 256, 128, 2)
        self.layer3 = self._group(6, 512, 256, 2)
        self.layer4 = self._group(3, 1024, 512, 2)
        self.linear = nn.Linear(2048, classes)

    @staticmethod
    def _group(blocks: int, channels_in: int, channels: int, stride: int) -> nn.Sequential:
        first = BottleneckBlock(channels_in, channels, stride)
        return nn.Sequential(first, *(BottleneckBlock(4 * channels, channels, 1) for _ in range(blocks - 1)))

    def latent(self, x: Tensor) -> Tensor:
        """Features, shape (B, 2048), of images, shape (B, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))

    def classify(self, latent: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        logits: Tensor = self.linear(latent)
        return logits


register_cifar("resnet50", ResNet50)
