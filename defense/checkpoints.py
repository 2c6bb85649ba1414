"""Files of weights: hashing, safe loading, and messages when a file is not the one that was meant."""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from defense.errors import InvalidInput
from defense.reading import reading
from defense.weight_files import read_sets
from defense.weight_matching import load_tensors, match

__all__ = ["SHA256", "assert_sha256", "load_state_dict", "load_weights", "sha256_file", "sha256_files"]

SHA256: Any = Field(
    default=None,
    pattern=r"^[0-9a-fA-F]{8,64}$",
    description="It takes the first 8 to 64 hex digits, in quotes if all are decimal.",
)
"""Field of a config for the sha256 of a file, at least its first 8 hex digits."""


@lru_cache(maxsize=256)
def _sha256(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_file(path: str | Path, *, what: str = "file") -> str:
    """sha256 of a file, hex; remembered while its size and time of change stay the same.

    Raises:
        InvalidInput: There is no such file.
    """
    with reading(path, what):
        stat = os.stat(path)
        return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


def sha256_files(paths: Sequence[str | Path], *, what: str = "file") -> str:
    """One hash for the parts of a file: its sha256, or of several parts what ``sha256sum PARTS | sha256sum`` prints.

    Arguments:
        paths: The parts in order, in one folder.
        what: What they are, for messages.

    Raises:
        InvalidInput: A part is missing.
    """
    hashes = [sha256_file(path, what=what) for path in paths]
    if len(hashes) == 1:
        return hashes[0]
    listing = "".join(f"{value}  {Path(path).name}\n" for value, path in zip(hashes, paths, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()


def assert_sha256(path: str | Path | Sequence[Path], expected: str | None, *, what: str = "file") -> str:
    """Return the sha256 of a file, after comparing it with the expected one if any.

    Arguments:
        path: The file, or its parts, see :func:`sha256_files`.
        expected: Leading hex digits of the sha256, at least 8, or None.
        what: What the file is, for the message.

    Raises:
        InvalidInput: The file is missing or its hash differs.
    """
    paths: Sequence[str | Path] = [path] if isinstance(path, str | Path) else path
    actual = sha256_files(paths, what=what)
    if expected is not None and not actual.startswith(expected.lower()):
        name = repr(str(paths[0])) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        raise InvalidInput(
            f"{what} {name} has sha256 {actual}, not {expected}: it is not the intended file, or it is damaged. "
            "Fetch it again, or correct `sha256`."
        )
    return actual


def load_state_dict(path: str | Path, *, what: str = "weights") -> dict[str, Tensor]:
    """Read the one state dict in a file, without running any code from it.

    Takes ``.safetensors`` and torch files (``weights_only=True``), see :mod:`defense.weight_files`. A state dict that
    lies under ``state_dict`` or another name, and key prefixes ``module.`` left by DataParallel, are unwrapped.

    Raises:
        InvalidInput: The file cannot be read, or holds several.
    """
    sets = read_sets(path, what=what)
    # A loss or a counter beside the weights is a mapping of one tensor.
    large = {place: tensors for place, tensors in sets.items() if place or len(sets) == 1 or len(tensors) > 4}
    if len(large) > 1:
        raise InvalidInput(
            f"{what} {str(path)!r} hold {len(large)} sets of weights ({', '.join(map(repr, large))}), and it is "
            "unclear which of them to load. Save only that one."
        )
    (tensors,) = large.values()
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def load_weights(module: nn.Module, path: str | Path, rename: Callable[[str], str] = lambda key: key) -> nn.Module:
    """Load a checkpoint into a module, every tensor or none, and set it to evaluation without gradients.

    The module's tensors are found by their names, whatever the file has around them: see
    :mod:`defense.weight_matching`.

    Arguments:
        module: The network.
        path: The checkpoint; a :class:`~defense.weight_matching.WeightsFile` says which weights in it.
        rename: Gives the module's name for a name in the checkpoint, for formats that changed.

    Raises:
        InvalidInput: The checkpoint cannot be read or is not of this architecture, with the names that do not fit.
    """
    state = match(module.state_dict(), read_sets(path), path, type(module).__name__, rename=rename)
    return load_tensors(module, state, path)
