"""Pictures in folders: which files are used, which are named as left out, and how one is decoded.

Names that begin with a dot are hidden and ignored. Every other file is used, refused by name, or reported: nothing is
left out without a word.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from defense.errors import InvalidInput
from defense.packages import installed

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ACCEPTED", "Listing", "class_folders", "decoded", "pictures"]

ACCEPTED = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
"""Endings of the files that are used, in any case."""

_OTHER_PICTURES = frozenset(
    {
        ".apng",
        ".avif",
        ".dng",
        ".exr",
        ".gif",
        ".hdr",
        ".heic",
        ".heif",
        ".ico",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jxl",
        ".mpo",
        ".npy",
        ".npz",
        ".pbm",
        ".pgm",
        ".ppm",
        ".psd",
        ".raw",
        ".svg",
        ".tga",
        ".tif",
        ".tiff",
    }
)
"""Endings of pictures that are not read: a class that holds some would be judged on a part of it."""

MOST_PIXELS = 50_000_000
"""Largest picture that is decoded: a larger one is a mistake, or an attack on the machine's memory."""


@dataclass(frozen=True)
class Listing:
    """The files of one class.

    Arguments:
        pictures: Those that are used, in alphabetical order of their paths.
        others: Those that are not pictures, and are left out.
    """

    pictures: tuple[Path, ...]
    others: tuple[Path, ...]


def class_folders(folder: Path) -> list[Path]:
    """Folders in a split, in alphabetical order, hidden ones left out; links to folders are followed."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())


def pictures(folder: Path) -> Listing:
    """Return all files below a class folder.

    Raises:
        InvalidInput: A link leads nowhere or round in a circle, or there is a picture of a kind that is not read.
    """
    accepted: list[Path] = []
    others: list[Path] = []
    for path in _files(folder, ()):
        suffix = path.suffix.lower()
        if suffix in ACCEPTED:
            accepted.append(path)
        elif suffix in _OTHER_PICTURES:
            raise InvalidInput(
                f"{str(path)!r} is a picture of a kind that is not read: {', '.join(ACCEPTED)} are. Convert it, or "
                "take it out of the folder."
            )
        else:
            others.append(path)
    return Listing(tuple(sorted(accepted)), tuple(sorted(others)))


def _files(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        raise InvalidInput(f"{str(folder)!r} is a link to a folder above it: its pictures would be read for ever.")
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InvalidInput(f"the folder {str(folder)!r} cannot be read ({error.strerror}).") from error
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, (*above, real))
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise InvalidInput(f"{str(path)!r} is a link to {os.readlink(path)!r}, which is not there.")
        else:
            raise InvalidInput(f"{str(path)!r} is no file (a device or pipe?): take it out of the folder.")


def decoded(path: str) -> Image:
    """Return a picture as 8-bit RGB.

    Grey pictures of 16 bits are scaled by 255/65535 and rounded. Transparency is dropped, as is the orientation that
    a camera notes.

    Raises:
        InvalidInput: It cannot be decoded, is cut off, moves, has more than :data:`MOST_PIXELS`, or has values
            without a known range.
    """
    with installed("a folder of pictures"):
        from PIL import Image as pillow

    try:
        with pillow.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise InvalidInput(
                    f"picture {path!r} has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}: make it "
                    "smaller, or take it out of the folder."
                )
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise InvalidInput(f"picture {path!r} moves ({frames} frames): keep one of them as a file.")
            return _eight_bits(image, path).convert("RGB")
    except InvalidInput:
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        ArithmeticError,
        LookupError,
        MemoryError,
        pillow.DecompressionBombError,
    ) as error:
        # What Pillow's decoders raise of broken files.
        raise InvalidInput(f"image {path!r} cannot be decoded ({error}): replace or remove it.") from error


def _eight_bits(image: Image, path: str) -> Image:
    """Wider pixels at 8 bits; Pillow itself cuts them off at 255."""
    with installed("a folder of pictures"):
        from PIL import Image as pillow

    if image.mode == "F" or image.mode.startswith("I"):
        values: Any = np.asarray(image)
        if image.mode == "F" or values.size == 0 or int(values.min()) < 0 or int(values.max()) > 65535:
            raise InvalidInput(
                f"picture {path!r} has pixels of mode {image.mode!r}, whose range is not known: convert it to 8 or "
                "16 bits."
            )
        return pillow.fromarray(np.round(values.astype(np.float64) * (255 / 65535)).astype(np.uint8))
    return image
