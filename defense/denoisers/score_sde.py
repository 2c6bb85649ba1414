r"""Denoisers in the format of the public score-SDE code (Song et al., arXiv 2011.13456).

A network trained on the continuous VP-SDE takes 999 t, t in [0, 1], and its output o is the score up to a factor,
:math:`\nabla\log p_t = -o/\sqrt{1-\bar\alpha(t)}`, which makes o the predicted noise. One trained on the 1000
discrete levels takes the index of the level, counted from 0. ``prediction: edm`` takes the same networks as trained
by Karras et al. (arXiv 2206.00364), under either naming of their weights, on any schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from defense.checkpoints import load_state_dict
from defense.denoisers.base import DENOISERS
from defense.denoisers.edm_layout import from_edm, is_edm
from defense.denoisers.network import NetworkDenoiser, WeightsFileConfig, as_tuple, with_preset
from defense.denoisers.predictions import LABELLED, Prediction
from defense.denoisers.song_unet import SongUNet
from defense.errors import InvalidInput
from defense.weight_files import read_content

__all__ = ["SCORE_SDE_PRESETS", "ScoreSDEConfig"]

_NCSNPP = {"fir": True, "progressive_input": "residual"}
_VE = {**_NCSNPP, "embedding_type": "fourier", "prediction": "ve", "schedule": "ve"}
_SUB_VP = {"prediction": "sub-vp", "schedule": "sub-vp"}
_EDM = {"prediction": "edm", "schedule": "edm", "num_res_blocks": 4, "ch_mult": (2, 2, 2)}

SCORE_SDE_PRESETS: dict[str, dict[str, Any]] = {
    "cifar10_ddpmpp_deep_continuous": {},
    "cifar10_ddpmpp_continuous": {"num_res_blocks": 4},
    "cifar10_ddpmpp": {"num_res_blocks": 4, "schedule": "linear-1000"},
    "cifar10_ncsnpp_deep_continuous": _NCSNPP,
    "cifar10_ncsnpp_continuous": {**_NCSNPP, "num_res_blocks": 4},
    "cifar10_ncsnpp": {**_NCSNPP, "num_res_blocks": 4, "schedule": "linear-1000"},
    "cifar10_ncsnpp_continuous_ve": {**_VE, "num_res_blocks": 4},
    "cifar10_ncsnpp_deep_continuous_ve": _VE,
    "cifar10_ddpmpp_continuous_subvp": {"num_res_blocks": 4, **_SUB_VP},
    "cifar10_ddpmpp_deep_continuous_subvp": _SUB_VP,
    "edm_cifar10_uncond_vp": _EDM,
    "edm_cifar10_uncond_ve": {**_EDM, **_NCSNPP, "embedding_type": "fourier"},
    "edm_cifar10_cond_vp": {**_EDM, "label_dim": 10},
    "edm_cifar10_cond_ve": {**_EDM, **_NCSNPP, "embedding_type": "fourier", "label_dim": 10},
}
"""Settings of public checkpoints: the VP, VE and sub-VP configurations of score-SDE, and the CIFAR-10 networks of EDM
(its ``ddpmpp`` and ``ncsnpp``), unconditional and class-conditional."""

# Level t as its label: (level whose label is 0, labels per level).
_LABELS: dict[str, tuple[int, float]] = {"vp-continuous": (0, 0.999), "linear-1000": (1, 1), "sub-vp": (0, 0.999)}

_Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple), Field(min_length=1)]
_Places = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple)]


@DENOISERS.register("score-sde")
class ScoreSDEConfig(WeightsFileConfig):
    """DDPM++ or NCSN++ of the score-SDE code, or such a network from EDM.

    Arguments:
        format: ``"score-sde"``.
        preset: Settings of a public checkpoint by its name; fields that are given as well go first.
        schedule: ``vp-continuous`` or ``linear-1000`` as in training; any with ``prediction: edm``.
        prediction: What the network predicts.
        weights: A training checkpoint with ``model`` and ``ema``, or a plain state dict, or one of EDM.
        sha256: sha256 of the file, at least its first 8 hex digits; filled in from the file.
        ema: Take the averaged weights of a training checkpoint.
        image_size: Height and width of images.
        channels: Channels of images.
        nf: Width of the first level, a multiple of 4.
        ch_mult: Width of each level in units of ``nf``.
        num_res_blocks: Residual blocks per level.
        attn_resolutions: Sizes of images at which attention is used.
        fir: Resize with the filter [1, 3, 3, 1].
        progressive_input: ``residual`` adds the shrunken input at each level (NCSN++); takes ``fir``.
        embedding_type: What noise labels are turned into.
        label_dim: Classes of a class-conditional network of EDM, 0 for none. It can be asked without a class too, as
            the EDM code does: with no element of the one-hot class set.
    """

    # Ids from before there were class-conditional networks are still the same.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"label_dim": (0,)}

    format: Literal["score-sde"] = "score-sde"
    preset: str | None = Field(default=None, exclude=True)
    schedule: str = "vp-continuous"
    prediction: Prediction = "eps"
    ema: bool = True
    image_size: int = Field(default=32, ge=2)
    channels: int = Field(default=3, ge=1)
    nf: int = Field(default=128, ge=4, multiple_of=4)
    ch_mult: _Sizes = (1, 2, 2, 2)
    num_res_blocks: int = Field(default=8, ge=1)
    attn_resolutions: _Places = (16,)
    fir: bool = False
    progressive_input: Literal["none", "residual"] = "none"
    embedding_type: Literal["positional", "fourier"] = "positional"
    label_dim: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, data: Any) -> Any:
        return with_preset(data, SCORE_SDE_PRESETS)

    @model_validator(mode="after")
    def _consistent(self) -> ScoreSDEConfig:
        if self.prediction not in LABELLED and self.schedule not in _LABELS:
            raise InvalidInput(
                f"schedule {self.schedule!r} does not fit a score-sde network that predicts {self.prediction!r}: its "
                f"noise labels have a meaning on {' and '.join(_LABELS)} only. `prediction: edm` takes any schedule."
            )
        if (self.prediction == "sub-vp") != (self.schedule == "sub-vp"):
            raise InvalidInput(
                f"schedule {self.schedule!r} does not fit prediction {self.prediction!r}: `prediction: sub-vp` and "
                "`schedule: sub-vp` belong together."
            )
        if self.label_dim and self.prediction == "eps":
            raise InvalidInput(
                f"label_dim = {self.label_dim} is of class-conditional networks of EDM: write `prediction: edm`, or "
                "leave it out for a network of score-SDE."
            )
        if self.progressive_input == "residual" and not self.fir:
            raise InvalidInput("progressive_input residual takes `fir: true`, as in every NCSN++.")
        shrink = 2 ** (len(self.ch_mult) - 1)
        if self.image_size % shrink:
            raise InvalidInput(
                f"image_size = {self.image_size} cannot be halved {len(self.ch_mult) - 1} times, once per level of "
                "`ch_mult` after the first."
            )
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """See :class:`~defense.denoisers.base.DenoiserConfig`."""
        return self.channels, self.image_size, self.image_size

    @property
    def classes(self) -> int | None:
        """See :class:`~defense.denoisers.base.DenoiserConfig`."""
        return self.label_dim or None

    def network(self) -> SongUNet:
        """See :class:`~defense.denoisers.network.WeightsFileConfig`."""
        return SongUNet(
            self.image_size,
            self.channels,
            self.nf,
            self.ch_mult,
            self.num_res_blocks,
            self.attn_resolutions,
            fir=self.fir,
            residual_input=self.progressive_input == "residual",
            embedding=self.embedding_type,
            classes=self.label_dim,
        )

    def state(self, path: Path) -> Mapping[str, Tensor]:
        """See :class:`~defense.denoisers.network.WeightsFileConfig`."""
        state = _checkpoint(path, self.ema)
        # A buffer of the public code: noise levels that a VP network does not use.
        state = {key: value for key, value in state.items() if key != "sigmas"}
        if not is_edm(state):
            return state
        if self.prediction not in LABELLED:
            raise InvalidInput(
                f"prediction {self.prediction!r} does not fit weights {str(path)!r}, whose names are those of EDM: "
                "such a network is called with its preconditioning. Write `prediction: edm`."
            )
        filters = {value.shape[-1] for key, value in state.items() if key.endswith("resample_filter")}
        if filters and filters != {4 if self.fir else 2}:
            raise InvalidInput(
                f"fir = {self.fir} does not fit weights {str(path)!r}, whose network resizes with "
                f"{max(filters)} x {max(filters)} pixels: 4 is `fir: true`, 2 is `fir: false`."
            )
        return from_edm(
            state,
            image_size=self.image_size,
            levels=len(self.ch_mult),
            num_res_blocks=self.num_res_blocks,
            attn_resolutions=self.attn_resolutions,
            residual_input=self.progressive_input == "residual",
        )

    def denoiser(self, net: nn.Module) -> NetworkDenoiser:
        """See :class:`~defense.denoisers.network.WeightsFileConfig`."""
        first, scale = _LABELS.get(self.schedule, (1, 1))
        return NetworkDenoiser(
            net,
            self.schedule,
            self.image_shape,
            prediction=self.prediction,
            first=first,
            scale=scale,
            classes=self.label_dim or None,
            null_class=-1 if self.label_dim else None,
        )


def _checkpoint(path: Path, ema: bool) -> dict[str, Tensor]:
    """Tensors by name of a plain state dict, or of a training checkpoint ``{optimizer, model, ema, step}``."""
    content = read_content(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return load_state_dict(path)
    model = {key.removeprefix("module."): value for key, value in content["model"].items()}
    if not ema:
        return model
    average = content.get("ema")
    shadow = average.get("shadow_params") if isinstance(average, dict) else None
    # The average is a list in the order of the trained parameters, which is that of the state dict without its
    # buffer and without the frequencies, which are not trained.
    trained = [key for key in model if key != "sigmas" and key != "all_modules.0.W"]
    if not isinstance(shadow, list) or [v.shape for v in shadow] != [model[key].shape for key in trained]:
        held = f"{len(shadow)} tensors" if isinstance(shadow, list) else "none"
        raise InvalidInput(
            f"weights {str(path)!r} hold no average of the model's {len(trained)} parameters (`ema` has {held}, or "
            "of other shapes). Write `ema: false` to take the weights without averaging."
        )
    return model | dict(zip(trained, shadow, strict=True))
