"""MobileNetV2 and ShuffleNetV2 for 32x32 images, made of torchvision's.

MobileNetV2 (Sandler et al., arXiv 1801.04381): the stem and the first group that halves the size, that of 24
channels, keep stride 1. ShuffleNetV2 x1.0 (Ma et al., arXiv 1807.11164): the stem keeps stride 1 and the pooling
after it goes. Both then end at 4x4 pixels, as they end at 7x7 for images of 224 pixels. Parameter names are
torchvision's. torchvision is imported when a network is built, not before.
"""

from typing import Any

from torch import Tensor, nn

from defense.classifiers.base import FeatureNet, register_cifar
from defense.packages import installed
from defense.torchvision_cpu import allow_torchvision_import

__all__ = ["MobileNetV2", "ShuffleNetV2"]


class _Borrowed(FeatureNet):
    """Takes over the modules of a network under their names, so that checkpoints fit."""

    def _borrow(self, net: Any) -> None:
        for name, module in net.named_children():
            self.add_module(name, module)


class MobileNetV2(_Borrowed):
    """torchvision's MobileNetV2 at width 1 with the strides of CIFAR."""

    features: nn.Module
    classifier: nn.Sequential

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        allow_torchvision_import()
        with installed("classifier mobilenetv2"):
            from torchvision.models import MobileNetV2 as Original

        # Expansion, channels, blocks, stride: table 2 of the paper but for the stride of the second row.
        rows = [
            [1, 16, 1, 1],
            [6, 24, 2, 1],
            [6, 32, 3, 2],
            [6, 64, 4, 2],
            [6, 96, 3, 1],
            [6, 160, 3, 2],
            [6, 320, 1, 1],
        ]
        net = Original(num_classes=classes, inverted_residual_setting=rows)
        net.features[0][0].stride = (1, 1)
        self._borrow(net)

    def latent(self, x: Tensor) -> Tensor:
        """Features, shape (B, 1280), of normalised images, shape (B, 3, 32, 32); dropout is part of them."""
        features: Tensor = self.classifier[:-1](self.features(x).mean((2, 3)))
        return features

    def classify(self, latent: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        logits: Tensor = self.classifier[-1](latent)
        return logits


class ShuffleNetV2(_Borrowed):
    """torchvision's ShuffleNetV2 x1.0 with the strides of CIFAR."""

    conv1: nn.Sequential
    stage2: nn.Module
    stage3: nn.Module
    stage4: nn.Module
    conv5: nn.Module
    fc: nn.Linear

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        allow_torchvision_import()
        with installed("classifier shufflenetv2"):
            from torchvision.models import ShuffleNetV2 as Original

        # Blocks and channels of each stage: table 5 of the paper.
        net = Original([4, 8, 4], [24, 116, 232, 464, 1024], num_classes=classes)
        net.conv1[0].stride = (1, 1)
        del net.maxpool
        self._borrow(net)

    def latent(self, x: Tensor) -> Tensor:
        """Features, shape (B, 1024), of normalised images, shape (B, 3, 32, 32)."""
        x = self.stage4(self.stage3(self.stage2(self.conv1(x))))
        features: Tensor = self.conv5(x)
        return features.mean((2, 3))

    def classify(self, latent: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        logits: Tensor = self.fc(latent)
        return logits


for _name, _network in (("mobilenetv2", MobileNetV2), ("shufflenetv2", ShuffleNetV2)):
    # What the checkpoints of github.com/chenyaofo/pytorch-cifar-models were trained with, says their log.
    register_cifar(
        _name,
        _network,
        cifar10=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        cifar100=((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    )
