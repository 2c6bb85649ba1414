"""Read the named sets of tensors in a file of weights, without running any code from the file.

A ``.safetensors`` file is one set. A torch file is read with ``weights_only=True`` and a short list of further types
that hold data and nothing else; its sets are the mappings of names to tensors in it, wherever they lie
(``state_dict``, ``model``, ``ema``, ...).
"""

import argparse
import collections
import pathlib
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from defense.errors import InvalidInput
from defense.reading import reading

__all__ = ["NORMALISATION", "Sets", "plain_types", "read_content", "read_sets"]

Sets = dict[str, dict[str, Tensor]]
"""Tensors by name, by the place in the file: ``""`` for the file itself, ``"state_dict"``, ``"ema.module"``, ..."""

NORMALISATION = {
    **dict.fromkeys(("mean", "means", "_mean", "mu", "pixel_mean", "image_mean"), "mean"),
    **dict.fromkeys(("std", "stds", "_std", "sd", "sds", "sigma", "pixel_std", "image_std"), "std"),
}
"""Names under which wrappers of classifiers keep the mean and the standard deviation per channel."""

_DEEPEST = 4
_BLOCK = 1 << 20
_NEEDS_CODE = re.compile(r"GLOBAL `?([\w.]+)|but got <class '([\w.]+)'>|unrecognized function <\w+ '?([\w.]+)")


def plain_types() -> AbstractContextManager[None]:
    """Let torch read, beside tensors, types that training scripts leave in checkpoints and that only hold data."""
    return torch.serialization.safe_globals(_plain())


@cache
def _plain() -> list[Any]:
    array: Any = np.zeros(0).__reduce__()[0]
    paths = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    return [
        *(argparse.Namespace, np.ndarray, np.dtype),
        *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
        *(dict, list, tuple, set, frozenset, int, float, bool, str, range, slice),
        # Torch fills none but three kinds of mapping.
        _stand_in("collections.defaultdict", lambda *_: collections.OrderedDict()),
        # A path of the machine of training is data here, on whatever system it was.
        *(_stand_in(f"pathlib.{name}", pathlib.PurePosixPath) for name in paths),
        # The modules of numpy before 2 and since.
        *(_stand_in(f"numpy.{core}.multiarray.scalar", _scalar) for core in ("core", "_core")),
        *(_stand_in(f"numpy.{core}.multiarray._reconstruct", array) for core in ("core", "_core")),
    ]


