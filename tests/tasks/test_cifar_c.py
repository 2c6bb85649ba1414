"""The published arrays: severity-major layout, md5s, tar and folder alike."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from loops import every

from defense.errors import InvalidInput
from tasks.cifar_c import CIFAR10_C, CIFAR100_C, RELEASES, CifarC, Release
from tasks.corruptions import BENCHMARK, CORRUPTIONS, SEVERITIES
from tasks.datasets import ImageSet

IMAGES = 7
NAMES = ("fog", "gaussian_noise")


def pixel(severity: int, image: int, name: str) -> int:
    return 20 * severity + image + 100 * NAMES.index(name)


def arrays() -> dict[str, npt.NDArray[np.uint8]]:
    """A release of seven images whose pixels tell severity, image and corruption, and channel and place."""
    made = {"labels": np.tile(np.arange(IMAGES, dtype=np.uint8)[::-1], 5)}
    for name in NAMES:
        array = np.zeros((5 * IMAGES, 32, 32, 3), dtype=np.uint8)
        for severity in SEVERITIES:
            for image in range(IMAGES):
                array[(severity - 1) * IMAGES + image] = pixel(severity, image, name)
        array[:, 3, 5, 1] = 255
        made[name] = array
    return made


def write(folder: Path, content: dict[str, npt.NDArray[np.uint8]]) -> Release:
    folder.mkdir()
    md5s = {}
    for name, array in content.items():
        np.save(folder / f"{name}.npy", array)
        md5s[name] = hashlib.md5((folder / f"{name}.npy").read_bytes()).hexdigest()
    with tarfile.open(folder.parent / "CIFAR-10-C.tar", "w") as tar:
        tar.add(folder, "CIFAR-10-C")
    archive = folder.parent / "CIFAR-10-C.tar"
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    return Release("cifar10-c", "CIFAR-10-C", "RECORD", md5, archive.stat().st_size, md5s, IMAGES)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return write(tmp_path / "CIFAR-10-C", arrays())


@every("where", ["CIFAR-10-C", "CIFAR-10-C.tar", "."])
@every("severity", SEVERITIES)
def test_rows_of_a_severity_are_the_test_images_in_order(tmp_path: Path, where: str, severity: int) -> None:
    release = write(tmp_path / "CIFAR-10-C", arrays())  # not the fixture's, which all cases share
    if where == "CIFAR-10-C.tar":
        shutil.rmtree(tmp_path / "CIFAR-10-C")
    data = CifarC(tmp_path / where, release)
    for name in NAMES:
        found = data.read(name, severity, [5, 0, 5, 6])
        assert found.pixels.shape == (4, 3, 32, 32) and found.pixels.dtype == np.uint8
        assert found.pixels[:, 0, 0, 0].tolist() == [pixel(severity, i, name) for i in (5, 0, 5, 6)]
        # NHWC on disk, NCHW here.
        assert (found.pixels[:, 1, 3, 5] == 255).all() and (found.pixels == 255).sum() == 4
        assert (found.corruption, found.severity, found.origin) == (name, severity, "official")
        assert np.array_equal(found.images[:, 0, 0, 0], found.pixels[:, 0, 0, 0] / np.float32(255))
    labels = data.labels([0, 6, 2])
    assert labels.dtype == np.int64 and labels.tolist() == [6, 0, 4]
    assert data.read("fog", severity, []).pixels.shape == (0, 3, 32, 32)


def test_a_tar_beside_no_folder_is_found_in_its_folder(tmp_path: Path, release: Release) -> None:
    shutil.rmtree(tmp_path / "CIFAR-10-C")
    assert CifarC(tmp_path, release).read("fog", 2, [1]).pixels[0, 0, 0, 0] == pixel(2, 1, "fog")


def test_one_changed_byte_is_found_at_first_read_and_by_verify(tmp_path: Path, release: Release) -> None:
    data = CifarC(tmp_path / "CIFAR-10-C", release)
    assert "3 files" in data.verify()
    file = tmp_path / "CIFAR-10-C" / "fog.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"fog\.npy.*md5.*RECORD"):
        data.read("fog", 1, [0])
    with pytest.raises(InvalidInput, match=r"fog\.npy"):
        data.verify()
    data.read("gaussian_noise", 1, [0])


def test_a_damaged_tar_is_found(tmp_path: Path, release: Release) -> None:
    archive = tmp_path / "CIFAR-10-C.tar"
    assert release.md5 in CifarC(archive, release).verify()
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(InvalidInput, match=rf"md5.*{release.md5}"):
        CifarC(archive, release).verify()
    (tmp_path / "not.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(InvalidInput, match="no uncompressed tar"):
        CifarC(tmp_path / "not.tar", release).read("fog", 1, [0])


def test_arrays_of_another_shape_or_type_are_refused_though_their_md5_is_given(tmp_path: Path) -> None:
    content = arrays()
    content["fog"] = content["fog"][:, :, :, :1]
    data = CifarC(tmp_path / "CIFAR-10-C", write(tmp_path / "CIFAR-10-C", content))
    with pytest.raises(InvalidInput, match=r"shape \(35, 32, 32, 1\)"):
        data.read("fog", 1, [0])
    file = io.BytesIO()
    np.save(file, arrays()["fog"].astype(np.float32))
    (tmp_path / "CIFAR-10-C" / "fog.npy").write_bytes(file.getvalue())
    md5 = hashlib.md5(file.getvalue()).hexdigest()
    floats = Release("cifar10-c", "CIFAR-10-C", "RECORD", "", 0, {"fog": md5}, IMAGES)
    with pytest.raises(InvalidInput, match="float32"):
        CifarC(tmp_path / "CIFAR-10-C", floats).read("fog", 1, [0])


def test_labels_that_are_not_severity_major_are_refused(tmp_path: Path) -> None:
    content = arrays()
    content["labels"] = np.repeat(np.arange(IMAGES, dtype=np.uint8), 5)
    data = CifarC(tmp_path / "CIFAR-10-C", write(tmp_path / "CIFAR-10-C", content))
    with pytest.raises(InvalidInput, match="not severity-major"):
        data.labels([0])


@pytest.mark.parametrize("ids", [[7], [0, -1]])
def test_images_that_are_not_there_are_refused(tmp_path: Path, release: Release, ids: list[int]) -> None:
    data = CifarC(tmp_path / "CIFAR-10-C", release)
    with pytest.raises(InvalidInput, match="images 0 to 6"):
        data.read("fog", 1, ids)
    with pytest.raises(InvalidInput, match="images 0 to 6"):
        data.labels(ids)


def test_missing_places_files_and_names_are_reported(tmp_path: Path, release: Release) -> None:
    with pytest.raises(InvalidInput, match=r"`puregrid data fetch cifar10-c.*RECORD.*never does so by itself"):
        CifarC(tmp_path / "nowhere", release)
    data = CifarC(tmp_path, release)
    with pytest.raises(InvalidInput, match="did you mean 'fog'"):
        data.read("fogg", 1, [0])
    with pytest.raises(InvalidInput, match="no severity 6"):
        data.read("fog", 6, [0])
    with pytest.raises(InvalidInput, match=r"snow\.npy is missing"):
        data.read("snow", 1, [0])


def test_releases_have_an_md5_for_each_of_nineteen_corruptions_and_the_labels() -> None:
    assert RELEASES == {"cifar10-c": CIFAR10_C, "cifar100-c": CIFAR100_C}
    for release in RELEASES.values():
        assert set(release.files) == {*CORRUPTIONS, "labels"} and len(BENCHMARK) == 15
        md5s = [release.md5, *release.files.values()]
        assert len(set(md5s)) == 21 and all(len(md5) == 32 and int(md5, 16) for md5 in md5s)
    assert not set(CIFAR10_C.files.values()) & set(CIFAR100_C.files.values())


def test_the_published_labels_are_the_test_labels_five_times(cifar10_test: ImageSet) -> None:
    file = io.BytesIO()
    # As NumPy 1.14 and later write it; the header's padding has not changed since.
    np.save(file, np.tile(cifar10_test.labels.astype(np.uint8), 5))
    assert hashlib.md5(file.getvalue()).hexdigest() == CIFAR10_C.files["labels"]
