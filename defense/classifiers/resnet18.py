"""ResNet-18 for 32x32 images.

He et al., "Deep residual learning for image recognition", arXiv 1512.03385, table 1, with the stem that CIFAR-10
needs: a 3x3 convolution of stride 1 and no pooling after it, so that the four groups of two basic blocks (64, 128,
256, 512 channels) work at 32, 16, 8 and 4 pixels. Shortcuts that change shape are 1x1 convolutions with batch norm
(option B). This is the network that adversarial training is usually reported with (TRADES, arXiv 1901.08573; AWP,
arXiv 2004.05884), and parameter names are those of the checkpoints in circulation. Images are not normalised by
default, as in TRADES; give ``mean`` and ``std`` for a checkpoint that was trained otherwise.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from defense.classifiers.base import FeatureNet, register_cifar

__all__ = ["ResNet18"]


class ProjectionBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; the shortcut is projected where the shape changes."""

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


class ResNet18(FeatureNet):
    """Four groups of two basic blocks.

    Arguments:
        classes: Number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(ProjectionBlock(64, 64, 1), ProjectionBlock(64, 64, 1))
        self.layer2 = nn.Sequential(ProjectionBlock(64, 128, 2), ProjectionBlock(128, 128, 1))
        self.layer3 = nn.Sequential(ProjectionBlock(128, 256, 2), ProjectionBlock(256, 256, 1))
        self.layer4 = nn.Sequential(ProjectionBlock(256, 512, 2), ProjectionBlock(512, 512, 1))
        self.linear = nn.Linear(512, classes)

    def latent(self, x: Tensor) -> Tensor:
        """Features, shape (B, 512), of images, shape (B, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))

    def classify(self, latent: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        logits: Tensor = self.linear(latent)
        return logits


register_cifar("resnet18", ResNet18)
