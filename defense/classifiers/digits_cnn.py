"""A small convolutional network for the embedded 8x8 digits, with weights that ship with puregrid."""

from pathlib import Path

from torch import Tensor, nn

from defense.classifiers.base import CLASSIFIERS, Architecture, FeatureNet

__all__ = ["DigitsCNN"]


class DigitsCNN(FeatureNet):
    """Three 3x3 convolutions with batch norm, one pooling, two linear layers."""

    def __init__(self, channels: int = 32, classes: int = 10) -> None:
        super().__init__()

        def conv(channels_in: int, channels_out: int) -> list[nn.Module]:
            return [
                nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels_out),
                nn.ReLU(),
            ]

        self.features = nn.Sequential(
            *conv(1, channels), *conv(channels, channels), nn.MaxPool2d(2), *conv(channels, 2 * channels)
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(2 * channels * 16, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, classes)
        )

    def latent(self, x: Tensor) -> Tensor:
        """Features, shape (B, 64), of normalised images, shape (B, 1, 8, 8)."""
        features: Tensor = self.head[:-1](self.features(x))
        return features

    def classify(self, latent: Tensor) -> Tensor:
        """Logits, shape (B, 10)."""
        logits: Tensor = self.head[-1](latent)
        return logits


# The same network, trained in seven ways; `docs/training.md` has their figures.
for _name in ("cnn", "gaussian", "at", "at-alp", "trades", "trades-awp", "macer"):
    CLASSIFIERS.register(f"digits-{_name}")(
        Architecture(
            build=DigitsCNN,
            image_shape=(1, 8, 8),
            classes=10,
            mean=(0.3,),
            std=(0.4,),
            weights=Path(__file__).parent.parent / "assets" / f"digits-{_name}" / "model.safetensors",
            class_names=tuple("0123456789"),
        )
    )
