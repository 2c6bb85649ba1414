"""The contract of corruptions.

A corruption maps 8-bit images to 8-bit images: a function of the image, its id, the seed and the severity, so that an
image is corrupted the same in any batch and on any worker.
"""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from puregrid.testing.demands import LabelledSpecContract, under_global_seeds
from tasks.corruptions import SEVERITIES, Corrupted
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DatasetConfig, DigitsConfig, ImageSet

__all__ = ["CorruptionContract"]

_SPREAD = 7
"""Image ids are this far apart: they are no positions."""


class CorruptionContract(LabelledSpecContract):
    """The suite. Every method whose name starts with ``test_`` is one demand.

    Attributes:
        random: Whether images of other ids or seeds are corrupted otherwise.
        monotone: Whether a higher severity moves images farther, in the mean. Constants that were ordered by how
            networks fail need not.
    """

    random: ClassVar[bool] = False
    monotone: ClassVar[bool] = True

    @abstractmethod
    def config(self) -> CorruptionConfig:
        """Return the config under test, at any severity."""

    def dataset(self) -> DatasetConfig:
        """Return the data set that the images belong to."""
        return DigitsConfig()

    def images(self) -> npt.NDArray[np.float32]:
        """At least four different 8-bit images in [0, 1], with structure, shape (B, C, H, W)."""
        y, x = np.mgrid[:32, :32] / 32
        pictures = []
        for number in range(4):
            wave = 0.5 + 0.3 * np.sin(2 * np.pi * (x * (1 + number % 3) + y * (1 + number // 3)))
            disk = ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.06 + 0.01 * number) * 0.3
            pictures.append(np.stack([wave, 0.7 * wave + disk, 0.2 + disk + 0.3 * y]))
        return np.asarray(np.rint(np.clip(pictures, 0, 1) * 255) / 255, dtype=np.float32)

    def _corrupt(
        self,
        config: CorruptionConfig,
        positions: Sequence[int] | None = None,
        seed: int = 0,
        images: npt.NDArray[np.float32] | None = None,
    ) -> Corrupted:
        images = self.images() if images is None else images
        ids = np.arange(len(images)) * _SPREAD
        # A data set in which the images lie at those ids, and nothing else does.
        pixels = np.zeros((int(ids[-1]) + 1, *images.shape[1:]), dtype=np.float32)
        pixels[ids] = images
        data = ImageSet(pixels, np.zeros(len(pixels), dtype=np.int64))
        chosen = ids if positions is None else ids[list(positions)]
        return config.apply(self.dataset(), data, chosen, seed)

    def _at(self, severity: int) -> CorruptionConfig:
        return self.config().model_copy(update={"severity": severity})

    def test_result_is_8_bit_images_that_say_what_they_are(self) -> None:
        """At each of the five severities."""
        x = self.images()
        for severity in SEVERITIES:
            config = self._at(severity)
            result = self._corrupt(config)
            assert result.pixels.dtype == np.uint8, f"pixels are {result.pixels.dtype}; uint8 is wanted"
            assert result.pixels.shape == x.shape, f"images of shape {x.shape} became {result.pixels.shape}"
            reported = (result.corruption, result.severity, result.origin)
            wanted = (config.corruption, severity, config.origin)
            assert reported == wanted, f"the result says that it is {reported}; the config says {wanted}"

    def test_images_are_left_as_they_were(self) -> None:
        """All corruptions and severities share them."""
        x = self.images()
        data = ImageSet(x.copy(), np.zeros(len(x), dtype=np.int64))
        self.config().apply(self.dataset(), data, np.arange(len(x)), 0)
        assert np.array_equal(data.images, x), "the corruption changed the clean images in place"

    def test_same_key_gives_same_bits(self) -> None:
        """Twice by one config, and by one that was made anew."""
        config, anew = self.config(), self.config()
        first = self._corrupt(config).pixels
        assert np.array_equal(self._corrupt(config).pixels, first), "a second call gave other images"
        assert np.array_equal(self._corrupt(anew).pixels, first), "a config that was made anew gave other images"

    def test_image_is_corrupted_alike_in_any_batch(self) -> None:
        """Alone and in another order, to the bit."""
        config, count = self.config(), len(self.images())
        whole = self._corrupt(config).pixels
        alone = self._corrupt(config, [count - 1]).pixels
        turned = self._corrupt(config, range(count - 1, -1, -1)).pixels
        assert np.array_equal(alone, whole[-1:]), "alone an image is corrupted otherwise than in a batch"
        assert np.array_equal(turned[::-1], whole), "in another order images are corrupted otherwise"

    def test_other_ids_and_seeds_differ_if_and_only_if_it_is_random(self) -> None:
        """Otherwise all images would share their noise, or a fixed map would be drawn anew."""
        config, x = self.config(), self.images()
        same = np.repeat(x[:1], len(x), 0)
        ids = self._corrupt(config, images=same).pixels
        seeds = self._corrupt(config, images=same, seed=1).pixels
        by_id = any(not np.array_equal(image, ids[0]) for image in ids[1:])
        by_seed = not np.array_equal(ids, seeds)
        for differs, what in ((by_id, "id"), (by_seed, "seed")):
            assert differs == self.random, (
                f"the same image under another {what} is corrupted {'otherwise' if differs else 'alike'}, but the "
                f"corruption is said to be {'random' if self.random else 'without randomness'}"
            )

    def test_global_random_states_have_no_influence_and_stay(self) -> None:
        """Random numbers come from seed and image id alone."""
        config = self.config()
        first, second = under_global_seeds(lambda: self._corrupt(config).pixels, "the corruption")
        assert np.array_equal(first, second), "a global seed changed the images"

    def test_higher_severity_moves_images_farther(self) -> None:
        """In the root mean square over all images, and severity 5 moves them at all."""
        x = np.tile(self.images(), (4, 1, 1, 1))
        distances = [
            float(np.sqrt(((self._corrupt(self._at(severity), images=x).images - x) ** 2).mean()))
            for severity in SEVERITIES
        ]
        assert distances[-1] > 1 / 255, f"severity 5 moves pixels by {distances[-1]:.3g} in the mean: by nothing"
        if self.monotone:
            rises = all(more > 0.98 * less for less, more in pairwise(distances))
            shown = ", ".join(f"{distance:.4f}" for distance in distances)
            assert rises, f"severities 1 to 5 move pixels by {shown} in the mean: not farther and farther"
