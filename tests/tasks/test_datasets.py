"""Data sets are their content: fixed splits, digests, and messages that lead out of a missing folder."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import tasks.datasets
import tasks.datasets.digits
from defense.errors import InvalidInput
from defense.torchvision_cpu import allow_torchvision_import
from tasks.datasets import DATASETS, Cifar10Config, Cifar100Config, DigitsConfig, FolderConfig, ImageSet

DIGITS_TEST = "72f17156a53066e17f83b8258479685b506740c38148728917da8b5fcbec0fe2"
DIGITS_TRAIN = "11a4815f120a8f4b61db4aae33184f9866ee8974e0fb43b0981cb9112634de3b"
CIFAR10_TEST = "7eeaec63406a66b046735f3b5760bf7e8c44f0a6d656cdf03a7723bf7179cbb3"


def test_digits_splits_have_599_and_1198_images_and_share_none() -> None:
    test, train = DigitsConfig().read(), DigitsConfig(split="train").read()
    assert len(test) == 599 and test.images.shape == (599, 1, 8, 8)
    assert len(train) == 1198 and train.images.shape == (1198, 1, 8, 8)
    # No image appears twice in scikit-learn's set, so equal content would be a leak.
    contents = [{image.tobytes() for image in split.images} for split in (test, train)]
    assert list(map(len, contents)) == [599, 1198]
    assert not contents[0] & contents[1]


@pytest.mark.slow
def test_digits_split_is_every_third_image_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    test, train = DigitsConfig().read(), DigitsConfig(split="train").read()
    assert np.array_equal(test.images[:, 0] * 16, bunch.images[::3])
    assert np.array_equal(test.labels, bunch.target[::3])
    assert np.array_equal(train.images[::2, 0] * 16, bunch.images[1::3])
    assert np.array_equal(train.labels[1::2], bunch.target[2::3])


def test_digits_are_the_same_where_scikit_learn_keeps_its_file_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    read = tasks.datasets.digits._digits.__wrapped__
    images, labels = read()
    monkeypatch.setattr(tasks.datasets.digits, "find_spec", lambda name: None)
    loaded = read()
    assert np.array_equal(images, loaded[0]) and np.array_equal(labels, loaded[1])
    assert (images.dtype, labels.dtype) == (loaded[0].dtype, loaded[1].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("split", ["test", "train"])
def test_digits_have_16_grey_levels_in_0_to_1(split: str) -> None:
    data = DigitsConfig.model_validate({"split": split}).read()
    assert data.images.dtype == np.float32 and data.labels.dtype == np.int64
    levels = data.images * 16
    assert np.array_equal(levels, levels.round())
    assert (data.images.min(), data.images.max()) == (0, 1)
    # Balanced: no digit below 8 or above 12 per cent.
    share = np.bincount(data.labels, minlength=10) / len(data)
    assert len(share) == 10 and share.min() > 0.08 and share.max() < 0.12


def test_digits_digests_are_golden() -> None:
    assert DigitsConfig().read().digest() == DIGITS_TEST
    assert DigitsConfig(split="train").read().digest() == DIGITS_TRAIN


def test_a_digest_is_the_sha256_of_shape_pixels_and_labels() -> None:
    images = np.arange(16, dtype=np.float32).reshape(2, 2, 2, 2) / np.float32(16)
    labels = np.array([3, 1])
    text = b"(2, 2, 2, 2)" + images.tobytes() + labels.tobytes()
    assert ImageSet(images, labels).digest() == hashlib.sha256(text).hexdigest()
    # The memory layout says nothing about the content.
    assert ImageSet(np.asfortranarray(images), labels.astype(">i8")).digest() == ImageSet(images, labels).digest()


def test_another_pixel_label_order_or_shape_is_another_digest() -> None:
    images = np.arange(16, dtype=np.float32).reshape(2, 2, 2, 2) / np.float32(16)
    labels = np.array([3, 1])
    pixel = images.copy()
    pixel[1, 1, 1, 1] = np.nextafter(pixel[1, 1, 1, 1], np.float32(1))
    found = {
        ImageSet(images, labels).digest(),
        ImageSet(pixel, labels).digest(),
        ImageSet(images, np.array([3, 2])).digest(),
        ImageSet(images[::-1], labels[::-1]).digest(),
        ImageSet(images.reshape(2, 1, 4, 2), labels).digest(),
    }
    assert len(found) == 5


def test_resolving_fills_in_the_digest_and_loading_holds_it(tmp_path: Path) -> None:
    config = DigitsConfig().resolved(tmp_path)
    assert config.digest == DIGITS_TEST
    assert np.array_equal(config.load().images, DigitsConfig().read().images)


def test_loading_refuses_content_with_another_digest() -> None:
    planned = DigitsConfig(digest=DIGITS_TRAIN)
    with pytest.raises(InvalidInput) as error:
        planned.load()
    for part in ("'digits'", DIGITS_TRAIN, DIGITS_TEST, "not the ones that the driver saw"):
        assert part in str(error.value)


def test_labels_in_tables_say_the_split_only_where_it_is_not_the_test_split() -> None:
    assert DigitsConfig().label() == "digits"
    assert DigitsConfig(split="train").label() == "digits (train)"
    assert DATASETS.get("digits") is DigitsConfig and DATASETS.get("cifar10") is Cifar10Config


def test_cifar10_without_a_root_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PUREGRID_DATA", raising=False)
    with pytest.raises(InvalidInput) as error:
        Cifar10Config().resolved(tmp_path)
    for part in ("`root`", "PUREGRID_DATA", "cifar-10-batches-py", "puregrid data fetch cifar10 --root FOLDER"):
        assert part in str(error.value)


@pytest.mark.parametrize("damaged", [False, True])
def test_cifar10_that_is_missing_or_damaged_says_where_and_what_to_do(tmp_path: Path, damaged: bool) -> None:
    if damaged:
        folder = tmp_path / "data" / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        for name in ("test_batch", "batches.meta", *(f"data_batch_{i}" for i in range(1, 6))):
            (folder / name).write_bytes(b"torn")
    with pytest.raises(InvalidInput) as error:
        Cifar10Config(root="data").resolved(tmp_path)
    root = str(tmp_path / "data")
    for part in (repr(root), "cifar-10-batches-py is missing", f"puregrid data fetch cifar10 --root {root}"):
        assert part in str(error.value)


def test_the_place_of_cifar10_is_not_in_its_id() -> None:
    here, there = Cifar10Config(root="/a", digest="d"), Cifar10Config(root="/b", digest="d")
    assert here.id == there.id != Cifar10Config(root="/a", digest="e").id


@pytest.mark.slow
def test_cifar10_takes_its_root_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, data_root: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PUREGRID_DATA", str(data_root))
    config = Cifar10Config().resolved(tmp_path)
    assert config.root == str(data_root.resolve())
    assert config.digest == CIFAR10_TEST


@pytest.mark.slow
def test_cifar10_test_split_is_the_official_one(cifar10_test: ImageSet, data_root: Path) -> None:
    images, labels = cifar10_test.images, cifar10_test.labels
    assert images.shape == (10000, 3, 32, 32) and images.dtype == np.float32
    # The first test image is the cat.
    assert labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert Cifar10Config().class_names[3] == "cat"
    assert np.bincount(labels).tolist() == [1000] * 10
    assert (images[0, :, 0, 0] * 255).round().tolist() == [158, 112, 49]
    raw = pickle.loads((data_root / "cifar-10-batches-py" / "test_batch").read_bytes(), encoding="bytes")
    levels = np.rint(images * 255).astype(np.uint8)
    assert np.array_equal(levels.reshape(10000, -1), raw[b"data"])
    assert np.array_equal(levels.astype(np.float32) / np.float32(255), images)
    assert cifar10_test.digest() == CIFAR10_TEST


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five images in torchvision's layout, with torchvision's table of md5s set to theirs."""
    allow_torchvision_import()
    import torchvision.datasets

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    pixels = (np.arange(5 * 3072) % 251).astype(np.uint8).reshape(5, 3072)
    split = {"data": pixels, "fine_labels": [19, 99, 0, 7, 3], "coarse_labels": [11, 13, 4, 7, 8]}
    contents = {
        "train": pickle.dumps({key: value[:2] for key, value in split.items()}),
        "test": pickle.dumps(split),
        "meta": pickle.dumps({"fine_label_names": list(Cifar100Config().class_names)}),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    md5s = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    kind = torchvision.datasets.CIFAR100
    monkeypatch.setattr(kind, "train_list", [["train", md5s["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", md5s["test"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5s["meta"]})


class TestCifar100:
    def test_it_has_its_fine_labels_and_is_read_like_cifar10(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_cifar100(tmp_path, monkeypatch)
        config = Cifar100Config(root=str(tmp_path)).resolved(Path())
        data = config.load()
        assert data.labels.tolist() == [19, 99, 0, 7, 3]
        levels = np.rint(data.images.reshape(5, -1) * 255).astype(int)
        assert np.array_equal(levels, np.arange(5 * 3072).reshape(5, 3072) % 251)
        train = Cifar100Config(root=str(tmp_path), split="train").resolved(Path())
        assert len(train.load()) == 2 and train.digest != config.digest and train.label() == "cifar100 (train)"

    def test_its_files_are_read_once_and_again_when_they_change(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_cifar100(tmp_path, monkeypatch)
        config = Cifar100Config(root=str(tmp_path)).resolved(Path())
        with monkeypatch.context() as patch:
            patch.setattr("torchvision.datasets.CIFAR100.__init__", None)
            config.load()
        (tmp_path / "cifar-100-python" / "test").write_bytes(b"")
        with pytest.raises(InvalidInput, match="damaged"):
            config.load()

    def test_the_classes_are_the_hundred_fine_ones_in_alphabetical_order(self) -> None:
        names = Cifar100Config().class_names
        assert len(set(names)) == 100 and list(names) == sorted(names)
        assert [names[i] for i in (0, 19, 49, 99)] == ["apple", "cattle", "mountain", "worm"]

    def test_one_that_is_missing_says_its_own_folder_and_command(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput) as error:
            Cifar100Config(root=str(tmp_path)).resolved(Path())
        for part in ("CIFAR-100 is not under", "cifar-100-python is missing", "puregrid data fetch cifar100 --root"):
            assert part in str(error.value)


def write_image(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def flat(height: int, width: int, *colour: int) -> npt.NDArray[np.uint8]:
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (height, width, 3)).copy()


class TestFolder:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        # Written in another order than they are read in; one lies a folder deeper, one is grey.
        write_image(tmp_path / "pets" / "val" / "n02" / "b.png", flat(8, 8, 50, 60, 70))
        write_image(tmp_path / "pets" / "val" / "n02" / "a.png", flat(8, 8, 20, 30, 40))
        write_image(tmp_path / "pets" / "val" / "n01" / "deep" / "z.png", np.full((8, 8), 10, dtype=np.uint8))
        (tmp_path / "pets" / "val" / "n02" / "notes.txt").write_text("no image")
        (tmp_path / "list.txt").write_text("# number, name, folder\ncat n02\n\ndog n01\n")
        return tmp_path / "pets"

    def config(self, root: Path, **fields: object) -> FolderConfig:
        return FolderConfig.model_validate(
            {"root": str(root), "classes": str(root.parent / "list.txt"), "resize": 8, "crop": 4, **fields}
        )

    def test_classes_are_numbered_by_the_list_and_images_by_name(self, root: Path) -> None:
        config = self.config(root).resolved(Path())
        data = config.load()
        assert config.class_names == ("cat", "dog") and config.label() == "pets"
        assert data.labels.tolist() == [0, 0, 1]
        assert data.images.shape == (3, *config.image_shape) == (3, 3, 4, 4)
        levels = np.rint(data.images * 255).astype(int)[:, :, 0, 0].tolist()
        assert levels == [[20, 30, 40], [50, 60, 70], [10, 10, 10]]

    def test_without_a_list_the_folders_are_the_classes(self, root: Path) -> None:
        config = self.config(root, classes=None)
        assert config.class_names == ("n01", "n02")
        assert config.read().labels.tolist() == [0, 1, 1]

    def test_the_first_images_of_each_class_can_be_taken_alone(self, root: Path) -> None:
        data = self.config(root, per_class=1).read()
        assert data.labels.tolist() == [0, 1]
        assert np.rint(data.images[0, :, 0, 0] * 255).tolist() == [20, 30, 40]

    def test_the_shorter_side_is_resized_and_the_middle_is_cut_out(self, tmp_path: Path) -> None:
        # Columns of 2 pixels of one level: halved, they are columns of 1, of which 1 to 2 are the middle ones.
        columns = np.repeat(np.arange(8, dtype=np.uint8) * 10, 2)
        write_image(tmp_path / "test" / "a" / "x.png", np.broadcast_to(columns[None, :, None], (4, 16, 3)).copy())
        config = FolderConfig(root=str(tmp_path), resize=2, crop=2)
        levels = np.rint(config.read().images[0, 0] * 255)
        # 8 columns remain; the two in the middle hold 30 and 40, each with a share of its neighbours.
        assert levels.tolist() == [[30, 40], [30, 40]]

    def test_the_digest_is_of_the_decoded_pixels(self, root: Path) -> None:
        one = self.config(root).resolved(Path())
        assert one.digest == one.read().digest()
        # The same pixels in another file format and place are the same data set.
        moved = root / "elsewhere" / "val"
        shutil.copytree(root / "val", moved)
        write_image(moved / "n02" / "a.bmp", flat(8, 8, 20, 30, 40))
        (moved / "n02" / "a.png").unlink()
        other = self.config(root / "elsewhere", classes=str(root.parent / "list.txt")).resolved(Path())
        assert (other.digest, other.id) == (one.digest, one.id)
        write_image(root / "val" / "n02" / "a.png", flat(8, 8, 20, 30, 41))
        with pytest.raises(InvalidInput, match="not the ones that the driver saw"):
            one.load()

    def test_resize_crop_and_interpolation_are_in_the_id(self, root: Path) -> None:
        given = [{}, {"resize": 9}, {"crop": 5}, {"interpolation": "bicubic"}, {"per_class": 1}]
        assert len({self.config(root, **fields).id for fields in given}) == 5

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"split": "train"}, r"train split is not under .*no folder 'train'"),
            ({"crop": 9}, "crop = 9 is larger than resize = 8"),
            ({"classes": "nowhere"}, r"nowhere' cannot be read .*cifar100, imagenet30"),
            ({"classes": "imagenet30"}, r"class 'acorn' has no images: .*nor in a folder 'n12267677'"),
        ],
    )
    def test_what_is_missing_is_reported(self, root: Path, fields: dict[str, object], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            self.config(root, **fields).resolved(Path())

    def test_a_broken_image_is_named(self, root: Path) -> None:
        (root / "val" / "n02" / "c.png").write_bytes(b"torn")
        with pytest.raises(InvalidInput, match=r"c\.png' cannot be decoded"):
            self.config(root).read()

    def test_the_shipped_list_of_imagenet30_has_thirty_classes_and_folders(self) -> None:
        config = FolderConfig(classes="imagenet30", root="nowhere")
        with pytest.raises(InvalidInput, match="test split is not under"):
            config.resolved(Path())
        listed = (Path(tasks.datasets.__file__).parent / "classes" / "imagenet30.txt").read_text().splitlines()[1:]
        names, folders = zip(*(line.split() for line in listed), strict=True)
        assert len(set(names)) == len(set(folders)) == 30 and list(names) == sorted(names)
        assert all(len(folder) == 9 and folder[0] == "n" for folder in folders)
