r"""Denoisers of improved-diffusion and guided-diffusion (Nichol and Dhariwal, arXiv 2102.09672; 2105.05233).

Fields are the command-line flags of these programs. The network takes the index of the level, counted from 0, times
1000/T with ``rescale_timesteps``, which improved-diffusion has on by default: its 4000-step networks know
level t as (t - 1)/4. With ``learn_sigma`` the second half of the output channels is the variance output v of equation
15 there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from defense.denoisers.base import DENOISERS
from defense.denoisers.guided_unet import GuidedUNet
from defense.denoisers.network import NetworkDenoiser, WeightsFileConfig, as_tuple, with_preset
from defense.denoisers.predictions import Prediction
from defense.errors import InvalidInput
from defense.schedules import get_schedule

__all__ = ["GUIDED_DIFFUSION_PRESETS", "GuidedDiffusionConfig"]

_CIFAR10 = {
    "schedule": "cosine-4000",
    "image_size": 32,
    "num_channels": 128,
    "num_res_blocks": 3,
    "attention_resolutions": (16, 8),
    "num_heads": 4,
    "learn_sigma": True,
}
_ADM_256 = {
    "schedule": "linear-1000",
    "image_size": 256,
    "num_channels": 256,
    "num_res_blocks": 2,
    "attention_resolutions": (32, 16, 8),
    "num_head_channels": 64,
    "learn_sigma": True,
    "resblock_updown": True,
}

GUIDED_DIFFUSION_PRESETS: dict[str, dict[str, Any]] = {
    "cifar10_uncond_50M_500K": _CIFAR10,
    "cifar10_uncond_vlb_50M_500K": _CIFAR10,
    "imagenet64_uncond_100M_1500K": {**_CIFAR10, "image_size": 64},
    "256x256_diffusion": {**_ADM_256, "class_cond": True},
    "256x256_diffusion_uncond": _ADM_256,
    "lsun_bedroom": _ADM_256,
}
"""Flags of public checkpoints by the names of their files."""

# What the programs take for an empty channel_mult.
_MULTIPLIERS: dict[int, tuple[float, ...]] = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}

_Factor = Annotated[float, Field(gt=0)]
_Size = Annotated[int, Field(ge=1)]
_Heads = Annotated[int, Field(ge=-1)]


@DENOISERS.register("guided-diffusion")
class GuidedDiffusionConfig(WeightsFileConfig):
    """The U-Net of improved-diffusion and guided-diffusion.

    Arguments:
        format: ``"guided-diffusion"``.
        preset: Flags of a public checkpoint by its name; fields that are given as well go first.
        schedule: Noise schedule of training: ``--noise_schedule`` and ``--diffusion_steps``.
        prediction: What the network predicts: ``eps``, or ``x0`` if trained with ``--predict_xstart True``.
        weights: The checkpoint, a plain state dict.
        sha256: sha256 of the file, at least its first 8 hex digits; filled in from the file.
        image_size: Height and width of images.
        channels: Channels of images.
        num_channels: Width that ``channel_mult`` multiplies.
        num_res_blocks: Residual blocks per level.
        channel_mult: Width of each level; by default what the programs take for this ``image_size``.
        attention_resolutions: Sizes of images at which attention is used; a list, or "16,8" as on the command line.
        num_heads: Attention heads.
        num_head_channels: Channels per head, instead of ``num_heads``; -1 for none.
        num_heads_upsample: Heads on the way up; -1 for ``num_heads``.
        use_scale_shift_norm: See :class:`~defense.denoisers.guided_unet.GuidedUNet`.
        resblock_updown: See there.
        use_new_attention_order: See there.
        learn_sigma: The network has a variance output.
        class_cond: The network is told the class. Such a network cannot be asked without one, so that no purifier
            takes it: it serves classifiers made of denoisers.
        num_classes: Number of its classes, 1000 in the programs.
        rescale_timesteps: Noise labels count to 1000 whatever the number of levels.
    """

    # Ids from before there were class-conditional networks are still the same.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"num_classes": (1000,)}

    format: Literal["guided-diffusion"] = "guided-diffusion"
    preset: str | None = Field(default=None, exclude=True)
    prediction: Prediction = "eps"
    image_size: _Size
    channels: _Size = 3
    num_channels: _Size = 128
    num_res_blocks: _Size = 2
    channel_mult: Annotated[tuple[_Factor, ...], BeforeValidator(as_tuple)] = ()
    attention_resolutions: Annotated[tuple[_Size, ...], BeforeValidator(as_tuple)] = (16, 8)
    num_heads: _Size = 4
    num_head_channels: _Heads = -1
    num_heads_upsample: _Heads = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    class_cond: bool = False
    num_classes: _Size = 1000
    rescale_timesteps: bool = True

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, data: Any) -> Any:
        data = with_preset(data, GUIDED_DIFFUSION_PRESETS)
        if isinstance(data, dict) and data.get("channel_mult") in (None, "", [], ()):
            size = data.get("image_size")
            if size not in _MULTIPLIERS:
                return data  # which _consistent refuses, if the size itself is valid
            return data | {"channel_mult": _MULTIPLIERS[size]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> GuidedDiffusionConfig:
        if not self.channel_mult:
            raise InvalidInput(
                f"channel_mult has no default for image_size {self.image_size}, only for "
                f"{', '.join(map(str, _MULTIPLIERS))}: give the width of each level, for example [1, 2, 2]."
            )
        if self.image_size % 2 ** (len(self.channel_mult) - 1):
            raise InvalidInput(
                f"image_size = {self.image_size} cannot be halved {len(self.channel_mult) - 1} times, once per level "
                "of `channel_mult` after the first."
            )
        widths = [int(factor * self.num_channels) for factor in self.channel_mult]
        if any(width % 32 for width in widths):
            raise InvalidInput(f"num_channels times channel_mult gives levels of {widths}; each is a multiple of 32.")
        heads = {self.num_heads, self.num_heads_upsample} - {-1}
        parts = heads if self.num_head_channels == -1 else {self.num_head_channels}
        if 0 in parts or any(width % part for width in widths for part in parts):
            raise InvalidInput(
                f"{'num_heads' if self.num_head_channels == -1 else 'num_head_channels'} does not divide the widths "
                f"of the levels, {widths}."
            )
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """See :class:`~defense.denoisers.base.DenoiserConfig`."""
        return self.channels, self.image_size, self.image_size

    @property
    def learned_variance(self) -> bool:
        """See :class:`~defense.denoisers.base.DenoiserConfig`."""
        return self.learn_sigma

    @property
    def classes(self) -> int | None:
        """See :class:`~defense.denoisers.base.DenoiserConfig`."""
        return self.num_classes if self.class_cond else None

    @property
    def unconditional(self) -> bool:
        """See :class:`~defense.denoisers.base.DenoiserConfig`."""
        return not self.class_cond

    def network(self) -> GuidedUNet:
        """See :class:`~defense.denoisers.network.WeightsFileConfig`."""
        return GuidedUNet(
            self.image_size,
            self.num_channels,
            self.num_res_blocks,
            self.channel_mult,
            self.attention_resolutions,
            num_heads=self.num_heads,
            num_head_channels=self.num_head_channels,
            num_heads_upsample=self.num_heads_upsample,
            use_scale_shift_norm=self.use_scale_shift_norm,
            resblock_updown=self.resblock_updown,
            use_new_attention_order=self.use_new_attention_order,
            channels=self.channels,
            learn_sigma=self.learn_sigma,
            classes=self.num_classes if self.class_cond else 0,
        )

    def state(self, path: Path) -> Mapping[str, Tensor]:
        """See :class:`~defense.denoisers.network.WeightsFileConfig`."""
        state = super().state(path)
        if "label_emb.weight" in state and not self.class_cond:
            raise InvalidInput(
                f"weights {str(path)!r} are of a class-conditional network ({len(state['label_emb.weight'])} "
                "classes), and a purifier does not know the class. Take an unconditional checkpoint; for a "
                "classifier made of the denoiser write `class_cond: true`."
            )
        return state

    def denoiser(self, net: nn.Module) -> NetworkDenoiser:
        """See :class:`~defense.denoisers.network.WeightsFileConfig`."""
        scale = 1000 / get_schedule(self.schedule).steps if self.rescale_timesteps else 1
        return NetworkDenoiser(
            net,
            self.schedule,
            self.image_shape,
            prediction=self.prediction,
            scale=scale,
            learned_variance=self.learn_sigma,
            classes=self.num_classes if self.class_cond else None,
        )
