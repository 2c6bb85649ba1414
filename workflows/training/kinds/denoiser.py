r"""Training of a denoiser on any registered data set.

Noise prediction (Ho et al., "Denoising diffusion probabilistic models", arXiv 2006.11239, algorithm 1):

.. math:: \min_\theta\ \mathbb E\ \lVert n - \epsilon_\theta(\sqrt{\bar\alpha_t}\, z_0
          + \sqrt{1 - \bar\alpha_t}\, n,\ t)\rVert^2, \qquad z_0 = 2x - 1,

with t uniform on 1..T, or, in a share of the batch, on 1..focus_t: purification lives at small t.

A network with ``num_class_embeds`` is told the class. With one embedding more than there are classes the last one
stands for none and takes the place of the class in a share ``label_dropout`` of the batch (Ho and Salimans,
"Classifier-free diffusion guidance", arXiv 2207.12598, algorithm 1), so that the same network serves purifiers, which
do not know it.

Other objectives are those of :mod:`workflows.training.objectives`: ``objective: {objective: adbm, ...}``. With
``start`` a training goes on from the weights of a denoiser folder.
"""

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, SerializeAsAny, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from defense.checkpoints import SHA256
from defense.classifiers import ClassifierConfig
from defense.denoisers import DiffusersConfig, Prediction, digits_denoiser
from defense.denoisers.network_config import NULL_CLASS
from defense.denoisers.predictions import LABELLED, implied_eps, network_input, noise_label
from defense.errors import InvalidInput, inside
from defense.packages import installed
from defense.schedules import get_schedule
from defense.torchvision_cpu import allow_torchvision_import
from tasks.datasets import ImageSet
from workflows.training.config import Training
from workflows.training.objective import Objective
from workflows.training.objectives import DenoiserLoss, Denoising

__all__ = ["DenoiserObjective", "DenoiserTraining", "eps_mse"]


class DenoiserTraining(Training):
    """Noise-prediction training of a diffusers ``UNet2DModel``.

    Arguments:
        schedule: Name of the noise schedule.
        unet: Arguments of ``UNet2DModel``.
        focus_t: A share of the batch takes t up to this level only, where purification works.
        focus_share: That share.
        label_dropout: Of class-conditional networks: share of the batch that is told no class.
        objective: Another loss than noise prediction.
        start: A denoiser folder whose weights the network starts from: its path, or ``digits-ddpm``.
        start_sha256: sha256 of its weights; filled in from the file.
        save_as: ``fp16`` rounds the trained weights to half precision: a file of half the size, which is calculated
            with in single precision. What the card says is measured on the rounded ones.
    """

    # Cards from before there was a choice are still those of the same config.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "label_dropout": (0.0,),
        "objective": (None,),
        "start": (None,),
        "start_sha256": (None,),
        "save_as": ("fp32",),
    }

    train: Literal["denoiser"]
    schedule: str
    unet: dict[str, Any]
    focus_t: int = Field(default=1000, ge=1)
    focus_share: float = Field(default=0.0, ge=0, le=1)
    label_dropout: float = Field(default=0.0, ge=0, lt=1)
    objective: SerializeAsAny[DenoiserLoss] | None = None
    start: str | None = None
    start_sha256: str | None = SHA256
    save_as: Literal["fp32", "fp16"] = "fp32"

    @model_validator(mode="before")
    @classmethod
    def _with_start(cls, data: Any) -> Any:
        """Fill in the hash of the weights that are started from: they decide those that are trained."""
        if not isinstance(data, dict) or not isinstance(data.get("start"), str):
            return data
        folder = _start(data["start"], data.get("start_sha256"))
        return {**data, "start_sha256": folder.sha256}

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if self.objective is None:
            return self
        needed = self.objective.needs_schedule
        if needed is not None and self.schedule != needed:
            raise InvalidInput(
                f"schedule {self.schedule!r}: objective {self.objective.objective!r} is on {needed!r}."
            )
        if self.focus_share:
            raise InvalidInput("focus_share belongs to noise prediction; an objective draws its levels by itself.")
        return self


def _start(name: str, sha256: str | None = None) -> DiffusersConfig:
    """The resolved config of the folder that a training starts from.

    Raises:
        InvalidInput: There is no such folder, or its weights are others.
    """
    if name == "digits-ddpm":
        config = digits_denoiser()
    else:
        # What its levels are is this config's business: any name that the folder does not contradict will do.
        stated = (Path(name) / "scheduler_config.json").exists()
        config = DiffusersConfig(path=name) if stated else DiffusersConfig(path=name, schedule="linear-1000")
    with inside("start"):
        return config.model_copy(update={"sha256": sha256}).resolved(Path.cwd())


