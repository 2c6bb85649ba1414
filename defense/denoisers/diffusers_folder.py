"""Denoisers in the Hugging Face diffusers folder format: an unconditional ``UNet2DModel``, alone or in a pipeline.

That is the format of ``google/ddpm-cifar10-32`` (Ho et al., arXiv 2006.11239), with time steps counted from 0. What
the folder says of network, noise and prediction is read in full: see :mod:`defense.denoisers.network_config` and
:mod:`defense.denoisers.scheduler_config`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from defense.checkpoints import SHA256, assert_sha256
from defense.denoisers.base import DENOISERS, DenoiserConfig
from defense.denoisers.folder_files import DENOISER_FILES, find_network, find_schedulers, find_weights
from defense.denoisers.network import NetworkDenoiser
from defense.denoisers.network_config import NetworkConfig, read_network_config
from defense.denoisers.predictions import Prediction
from defense.denoisers.scheduler_config import PREDICTIONS, StatedNoise, read_scheduler_config
from defense.errors import InvalidInput, inside
from defense.files import path_of
from defense.packages import installed
from defense.reading import reading
from defense.schedules import FROM_FOLDER, SCHEDULES, Schedule, get_schedule
from defense.torchvision_cpu import allow_torchvision_import
from defense.weight_matching import load_tensors, match

__all__ = ["DiffusersConfig", "DiffusersDenoiser", "digits_denoiser"]

# Attention layers changed their names in diffusers 0.17; checkpoints written before have the old ones.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SAME = 1e-5
"""Largest relative difference of abar at which a named schedule is that of the folder."""


def _current_name(key: str) -> str:
    """Today's name of a weight that an older diffusers wrote."""
    path, _, kind = key.rpartition(".")
    path, _, layer = path.rpartition(".")
    if "attentions" in path.split(".") and layer in _OLD_ATTENTION:
        return f"{path}.{_OLD_ATTENTION[layer]}.{kind}"
    return key


@lru_cache(maxsize=64)
def _carried(name: str, abar: tuple[float, ...]) -> Schedule:
    return Schedule(name, np.array(abar, dtype=np.float64))


