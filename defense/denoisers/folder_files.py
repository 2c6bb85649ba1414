"""The files of a diffusers folder: where config, scheduler and weights lie, in a pipeline or not, in shards or not.

``DDPMPipeline.save_pretrained`` writes ``model_index.json``, ``unet/config.json``, the weights beside it, and
``scheduler/scheduler_config.json``; ``UNet2DModel.save_pretrained`` the folder ``unet`` alone. Early repositories
have all of it in one folder. Weights are ``diffusion_pytorch_model[.VARIANT].safetensors`` or ``.bin``, or an index
and shards.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from defense.errors import InvalidInput
from defense.reading import read_object
from defense.weight_files import Sets, read_sets

__all__ = ["DENOISER_FILES", "WeightFiles", "find_network", "find_schedulers", "find_weights"]

_STEM = "diffusion_pytorch_model"
DENOISER_FILES = ["*.json", f"*{_STEM}*.safetensors"]
"""What is fetched of a hub repository."""

_OF_A_PIPELINE = {"unet", "scheduler"}


def find_network(folder: Path) -> Path:
    """Return the folder with ``config.json``: the given one, or ``unet`` in a pipeline.

    Raises:
        InvalidInput: There is none, or the pipeline has parts beside network and scheduler.
    """
    if folder.is_file():
        raise InvalidInput(
            f"denoiser folder {str(folder)!r} is a file; give the folder that it lies in, with config.json."
        )
    network = folder if (folder / "config.json").is_file() else folder / "unet"
    if not (network / "config.json").is_file():
        raise InvalidInput(
            f"denoiser folder {str(folder)!r} holds no config.json, nor does its folder unet; a diffusers folder has "
            f"config.json and {_STEM}.safetensors."
        )
    for index in {network / "model_index.json", network.parent / "model_index.json"}:
        if not index.is_file() or (index.parent != network and network.name != "unet"):
            continue
        parts = read_object(index, "denoiser pipeline")
        extra = [
            key
            for key, part in parts.items()
            if key[0] != "_" and key not in _OF_A_PIPELINE and isinstance(part, list) and any(part)
        ]
        if extra:
            raise InvalidInput(
                f"denoiser pipeline {str(index)!r} is a {parts.get('_class_name')} with {', '.join(extra)} beside "
                "network and scheduler: its network does not see the pixels of the image alone. Give a pipeline of "
                "an unconditional network on pixels (DDPMPipeline, DDIMPipeline)."
            )
    return network


def find_schedulers(network: Path) -> list[Path]:
    """Return the ``scheduler_config.json`` that belong to a network, in its folder or in the pipeline's."""
    places = (network, network / "scheduler", network.parent / "scheduler")
    return [file for place in places if (file := place / "scheduler_config.json").is_file()]


@dataclass(frozen=True)
class WeightFiles:
    """Weights of a network: one file, or shards with their index.

    Arguments:
        files: The file, or the shards by name.
        index: The index of the shards.
    """

    files: tuple[Path, ...]
    index: Path | None = None

    def sets(self) -> Sets:
        """What is in the files.

        Raises:
            InvalidInput: A file cannot be read, or the shards are not what the index says.
        """
        if self.index is None:
            return read_sets(self.files[0], what="denoiser weights")
        tensors: dict[str, Tensor] = {}
        weight_map = _weight_map(self.index)
        for file in self.files:
            for place, part in read_sets(file, what="denoiser weights").items():
                for name, tensor in part.items():
                    if place or name in tensors or weight_map.get(name) != file.name:
                        raise InvalidInput(
                            f"denoiser weights {str(file)!r} hold {name}, which the index {self.index.name} has in "
                            f"{weight_map.get(name)!r}. Fetch index and shards again."
                        )
                    tensors[name] = tensor
        if absent := sorted(weight_map.keys() - tensors.keys()):
            raise InvalidInput(
                f"denoiser weights {str(self.index)!r} name {absent[0]} in {weight_map[absent[0]]!r}, which does not "
                f"hold it ({len(absent)} such). Fetch index and shards again."
            )
        return {"": tensors}


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_object(index, "denoiser weights").get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) and name == Path(name).name and name for name in weight_map.values())
    ):
        raise InvalidInput(
            f"denoiser weights {str(index)!r} have no `weight_map` from tensors to files beside it. Fetch it again."
        )
    return weight_map


def _candidates(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of weights and indices with their variant, those that are read first in front."""
    for kind in ("safetensors", "bin"):
        yield from (
            ("", file) for name in ("", ".index.json") if (file := folder / f"{_STEM}.{kind}{name}").is_file()
        )
    for kind in ("safetensors", "bin"):
        for file in sorted(folder.glob(f"{_STEM}.{kind}.index.*.json")):
            yield file.name.removeprefix(f"{_STEM}.{kind}.index.").removesuffix(".json"), file
        for file in sorted(folder.glob(f"{_STEM}.*.{kind}")):
            variant = file.name.removeprefix(f"{_STEM}.").removesuffix(f".{kind}")
            if "-of-" not in variant:
                yield variant, file


def find_weights(folder: Path, variant: str | None = None) -> WeightFiles:
    """Return the weights in the folder of a network.

    Arguments:
        folder: The folder.
        variant: Which of several (``fp16``); by default those without a variant, or the only one.

    Raises:
        InvalidInput: There are none, or it is not plain which are meant.
    """
    candidates = list(_candidates(folder))
    variants = list(dict.fromkeys(name for name, _ in candidates))
    if not candidates:
        raise InvalidInput(
            f"denoiser folder {str(folder)!r} holds no weights: {_STEM}.safetensors, {_STEM}.bin, one of their "
            "variants (.fp16), or an index with shards. Fetch the folder again."
        )
    if variant is not None and variant not in variants:
        raise InvalidInput(
            f"denoiser folder {str(folder)!r} has no weights of the variant {variant!r}, but "
            f"{', '.join(name or 'those without a variant' for name in variants)}."
        )
    if variant is None and "" not in variants and len(variants) > 1:
        raise InvalidInput(
            f"denoiser folder {str(folder)!r} has weights of several variants ({', '.join(variants)}): write which "
            "with `variant`."
        )
    chosen = variants[0] if variant is None else variant
    file = next(file for name, file in candidates if name == chosen)
    if file.suffix != ".json":
        return WeightFiles((file,))
    return WeightFiles(tuple(folder / name for name in sorted(set(_weight_map(file).values()))), file)
