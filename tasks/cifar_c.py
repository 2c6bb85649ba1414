"""The published arrays of CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich, arXiv 1903.12261).

A release is a tar, or the folder unpacked from it, of ``NAME.npy`` for 19 corruptions and of ``labels.npy``. An
array is uint8 of shape (50000, 32, 32, 3), **severity-major**: severity s is rows (s - 1) 10000 to s 10000, each in
the order of the data set's test images, so that an image id is the same here and there. Labels are the test labels,
five times.

Arrays are read through a memory map, from the tar without unpacking it, and each is checked against its md5 when it
is first read. Nothing here downloads.
"""

import hashlib
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from defense.errors import InvalidInput
from defense.reading import reading
from tasks.corruptions import SEVERITIES, Corrupted
from tasks.corruptions.generate import find

__all__ = ["CIFAR10_C", "CIFAR100_C", "RELEASES", "CifarC", "Release"]

_SHAPE = (32, 32, 3)


@dataclass(frozen=True)
class Release:
    """A published release.

    Arguments:
        name: As data sets are named.
        folder: Name of the folder in the tar.
        record: Where it is.
        md5: md5 of the tar.
        size: Its size in bytes.
        files: md5 of each file, by name without ``.npy``.
        images: Images per severity.
    """

    name: str
    folder: str
    record: str
    md5: str
    size: int
    files: Mapping[str, str] = field(repr=False)
    images: int = 10_000

    @property
    def archive(self) -> str:
        """Name of the tar."""
        return f"{self.folder}.tar"


CIFAR10_C = Release(
    "cifar10-c",
    "CIFAR-10-C",
    "https://zenodo.org/records/2535967",
    "56bf5dcef84df0e2308c6dcbcbbd8499",
    2_918_471_680,
    MappingProxyType(
        {
            "gaussian_noise": "ecaf8b9a2399ffeda7680934c33405fd",
            "shot_noise": "3a7239bb118894f013d9bf1984be7f11",
            "impulse_noise": "2090e01c83519ec51427e65116af6b1a",
            "defocus_blur": "7d1322666342a0702b1957e92f6254bc",
            "glass_blur": "7361fb4019269e02dbf6925f083e8629",
            "motion_blur": "fffa5f852ff7ad299cfe8a7643f090f4",
            "zoom_blur": "6ea8e63f1c5cdee1517533840641641b",
            "snow": "bb238de8555123da9c282dea23bd6e55",
            "frost": "31f6ab3bce1d9934abfb0cc13656f141",
            "fog": "7b397314b5670f825465fbcd1f6e9ccd",
            "brightness": "0a81ef75e0b523c3383219c330a85d48",
            "contrast": "3c8262171c51307f916c30a3308235a8",
            "elastic_transform": "9421657c6cd452429cf6ce96cc412b5f",
            "pixelate": "0f14f7e2db14288304e1de10df16832f",
            "jpeg_compression": "2b9cc4c864e0193bb64db8d7728f8187",
            "speckle_noise": "ef00b87611792b00df09c0b0237a1e30",
            "gaussian_blur": "c33370155bc9b055fb4a89113d3c559d",
            "spatter": "8a5a3903a7f8f65b59501a6093b4311e",
            "saturate": "1cfae0964219c5102abbb883e538cc56",
            "labels": "c439b113295ed5254878798ffe28fd54",
        }
    ),
)

CIFAR100_C = Release(
    "cifar100-c",
    "CIFAR-100-C",
    "https://zenodo.org/records/3555552",
    "11f0ed0f1191edbf9fa23466ae6021d3",
    2_918_473_216,
    MappingProxyType(
        {
            "gaussian_noise": "ecc4d366eac432bdf25c024086f5e97d",
            "shot_noise": "b0a1fa6e1e465a747c1b204b1914048a",
            "impulse_noise": "3b3c210ddfa0b5cb918ff4537a429fef",
            "defocus_blur": "d923e3d9c585a27f0956e2f2ad832564",
            "glass_blur": "0bf384f38e5ccbf8dd479d9059b913e1",
            "motion_blur": "732a7e2e54152ff97c742d4c388c5516",
            "zoom_blur": "0204613400c034a81c4830d5df81cb82",
            "snow": "0237be164583af146b7b144e73b43465",
            "frost": "3a39c6823bdfaa0bf8b12fe7004b8117",
            "fog": "4efc7ebd5e82b028bdbe13048e3ea564",
            "brightness": "f22d7195aecd6abb541e27fca230c171",
            "contrast": "322bb385f1d05154ee197ca16535f71e",
            "elastic_transform": "a0792bd6581f6810878be71acedfc65a",
            "pixelate": "96c00c60f144539e14cffb02ddbd0640",
            "jpeg_compression": "c851b7f1324e1d2ffddeb76920576d11",
            "speckle_noise": "e3f215b1a0f9fd9fd6f0d1cf94a7ce99",
            "gaussian_blur": "5204ba0d557839772ef5a4196a052c3e",
            "spatter": "12ccf41d62564d36e1f6a6ada5022728",
            "saturate": "c0697e9fdd646916a61e9c312c77bf6b",
            "labels": "bb4026e9ce52996b95f439544568cdb2",
        }
    ),
)

RELEASES: Mapping[str, Release] = MappingProxyType({each.name: each for each in (CIFAR10_C, CIFAR100_C)})


@dataclass(frozen=True)
class _Place:
    """The place of a ``.npy`` file: all of a file, or a stretch of one."""

    path: str
    start: int
    length: int


