"""Denoisers in the Hugging Face diffusers folder format (``config.json`` and one weights file).

That is the format of ``google/ddpm-cifar10-32`` (Ho et al., arXiv 2006.11239): an unconditional ``UNet2DModel``, with
time steps counted from 0. What it predicts is said by ``prediction_type`` in ``scheduler_config.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from defense.checkpoints import SHA256, assert_sha256, load_weights
from defense.denoisers.base import DENOISERS, DenoiserConfig
from defense.denoisers.network import NetworkDenoiser
from defense.denoisers.predictions import Prediction
from defense.errors import InvalidInput
from defense.schedules import get_schedule
from defense.torchvision_cpu import allow_torchvision_import

__all__ = ["DiffusersConfig", "DiffusersDenoiser"]

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_AS_DIFFUSERS_SAYS: dict[str, tuple[object, ...]] = {
    "linear-1000": ("linear", 1000, 1e-4, 0.02),
    "cosine-4000": ("squaredcos_cap_v2", 4000),
}
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


# Attention layers changed their names in diffusers 0.17; checkpoints written before have the old ones.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _current_name(key: str) -> str:
    """Today's name of a weight that an older diffusers wrote."""
    *path, layer, kind = key.split(".")
    if any(part == "attentions" for part in path) and layer in _OLD_ATTENTION:
        return ".".join([*path, _OLD_ATTENTION[layer], kind])
    return key


def _image_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"], height, width


def _learned_variance(config: Mapping[str, Any]) -> bool:
    return bool(config.get("out_channels") == 2 * config["in_channels"])


class DiffusersDenoiser(NetworkDenoiser):
    """An unconditional ``UNet2DModel``; with twice as many output as input channels it has a variance output.

    Arguments:
        net: The diffusers network.
        schedule: Name of the schedule that it was trained on.
        prediction: What it predicts.
    """

    def __init__(self, net: Any, schedule: str, prediction: Prediction = "eps") -> None:
        super().__init__(
            net,
            schedule,
            _image_shape(net.config),
            prediction=prediction,
            learned_variance=_learned_variance(net.config),
        )

    def call(self, images: Tensor, labels: Tensor) -> Tensor:
        """See :class:`~defense.denoisers.network.NetworkDenoiser`."""
        output: Tensor = self.net(images, labels, return_dict=False)[0]
        return output


