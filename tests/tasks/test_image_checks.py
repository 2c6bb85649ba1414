"""What a data set hands over is looked at: every fault is refused with what it is, and sound ones pass unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import every

from defense.errors import InvalidInput
from tasks.compute import Context
from tasks.datasets import DatasetConfig, DigitsConfig, ImageSet

DIGITS = DigitsConfig().read()


class Handed(DatasetConfig):
    """A data set that hands over whatever it is told to."""

    dataset: str = "handed"
    shape: tuple[int, int, int] = (1, 8, 8)
    names: tuple[str, ...] = tuple("0123456789")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.shape

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.names

    def read(self) -> ImageSet:
        return HANDED[0]


HANDED: list[Any] = [DIGITS]


def refused(images: Any, labels: Any, **fields: Any) -> str:
    HANDED[0] = ImageSet(images, labels)
    with pytest.raises(InvalidInput) as error:
        Handed(**fields).resolved(Path())
    # A worker sees the same: a config with another digest would be refused for that.
    with pytest.raises(InvalidInput):
        Context().images(Handed(**fields))
    return str(error.value)


IMAGES, LABELS = DIGITS.images, DIGITS.labels


@every(
    ("images", "labels", "words"),
    [
        (IMAGES * 255, LABELS, ["0 to 255", "divide by 255"]),
        ((IMAGES * 16).astype(np.float32), LABELS, ["0 to 16", "divide by 255"]),
        (IMAGES * 2 - 1, LABELS, ["-1 to 1", "(images + 1) / 2"]),
        ((IMAGES - 0.3) / 0.35, LABELS, ["standardised", "`mean`, `std`"]),
        (IMAGES / 255, LABELS, ["0 to 0.003922", "twice"]),
        (IMAGES * 0 - np.float32(0.5), LABELS, ["[-1, 1]"]),
        (np.where(IMAGES == 1, np.nan, IMAGES), LABELS, ["NaN or infinite"]),
        (np.where(IMAGES == 1, np.inf, IMAGES), LABELS, ["NaN or infinite"]),
        ((IMAGES * 255).astype(np.uint8), LABELS, ["uint8", "/ 255"]),
        ((IMAGES > 0.5), LABELS, ["bool"]),
        (IMAGES.transpose(0, 2, 3, 1), LABELS, ["(H, W, C)", "transpose(0, 3, 1, 2)"]),
        (IMAGES[:, 0], LABELS, ["(599, 8, 8)", "one channel"]),
        (IMAGES[:, :, :7], LABELS, ["(599, 1, 7, 8)", "(1, 8, 8)"]),
        (IMAGES.repeat(3, 1), LABELS, ["(599, 3, 8, 8)"]),
        (IMAGES[:0], LABELS[:0], ["no image"]),
        (IMAGES.tolist(), LABELS, ["list", "numpy array"]),
        (IMAGES[:579], LABELS, ["579 images and 599 labels"]),
        (IMAGES, LABELS[:-1], ["599 images and 598 labels"]),
        (IMAGES, LABELS - 1, ["from -1 to 8", "below 0"]),
        (IMAGES, LABELS + 1, ["from 1 to 10", "subtract 1"]),
        (IMAGES, np.where(LABELS == 3, 255, LABELS), ["to 255", "10 classes"]),
        (IMAGES, LABELS.astype(np.float64), ["float64"]),
        (IMAGES, np.eye(10, dtype=np.int64)[LABELS], ["labels.argmax(1)"]),
        (IMAGES, [str(label) for label in LABELS], ["whole number"]),
        (IMAGES, LABELS == 3, ["bool"]),
    ],
)
def test_what_is_no_data_set_of_images_is_refused_with_what_it_is(images: Any, labels: Any, words: list[str]) -> None:
    message = refused(images, labels)
    assert "handed" in message
    for word in words:
        assert word in message


def test_an_image_shape_that_names_the_channels_last_is_refused() -> None:
    assert "(H, W, C)" in refused(IMAGES.transpose(0, 2, 3, 1), LABELS, shape=(8, 8, 1))
    assert "(H, W, C)" in refused(np.zeros((4, 32, 32, 3), np.float32), LABELS[:4], shape=(32, 32, 3))


def test_something_else_than_an_image_set_is_refused() -> None:
    HANDED[0] = (IMAGES, LABELS)
    with pytest.raises(InvalidInput, match=r"returns tuple where a tasks\.datasets\.ImageSet"):
        Handed().resolved(Path())


@pytest.mark.parametrize("pixels", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("numbers", [np.uint8, np.int32, np.int64])
def test_other_widths_of_sound_images_are_the_same_data_set(pixels: type, numbers: type) -> None:
    # Sixteen grey levels: exact in each of them.
    HANDED[0] = ImageSet(IMAGES.astype(pixels), LABELS.astype(numbers))
    config = Handed().resolved(Path())
    loaded = config.load()
    assert loaded.images.dtype == np.float32 and loaded.labels.dtype == np.int64
    assert np.array_equal(loaded.images, IMAGES) and np.array_equal(loaded.labels, LABELS)
    assert config.digest == DigitsConfig().resolved(Path()).digest


def selected(images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], ids: Any, **fields: Any) -> None:
    HANDED[0] = ImageSet(images, labels)
    Handed(**fields).check_selected(list(ids))


def test_repeated_images_are_counted() -> None:
    ids = np.arange(599) % 60
    with pytest.raises(InvalidInput, match=r"539 of the 599 selected images repeat others.*number 60 is number 0"):
        selected(IMAGES[ids], LABELS[ids], range(599))
    selected(IMAGES[ids], LABELS[ids], range(60))
    selected(IMAGES[ids], LABELS[ids], range(599), accept=("duplicates",))
    few = np.concatenate([np.arange(590), np.arange(5)])
    selected(IMAGES[few], LABELS[few], range(595))  # five of 595: a large data set may hold some
    more = np.concatenate([np.arange(590), np.arange(7)])
    with pytest.raises(InvalidInput, match="7 of the 597"):
        selected(IMAGES[more], LABELS[more], range(597))


def test_one_class_alone_is_refused_where_it_is_no_accident() -> None:
    order = np.argsort(LABELS, kind="stable")
    with pytest.raises(InvalidInput, match=r"all 20 selected images are of class 0.*every: N"):
        selected(IMAGES[order], LABELS[order], range(20))
    selected(IMAGES[order], LABELS[order], range(9))
    selected(IMAGES[order], LABELS[order], range(0, 599, 20))
    selected(IMAGES[order], LABELS[order], range(20), accept=("one-class",))


def test_accepting_changes_no_id() -> None:
    assert DigitsConfig(accept=("duplicates",)).id == DigitsConfig().id


@given(
    scale=st.floats(0.05, 1.0), shift=st.floats(0.0, 1.0), ids=st.lists(st.integers(0, 598), min_size=1, max_size=20)
)
def test_images_in_range_pass_unchanged_and_others_do_not(scale: float, shift: float, ids: list[int]) -> None:
    images = (IMAGES[ids] * scale + shift).astype(np.float32)
    HANDED[0] = ImageSet(images, LABELS[ids])
    inside = float(images.max()) <= 1
    if inside:
        assert np.array_equal(Handed().checked().images, images)
    else:
        with pytest.raises(InvalidInput, match="where \\[0, 1\\] is needed"):
            Handed().checked()