class CifarC:
    """A release on this disk.

    Arguments:
        path: The tar, the folder unpacked from it, or a folder that holds either.
        release: Which release it should be.

    Raises:
        InvalidInput: Nothing of the kind is there.
    """

    def __init__(self, path: str | Path, release: Release = CIFAR10_C) -> None:
        self.release = release
        location = Path(path)
        nested, archive = location / release.folder, location / release.archive
        if (location / "labels.npy").is_file() or location.is_file():
            self.path = location
        elif (nested / "labels.npy").is_file():
            self.path = nested
        elif archive.is_file():
            self.path = archive
        else:
            raise InvalidInput(
                f"{release.name} is not at {str(location)!r}: neither labels.npy nor {release.archive} is there. "
                f"`puregrid data fetch {release.name} --root FOLDER` downloads it from {release.record}; puregrid "
                "never does so by itself."
            )

    def read(self, corruption: str, severity: int, ids: Sequence[int]) -> Corrupted:
        """Some images of one corruption and severity.

        Arguments:
            corruption: Name.
            severity: 1 to 5.
            ids: Positions among the data set's test images.

        Raises:
            InvalidInput: There are none such, or the file is missing, damaged or another one.
        """
        find(corruption, severity)
        chosen = self._checked(ids)
        array = self._array(corruption, (len(SEVERITIES) * self.release.images, *_SHAPE))
        rows = np.asarray(array[(severity - 1) * self.release.images + chosen])
        return Corrupted(np.ascontiguousarray(rows.transpose(0, 3, 1, 2)), corruption, severity, "official")

    def labels(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Class numbers of some images, which are those of the data set's test images.

        Raises:
            InvalidInput: As :meth:`read`, or labels that differ between severities.
        """
        chosen = self._checked(ids)
        labels = np.asarray(self._array("labels", (len(SEVERITIES) * self.release.images,)))
        by_severity = labels.reshape(len(SEVERITIES), -1)
        if (by_severity != by_severity[0]).any():
            raise InvalidInput(
                f"labels.npy of {str(self.path)!r} differ between severities: images are not severity-major in one "
                "order, so image ids mean nothing. It is not the published file."
            )
        return np.asarray(by_severity[0][chosen], dtype=np.int64)

    def verify(self) -> str:
        """Check everything; returns what was checked.

        Raises:
            InvalidInput: Something is missing, damaged or another file.
        """
        if self.path.is_file():
            self._assert_md5(
                _Place(str(self.path), 0, self.path.stat().st_size), self.release.archive, self.release.md5
            )
            return f"{self.path}: md5 {self.release.md5}, the published {self.release.archive}"
        for name, md5 in self.release.files.items():
            self._assert_md5(self._place(name), f"{name}.npy", md5)
        return f"{self.path}: {len(self.release.files)} files with the published md5s"

    def _checked(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        chosen = np.asarray(ids, dtype=np.int64)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < self.release.images):
            raise InvalidInput(
                f"{self.release.name} has images 0 to {self.release.images - 1} of each severity; asked for "
                f"{int(chosen.min())} to {int(chosen.max())}. Corruptions are of the test split alone."
            )
        return chosen

    def _array(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        place = self._place(name)
        self._assert_md5(place, f"{name}.npy", self.release.files[name])
        with open(place.path, "rb") as file:
            file.seek(place.start)
            with reading(f"{self.path}/{name}.npy", "NumPy array"):
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                stored, fortran, dtype = read[version](file)
            start = file.tell()
        if stored != shape or fortran or dtype != np.dtype(np.uint8):
            raise InvalidInput(
                f"{name}.npy of {str(self.path)!r} holds {dtype} of shape {stored}, not uint8 of shape {shape}: it "
                f"is not {self.release.name}."
            )
        with reading(f"{self.path}/{name}.npy", "NumPy array"):
            return np.memmap(place.path, np.uint8, "r", start, shape)

    def _place(self, name: str) -> _Place:
        file = f"{name}.npy"
        if self.path.is_file():
            stat = self.path.stat()
            place = _members(str(self.path), stat.st_size, stat.st_mtime_ns).get(file)
        else:
            path = self.path / file
            place = _Place(str(path), 0, path.stat().st_size) if path.is_file() else None
        if place is None:
            raise InvalidInput(
                f"{file} is missing in {str(self.path)!r}: unpack or fetch {self.release.archive} again."
            )
        return place

    def _assert_md5(self, place: _Place, what: str, expected: str) -> None:
        stat = os.stat(place.path)
        md5 = _md5(place, stat.st_size, stat.st_mtime_ns)
        if md5 != expected:
            raise InvalidInput(
                f"{what} at {str(self.path)!r} has md5 {md5}, the published one {expected}: it is damaged, or "
                f"generated by other code. Fetch it again from {self.release.record}."
            )


@lru_cache(maxsize=64)
def _md5(place: _Place, size: int, modified: int) -> str:
    """md5 of a stretch of a file; remembered while the file's size and time of change stay the same."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(place.path, "rb") as file:
        file.seek(place.start)
        left = place.length
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


@lru_cache(maxsize=4)
def _members(path: str, size: int, modified: int) -> dict[str, _Place]:
    hint = "It is no uncompressed tar, as the published archives are: fetch it again."
    with reading(path, "archive", hint=hint), tarfile.open(path, "r:") as tar:
        return {
            Path(member.name).name: _Place(path, member.offset_data, member.size) for member in tar if member.isreg()
        }
