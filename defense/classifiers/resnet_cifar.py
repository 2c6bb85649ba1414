"""The CIFAR ResNets (He et al., "Deep residual learning for image recognition", arXiv 1512.03385, section 4.2).

6n + 2 layers: a 3x3 convolution, three groups of n basic blocks with 16, 32 and 64 channels, global average
pooling and a linear layer. Where the shape changes, the shortcut is option A of the paper: every second pixel,
and zeros for the new channels; it has no parameters. n = 3, 5, 7, 9 give ResNet-20, 32, 44, 56.

Option B, a 1x1 convolution with batch norm there, is what the checkpoints of
``github.com/chenyaofo/pytorch-cifar-models`` have; these are the names with ``-b``.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from defense.classifiers.base import FeatureNet, register_cifar

__all__ = ["ResNetCIFAR"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut: without parameters, or projected."""

    def __init__(self, channels_in: int, channels: int, stride: int, projected: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - channels_in
        # A block without projection has no parameter here, nor a key in a checkpoint.
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if projected and (self.new_channels or stride != 1)
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C_in, H, W) to (B, C, H / stride, W / stride)."""
        shortcut = self._shortcut(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            projected: Tensor = self.downsample(x)
            return projected
        shortcut = x[:, :, :: self.stride, :: self.stride]
        half = self.new_channels // 2
        return F.pad(shortcut, (0, 0, 0, 0, half, self.new_channels - half)) if self.new_channels else shortcut


class ResNetCIFAR(FeatureNet):
    """ResNet of 6n + 2 layers for 32x32 images.

    Arguments:
        n: Blocks in each of the three groups.
        classes: Number of classes.
        projected: Option B.
    """

    def __init__(self, n: int, classes: int = 10, *, projected: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._group(16, 16, n, 1, projected)
        self.layer2 = self._group(16, 32, n, 2, projected)
        self.layer3 = self._group(32, 64, n, 2, projected)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _group(channels_in: int, channels: int, n: int, stride: int, projected: bool) -> nn.Sequential:
        first = BasicBlock(channels_in, channels, stride, projected)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(n - 1)))

    def latent(self, x: Tensor) -> Tensor:
        """Features, shape (B, 64), of normalised images, shape (B, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean((2, 3))

    def classify(self, latent: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        logits: Tensor = self.linear(latent)
        return logits


def _last_layer(key: str) -> str:
    """Return the name of a weight; those checkpoints call the last layer ``fc``."""
    return key.replace("fc.", "linear.") if key.startswith("fc.") else key


for _n in (3, 5, 7, 9):
    # What the public checkpoints of these networks were trained with; those of option A are of CIFAR-10 alone.
    register_cifar(
        f"resnet{6 * _n + 2}", partial(ResNetCIFAR, _n), cifar10=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    register_cifar(
        f"resnet{6 * _n + 2}-b",
        partial(ResNetCIFAR, _n, projected=True),
        cifar10=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        cifar100=((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
        rename=_last_layer,
    )
