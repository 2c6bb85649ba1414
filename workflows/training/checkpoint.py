"""A training's checkpoint: everything that the next step depends on, in one file that is whole or not there.

The file holds tensors, numbers and strings only and is read with ``weights_only=True``. It is written under a
temporary name, flushed to the disk and renamed, so that a training may be killed at any time: what lies under the
name is then the last checkpoint, complete.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from defense.errors import InvalidInput
from defense.reading import reading

__all__ = ["CHECKPOINT", "delete", "describe", "read", "write"]

CHECKPOINT = "checkpoint.pt"
"""Its name in the out folder; deleted once the card is written."""
_FORMAT = 1


def write(out: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a checkpoint.

    Arguments:
        out: The training's folder.
        identity: What must be the same for the training to continue, plain JSON values.
        state: Tensors, numbers, strings, and lists and mappings of them.
    """
    temporary = out / f"{CHECKPOINT}.tmp"
    with temporary.open("wb") as file:
        torch.save({"format": _FORMAT, "identity": json.dumps(identity), "state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(out / CHECKPOINT)


def read(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Read the state of this training's checkpoint, or None if there is none.

    Raises:
        InvalidInput: The checkpoint is another training's, with what differs, or cannot be read.
    """
    path = out / CHECKPOINT
    if not path.exists():
        return None
    with reading(path, "out: the checkpoint", hint="Remove it, or give --force, to start again."):
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']}, this version reads {_FORMAT}")
        stored, state = json.loads(content["identity"]), content["state"]
        if not isinstance(stored, dict) or not isinstance(state, dict):
            raise TypeError("identity and state are mappings")
    if stored != identity:
        raise InvalidInput(
            f"out: {str(path)!r} is the checkpoint of another training: {describe(stored, identity)}. To continue "
            "that one run its own config; name another folder for this one; or give --force to start again here."
        )
    checkpoint: dict[str, Any] = state
    return checkpoint


def delete(out: Path) -> None:
    """Remove the checkpoint, if any."""
    for name in (CHECKPOINT, f"{CHECKPOINT}.tmp"):
        with contextlib.suppress(FileNotFoundError):
            (out / name).unlink()


def describe(stored: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> str:
    """Describe the differences of two identities: ``lr is 0.1 there, 0.2 here; ...``."""
    parts = []
    for key in sorted(stored.keys() | ours.keys()):
        old, new = stored.get(key), ours.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = describe(old, new, f"{prefix}{key}.")
            parts += [inner] if inner else []
        elif old != new:
            parts.append(f"{prefix}{key} is {old!r} there, {new!r} here")
    return "; ".join(parts)
