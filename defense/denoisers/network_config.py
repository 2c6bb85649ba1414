"""The ``config.json`` of a diffusers ``UNet2DModel``: every field checked, used or refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defense.errors import InvalidInput, nearest
from defense.reading import read_object

__all__ = ["NULL_CLASS", "NetworkConfig", "read_network_config"]

_LARGEST = 65_536


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _word(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1000


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _none_or(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or valid(value)


def _list_of(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and 1 <= len(value) <= 32 and all(map(valid, value))


def _size(value: Any) -> bool:
    return _count(value) or (isinstance(value, list) and len(value) == 2 and all(map(_count, value)))


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sample_size": (_size, "a whole number, or a list of height and width"),
    "in_channels": (_count, "a whole number"),
    "out_channels": (_count, "a whole number"),
    "center_input_sample": (_flag, "true or false"),
    "time_embedding_type": (lambda value: value in ("positional", "learned"), "positional or learned"),
    "time_embedding_dim": (_none_or(_count), "a whole number or null"),
    "freq_shift": (_whole, "a whole number"),
    "flip_sin_to_cos": (_flag, "true or false"),
    "down_block_types": (_list_of(_word), "a list of names"),
    "mid_block_type": (_none_or(_word), "a name or null"),
    "up_block_types": (_list_of(_word), "a list of names"),
    "block_out_channels": (_list_of(_count), "a list of whole numbers"),
    "layers_per_block": (lambda value: _count(value) and value <= 64, "a whole number up to 64"),
    "mid_block_scale_factor": (_real, "a number above 0"),
    "downsample_padding": (_whole, "a whole number"),
    "downsample_type": (_word, "a name"),
    "upsample_type": (_word, "a name"),
    "dropout": (_share, "a number from 0 to below 1"),
    "act_fn": (_word, "a name"),
    "attention_head_dim": (_none_or(_count), "a whole number or null"),
    "norm_num_groups": (_count, "a whole number"),
    "attn_norm_num_groups": (_none_or(_count), "a whole number or null"),
    "norm_eps": (_real, "a number above 0"),
    "resnet_time_scale_shift": (_word, "a name"),
    "add_attention": (_flag, "true or false"),
    "class_embed_type": (lambda value: value is None, "null: classes are told by number (`num_class_embeds`)"),
    "num_class_embeds": (_none_or(_count), "a whole number or null"),
    "num_train_timesteps": (_none_or(_count), "a whole number or null"),
}
"""The arguments of ``UNet2DModel``, each with what it takes here."""

NULL_CLASS = "_null_class"
"""Which class embedding stands for none; written by ``puregrid train``, ignored by diffusers."""

AVERAGING = frozenset(
    {
        *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"),
        *("model_cls", "model_config"),
    }
)
"""What diffusers' ``EMAModel`` writes into the config of the average that it saves; of no concern to the network."""

_WHY = {
    "time_embedding_type": "; fourier embeddings are of networks trained on variance-exploding noise, which are told "
    "their sigma"
}


@dataclass(frozen=True)
class NetworkConfig:
    """A checked ``config.json``.

    Arguments:
        file: The file.
        fields: Arguments of ``UNet2DModel``.
        null_class: The class embedding that stands for none, the last one; None without such.
    """

    file: Path
    fields: Mapping[str, Any]
    null_class: int | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        size = self.fields["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return self.fields.get("in_channels", 3), height, width

    @property
    def out_channels(self) -> int:
        """Channels of its output."""
        channels: int = self.fields.get("out_channels", 3)
        return channels

    @property
    def learned_variance(self) -> bool:
        """Whether the second half of its output is a variance."""
        return self.out_channels == 2 * self.image_shape[0]

    @property
    def classes(self) -> int | None:
        """Number of classes that it is told, without the one that stands for none; None if it takes none."""
        embeds: int | None = self.fields.get("num_class_embeds")
        return embeds if embeds is None or self.null_class is None else embeds - 1

    @property
    def longest(self) -> int | None:
        """Number of time steps that it takes, None for any."""
        if self.fields.get("time_embedding_type") != "learned":
            return None
        steps: int | None = self.fields.get("num_train_timesteps")
        return steps


def read_network_config(file: Path) -> NetworkConfig:
    """Read a ``config.json``.

    Raises:
        InvalidInput: It cannot be read, is of another network, or has a field that is not understood.
    """
    content = read_object(file, "denoiser config")

    def refused(key: str, why: str, advice: str) -> InvalidInput:
        value = repr(content[key]) if key in content else "nothing"
        return InvalidInput(f"denoiser config {str(file)!r} has {value:.200} for `{key}`: {why}. {advice}")

    if content.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise refused(
            "_class_name",
            "what is read here is UNet2DModel, an unconditional network on pixels",
            "Give the folder of such a network.",
        )
    fields = {key: value for key, value in content.items() if not key.startswith("_") and key not in AVERAGING}
    for key, value in fields.items():
        if key not in FIELDS:
            raise refused(
                key, f"UNet2DModel has no such argument; {nearest(key, FIELDS)}".rstrip("."), "Correct the file."
            )
        valid, takes = FIELDS[key]
        if not valid(value):
            raise refused(key, f"it takes {takes}{_WHY.get(key, '')}", "Correct the file, or give another network.")
    if "sample_size" not in fields:
        raise refused("sample_size", "the size of its images is needed", "Write it into the file.")
    null, embeds = content.get(NULL_CLASS), fields.get("num_class_embeds")
    if null is not None and (embeds is None or null != embeds - 1 or isinstance(null, bool)):
        raise refused(
            NULL_CLASS,
            "the embedding that stands for no class is the last of `num_class_embeds`, counted from 0",
            "Correct the file, or leave it out.",
        )
    config = NetworkConfig(file, fields, null)
    channels = config.image_shape[0]
    if config.out_channels not in (channels, 2 * channels):
        raise refused(
            "out_channels",
            f"of {channels} input channels a denoiser predicts as many, or twice as many with a variance output",
            "Give another network.",
        )
    if fields.get("time_embedding_type") == "learned" and config.longest is None:
        raise refused("num_train_timesteps", "a learned time embedding has a number of steps", "Correct the file.")
    return config
