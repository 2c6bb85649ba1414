"""The contract of data sets.

A data set is images with labels in a fixed order, known by its content: a row names an image by its position, so the
same config must give the same pixels at the same positions, on every machine and at every reading.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from defense.errors import InvalidInput
from puregrid.testing.demands import LabelledSpecContract, under_global_seeds
from tasks.datasets import DatasetConfig

__all__ = ["DatasetContract"]


class DatasetContract(LabelledSpecContract):
    """The suite. Every method whose name starts with ``test_`` is one demand."""

    @abstractmethod
    def config(self) -> DatasetConfig:
        """Return the config under test, resolved; few images are enough."""

    def test_images_are_float32_in_0_to_1_and_of_the_shape_that_is_said(self) -> None:
        """Shape (N, C, H, W); normalisation is the classifier's."""
        config = self.config()
        images = config.read().images
        expected = (len(images), *config.image_shape)
        assert images.dtype == np.float32, f"images are {images.dtype}; float32 in [0, 1] is wanted"
        assert images.shape == expected, f"images have shape {images.shape}, config.image_shape says {expected}"
        low, high = float(images.min()), float(images.max())
        assert low >= 0 and high <= 1, (
            f"pixels reach from {low:.4g} to {high:.4g}; divide by 255, and leave normalisation to the classifier"
        )

    def test_labels_are_class_numbers(self) -> None:
        """One for each image, int64, from 0 to the number of classes less 1."""
        config = self.config()
        data = config.read()
        classes = len(config.class_names)
        assert data.labels.dtype == np.int64, f"labels are {data.labels.dtype}; int64 is wanted"
        assert data.labels.shape == (len(data.images),), (
            f"labels have shape {data.labels.shape} for {len(data.images)} images"
        )
        assert len(data.labels) > 0, "there is no image"
        least, greatest = int(data.labels.min()), int(data.labels.max())
        assert least >= 0 and greatest < classes, (
            f"labels reach from {least} to {greatest}, but there are {classes} class names, numbered from 0"
        )

    def test_class_names_tell_classes_apart(self) -> None:
        """Tables show them."""
        names = self.config().class_names
        assert len(names) >= 2 and all(names), f"class names {names!r}: at least two are wanted, none of them empty"
        assert len(set(names)) == len(names), f"a class name is given twice: {names!r}"

    def test_every_reading_has_the_same_images_in_the_same_order(self) -> None:
        """By one config, and by one that was made anew, as on another worker."""
        config = self.config()
        first = config.read()
        for again, how in ((config.read(), "a second time"), (self.config().read(), "by a config made anew")):
            same = np.array_equal(again.images, first.images) and np.array_equal(again.labels, first.labels)
            assert same, f"read {how}, images or labels differ, or their order does"

    def test_order_does_not_depend_on_the_listing_of_folders(self) -> None:
        """File systems list in no order; ids count through a sorted list."""
        config = self.config()
        first = config.read()
        with _listings_reversed():
            turned = config.read()
        assert np.array_equal(turned.images, first.images) and np.array_equal(turned.labels, first.labels), (
            "where folders are listed in reverse the images come in another order: sort the names"
        )

    def test_global_random_states_have_no_influence_and_stay(self) -> None:
        """No shuffling, no sampling but by fields of the config."""
        config = self.config()
        first, second = under_global_seeds(config.read, "the data set")
        assert np.array_equal(first.images, second.images) and np.array_equal(first.labels, second.labels), (
            "a global seed changed the images, the labels or their order"
        )

    def test_writing_into_what_was_read_does_not_reach_the_next_reading(self) -> None:
        """All units of a worker share what it has read: an array is a copy, or cannot be written into."""
        config = self.config()
        first = config.read()
        expected = first.images.copy()
        if not first.images.flags.writeable:
            return
        first.images[:] = 0.5
        try:
            assert np.array_equal(config.read().images, expected), "what was written into the images is read again"
        finally:
            first.images[:] = expected

    def test_digest_is_of_the_content_and_of_nothing_else(self) -> None:
        """Another pixel, label or order is another digest; the same content has the same."""
        config = self.config()
        data = config.read()
        assert config.digest == data.digest(), f"the config holds digest {config.digest}, its images {data.digest()}"
        copy = replace(data, images=data.images.copy(), labels=data.labels.copy())
        assert copy.digest() == data.digest(), "a copy of the images has another digest"
        pixels, labels = data.images.copy(), data.labels.copy()
        pixels[-1, -1, -1, -1] = 0 if pixels[-1, -1, -1, -1] > 0 else 1
        labels[-1] += 1
        order = np.arange(len(data))[::-1]
        for other, what in (
            (replace(data, images=pixels), "pixel"),
            (replace(data, labels=labels), "label"),
            (replace(data, images=data.images[order], labels=data.labels[order]), "order"),
        ):
            assert other.digest() != data.digest(), f"another {what} has the same digest"

    def test_content_with_another_digest_is_refused(self) -> None:
        """A worker whose files are not those of the driver says so."""
        config = self.config()
        config.load()
        try:
            config.model_copy(update={"digest": "0" * 64}).load()
        except InvalidInput:
            return
        raise AssertionError("load() returned images whose digest is not the config's")

    def test_id_is_that_of_the_content(self) -> None:
        """The digest is in the id, and resolving again changes nothing."""
        config = self.config()
        assert config.resolved(Path()).id == config.id, "a config that is resolved twice has another id"
        other = config.model_copy(update={"digest": "0" * 64})
        assert other.id != config.id, "the id does not depend on the digest"


@contextmanager
def _listings_reversed() -> Iterator[None]:
    """Let the system list folders backwards, through whatever Python function it is asked."""
    listdir, scandir = os.listdir, os.scandir

    class Reversed:
        def __init__(self, *arguments: Any) -> None:
            with scandir(*arguments) as entries:
                self._entries = iter(list(entries)[::-1])

        def __iter__(self) -> Iterator[Any]:
            return self._entries

        def __next__(self) -> Any:
            return next(self._entries)

        def __enter__(self) -> Reversed:
            return self

        def __exit__(self, *error: object) -> None:
            self.close()

        def close(self) -> None:
            self._entries = iter(())

    def backwards(*arguments: Any) -> list[Any]:
        return listdir(*arguments)[::-1]

    os.listdir, os.scandir = backwards, Reversed  # type: ignore[assignment]
    try:
        yield
    finally:
        os.listdir, os.scandir = listdir, scandir
