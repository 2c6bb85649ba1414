"""The built-in data sets pass the published contract suite, which catches who breaks it."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from holding import demands, failed, hold_alone
from PIL import Image

from defense.torchvision_cpu import allow_torchvision_import
from puregrid.testing import DatasetContract
from tasks.datasets import DATASETS, Cifar10Config, DatasetConfig, FolderConfig, ImageSet


class Digits(DatasetContract):
    def __init__(self, split: str = "test") -> None:
        self.split = split

    def config(self) -> DatasetConfig:
        return DATASETS.get("digits").model_validate({"dataset": "digits", "split": self.split}).resolved(Path())


class Folder(DatasetContract):
    """Five images of two classes, made here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        for name, count in (("cat", 3), ("dog", 2)):
            (root / "test" / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "test" / name / f"{number}.png")

    def config(self) -> DatasetConfig:
        return FolderConfig(root=str(self.root), resize=10, crop=8).resolved(Path())


class Cifar10(DatasetContract):
    def __init__(self, root: Path) -> None:
        self.root = root

    def config(self) -> DatasetConfig:
        return Cifar10Config(root=str(self.root)).resolved(Path())


@pytest.mark.parametrize("split", ["test", "train"])
def test_digits_keep_the_contract(split: str) -> None:
    assert failed(Digits(split)) == {}


def test_an_image_folder_keeps_the_contract(tmp_path: Path) -> None:
    assert failed(Folder(tmp_path)) == {}


def test_cifar10_keeps_the_contract(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first hundred images of the file: the demands read it some thirty times."""
    allow_torchvision_import()
    from torchvision.datasets import CIFAR10

    whole, part = (root / CIFAR10.base_folder for root in (data_root, tmp_path))
    batch = pickle.loads((whole / "test_batch").read_bytes(), encoding="latin1")
    part.mkdir()
    (part / "test_batch").write_bytes(pickle.dumps({name: batch[name][:100] for name in ("data", "labels")}))
    shutil.copy(whole / CIFAR10.meta["filename"], part)
    md5 = hashlib.md5((part / "test_batch").read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5]])
    monkeypatch.setattr(CIFAR10, "train_list", [])
    assert len(Cifar10(tmp_path).config().read()) == 100
    assert failed(Cifar10(tmp_path)) == {}


KEPT = np.random.default_rng(1).random((4, 1, 3, 3)).astype(np.float32)


class Shallow(ImageSet):
    """Images whose digest looks at their number alone."""

    def digest(self) -> str:
        return str(len(self))


class ToyConfig(DatasetConfig):
    """Four images, or something that breaks the contract in one way."""

    dataset: Literal["toy"] = "toy"
    how: str = "right"
    folder: str = ""
    number: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, 3, 1) if self.how == "channels last" else (1, 3, 3)

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("a", "b", "b") if self.how == "one name twice" else ("a", "b", "c")

    def label(self) -> str:
        return "" if self.how == "label" else super().label()

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        if self.how == "identity":
            found["how"] = "right"
        if self.how == "no digest":
            found["digest"] = None
        return found

    def canonical(self) -> str:
        return super().canonical() + self.how

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        if self.how == "pickle":
            self.__dict__["split"] = "train"

    def checked(self) -> ImageSet:
        # The look at what is returned would refuse most of these: the demands must find them without it.
        return self.read()

    def load(self) -> ImageSet:
        return self.read() if self.how == "unchecked" else super().load()

    def resolved(self, base: Path) -> DatasetConfig:
        # The number is no field that says anything of the images.
        return super().resolved(base)

    def read(self) -> ImageSet:
        images, labels = KEPT.copy(), np.array([2, 0, 1, 0])
        if self.how == "global":
            np.random.rand(1)
        if self.how == "anew" and self.number % 2:
            images, labels = images[::-1].copy(), labels[::-1].copy()
        if self.how == "listing":
            order = [int(name) for name in os.listdir(self.folder)]
            images, labels = images[order], labels[order]
        if self.how == "shallow":
            return Shallow(images, labels)
        broken: dict[str, Callable[[], tuple[Any, Any]]] = {
            "bytes": lambda: ((255 * images).astype(np.uint8), labels),
            "to 255": lambda: (255 * images, labels),
            "from 1": lambda: (images, labels + 1),
            "int32": lambda: (images, labels.astype(np.int32)),
            "shared": lambda: (KEPT, labels),
        }
        return ImageSet(*broken.get(self.how, lambda: (images, labels))())


class Broken(DatasetContract):
    def __init__(self, how: str, folder: Path) -> None:
        self.how, self.folder, self.made = how, folder, 0
        for number in range(4):
            (folder / str(number)).touch()

    def config(self) -> DatasetConfig:
        made = ToyConfig(how=self.how, folder=str(self.folder))
        if self.how == "anew":  # something of the process that no field says
            object.__setattr__(made, "number", self.made)
            self.made += 1
        return made.resolved(Path())


def test_a_data_set_that_does_nothing_wrong_passes(tmp_path: Path) -> None:
    assert failed(Broken("right", tmp_path)) == {}


BROKEN = [
    ("to 255", "images_are_float32_in_0_to_1_and_of_the_shape_that_is_said", "divide by 255"),
    ("channels last", "images_are_float32_in_0_to_1_and_of_the_shape_that_is_said", "config.image_shape says"),
    ("from 1", "labels_are_class_numbers", "labels reach from 1 to 3, but there are 3 class names"),
    ("int32", "labels_are_class_numbers", "labels are int32"),
    ("one name twice", "class_names_tell_classes_apart", "a class name is given twice"),
    ("anew", "every_reading_has_the_same_images_in_the_same_order", "read by a config made anew"),
    ("listing", "order_does_not_depend_on_the_listing_of_folders", "sort the names"),
    ("global", "global_random_states_have_no_influence_and_stay", "drew from a global random generator"),
    ("shared", "writing_into_what_was_read_does_not_reach_the_next_reading", "is read again"),
    ("shallow", "digest_is_of_the_content_and_of_nothing_else", "another pixel has the same digest"),
    ("unchecked", "content_with_another_digest_is_refused", "whose digest is not the config's"),
    ("no digest", "id_is_that_of_the_content", "the id does not depend on the digest"),
    ("identity", "spec_survives_reading_its_own_identity", "was read back as"),
    ("pickle", "config_can_be_pickled", "on its way through pickle"),
    ("label", "label_says_something", "is no label for a table"),
]


@pytest.mark.parametrize(("how", "demand", "message"), BROKEN)
def test_a_breach_fails_its_demand_alone(how: str, demand: str, message: str, tmp_path: Path) -> None:
    hold_alone(Broken(how, tmp_path), demand, message)


def test_bytes_are_refused_though_they_spoil_more(tmp_path: Path) -> None:
    found = failed(Broken("bytes", tmp_path))
    assert "images are uint8" in found["test_images_are_float32_in_0_to_1_and_of_the_shape_that_is_said"]


def test_every_demand_can_fail() -> None:
    assert {f"test_{demand}" for _, demand, _ in BROKEN} == set(demands(DatasetContract))
