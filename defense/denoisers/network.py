"""A denoiser that is a network, and a denoiser config that is one file of weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from defense.checkpoints import SHA256, assert_sha256, load_state_dict
from defense.denoisers.base import Denoiser, DenoiserConfig
from defense.denoisers.predictions import Prediction, edm_noise_label, implied_eps, network_input
from defense.errors import InvalidInput, inside, nearest
from defense.files import path_of
from defense.reading import reading
from defense.schedules import Schedule, get_schedule
from defense.weight_matching import load_tensors, match

__all__ = ["NetworkDenoiser", "WeightsFileConfig", "as_tuple", "fit", "with_preset"]


class NetworkDenoiser(Denoiser):
    """A network called as ``net(images, labels)``, with what its output and its labels mean.

    The label of level t is ``(t - first) * scale``, or ln(sigma)/4 if ``prediction`` is ``edm``.

    Arguments:
        net: Maps (B, C, H, W) and labels (B,) to (B, C, H, W), or to (B, 2C, H, W) with ``learned_variance``.
        schedule: The schedule that it was trained on, or its name.
        image_shape: (C, H, W) of its images.
        prediction: What the output is, see :mod:`defense.denoisers.predictions`.
        first: Level whose label is 0.
        scale: Labels per level. With an int, labels are integers.
        learned_variance: The second half of the output's channels is the variance output.
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
    ) -> None:
        super().__init__()
        self.net = net
        self.schedule = get_schedule(schedule) if isinstance(schedule, str) else schedule
        self.image_shape = image_shape
        self.prediction: Prediction = prediction
        self.learned_variance = learned_variance
        self._first = first
        self._scale = scale

    def _output(self, z: Tensor, t: int) -> Tensor:
        abar = float(self.schedule.abar[t])
        label = edm_noise_label(abar) if self.prediction == "edm" else (t - self._first) * self._scale
        kind = torch.int64 if isinstance(label, int) else torch.promote_types(z.dtype, torch.float32)
        labels = torch.full((len(z),), label, dtype=kind, device=z.device)
        return self.call(network_input(self.prediction, z, abar), labels)

    def call(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the network's output; for networks with another calling convention to override."""
        output: Tensor = self.net(images, labels)
        return output

    def forward(self, z: Tensor, t: int) -> Tensor:
        """Predicted noise, see :class:`Denoiser`."""
        return self.with_variance(z, t)[0]

    def with_variance(self, z: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        """Return the predicted noise and variance output, see :class:`Denoiser`."""
        output = self._output(z, t)
        v = None
        if self.learned_variance:
            output, v = output.chunk(2, dim=1)
        return implied_eps(self.prediction, output, z, float(self.schedule.abar[t])), v


def fit(net: nn.Module, state: Mapping[str, Tensor], path: str | Path, what: str) -> nn.Module:
    """Load tensors into a network, all or none, and set it to evaluation without gradients.

    Arguments:
        net: The network.
        state: Tensors by their names in the network.
        path: Where they come from, for the message.
        what: The architecture that the config describes, for the message.

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
