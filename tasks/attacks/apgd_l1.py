r"""Auto-PGD in the l_1 ball: sparse steps, and a budget that shrinks to its size.

Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", arXiv 2103.01208.

.. math:: x_{k+1} = \Pi\Big(x_k + a\, \frac{s}{\|s\|_1}\Big), \qquad
          s_i = \begin{cases} \mathrm{sign}\, \partial_i L(x_k) & i \text{ among the } q\, d
                \text{ components of largest size} \\ 0 & \text{else} \end{cases}

with d components, :math:`\Pi` the projection on ball *and* range at once, and a = eps at first. Every 4% of the steps
q becomes the share of components in which the best iterate differs from the image, over 1.5. Where their number has
fallen by more than 5% since, the step size is eps again and the run goes back to its best iterate; else the step size
is divided by 1.5, down to eps / 10. There is no momentum.

The larger budgets: 30% of the steps in the ball of 3 eps, 30% in that of 2 eps, the rest in that of eps. Each part
starts at the best iterate of the one before, projected.

As in the reference implementation, a run from a random point has q = 1/5 at first; with larger budgets, each part has
what the rule says of its start. Not as there, pixels count as changed only if they are: it adds the projection's step
to the image in floating point, whose rounding errors it counts, and so takes denser steps than its rule says.
"""

import math

import torch
from torch import Tensor

from tasks.attacks.best import Best
from tasks.attacks.losses import PointLoss
from tasks.attacks.region import Region, largest_signs
from tasks.attacks.target import Target

__all__ = ["BestIterate", "budgets", "sparse_ascend"]

_FIRST_SHARE = 0.2
_SHRINK = 1.5
_LEAST_STEP = 10


def budgets(steps: int) -> list[tuple[float, int]]:
    """Return the radii of the larger budgets, in units of eps, and the steps in each."""
    first = math.ceil(0.3 * steps)
    return [(3.0, first), (2.0, first), (1.0, steps - 2 * first)]


def sparse_ascend(
    target: Target,
    region: Region,
    start: Tensor,
    loss: PointLoss,
    steps: int,
    best: Best | None,
    goes_on: bool = False,
) -> Tensor:
    """One run from ``start``.

    Arguments:
        target: The attacked function.
        region: Budget.
        start: First iterate, shape (B, C, H, W).
        loss: What is maximised.
        steps: Gradient steps, each followed by an evaluation.
        best: Is shown all iterates, unless None: those of a larger budget are nobody's result.
        goes_on: Whether the start is where another run ended.

    Returns:
        The best iterate of this run.
    """
    x, size_of_image = region.x, region.x[0].numel()
    at = target.differentiate(start, loss)
    assert at.gradient is not None
    if best is not None:
        best.see(start, at.loss)
    best_iterate = BestIterate(start, at.gradient, at.loss)
    current, gradient = start, at.gradient
    if goes_on:
        changed = _changed(start, x)
        share = changed / size_of_image / _SHRINK
    else:
        changed = torch.full_like(at.loss, size_of_image)
        share = torch.full_like(at.loss, _FIRST_SHARE)
    size = torch.full((len(start), 1, 1, 1), region.eps, dtype=start.dtype, device=start.device)
    interval = max(int(0.04 * steps), 1)
    for step in range(1, steps + 1):
        rank = ((1 - share) * size_of_image).clamp(0, size_of_image - 1).long()
        current = region.project(current + size * largest_signs(gradient, size_of_image - rank))
        at = target.differentiate(current, loss) if step < steps else target.evaluate(current, loss)
        if best is not None:
            best.see(current, at.loss)
        if at.gradient is None:  # the last: nobody will follow its gradient
            best_iterate.see(current, gradient, at.loss)
            break
        gradient = at.gradient
        best_iterate.see(current, gradient, at.loss)
        if step % interval == 0:
            now = _changed(best_iterate.images, x)
            sparser = (now / changed < 0.95).view(-1, 1, 1, 1)
            changed, share = now, now / size_of_image / _SHRINK
            size = torch.where(sparser, region.eps, (size / _SHRINK).clamp_min(region.eps / _LEAST_STEP))
            current = torch.where(sparser, best_iterate.images, current)
            gradient = torch.where(sparser, best_iterate.gradient, gradient)
    return best_iterate.images


def _changed(images: Tensor, x: Tensor) -> Tensor:
    """In how many components each image differs from the clean one, shape (B,)."""
    return (images != x).flatten(1).sum(1).to(x.dtype)


class BestIterate:
    """The best iterate of one run with its gradient: where the run goes back to."""

    def __init__(self, images: Tensor, gradient: Tensor, loss: Tensor) -> None:
        self.images, self.gradient, self.loss = images, gradient, loss

    def see(self, images: Tensor, gradient: Tensor, loss: Tensor) -> None:
        """Keep what is better."""
        better = loss > self.loss
        where = better.view(-1, 1, 1, 1)
        self.images = torch.where(where, images, self.images)
        self.gradient = torch.where(where, gradient, self.gradient)
        self.loss = torch.where(better, loss, self.loss)
