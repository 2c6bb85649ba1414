"""Folders of pictures, a folder a class."""

import errno
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from defense.errors import InvalidInput, inside
from defense.files import path_of
from defense.packages import installed
from defense.torchvision_cpu import allow_torchvision_import
from tasks.datasets.base import DATA_VARIABLE, DATASETS, DatasetConfig, ImageSet, data_root
from tasks.datasets.class_lists import LISTS, listed
from tasks.picture_files import ACCEPTED, class_folders, decoded, pictures

__all__ = ["FolderConfig"]


_SPLITS = {"test": ("test", "val"), "train": ("train",)}


@DATASETS.register("folder")
class FolderConfig(DatasetConfig):
    """Images in folders, one for each class: ``ROOT/SPLIT/CLASS/.../IMAGE``; the test split may be called ``val``.

    Images are decoded to 8-bit RGB (grey ones of 16 bits scaled to 8), resized so that their shorter side is
    ``resize``, cropped at the centre, and divided by 255; normalisation is the classifier's. Ids count through the
    classes in the order of the list and through the file names of a class in alphabetical order. The digest
    is of the pixels that come out: another decoder of JPEG gives another digest, and is refused.

    Names that begin with a dot are ignored, links to folders are followed, pictures of other kinds than .bmp, .jpeg,
    .jpg, .png and .webp are refused, and whatever else is left out is named by ``puregrid plan``.

    All images are held in memory, 0.6 MB for each of 224 pixels a side; ``per_class`` limits them.

    Arguments:
        root: Folder of the splits; by default the environment variable ``PUREGRID_DATA``.
        name: How tables call it.
        classes: Text file with a line for each class, in the order of class numbers: its name, then further names
            that its folder may have (a WordNet id). ``imagenet30`` ships with puregrid. By default the folders of
            the split in alphabetical order, of which none may then be missing.
        resize: Shorter side, pixels, before the crop.
        crop: Side of the square that is cut out at the centre, pixels.
        interpolation: Interpolation of the resize, always with Pillow's antialiasing.
        per_class: Take the first so many images of each class.
    """

    dataset: Literal["folder"] = "folder"
    root: str | None = Field(default=None, exclude=True)
    name: str | None = Field(default=None, exclude=True)
    classes: str | None = Field(default=None, exclude=True)
    resize: int = Field(default=256, ge=1, le=16_384)
    crop: int = Field(default=224, ge=1, le=16_384)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    per_class: int | None = Field(default=None, ge=1)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, crop, crop)."""
        return 3, self.crop, self.crop

    @property
    def class_names(self) -> tuple[str, ...]:
        """First name of each class."""
        return tuple(names[0] for names in self._classes())

    def label(self) -> str:
        """Name in tables."""
        name = self.name or Path(self.root or self.dataset).name
        return name if self.split == "test" else f"{name} ({self.split})"

    def resolved(self, base: Path) -> Self:
        """This config with absolute paths and its digest.

        Raises:
            InvalidInput: No root, no such split, a class without images, or an image that cannot be read.
        """
        if self.crop > self.resize:
            raise InvalidInput(
                f"crop = {self.crop} is larger than resize = {self.resize}: there would be an edge without image."
            )
        missing = (
            f"folder has no root: give `root` in the sweep file or set {DATA_VARIABLE} to the folder that holds "
            "test/CLASS/IMAGE (or val/CLASS/IMAGE)."
        )
        fields = {"root": data_root(self.root, base, missing)}
        if self.classes is not None:
            with inside("classes"):
                own = path_of(self.classes, "the list of classes", base=base)
            shipped = LISTS / f"{self.classes}.txt"
            fields["classes"] = str(shipped if shipped.is_file() else own)
        located = self.model_copy(update=fields)
        return located.model_copy(update={"digest": located.checked().digest()})

    def read(self) -> ImageSet:
        """Return the split, class by class."""
        files: list[tuple[str, int, int]] = []
        labels: list[int] = []
        folder = self._folder()
        for number, names in enumerate(self._classes()):
            class_folder = next((folder / name for name in names if (folder / name).is_dir()), None)
            images = pictures(class_folder).pictures if class_folder else ()
            if not images:
                raise InvalidInput(
                    f"class {names[0]!r} has no images: there are none in {str(folder / names[0])!r}"
                    + (f", nor in a folder {' or '.join(map(repr, names[1:]))} beside it" if names[1:] else "")
                    + ". Add them, or correct the list of classes."
                )
            chosen = images[: self.per_class]
            files += [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in chosen]
            labels += [number] * len(chosen)
        pixels = _decoded(tuple(files), self.resize, self.crop, self.interpolation)
        return ImageSet(pixels, np.array(labels, dtype=np.int64))

    def notices(self) -> tuple[str, ...]:
        """Files and folders that are left out."""
        folder, listed = self._folder(), {name for names in self._classes() for name in names}
        loose = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]
        unlisted = [path for path in class_folders(folder) if path.name not in listed]
        others = [path for path in class_folders(folder) if path.name in listed for path in pictures(path).others]
        remarks = [
            (loose, "files beside the class folders"),
            (unlisted, "folders that the list of classes does not name"),
            (others, f"files that are no pictures ({', '.join(ACCEPTED)})"),
        ]
        return tuple(
            f"data set {self.label()!r} leaves out {len(paths)} {what}: {_some(paths, folder)}"
            for paths, what in remarks
            if paths
        )

    def _folder(self) -> Path:
        root = Path(self.root or "")
        split_folder = next((root / name for name in _SPLITS[self.split] if (root / name).is_dir()), None)
        if split_folder is None:
            raise InvalidInput(
                f"the {self.split} split is not under {str(root)!r}: there is no folder "
                f"{' or '.join(map(repr, _SPLITS[self.split]))} in it, which holds a folder for each class."
            )
        return split_folder

    def _classes(self) -> list[list[str]]:
        """Return the names of each class, the one that tables use first."""
        if self.classes is None:
            return [[path.name] for path in class_folders(self._folder())]
        try:
            if not os.path.lexists(self.classes):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            classes = listed(Path(self.classes))
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InvalidInput(
                f"classes {self.classes!r} cannot be read ({cause}): give a text file with a line for each "
                f"class, or one of the lists that ship: {', '.join(sorted(p.stem for p in LISTS.glob('*.txt')))}."
            ) from error
        if not classes or len({names[0] for names in classes}) < len(classes):
            raise InvalidInput(f"classes {self.classes!r} is empty or names a class twice.")
        odd = next((name for names in classes for name in names if not _names_a_folder(name)), None)
        if odd is not None:
            raise InvalidInput(
                f"classes {self.classes!r} has {odd[:40]!r}, which no folder can be called: give a text file with a "
                "line for each class, its names with blanks between them."
            )
        return classes


_NAMED = 5


def _some(paths: Sequence[Path], folder: Path) -> str:
    """Return the first names of several files."""
    names = ", ".join(str(path.relative_to(folder)) for path in paths[:_NAMED])
    return names + (f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else "")


def _names_a_folder(name: str) -> bool:
    return len(name.encode()) <= 255 and not {"/", "\0"} & {*name} and name not in (".", "..")


@lru_cache(maxsize=1)
def _decoded(
    files: tuple[tuple[str, int, int], ...], resize: int, crop: int, interpolation: str
) -> npt.NDArray[np.float32]:
    """Images in [0, 1], shape (N, 3, crop, crop); kept while the files have the same sizes and times of change."""
    allow_torchvision_import()
    with installed("data set folder"):
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import center_crop
        from torchvision.transforms.functional import resize as resized

    out = np.empty((len(files), 3, crop, crop), dtype=np.float32)
    for row, (path, _, _) in enumerate(files):
        square = center_crop(resized(decoded(path), [resize], InterpolationMode(interpolation)), [crop, crop])
        out[row] = np.asarray(square, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    out.flags.writeable = False  # every reading shares it
    return out
