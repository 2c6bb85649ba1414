"""Data sets: images in [0, 1] with labels, identified by content.

Nothing here downloads: ``puregrid data fetch`` does, and only when asked.
"""

from __future__ import annotations

import errno
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from defense.errors import InvalidInput, inside
from defense.files import existing, found, path_of, read_text
from defense.packages import installed
from defense.registry import Registry
from defense.spec import Spec
from defense.torchvision_cpu import allow_torchvision_import
from tasks.image_checks import check_selection, checked_images
from tasks.picture_files import ACCEPTED, class_folders, decoded, pictures

__all__ = [
    "DATASETS",
    "DATA_VARIABLE",
    "Cifar10Config",
    "Cifar100Config",
    "DatasetConfig",
    "DigitsConfig",
    "FolderConfig",
    "ImageSet",
]

DATA_VARIABLE = "PUREGRID_DATA"
"""Environment variable that names the data root where a sweep file gives none."""


_LISTS = Path(__file__).parent / "classes"


@dataclass(frozen=True)
class ImageSet:
    """Images with labels; the image id is the position.

    Arguments:
        images: float32 in [0, 1], shape (N, C, H, W).
        labels: Class numbers, int64, shape (N,).
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """sha256 of the content: shape, pixels, labels."""
        content = hashlib.sha256(repr(self.images.shape).encode())
        content.update(np.ascontiguousarray(self.images, dtype="<f4").tobytes())
        content.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        return content.hexdigest()

    def fingerprints(self, ids: Sequence[int] | None = None) -> npt.NDArray[np.uint64]:
        """Return 64 bits of a hash (blake2b) of each image's pixels, by which equal images are found.

        Arguments:
            ids: Which images, by default all.
        """
        rows = range(len(self)) if ids is None else ids
        pixels = (np.ascontiguousarray(self.images[row], dtype="<f4").tobytes() for row in rows)
        hashes = b"".join(hashlib.blake2b(one, digest_size=8).digest() for one in pixels)
        return np.frombuffer(hashes, dtype="<u8")


class DatasetConfig(Spec, ABC):
    """The config of a data set. Its digest is filled in from the content.

    Arguments:
        dataset: Its name.
        split: Which part of it.
        digest: sha256 of its content.
        accept: What is usually a mistake and is meant here: ``duplicates``, images that repeat others; ``one-class``,
            images of a single class.
    """

    named_by: ClassVar[str | None] = "dataset"
    dataset: str
    split: Literal["test", "train"] = "test"
    digest: str | None = None
    accept: tuple[Literal["duplicates", "one-class"], ...] = Field(default=(), exclude=True)

    @classmethod
    def class_named(cls, name: str) -> type[DatasetConfig]:
        """See :class:`Spec`."""
        return DATASETS.get(name)

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""

    @abstractmethod
    def read(self) -> ImageSet:
        """Read the images, without looking at the digest.

        Raises:
            InvalidInput: They are not where they should be.
        """

    def label(self) -> str:
        """Name in tables."""
        return self.dataset if self.split == "test" else f"{self.dataset} ({self.split})"

    def resolved(self, base: Path) -> Self:
        """This config with absolute paths and its digest."""
        return self.model_copy(update={"digest": self.checked().digest()})

    def notices(self) -> tuple[str, ...]:
        """Notices for readers of the plan, such as files that are left out."""
        return ()

    def checked(self) -> ImageSet:
        """Read the images, and look at what :meth:`read` returned before it is believed.

        Raises:
            InvalidInput: They are not where they should be; or type, shape, range or labels are not what a data set
                promises (:func:`tasks.image_checks.checked_images`).
        """
        data = self.read()
        if not isinstance(data, ImageSet):
            raise InvalidInput(
                f"data set {self.label()!r} returns {type(data).__name__} where a tasks.datasets.ImageSet of images "
                "and labels is needed."
            )
        images, labels = checked_images(
            data.images,
            data.labels,
            name=self.label(),
            shape=self.image_shape,
            classes=len(self.class_names),
        )
        return ImageSet(images, labels)

    def check_selected(self, ids: Sequence[int]) -> None:
        """Look at the images that a sweep selects: see :func:`tasks.image_checks.check_selection`.

        Arguments:
            ids: Their ids.
        """
        data, chosen = self.load(), list(ids)
        check_selection(data.images[chosen], data.labels[chosen], name=self.label(), accept=self.accept)

    def load(self) -> ImageSet:
        """Read the images, checked, and compare them with those that the digest names.

        Raises:
            InvalidInput: As :meth:`checked`; or the content has changed since the sweep was planned.
        """
        images = self.checked()
        if self.digest is not None and images.digest() != self.digest:
            raise InvalidInput(
                f"data set {self.label()!r} has digest {images.digest()}, but the sweep was planned with "
                f"{self.digest}: the files here are not the ones that the driver saw."
            )
        return images


DATASETS: Registry[type[DatasetConfig]] = Registry("dataset", "puregrid.datasets", subclass_of=DatasetConfig)


@DATASETS.register("digits")
class DigitsConfig(DatasetConfig):
    """scikit-learn's handwritten digits: 1,797 real 8x8 images with 16 grey levels, inside scikit-learn.

    The split is fixed: every third image (0, 3, 6, ...) is a test image, 599 in all; the others are for training.
    """

    dataset: Literal["digits"] = "digits"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(1, 8, 8)."""
        return 1, 8, 8

    @property
    def class_names(self) -> tuple[str, ...]:
        """The ten digits."""
        return tuple("0123456789")

    def read(self) -> ImageSet:
        """Return the split, in scikit-learn's order."""
        images, labels = _digits()
        test = np.arange(len(labels)) % 3 == 0
        chosen = test if self.split == "test" else ~test
        return ImageSet(images[chosen], labels[chosen])


