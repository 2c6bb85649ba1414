"""Read files of users: every error becomes an InvalidInput that names the file.

Parsers of other libraries raise what they like on a damaged file (``struct.error``, ``KeyError``, ``RuntimeError``,
``UnicodeDecodeError``, ...), and no list of them is complete.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from defense.errors import InvalidInput, PuregridError
from defense.files import existing

__all__ = ["LARGEST_JSON", "parse_json", "read_object", "reading"]

_LONGEST_CAUSE = 300


@contextmanager
def reading(path: str | Path, what: str, *, hint: str = "Fetch it again, or give another file.") -> Iterator[None]:
    """Turn every error inside into an InvalidInput with the file and the cause; puregrid's own pass.

    Raises:
        InvalidInput: Something inside raised; or the file is a device, a pipe or a socket, which may have no end.
    """
    with suppress(OSError, ValueError):  # what is not there is said by whoever opens it
        if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
            existing(path, what, kind="either")
    try:
        yield
    except (PuregridError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        if error.filename is None:  # not the file's absence, but a seek or a read that its content asked for
            raise InvalidInput(f"{what} {str(path)!r} cannot be read ({error}). {hint}") from error
        raise InvalidInput(
            f"{what} {str(path)!r} cannot be read ({error.strerror or error}). Give the path of an existing file; a "
            "relative path starts at the folder of the sweep file."
        ) from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".strip().partition("\n")[0][:_LONGEST_CAUSE]
        raise InvalidInput(f"{what} {str(path)!r} cannot be read ({cause}). {hint}") from error


LARGEST_JSON = 32_000_000
"""Bytes of a JSON file; a baseline of a thousand cells on 10,000 images has about 10 MB."""


def parse_json(text: str, *, infinity: bool = False) -> Any:
    """Return the values of a JSON text, strictly.

    Arguments:
        text: The text.
        infinity: Whether ``Infinity`` and ``-Infinity`` are numbers, as Python writes them.

    Raises:
        ValueError: It is no JSON, too large or nested too deeply, has a key twice in one mapping (Python would
            keep the last one), or a number that is infinite or none.
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"it is larger than {LARGEST_JSON // 1_000_000} MB")
    try:
        read = _infinity if infinity else _constant
        return json.loads(text, object_pairs_hook=_mapping, parse_constant=read, parse_float=_finite)
    except RecursionError:
        raise ValueError("its lists and mappings are nested too deeply") from None


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!r} is given twice in one mapping")
    return result


def _constant(word: str) -> float:
    raise ValueError(f"{word} is no number in JSON")


def _infinity(word: str) -> float:
    return _constant(word) if word == "NaN" else float(word)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:40]} is beyond all that can be stored")
    return number


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises:
        InvalidInput: It is missing, no JSON (:func:`parse_json`), or no mapping.
    """
    with reading(path, what, hint="It must be JSON. Fetch it again, or correct it."), path.open("rb") as file:
        # diffusers writes `"lambda_min_clipped": -Infinity`.
        content = parse_json(file.read(LARGEST_JSON + 1).decode(), infinity=True)
    if not isinstance(content, dict):
        raise InvalidInput(f"{what} {str(path)!r} holds {type(content).__name__}, and must hold one JSON mapping.")
    return content