def _stand_in(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that torch takes for the one of that full name."""

    def stand_in(*arguments: Any) -> Any:
        return call(*arguments)

    stand_in.__module__, _, stand_in.__name__ = name.rpartition(".")
    stand_in.__qualname__ = stand_in.__name__
    return stand_in


def _scalar(dtype: np.dtype[Any], data: bytes = b"") -> Any:
    if dtype.hasobject:
        raise UnpicklingError("Unsupported global: GLOBAL numpy.object_")
    return np.frombuffer(data, dtype=dtype)[0]


def read_sets(path: str | Path, *, what: str = "weights") -> Sets:
    """Return every set of tensors in a file.

    Arguments:
        path: A safetensors or torch file; the content decides, whatever the name.
        what: What the file is, for messages.

    Raises:
        InvalidInput: It is missing, damaged, something else, holds what needs code, or no tensors.
    """
    sets = dict(_sets(read_content(path, what=what)))
    if not sets:
        raise InvalidInput(f"{what} {str(path)!r} hold no state dict (a mapping of names to tensors).")
    return sets


def read_content(path: str | Path, *, what: str = "weights") -> Any:
    """Return the content of a file of weights, as it was saved.

    Raises:
        InvalidInput: See there.
    """
    path = Path(path)
    with reading(path, what):
        with path.open("rb") as file:
            head = file.read(64)
        _refuse_other_files(path, head, what)
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            return load_file(path)
        return _torch_content(path, what)


def _refuse_other_files(path: Path, head: bytes, what: str) -> None:
    """Refuse files that often have the name of a checkpoint and are none."""
    start = head.lstrip().lower()
    if not head:
        kind, advice = "are an empty file", "Fetch it again."
    elif head.startswith(b"version https://git-lfs"):
        kind, advice = "are a pointer of Git LFS, not the file itself", "Run `git lfs pull` in its repository."
    elif start.startswith((b"<!doctype", b"<html", b"<?xml")):
        kind, advice = "are a web page, as a failed download leaves", "Fetch the file that the page links."
    else:
        return
    raise InvalidInput(f"{what} {str(path)!r} {kind}. {advice}")


def _check_sums(path: Path, what: str) -> None:
    """Compare every record of a torch file with its CRC-32, which torch does not: a flipped bit is another weight."""
    if not zipfile.is_zipfile(path):
        return  # as before torch 1.6: a pickle without sums
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.CRC == 0:
                continue  # empty, or saved with torch.serialization.set_crc32_options(False)
            try:
                with archive.open(record) as file:
                    while file.read(_BLOCK):
                        pass
            except zipfile.BadZipFile as error:
                raise InvalidInput(
                    f"{what} {str(path)!r} are damaged: {record.filename} is not what its CRC-32 says. Fetch it "
                    "again."
                ) from error


def _torch_content(path: Path, what: str) -> Any:
    _check_sums(path, what)
    try:
        with plain_types(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'torch.load' received a zip file")  # which is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        text = str(error)
        if "TorchScript" in text:
            raise InvalidInput(
                f"{what} {str(path)!r} are a TorchScript program, which holds code, and code from a file is never "
                'run. Its owner can save the weights alone:\n  python -c "import torch; torch.save(torch.jit.load('
                f"'{path.name}', map_location='cpu').state_dict(), '{path.stem}-weights.pth')\""
            ) from error
        # Torch's own words end with advice to switch the safety off: only the name of the type is taken from them.
        if isinstance(error, UnpicklingError) and (needed := _NEEDS_CODE.search(text)):
            name = next(part for part in needed.groups() if part)
            raise InvalidInput(
                f"{what} {str(path)!r} hold {name}, which only code can rebuild, and code from a file is never run. "
                f"Its owner can save the weights alone, where the file is trusted:\n  {resave_command(path)}"
            ) from error
        cause = "" if "weights_only" in text else f" ({text.partition(chr(10))[0][:200]})"
        raise InvalidInput(
            f"{what} {str(path)!r} cannot be read as plain tensors{cause}: the file is damaged, or of another kind. "
            "Fetch it again, or have its state dict saved alone with torch.save or safetensors."
        ) from error


def resave_command(path: Path) -> str:
    """Return a command with which the owner of a checkpoint saves its tensors without the objects beside them."""
    return (
        f"python -c \"import torch; c = torch.load('{path.name}', map_location='cpu', weights_only=False); "
        "c = c if isinstance(c, dict) else {'net': c}; "
        "c = {k: v.state_dict() if isinstance(v, torch.nn.Module) else v for k, v in c.items()}; "
        "torch.save({k: v for k, v in c.items() if isinstance(v, torch.Tensor) or isinstance(v, dict) and v and "
        f"all(isinstance(t, torch.Tensor) for t in v.values())}}, '{path.stem}-weights.pth')\""
    )


def _sets(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the mappings of names to tensors in a value, each with its place."""
    if isinstance(content, argparse.Namespace):
        content = vars(content)
    if not isinstance(content, Mapping) or len(place) > _DEEPEST:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value if isinstance(value, Tensor) else _numbers(key, value) for key, value in named.items()}
    state = {key: value for key, value in tensors.items() if value is not None}
    if state:
        yield ".".join(place), state
    for key, value in named.items():
        yield from _sets(value, (*place, key))


def _numbers(key: str, value: Any) -> Tensor | None:
    """Return a list of numbers that is a normalisation by its name, as a tensor."""
    if key.rpartition(".")[2] not in NORMALISATION or not isinstance(value, list | tuple | np.ndarray):
        return None
    values = list(value)
    if not values or not all(isinstance(v, int | float | np.number) for v in values):
        return None
    return torch.tensor([float(v) for v in values], dtype=torch.float64)
