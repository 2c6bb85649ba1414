"""Files of weights: hashing, safe loading, and messages when a file is not the one that was meant."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from defense.errors import InvalidInput

__all__ = ["SHA256", "assert_sha256", "load_state_dict", "load_weights", "sha256_file"]

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
    try:
        stat = os.stat(path)
    except OSError as error:
        raise InvalidInput(
            f"{what} {str(path)!r} cannot be read ({error.strerror}). Give the path of an existing file; a relative "
            "path starts at the folder of the sweep file."
        ) from error
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


def assert_sha256(path: str | Path, expected: str | None, *, what: str = "file") -> str:
    """The sha256 of a file, after comparing it with the expected one if any.

    Arguments:
        path: The file.
        expected: Leading hex digits of the sha256, at least 8, or None.
        what: What the file is, for the message.

    Raises:
        InvalidInput: The file is missing or its hash differs.
    """
    actual = sha256_file(path, what=what)
    if expected is not None and not actual.startswith(expected.lower()):
        raise InvalidInput(
            f"{what} {str(path)!r} has sha256 {actual}, not {expected}: it is another file than the one that was "
            "meant, or a damaged one. Fetch it again, or correct `sha256`."
        )
    return actual


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict without running any code from the file.

    Takes ``.safetensors`` and torch files (``weights_only=True``). A state dict that lies under
    ``state_dict``, and key prefixes ``module.`` left by DataParallel, are unwrapped.

    Raises:
        InvalidInput: The file holds something else.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise InvalidInput(
            f"weights {str(path)!r} cannot be read as plain tensors ({error}): the file is damaged, or it holds "
            "code, which is never run. Fetch it again, or save its state dict alone."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InvalidInput(f"weights {str(path)!r} hold no state dict (a mapping of names to tensors).")
    return {key.removeprefix("module."): value for key, value in content.items()}


def load_weights(module: nn.Module, path: str | Path, rename: Callable[[str], str] = lambda key: key) -> nn.Module:
    """Load a checkpoint into a module, every tensor or none, and set it to evaluation without gradients.

    Arguments:
        module: The network.
        path: The checkpoint.
        rename: Gives the module's name for a name in the checkpoint, for formats that changed.

    Raises:
        InvalidInput: The checkpoint is not of this architecture, with the names that do not fit.
    """
    state = {rename(key): value for key, value in load_state_dict(path).items()}
    own = module.state_dict()
    # Buffers that older torch did not save say nothing about the architecture.
    absent = sorted(key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked"))
    unknown = sorted(state.keys() - own.keys())
    wrong = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if absent or unknown or wrong:

        def some(title: str, keys: list[str]) -> str:
            return f" {title}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}." if keys else ""

        raise InvalidInput(
            f"weights {str(path)!r} are not of the architecture {type(module).__name__}:"
            + some("missing", absent)
            + some("unknown", unknown)
            + some("of another shape", wrong)
            + " Name the architecture that the file was made for."
        )
    module.load_state_dict(state, strict=False)
    return module.eval().requires_grad_(False)
