"""A denoiser that is a network, and a denoiser config that is one file of weights."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from defense.checkpoints import SHA256, assert_sha256, load_state_dict
from defense.denoisers.base import Denoiser, DenoiserConfig
from defense.denoisers.predictions import LABELLED, Prediction, implied_eps, network_input, noise_label
from defense.errors import InvalidInput, inside, nearest
from defense.files import path_of
from defense.reading import reading
from defense.schedules import Levels, Schedule, get_schedule
from defense.weight_matching import load_tensors, match

__all__ = ["NetworkDenoiser", "WeightsFileConfig", "as_tuple", "fit", "with_preset"]


class NetworkDenoiser(Denoiser):
    """A network called as ``net(images, labels)``, with what its output and its labels mean.

    The label of level t is ``(t - first) * scale``, or what :func:`~defense.denoisers.predictions.noise_label` makes
    of its noise if ``prediction`` is one of those.

    Arguments:
        net: Maps (B, C, H, W) and labels (B,) to (B, C, H, W), or to (B, 2C, H, W) with ``learned_variance``.
        schedule: The schedule that it was trained on, or its name.
        image_shape: (C, H, W) of its images.
        prediction: What the output is, see :mod:`defense.denoisers.predictions`.
        first: Level whose label is 0.
        scale: Labels per level. With an int, labels are integers.
        learned_variance: The second half of the output's channels is the variance output.
        classes: Number of classes that it is told; None for a network that takes none.
        null_class: What :meth:`call_with_classes` gets where there is no class: a number beyond the classes, or -1.
            None if the network cannot be asked without a class.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: str | Schedule,
        image_shape: tuple[int, int, int],
        *,
        prediction: Prediction = "eps",
        first: int = 1,
        scale: float = 1,
        learned_variance: bool = False,
        classes: int | None = None,
        null_class: int | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.schedule = get_schedule(schedule) if isinstance(schedule, str) else schedule
        self.image_shape = image_shape
        self.prediction: Prediction = prediction
        self.learned_variance = learned_variance
        self.classes = classes
        self.null_class = null_class
        self._first = first
        self._scale = scale

    def _labels(self, z: Tensor, t: int) -> Tensor:
        abar = float(self.schedule.abar[t])
        label = noise_label(self.prediction, abar) if self._labelled else (t - self._first) * self._scale
        kind = torch.int64 if isinstance(label, int) else torch.promote_types(z.dtype, torch.float32)
        return torch.full((len(z),), cast(float, label), dtype=kind, device=z.device)

    @property
    def _labelled(self) -> bool:
        return self.prediction in LABELLED

    def _labels_of(self, z: Tensor, levels: Levels) -> Tensor:
        """Labels of images with a level each; the same numbers as :meth:`_labels`."""
        kind = torch.promote_types(z.dtype, torch.float32)
        if self._labelled:
            return cast(Tensor, noise_label(self.prediction, levels.abar)).flatten().to(kind)
        label = (levels.time - self._first) * self._scale
        whole = isinstance(self._scale, int) and not levels.followed
        return label.to(torch.int64 if whole else kind)

    def _asked(self, z: Tensor, labels: Tensor, abar: float | Tensor, classes: Tensor | None) -> Tensor:
        images: Tensor = network_input(self.prediction, z, abar)
        if self.classes is None:
            return self.call(images, labels)
        if classes is None:
            if self.null_class is None:
                raise InvalidInput(
                    f"this denoiser was trained with the labels of {self.classes} classes and cannot be asked "
                    "without one. Take an unconditional network, or one that was trained with labels left out."
                )
            classes = torch.full((len(z),), self.null_class, dtype=torch.int64, device=z.device)
        return self.call_with_classes(images, labels, classes)

    def call(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the network's output; for networks with another calling convention to override."""
        output: Tensor = self.net(images, labels)
        return output

    def call_with_classes(self, images: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        """Return the output of a class-conditional network; for other calling conventions to override.

        Arguments:
            images: As for :meth:`call`.
            labels: As for :meth:`call`.
            classes: Class of each image, int64 of shape (B,); ``null_class`` where there is none.
        """
        output: Tensor = self.net(images, labels, classes)
        return output

    def forward(self, z: Tensor, t: int) -> Tensor:
        """Predicted noise, see :class:`Denoiser`."""
        return self.with_variance(z, t)[0]

    def with_variance(self, z: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        """Return the predicted noise and variance output, see :class:`Denoiser`."""
        abar = float(self.schedule.abar[t])
        return self._implied(self._asked(z, self._labels(z, t), abar, None), z, abar)

    def _implied(self, output: Tensor, z: Tensor, abar: float | Tensor) -> tuple[Tensor, Tensor | None]:
        v = None
        if self.learned_variance:
            output, v = output.chunk(2, dim=1)
        eps: Tensor = implied_eps(self.prediction, output, z, abar)
        return eps, v

    def at_levels(self, z: Tensor, levels: Levels) -> Tensor:
        """Return the predicted noise where each image has a level of its own, see :class:`Denoiser`."""
        if levels.shared is not None:
            return cast(Tensor, self(z, levels.shared))
        return self._implied(self._asked(z, self._labels_of(z, levels), levels.abar, None), z, levels.abar)[0]

    def conditional(self, z: Tensor, t: int, labels: Tensor) -> Tensor:
        """Return the noise that is predicted for images of given classes, see :class:`Denoiser`."""
        if self.classes is None:
            return super().conditional(z, t, labels)
        abar = float(self.schedule.abar[t])
        return self._implied(self._asked(z, self._labels(z, t), abar, labels), z, abar)[0]


def fit(net: nn.Module, state: Mapping[str, Tensor], path: str | Path, what: str) -> nn.Module:
    """Load tensors into a network, all or none, and set it to evaluation without gradients.

    Raises:
        InvalidInput: The tensors are not of this architecture, with what differs.
    """
    advice = "Give the settings that the file was trained with."
    return load_tensors(net, match(net.state_dict(), {"": dict(state)}, path, what, advice=advice), path)


class WeightsFileConfig(DenoiserConfig):
    """A denoiser whose weights are one file.

    Arguments:
        weights: Path of the checkpoint: ``.safetensors``, or a torch file that holds nothing but tensors and plain
            values.
        sha256: sha256 of the file, at least its first 8 hex digits; filled in from the file.
    """

    weights: str = Field(exclude=True)
    sha256: str | None = SHA256

    def resolved(self, base: Path) -> Self:
        """See :class:`DenoiserConfig`."""
        get_schedule(self.schedule)
        with inside("weights"):
            path = path_of(self.weights, "denoiser weights", base=base)
        digest = assert_sha256(path, self.sha256, what="denoiser weights")
        return self.model_copy(update={"weights": str(path), "sha256": digest})

    @abstractmethod
    def network(self) -> nn.Module:
        """Return the network with arbitrary weights."""

    @abstractmethod
    def denoiser(self, net: nn.Module) -> NetworkDenoiser:
        """Return the denoiser around the loaded network."""

    def architecture(self) -> str:
        """Return the architecture in words, for messages."""
        shown = self.model_dump(exclude={"format", "schedule", "sha256", "prediction"})
        return f"{self.format} with " + ", ".join(f"{key}: {value}" for key, value in shown.items())

    def state(self, path: Path) -> Mapping[str, Tensor]:
        """Return the network's tensors in the file, by their names in the network."""
        return load_state_dict(path)

    def build(self) -> NetworkDenoiser:
        """See :class:`DenoiserConfig`; the hash is checked again, since files can change after the plan."""
        if self.sha256 is None or len(self.sha256) != 64:
            raise ValueError("resolve the config before building")
        path = Path(self.weights)
        assert_sha256(path, self.sha256, what="denoiser weights")
        with reading(path, "denoiser weights"):
            net = fit(self.network(), self.state(path), path, self.architecture())
            return self.denoiser(net).eval()


def as_tuple(value: Any) -> Any:
    """Return a list from YAML, or the "16,8" of a command line, as the tuple that a strict field wants."""
    if isinstance(value, str) and all(part.strip().isdigit() for part in value.split(",")):
        return tuple(int(part) for part in value.split(","))
    return tuple(value) if isinstance(value, list) else value


def with_preset(data: Any, presets: Mapping[str, Mapping[str, Any]]) -> Any:
    """Fields as a user gave them, completed by those of the preset that they name.

    Arguments:
        data: Fields, among them perhaps ``preset``.
        presets: Fields of each preset.

    Raises:
        InvalidInput: Unknown preset.
    """
    name = data.get("preset") if isinstance(data, dict) else None
    if name is None:
        return data
    if name not in presets:
        raise InvalidInput(f"preset {name!r} is unknown; {nearest(str(name), presets)}")
    return {**presets[name], **data}
