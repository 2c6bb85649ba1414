r"""Whether an attack's images are no more than its random starts.

Every random number is a function of its key, so the point at which PGD began on an image can be drawn again from the
attack's spec, the seed and the image (:meth:`tasks.attacks.base.Region.random_start`), in any store, without a row
that says so.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from defense.randomness import NoiseVersion, Omega
from tasks.attacks import AttackConfig, PGDConfig
from tasks.attacks.region import Region
from workflows.audit.about import about, percent
from workflows.audit.finding import Finding
from workflows.audit.view import View

__all__ = ["Starts"]

EXPECTED = 0.25
"""Share of images, beyond what pure noise gives, on which nothing better than the start may be found."""

UNLIKELY = 0.01
"""p, by the exact binomial test, of a share as large as the one that was found where no more are expected."""

LEAST = 5
"""Images that a share is taken of."""

SATURATED = 1e-5
"""Cross-entropy below which float32 has steps of 1e-7 and less than a hundred values."""

SAME = 1e-6
"""Largest difference of a pixel that rounding on another device may make."""


class Starts:
    """The images of one attack that are its random starts; nothing for attacks that have none."""

    def __init__(self, attack: AttackConfig, seed: int, noise: NoiseVersion) -> None:
        random = isinstance(attack, PGDConfig) and attack.random_start and attack.keep == "best" and not attack.warm
        self._attack = attack if random and isinstance(attack, PGDConfig) else None
        self._seed = seed
        self._noise = noise
        self._at_start: dict[int, bool] = {}

    def add(self, images: npt.NDArray[np.float32], clean: npt.NDArray[np.float32], ids: Sequence[int]) -> None:
        """Compare the images of a chunk with their starts."""
        if self._attack is None:
            return
        region = Region(torch.from_numpy(np.ascontiguousarray(clean)), self._attack.norm, self._attack.eps)
        omega = Omega.of(self._attack.id, self._seed, "attack", ids, noise=self._noise)
        same = np.zeros(len(ids), dtype=bool)
        for restart in range(self._attack.restarts):
            start = region.random_start(omega, restart).numpy()
            same |= (np.abs(images - start) <= SAME).all(axis=(1, 2, 3))
        self._at_start |= dict(zip(ids, same.tolist(), strict=True))

    def verdict(self, view: View, members: Sequence[View]) -> Iterator[Finding]:
        """Yield ``no-gain-over-start`` where the images that are still right are random starts too often.

        The attack returns the best of n + 1 points, and by noise alone that is the first one time in n + 1. Images on
        which the loss is saturated are left out: a cross-entropy below 1e-5 has a few values in float32, and often
        the same at all points. Where its gradient is zero as well, that is said by ``zero-gradients``.
        """
        if self._attack is None or not self._at_start:
            return
        loss = view.attack_rows["loss"].to_numpy()
        saturated = (loss >= 0) & (loss < SATURATED) if self._attack.loss == "ce" else np.zeros(len(loss), dtype=bool)
        left = view.right_before & (np.nan_to_num(view.right_after) > 0.5) & ~saturated
        ids = view.attack_rows["image_id"].to_numpy()[left]
        known = [self._at_start[image] for image in ids.tolist() if image in self._at_start]
        if len(known) < LEAST:
            return
        share, noise = float(np.mean(known)), 1 / (self._attack.steps + 1)
        if stats.binomtest(sum(known), len(known), min(EXPECTED + noise, 1), alternative="greater").pvalue < UNLIKELY:
            yield about(
                "no-gain-over-start",
                "warning",
                members,
                f"On {percent(share)} of the {len(known)} images that it left right, the attack submits its random "
                f"start: no point of {self._attack.steps} gradient steps had a higher loss.",
                {"share": share, "images": len(known), "by_noise": noise},
                "Check the sign and size of the gradient and of the step, and whether the loss is saturated.",
            )