@DENOISERS.register("diffusers")
class DiffusersConfig(DenoiserConfig):
    """A diffusers folder on disk, or a repository on the hub pinned by its commit.

    Arguments:
        format: ``"diffusers"``.
        schedule: Noise schedule that the network was trained on; compared with the folder's
            ``scheduler_config.json`` if there is one.
        prediction: What the network predicts; by default what ``scheduler_config.json`` says, else ``eps``.
        path: Folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``.
        repo: Repository id on the hub, instead of ``path``.
        revision: Commit of ``repo``: 40 hex digits, since a branch name may mean another file tomorrow.
        sha256: sha256 of the weights file, at least its first 8 hex digits; filled in from the file.
        config_sha256: sha256 of ``config.json``; filled in from the file.
    """

    format: Literal["diffusers"] = "diffusers"
    prediction: Prediction | None = None
    path: str | None = Field(default=None, exclude=True)
    repo: str | None = Field(default=None, exclude=True)
    revision: str | None = Field(default=None, exclude=True)
    sha256: str | None = SHA256
    config_sha256: str | None = SHA256

    @model_serializer(mode="wrap")
    def _without_the_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The usual prediction stays out of the id: it was the only one once, and those ids are still the same.
        fields: dict[str, Any] = handler(self)
        if fields.get("prediction") in (None, "eps"):
            fields.pop("prediction", None)
        return fields

    def resolved(self, base: Path) -> DiffusersConfig:
        """See :class:`DenoiserConfig`."""
        get_schedule(self.schedule)
        folder = self._folder(base)
        if not (folder / "config.json").is_file():
            raise InvalidInput(
                f"denoiser folder {str(folder)!r} holds no config.json; a diffusers folder has config.json and "
                f"{_WEIGHTS}."
            )
        return self.model_copy(
            update={
                "path": str(folder),
                "prediction": self._checked(folder),
                "sha256": assert_sha256(folder / _WEIGHTS, self.sha256, what="denoiser weights"),
                "config_sha256": assert_sha256(folder / "config.json", self.config_sha256, what="denoiser config"),
            }
        )

    def _folder(self, base: Path) -> Path:
        if (self.path is None) == (self.repo is None):
            raise InvalidInput("a diffusers denoiser takes either `path` (a folder) or `repo` with `revision`.")
        if self.path is not None:
            return (base / self.path).resolve()
        if self.revision is None or not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise InvalidInput(
                f"denoiser repository {self.repo!r} needs `revision`: a commit of 40 hex digits, so that the same "
                "sweep means the same weights next year."
            )
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(self.repo or "", revision=self.revision, allow_patterns=["*.json", _WEIGHTS])
            )
        except Exception as error:
            raise InvalidInput(
                f"denoiser repository {self.repo!r} at {self.revision} could not be fetched "
                f"({type(error).__name__}: {error}). Fetch it on a machine with network access and give its folder "
                "as `path`."
            ) from error

    def _checked(self, folder: Path) -> Prediction:
        """What the network predicts, after comparing this config with what the folder says."""
        prediction = self.prediction
        for file in (folder / "scheduler_config.json", folder.parent / "scheduler" / "scheduler_config.json"):
            if not file.is_file():
                continue
            said = json.loads(file.read_text())
            kind = said.get("beta_schedule")
            keys = ["num_train_timesteps", *(["beta_start", "beta_end"] if kind == "linear" else [])]
            form = (kind, *(said.get(key) for key in keys))
            for change in ("trained_betas", "rescale_betas_zero_snr"):
                if said.get(change):
                    raise InvalidInput(
                        f"denoiser {str(folder)!r} was trained on a schedule of its own: {file.name} has "
                        f"{change} = {said[change]!r}, which no named schedule does."
                    )
            if kind is not None and form != _AS_DIFFUSERS_SAYS.get(self.schedule):
                named = next((name for name, known in _AS_DIFFUSERS_SAYS.items() if known == form), str(form))
                raise InvalidInput(
                    f"denoiser {str(folder)!r} was trained on {named} ({file.name}), not on {self.schedule!r}."
                )
            kind = said.get("prediction_type", "epsilon")
            if kind not in _PREDICTIONS:
                raise InvalidInput(
                    f"denoiser {str(folder)!r} predicts {kind!r} ({file.name}); known are {', '.join(_PREDICTIONS)}."
                )
            if "prediction_type" in said and (prediction or _PREDICTIONS[kind]) != _PREDICTIONS[kind]:
                raise InvalidInput(
                    f"prediction {prediction!r} is not what denoiser {str(folder)!r} was trained for: {file.name} "
                    f"says {kind!r}, which is `prediction: {_PREDICTIONS[kind]}`."
                )
            prediction = prediction or _PREDICTIONS[kind]
        return prediction or "eps"

    def _config(self) -> dict[str, Any] | None:
        if self.path is None:
            return None
        content: dict[str, Any] = json.loads((Path(self.path) / "config.json").read_text())
        return content

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """See :class:`DenoiserConfig`."""
        config = self._config()
        return None if config is None else _image_shape(config)

    @property
    def learned_variance(self) -> bool:
        """See :class:`DenoiserConfig`."""
        config = self._config()
        return config is not None and _learned_variance(config)

    def build(self) -> DiffusersDenoiser:
        """See :class:`DenoiserConfig`; the hashes are checked again, since files can change after the plan."""
        if self.path is None or self.sha256 is None or self.config_sha256 is None:
            raise ValueError("resolve the config before building")
        folder = Path(self.path)
        assert_sha256(folder / "config.json", self.config_sha256, what="denoiser config")
        assert_sha256(folder / _WEIGHTS, self.sha256, what="denoiser weights")
        allow_torchvision_import()
        from diffusers import UNet2DModel

        config = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k[0] != "_"}
        net = UNet2DModel(**config)
        load_weights(net, folder / _WEIGHTS, rename=_current_name)
        return DiffusersDenoiser(net, self.schedule, self.prediction or "eps").eval()
