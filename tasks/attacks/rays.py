r"""RayS: the smallest l_inf perturbation by answers alone.

Chen and Gu, "RayS: a ray searching method for hard-label adversarial attack", arXiv 2006.12792, algorithms 1 to 3.
Among the directions :math:`d \in \{-1, 1\}^n` it looks for the one along which the answer changes first,

.. math:: \min_d\ r(d), \qquad r(d) = \min\{r : c(\mathrm{clamp}(x + r\,d)) \ne y\},

by turning the signs of one block of pixels after the other, blocks halved after each pass (1, 2, 4, ... blocks). A
turned direction is better if the answer at the best radius so far is wrong; then its radius is found by bisection to
``tolerance``. An image costs its queries, whatever the others of its batch do.

The attacker sees the class that the defence answers and nothing else: a *decision-only* black box. With several
draws that is the class of their mean probability. All queries of an image are answered by the same draws (as in
:mod:`tasks.attacks.square`): an answer that changes from query to query makes bisection meaningless.

The image is returned at its best radius, or at eps if that is further away. Success is not looked at.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from defense.randomness import Omega
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.losses import point_loss
from tasks.attacks.region import Norm, Region
from tasks.attacks.target import Target

__all__ = ["RaySConfig"]


@ATTACKS.register("rays")
class RaySConfig(AttackConfig):
    """RayS: search of a ray by answers alone.

    Arguments:
        queries: Questions an image.
        tolerance: Of radii, units of [0, 1] pixels.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    black_box: ClassVar[bool] = True
    attack: Literal["rays"] = "rays"
    queries: int = Field(default=5000, ge=1)
    tolerance: float = Field(default=1e-3, gt=0, lt=1)

    def method(self) -> str:
        """``rays-5000 linf decisions``."""
        return f"rays-{self.queries} {self.norm} decisions"

    @property
    def evaluations(self) -> int:
        """The queries, and one for the loss in the rows."""
        return self.queries + 1

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`. Nothing is drawn."""
        answers = replace(target, fixed=True)
        search = _Search(answers, x, self.queries, self.tolerance)
        level, block = 0, 0
        pixels = x[0].numel()
        while search.asking():
            if level < 0 or 2**level > pixels:
                level = 0
            size = -(-pixels // 2**level)
            search.turn(block * size, min((block + 1) * size, pixels))
            block += 1
            if block * size >= pixels:
                level, block = level + 1, 0
        radius = search.radius.clamp_max(self.eps).view(-1, 1, 1, 1)
        images = Region(x, "linf", self.eps).project(x + radius * search.direction.view_as(x))
        result = AttackResult(images, answers.evaluate(images, point_loss("margin")).loss)
        target.calls, target.evaluations = answers.calls, sum(target.tally.evaluations.values())
        return result


class _Search:
    """Directions and radii of a batch; every image asks its own questions."""

    def __init__(self, target: Target, x: Tensor, queries: int, tolerance: float) -> None:
        self.target, self.x, self.tolerance = target, x, tolerance
        self.direction = torch.ones_like(x).flatten(1)
        self.radius = torch.ones(len(x), device=x.device, dtype=x.dtype)
        self.left = torch.full((len(x),), queries, device=x.device)
        everybody = torch.arange(len(x), device=x.device)
        self._bisect(everybody[self._wrong(everybody, self.direction, self.radius)], self.direction)

    def asking(self) -> bool:
        """Whether any image has questions left."""
        return bool((self.left > 0).any())

    def turn(self, start: int, stop: int) -> None:
        """Turn the signs of some pixels where that brings the wrong answer nearer."""
        who = torch.nonzero(self.left > 0).flatten()
        turned = self.direction.clone()
        turned[:, start:stop] *= -1
        self._bisect(who[self._wrong(who, turned, self.radius)], turned)

    def _wrong(self, who: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
        """Ask each of some images once; return which answers are wrong, shape of ``who``."""
        some = self.target.select(who)
        at = (self.x[who].flatten(1) + radius[who, None] * direction[who]).clamp(0, 1).view_as(self.x[who])
        self.left[who] -= 1
        answer = some.logits(at).softmax(-1).mean(1).argmax(1)
        return answer != some.labels

    def _bisect(self, who: Tensor, direction: Tensor) -> None:
        """Find the radii of directions that are known to be wrong at the radii so far, and take them over."""
        if not len(who):
            return
        self.direction[who] = direction[who]
        low, high = torch.zeros_like(self.radius), self.radius.clone()
        open_ones = who
        while True:
            open_ones = open_ones[(high - low)[open_ones] > self.tolerance]
            open_ones = open_ones[self.left[open_ones] > 0]
            if not len(open_ones):
                break
            middle = (low + high) / 2
            wrong = self._wrong(open_ones, direction, middle)
            high[open_ones[wrong]] = middle[open_ones[wrong]]
            low[open_ones[~wrong]] = middle[open_ones[~wrong]]
        self.radius[who] = high[who]
