r"""Several attacks on one defence as one attacker.

Let :math:`r_{aij}` be whether draw j of image i is right under attack a.

* Fixed AutoAttack (Liu et al., ICLR 2025) judges every candidate 20 times. Its code and its descriptions compute
  different numbers from that, so both have a name: :func:`fixed_aa_mean`,
  :math:`\min_a \frac1n\sum_i \frac1N\sum_j r_{aij}`, and :func:`fixed_aa_any`,
  :math:`\frac1n\sum_i \prod_a \prod_j r_{aij}`.
* An attacker may choose for each image the attack that hurts most, :math:`\frac1n\sum_i\min_a E_j r_{aij}`. Two
  estimates bracket that: :func:`lowest_per_image` is too low, because it selects on the draws that it judges by, and
  :func:`selected_per_image`, which selects on other draws, is too high.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from defense.errors import InvalidInput
from workflows.statistics.proportions import Proportion, average, proportion

__all__ = ["fixed_aa_any", "fixed_aa_mean", "lowest_per_image", "selected_per_image"]


Estimate = Callable[[npt.ArrayLike], Proportion]
"""From one value in [0, 1] per image to their mean and its interval."""


def fixed_aa_mean(attacks: Sequence[npt.NDArray[np.bool_]], estimate: Estimate = proportion) -> Proportion:
    """Compute Fixed AutoAttack as its authors' code does: the lowest Avg of any attack.

    It is a mean over draws, and the minimum is taken once for the data set and not per image. Liu et al., "Towards
    understanding the robustness of diffusion-based purification: a stochastic perspective", ICLR 2025, its code.

    Arguments:
        attacks: For each attack, right answers on its images, shape (n, N); N is 20 there.
        estimate: Makes the interval; Wilson's by default.

    Raises:
        InvalidInput: No attack, or other numbers of images.
    """
    _same_images(attacks)
    return min((estimate(average(correct)) for correct in attacks), key=lambda attack: attack.value)


def fixed_aa_any(attacks: Sequence[npt.NDArray[np.bool_]], estimate: Estimate = proportion) -> Proportion:
    """Compute Fixed AutoAttack as others describe it: an image is lost if it is wrong on any draw of any attack.

    DiffBreak (arXiv 2411.16598) describes it so. It is never above :func:`fixed_aa_mean`.

    Raises:
        InvalidInput: No attack, or other numbers of images.
    """
    _same_images(attacks)
    return estimate(np.all([correct.all(1) for correct in attacks], axis=0))


def lowest_per_image(attacks: Sequence[npt.NDArray[np.bool_]], estimate: Estimate = proportion) -> Proportion:
    """Average over images the lowest share of right draws under any attack.

    Biased by selection: the minimum of noisy shares is on average below the lowest true one, the more so with more
    attacks and fewer draws. For a deterministic defence it is exact.

    Raises:
        InvalidInput: No attack, or other numbers of images.
    """
    _same_images(attacks)
    return estimate(np.min([average(correct) for correct in attacks], axis=0))


def selected_per_image(attacks: Sequence[npt.NDArray[np.bool_]], estimate: Estimate = proportion) -> Proportion:
    """Choose each image's attack on half of its draws, judge it on the others, and average both ways round.

    The chosen attack is judged without bias and is no stronger than the strongest, so that
    this is on average not below the true minimum, where :func:`lowest_per_image` is not above it.

    Arguments:
        attacks: See :func:`fixed_aa_mean`; two draws or more each.
        estimate: See there.

    Raises:
        InvalidInput: No attack, other numbers of images, or an attack with one draw.
    """
    _same_images(attacks)
    if min(correct.shape[1] for correct in attacks) < 2:
        raise InvalidInput("an attack cannot be chosen on some draws and judged on others where there is one draw")
    halves = [np.stack([average(correct[:, start::2]) for correct in attacks]) for start in (0, 1)]
    images = np.arange(halves[0].shape[1])
    judged = [other[half.argmin(0), images] for half, other in (halves, halves[::-1])]
    return estimate(np.mean(judged, axis=0))


def _same_images(attacks: Sequence[npt.NDArray[np.bool_]]) -> None:
    counts = sorted({len(correct) for correct in attacks})
    if len(counts) != 1 or counts[0] == 0:
        raise InvalidInput(f"attacks are combined on the same images, at least one; these have {counts or 'none'}")