class DiffusersDenoiser(NetworkDenoiser):
    """An unconditional ``UNet2DModel``; with twice as many output as input channels it has a variance output.

    Arguments:
        net: The diffusers network.
        schedule: The schedule that it was trained on, or its name.
        image_shape: (C, H, W) of its images.
        prediction: What it predicts.
        learned_variance: Whether it has a variance output.
        classes: Number of classes, for a network with ``num_class_embeds``.
        null_class: The class embedding that stands for none.
    """

    def __init__(
        self,
        net: Any,
        schedule: str | Schedule,
        image_shape: tuple[int, int, int],
        prediction: Prediction = "eps",
        *,
        learned_variance: bool = False,
        classes: int | None = None,
        null_class: int | None = None,
    ) -> None:
        super().__init__(
            net,
            schedule,
            image_shape,
            prediction=prediction,
            learned_variance=learned_variance,
            classes=classes,
            null_class=null_class,
        )

    def call(self, images: Tensor, labels: Tensor) -> Tensor:
        """See :class:`~defense.denoisers.network.NetworkDenoiser`."""
        output: Tensor = self.net(images, labels, return_dict=False)[0]
        return output

    def call_with_classes(self, images: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        """See :class:`~defense.denoisers.network.NetworkDenoiser`."""
        output: Tensor = self.net(images, labels, class_labels=classes, return_dict=False)[0]
        return output


@DENOISERS.register("diffusers")
class DiffusersConfig(DenoiserConfig):
    """A diffusers folder on disk, or a repository on the hub pinned by its commit.

    Arguments:
        format: ``"diffusers"``.
        schedule: Noise schedule that the network was trained on: a name, which is compared with the folder's
            ``scheduler_config.json`` if there is one, or ``from-folder``, what that file states. Once resolved it is
            a name, see :mod:`defense.schedules`.
        prediction: What the network predicts; by default what ``scheduler_config.json`` says, else ``eps``.
        path: Folder with ``config.json`` and weights, or of a pipeline with ``unet`` and ``scheduler``.
        repo: Repository id on the hub, instead of ``path``.
        revision: Commit of ``repo``: 40 hex digits, since a branch name may mean another file tomorrow.
        variant: Which weights, where the folder has several (``fp16``).
        sha256: sha256 of the weights file, at least its first 8 hex digits; filled in from the file. Of shards: what
            ``sha256sum SHARDS | sha256sum`` prints.
        config_sha256: sha256 of ``config.json``; filled in from the file.
    """

    # The usual prediction was the only one once, and those ids are still the same.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"prediction": (None, "eps")}
    format: Literal["diffusers"] = "diffusers"
    schedule: str = FROM_FOLDER
    prediction: Prediction | None = None
    path: str | None = Field(default=None, exclude=True)
    repo: str | None = Field(default=None, exclude=True)
    revision: str | None = Field(default=None, exclude=True)
    variant: str | None = Field(default=None, exclude=True, min_length=1)
    sha256: str | None = SHA256
    config_sha256: str | None = SHA256
    # The table of a schedule that has no name of its own; it travels to the workers with the config.
    _abar: tuple[float, ...] | None = PrivateAttr(default=None)

    @property
    def noise_schedule(self) -> Schedule:
        """See :class:`DenoiserConfig`; needs a resolved config."""
        return get_schedule(self.schedule) if self._abar is None else _carried(self.schedule, self._abar)

    def resolved(self, base: Path) -> DiffusersConfig:
        """See :class:`DenoiserConfig`."""
        folder = self._folder(base)
        with reading(folder, "denoiser folder"):
            network = find_network(folder)
            weights = find_weights(network, self.variant)
            config = read_network_config(network / "config.json")
            stated = [read_scheduler_config(file) for file in find_schedulers(network)]
            schedule = self._schedule(network, stated)
            resolved = self.model_copy(
                update={
                    "path": str(network),
                    "schedule": schedule.name,
                    "prediction": self._prediction(network, stated),
                    "sha256": assert_sha256(weights.files, self.sha256, what="denoiser weights"),
                    "config_sha256": assert_sha256(
                        network / "config.json", self.config_sha256, what="denoiser config"
                    ),
                }
            )
        _check_consistent(config, stated, schedule)
        resolved._abar = None if schedule.name in SCHEDULES else tuple(schedule.abar.tolist())
        return resolved

    def _folder(self, base: Path) -> Path:
        if (self.path is None) == (self.repo is None):
            raise InvalidInput("a diffusers denoiser takes either `path` (a folder) or `repo` with `revision`.")
        if self.path is not None:
            with inside("path"):
                return path_of(self.path, "denoiser folder", base=base)
        if self.revision is None or not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise InvalidInput(
                f"denoiser repository {self.repo!r} needs `revision`: a commit of 40 hex digits, so that the same "
                "sweep means the same weights next year."
            )
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.repo or "", revision=self.revision, allow_patterns=DENOISER_FILES))
        except Exception as error:
            raise InvalidInput(
                f"denoiser repository {self.repo!r} at {self.revision} could not be fetched "
                f"({type(error).__name__}: {error}). Fetch it on a machine with network access and give its folder "
                "as `path`."
            ) from error

    def _schedule(self, network: Path, stated: list[StatedNoise]) -> Schedule:
        """Return the schedule, after comparing what this config names with what the folder states."""
        noises = [noise for noise in stated if noise.schedule is not None]
        for noise in noises[1:]:
            if noise.words != noises[0].words:
                raise InvalidInput(
                    f"denoiser {str(network)!r} has two scheduler configs that differ: {str(noises[0].file)!r} says "
                    f"{noises[0].words}, {str(noise.file)!r} says {noise.words}. Remove the wrong one."
                )
        folder = noises[0].schedule if noises else None
        if folder is None and self.schedule == FROM_FOLDER:
            where = f"{str(stated[0].file)!r} does not say it" if stated else "it has no scheduler_config.json"
            raise InvalidInput(
                f"denoiser {str(network)!r} does not state the noise schedule that it was trained on: {where}. Write "
                f"`schedule`, one of {', '.join(sorted(SCHEDULES))}."
            )
        if folder is not None and self.schedule in (FROM_FOLDER, folder.name):
            return folder
        # The name of a folder's schedule, as a resolved config has it, is that of one folder only.
        named = None if "@" in self.schedule and folder is not None else get_schedule(self.schedule)
        if folder is None:
            return get_schedule(self.schedule)
        if named is None or not _same_schedule(named, folder):
            raise InvalidInput(
                f"denoiser {str(network)!r} was trained on {folder.name} ({noises[0].file.name}: {noises[0].words}), "
                f"not on {self.schedule!r}. Leave `schedule` out to take the folder's."
            )
        return named

    def _prediction(self, network: Path, stated: list[StatedNoise]) -> Prediction:
        """Return what the network predicts, after comparing this config with the folder."""
        prediction = self.prediction
        for noise in stated:
            if noise.prediction is None:
                continue
            if (prediction or noise.prediction) != noise.prediction:
                kind = next(name for name, ours in PREDICTIONS.items() if ours == noise.prediction)
                raise InvalidInput(
                    f"prediction {prediction!r} is not what denoiser {str(network)!r} was trained for: "
                    f"{noise.file.name} says {kind!r}, which is `prediction: {noise.prediction}`."
                )
            prediction = noise.prediction
        return prediction or "eps"

    def _config(self) -> NetworkConfig | None:
        return None if self.path is None else read_network_config(Path(self.path) / "config.json")

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """See :class:`DenoiserConfig`."""
        config = self._config()
        return None if config is None else config.image_shape

    @property
    def learned_variance(self) -> bool:
        """See :class:`DenoiserConfig`."""
        config = self._config()
        return config is not None and config.learned_variance

    def _found(self) -> NetworkConfig | None:
        """The network's config where its folder is here: specs are read and named without files too."""
        return self._config() if self.path is not None and (Path(self.path) / "config.json").is_file() else None

    @property
    def classes(self) -> int | None:
        """See :class:`DenoiserConfig`; None as well while the folder is not here."""
        config = self._found()
        return None if config is None else config.classes

    @property
    def unconditional(self) -> bool:
        """See :class:`DenoiserConfig`; True as well while the folder is not here."""
        config = self._found()
        return config is None or config.classes is None or config.null_class is not None

    def build(self) -> DiffusersDenoiser:
        """See :class:`DenoiserConfig`; the hashes are checked again, since files can change after the plan."""
        if self.path is None or self.sha256 is None or self.config_sha256 is None:
            raise ValueError("resolve the config before building")
        folder = Path(self.path)
        with reading(folder, "denoiser folder"):
            weights = find_weights(folder, self.variant)
            assert_sha256(folder / "config.json", self.config_sha256, what="denoiser config")
            assert_sha256(weights.files, self.sha256, what="denoiser weights")
            config = read_network_config(folder / "config.json")
            shapes = _tried(config)
            file = weights.index or weights.files[0]
            state = match(
                shapes.state_dict(),
                weights.sets(),
                file,
                f"of {str(config.file)!r}",
                rename=_current_name,
                advice="Give weights and config.json of one network.",
            )
            net = load_tensors(_unet(config), state, file)
        return DiffusersDenoiser(
            net,
            self.noise_schedule,
            config.image_shape,
            self.prediction or "eps",
            learned_variance=config.learned_variance,
            classes=config.classes,
            null_class=config.null_class,
        ).eval()