class DenoiserObjective(Objective):
    """Algorithm 1 of Ho et al.; the files are a diffusers folder."""

    config: DenoiserTraining

    def __init__(self, config: DenoiserTraining, data: ImageSet) -> None:
        super().__init__(config, data)
        self.schedule = get_schedule(config.schedule)
        self.abar = torch.tensor(self.schedule.abar)
        if config.focus_share and config.focus_t > self.schedule.steps:
            raise InvalidInput(
                f"focus_t: {config.focus_t} is beyond the {self.schedule.steps} steps of {self.schedule.name!r}."
            )
        self.null_class = self._null_class()
        self.guide: nn.Module | None = None
        named = None if config.objective is None else config.objective.guided_by
        if named is not None:
            guide = ClassifierConfig(classifier=named).resolved(Path.cwd())
            if guide.architecture.image_shape != data.images.shape[1:]:
                raise InvalidInput(
                    f"objective: classifier {named!r} takes images of shape {guide.architecture.image_shape}, the "
                    f"data set has {data.images.shape[1:]}; name another."
                )
            self.guide = guide.build()

    def _null_class(self) -> int | None:
        """The embedding that stands for no class, None where there is none.

        Raises:
            InvalidInput: The number of embeddings does not fit the data set, or there is nothing to drop labels to.
        """
        embeds, classes = self.config.unet.get("num_class_embeds"), int(self.data.labels.max()) + 1
        if embeds not in (None, classes, classes + 1):
            raise InvalidInput(
                f"unet: num_class_embeds = {embeds} does not fit the {classes} classes of the data set: write "
                f"{classes}, or {classes + 1} with one that stands for no class."
            )
        null = classes if embeds == classes + 1 else None
        if (null is None) == (self.config.label_dropout > 0):
            raise InvalidInput(
                f"label_dropout: {self.config.label_dropout} with num_class_embeds = {embeds}: labels are left out, "
                "in a share above 0, exactly where one embedding more than there are classes stands for none."
            )
        return null

    def told(self, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the classes that the network is told, as arguments of its call; none if it takes none."""
        if self.config.unet.get("num_class_embeds") is None:
            return {}
        if self.null_class is None:
            return {"class_labels": y}
        dropped = torch.rand(len(y), generator=generator) < self.config.label_dropout
        return {"class_labels": torch.where(dropped.to(y.device), self.null_class, y)}

    def network(self) -> nn.Module:
        """Return a ``UNet2DModel``.

        Raises:
            InvalidInput: ``unet`` are no arguments of it, or do not fit the images.
        """
        allow_torchvision_import()
        with installed("training a denoiser"):
            from diffusers import UNet2DModel

        try:
            unet: Any = UNet2DModel(**self.config.unet)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"unet: diffusers' UNet2DModel does not take these arguments: {error}") from error
        size = unet.config.sample_size
        made_for = (unet.config.in_channels, *((size, size) if isinstance(size, int) else size or ()))
        if made_for != self.data.images.shape[1:] or unet.config.out_channels != unet.config.in_channels:
            raise InvalidInput(
                f"unet: in_channels, out_channels and sample_size must be those of the data set's images, which have "
                f"shape {self.data.images.shape[1:]}."
            )
        net: nn.Module = unet
        if self.config.start is not None:
            trained = _start(self.config.start, self.config.start_sha256).build().net.state_dict()
            shapes = {name: value.shape for name, value in net.state_dict().items()}
            if {name: value.shape for name, value in trained.items()} != shapes:
                raise InvalidInput(
                    f"start: the network in {self.config.start!r} is not the one that `unet` describes: give the "
                    "fields of its config.json."
                )
            net.load_state_dict(trained)
        return net

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int) -> Tensor:
        """See the module's formula; the mean over images and pixels."""
        config = self.config
        if config.objective is not None:
            told = self.told(y, generator)

            def ask(z: Tensor, labels: Tensor) -> Tensor:
                output: Tensor = net(z, labels, return_dict=False, **told)[0]
                return output

            guide = None if self.guide is None else self.guide.to(x.device)
            return config.objective.loss(Denoising(ask, x, y, generator, self.schedule, guide))
        top = torch.where(
            torch.rand(len(x), generator=generator) < config.focus_share, config.focus_t, self.schedule.steps
        )
        t = (torch.rand(len(x), generator=generator) * top).long() + 1
        eps = torch.randn(x.shape, generator=generator).to(x.device)
        # Levels are float64: near t = 1 what float32 leaves of 1 - abar is noise.
        level = self.abar[t].view(-1, 1, 1, 1).to(x.device)
        z = (level.sqrt() * (2 * x - 1) + (1 - level).sqrt() * eps).to(x.dtype)
        # The network counts its time steps from 0, levels count from 1.
        return F.mse_loss(net(z, (t - 1).to(x.device), return_dict=False, **self.told(y, generator))[0], eps)

    def progress(self, net: nn.Module, test: ImageSet) -> dict[str, float]:
        """Error of the noise prediction at some levels, or the loss, on 100 test images."""
        if self.other:
            return {"test/loss": self._loss(net, test, 100)}
        errors = self._errors(net, test, 100, self.null_class)
        return {f"test/eps_mse {key}": value for key, value in errors.items()}

    def measure(self, net: nn.Module, test: ImageSet) -> dict[str, Any]:
        """Error of the noise prediction at some levels, or the loss, of the weights as they are saved."""
        if self.config.save_as == "fp16":
            net = copy.deepcopy(net).half().float()
        if self.other:
            return {"test_loss": self._loss(net, test, len(test)), "test_images": len(test)}
        measured: dict[str, Any] = {"test_eps_mse": self._errors(net, test, 500, self.null_class)}
        if self.null_class is not None:
            measured["test_eps_mse_with_class"] = self._errors(net, test, 500, None)
        return {**measured, "test_images": len(test)}

    @property
    def other(self) -> bool:
        """Whether the network is asked for something else than the noise of images."""
        return self.config.objective is not None and not self.config.objective.denoises_images

    @torch.no_grad()
    def _loss(self, net: nn.Module, test: ImageSet, images: int) -> float:
        """Mean loss on the first test images, as many as there are, with random numbers of its own."""
        images = min(images, len(test))
        device, generator = next(net.parameters()).device, torch.Generator().manual_seed(self.config.seed)
        total = 0.0
        for first in range(0, images, 100):
            x = torch.from_numpy(test.images[first : min(first + 100, images)]).to(device)
            y = torch.from_numpy(test.labels[first : first + len(x)]).long().to(device)
            total += len(x) * float(self.loss(net, x, y, generator, 0))
        return round(total / images, 6)

    def _errors(self, net: nn.Module, test: ImageSet, images: int, null_class: int | None) -> dict[str, float]:
        objective = self.config.objective
        prediction = "eps" if objective is None else objective.prediction
        return eps_mse(self.config, net, test, images, null_class=null_class, prediction=prediction)

    def save(self, net: nn.Module, out: Path) -> list[Path]:
        """Return a diffusers folder: ``config.json`` and the weights."""
        files = [out / "config.json", out / "diffusion_pytorch_model.safetensors"]
        null = {} if self.null_class is None else {NULL_CLASS: self.null_class}
        content = {"_class_name": "UNet2DModel", **null, **self.config.unet}
        files[0].write_text(json.dumps(content, indent=1) + "\n")
        dtype = torch.float16 if self.config.save_as == "fp16" else torch.float32
        save_file({key: value.to("cpu", dtype).contiguous() for key, value in net.state_dict().items()}, files[1])
        return files


@torch.no_grad()
def eps_mse(
    config: DenoiserTraining,
    net: nn.Module,
    test: ImageSet,
    images: int = 500,
    *,
    null_class: int | None = None,
    prediction: Prediction = "eps",
) -> dict[str, float]:
    """Return the mean squared error of the noise prediction on the first test images, per level.

    Arguments:
        config: Gives the schedule, and the seed of the noise.
        net: Predicts the noise, evaluation mode.
        test: The test split.
        images: How many of its images.
        null_class: What a class-conditional network is told; by default the class of each image.
        prediction: What the network predicts; the error is that of the noise that it implies.

    Returns:
        ``{"t=25": ..., "t=50": ..., "t=100": ..., "t=200": ..., "t=400": ...}``.
    """
    schedule = get_schedule(config.schedule)
    device = next(net.parameters()).device
    x = 2 * torch.from_numpy(test.images[:images]) - 1
    eps = torch.from_numpy(np.random.default_rng(config.seed).standard_normal(x.shape, dtype=np.float32))
    y = torch.from_numpy(test.labels[:images]).long().to(device)
    y = y if null_class is None else torch.full_like(y, null_class)
    conditional = config.unet.get("num_class_embeds") is not None
    classes = [{"class_labels": part} if conditional else {} for part in torch.split(y, 500)]
    result = {}
    for t in (25, 50, 100, 200, 400):
        abar = float(schedule.abar[t])
        z = (math.sqrt(abar) * x + math.sqrt(1 - abar) * eps).to(device)
        seen = network_input(prediction, z, abar)
        # As a tensor: diffusers makes whole numbers of others.
        label = torch.tensor([noise_label(prediction, abar) if prediction in LABELLED else t - 1], device=device)
        predicted = torch.cat(
            [
                net(part, label, return_dict=False, **told)[0]
                for part, told in zip(torch.split(seen, 500), classes, strict=True)
            ]
        )
        predicted = implied_eps(prediction, predicted, z, abar).cpu()
        result[f"t={t}"] = round(float(F.mse_loss(predicted, eps)), 5)
    return result
