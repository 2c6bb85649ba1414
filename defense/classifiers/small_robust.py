"""Two small CIFAR-10 networks without batch norm, for which public adversarially trained checkpoints exist.

``cnn-a``: two 4x4 convolutions of stride 2 (16 and 32 channels), a hidden layer of 100 units. ``resnet4b``: a 3x3
convolution of stride 2 (16 channels), two groups of two residual blocks (32 channels, each group halving the size),
a hidden layer of 100 units. All convolutions have biases. Both are benchmark networks of neural network verification
(VNN-COMP), whose names and parameter names they carry.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from defense.classifiers.base import CLASSIFIERS, Architecture, FeatureNet

__all__ = ["CNNA", "ResNet4b"]


class CNNA(nn.Sequential, FeatureNet):
    """Two convolutions and a hidden layer; a sequence, as its checkpoint is."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 4, 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2048, 100),
            nn.ReLU(),
            nn.Linear(100, classes),
        )

    def latent(self, x: Tensor) -> Tensor:
        """Features, shape (B, 100), of normalised images, shape (B, 3, 32, 32)."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x

    def classify(self, latent: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        logits: Tensor = self[-1](latent)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, classes), of normalised images, shape (B, 3, 32, 32)."""
        return FeatureNet.forward(self, x)


class PlainBlock(nn.Module):
    """Convolution, ReLU, convolution, around a shortcut that is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C_in, H, W) to (B, C, H / stride, W / stride)."""
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet4b(FeatureNet):
    """Four residual blocks and a hidden layer."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 2, padding=1)
        self.layer1 = nn.Sequential(PlainBlock(16, 32, 2), PlainBlock(32, 32, 1))
        self.layer2 = nn.Sequential(PlainBlock(32, 32, 2), PlainBlock(32, 32, 1))
        self.linear1 = nn.Linear(512, 100)
        self.linear2 = nn.Linear(100, classes)

    def latent(self, x: Tensor) -> Tensor:
        """Features, shape (B, 100), of normalised images, shape (B, 3, 32, 32)."""
        x = self.layer2(self.layer1(F.relu(self.conv1(x))))
        return F.relu(self.linear1(x.flatten(1)))

    def classify(self, latent: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        logits: Tensor = self.linear2(latent)
        return logits


CLASSIFIERS.register("cnn-a")(
    Architecture(
        build=CNNA, image_shape=(3, 32, 32), classes=10, mean=(0.485, 0.456, 0.406), std=(0.225, 0.225, 0.225)
    )
)
CLASSIFIERS.register("resnet4b")(
    Architecture(
        build=ResNet4b,
        image_shape=(3, 32, 32),
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )
)