def _same_schedule(first: Schedule, second: Schedule) -> bool:
    return first.steps == second.steps and np.allclose(first.abar, second.abar, rtol=_SAME, atol=0)


def _check_consistent(config: NetworkConfig, stated: list[StatedNoise], schedule: Schedule) -> None:
    """Refuse a network that does not fit its scheduler."""
    for noise in stated:
        if noise.learned_variance is not None and noise.learned_variance != config.learned_variance:
            raise InvalidInput(
                f"denoiser scheduler {str(noise.file)!r} says that the network has "
                f"{'a' if noise.learned_variance else 'no'} variance output (`variance_type`), and "
                f"{str(config.file)!r} has `out_channels` = {config.out_channels} of {config.image_shape[0]} input "
                "channels. Correct the one that is wrong."
            )
    if config.longest is not None and config.longest < schedule.steps:
        raise InvalidInput(
            f"denoiser config {str(config.file)!r} has `num_train_timesteps` = {config.longest}, and the schedule "
            f"{schedule.name} has {schedule.steps} steps: the network cannot be told the last ones. Give the "
            "schedule that it was trained on."
        )


def digits_denoiser() -> DiffusersConfig:
    """The diffusion network of 8x8 digits that ships with puregrid, on the schedule that it was trained on."""
    folder = Path(__file__).parents[1] / "assets" / "digits-ddpm"
    return DiffusersConfig(path=str(folder), schedule="linear-1000")


def _unet(config: NetworkConfig) -> nn.Module:
    allow_torchvision_import()
    with installed("a denoiser in a diffusers folder"):
        from diffusers import UNet2DModel

    net: nn.Module = UNet2DModel(**config.fields)
    return net


def _tried(config: NetworkConfig) -> nn.Module:
    """The network without memory, after pushing one image through: what the config describes, or why it cannot be."""
    channels, height, width = config.image_shape
    hint = "Correct the fields of the file, or give another network."
    with reading(config.file, "denoiser config", hint=hint), torch.device("meta"), torch.no_grad():
        net = _unet(config).eval()
        label = torch.zeros(1, dtype=torch.int64)
        told = {} if config.classes is None else {"class_labels": label}
        output = net(torch.zeros(1, channels, height, width), label, return_dict=False, **told)[0]
    if output.shape != (1, config.out_channels, height, width):
        raise InvalidInput(
            f"denoiser config {str(config.file)!r} describes a network that turns images of "
            f"{(channels, height, width)} into {tuple(output.shape[1:])}, and a denoiser keeps "
            f"height and width. {hint}"
        )
    return net