def _folder(root: str, base: Path) -> str:
    with inside("root"):
        return str(found(root, "the data root", kind="folder", base=base))


@lru_cache(maxsize=1)
def _digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """All images, shape (1797, 1, 8, 8), and labels.

    scikit-learn's file is read as ``load_digits`` reads it, but without importing scikit-learn, which would import
    pandas and ``scipy.stats``: more than a second in each worker and before each plan.
    """
    package = find_spec("sklearn")
    file = Path("" if package is None else package.origin or "").parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, delimiter=",")
        images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    else:  # it is missing, or keeps the file elsewhere by now
        with installed("data set digits"):
            from sklearn.datasets import load_digits

        bunch = load_digits()
        images, labels = bunch.images, bunch.target
    return (images / 16).astype(np.float32)[:, None], labels.astype(np.int64)


class _CifarConfig(DatasetConfig):
    """The common part of CIFAR-10 and CIFAR-100: torchvision's layout under a data root, md5s checked by torchvision.

    Arguments:
        root: Data root; by default the environment variable ``PUREGRID_DATA``.
    """

    root: str | None = Field(default=None, exclude=True)

    source: ClassVar[str]
    """torchvision's class."""
    folder: ClassVar[str]
    """Where the files lie under the root."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, 32, 32)."""
        return 3, 32, 32

    def resolved(self, base: Path) -> Self:
        """This config with an absolute root and the digest."""
        root = os.environ.get(DATA_VARIABLE) or None if self.root is None else self.root
        if root is None:
            raise InvalidInput(
                f"{self.dataset} has no data root: give `root` in the sweep file or set {DATA_VARIABLE} to the "
                f"folder that holds {self.folder}. `puregrid data fetch {self.dataset} --root FOLDER` downloads it "
                "there."
            )
        located = self.model_copy(update={"root": _folder(root, base)})
        return located.model_copy(update={"digest": located.checked().digest()})

    def read(self) -> ImageSet:
        """Return the official split, in the official order."""
        found = sorted(Path(self.root or "", self.folder).glob("*"))
        files = [existing(file, f"a file of {self.dataset}", kind="either") for file in found]
        seen = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        try:
            images, labels = _official(self.source, self.root or "", self.split == "train", seen)
        except (RuntimeError, OSError) as error:
            raise InvalidInput(
                f"{self.source.replace('CIFAR', 'CIFAR-')} is not under {self.root!r}: {self.folder} is missing "
                f"there or damaged (md5). `puregrid data fetch {self.dataset} --root {self.root}` downloads it; "
                "puregrid never does so by itself."
            ) from error
        return ImageSet(images, labels)


@lru_cache(maxsize=1)
def _official(
    source: str, root: str, train: bool, files: tuple[tuple[str, int, int], ...]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images in [0, 1] and labels as torchvision reads them; kept while the files have the same sizes and times."""
    allow_torchvision_import()
    with installed(f"data set {source.lower()}"):
        from torchvision import datasets

    data = getattr(datasets, source)(root, train=train, download=False)
    images = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2), dtype=np.float32)
    images /= np.float32(255)
    labels = np.asarray(data.targets, dtype=np.int64)
    return images, labels  # shared by every reading; one that was written to no longer has its digest (load)


@DATASETS.register("cifar10")
class Cifar10Config(_CifarConfig):
    """CIFAR-10 (Krizhevsky, 2009) in torchvision's layout: ``ROOT/cifar-10-batches-py``.

    Arguments:
        root: Data root; by default the environment variable ``PUREGRID_DATA``.
    """

    dataset: Literal["cifar10"] = "cifar10"

    source = "CIFAR10"
    folder = "cifar-10-batches-py"

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the official order."""
        return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@DATASETS.register("cifar100")
class Cifar100Config(_CifarConfig):
    """CIFAR-100 (Krizhevsky, 2009), its 100 fine classes, in torchvision's layout: ``ROOT/cifar-100-python``.

    Arguments:
        root: Data root; by default the environment variable ``PUREGRID_DATA``.
    """

    dataset: Literal["cifar100"] = "cifar100"

    source = "CIFAR100"
    folder = "cifar-100-python"

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the official order."""
        return tuple(names[0] for names in _listed(_LISTS / "cifar100.txt"))


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
        root = os.environ.get(DATA_VARIABLE) or None if self.root is None else self.root
        if root is None:
            raise InvalidInput(
                f"folder has no root: give `root` in the sweep file or set {DATA_VARIABLE} to the folder that holds "
                "test/CLASS/IMAGE (or val/CLASS/IMAGE)."
            )
        fields: dict[str, str] = {"root": _folder(root, base)}
        if self.classes is not None:
            with inside("classes"):
                own = path_of(self.classes, "the list of classes", base=base)
            shipped = _LISTS / f"{self.classes}.txt"
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
            classes = _listed(Path(self.classes))
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InvalidInput(
                f"classes {self.classes!r} cannot be read ({cause}): give a text file with a line for each "
                f"class, or one of the lists that ship: {', '.join(sorted(p.stem for p in _LISTS.glob('*.txt')))}."
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


def _listed(path: Path) -> list[list[str]]:
    """Return the words of each line of a class list, without comments and empty lines."""
    lines = read_text(path, "the list of classes").splitlines()
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]


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
