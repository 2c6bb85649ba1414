r"""Square Attack: random search with square windows, by scores alone.

Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", arXiv
1912.00049, algorithms 1 to 3.

Query i proposes a change in windows of :math:`s \times s` pixels that cover a share :math:`p_i` of the image,
:math:`s = \mathrm{round}\sqrt{p_i H W}`; it is kept if the loss rises. p starts at ``p_init`` and is halved after
10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries, whatever the number of queries (what the reference calls
no rescaling).

* l_inf: the start is :math:`\pm\varepsilon` in vertical stripes, one sign per column and channel. A proposal sets a
  window to :math:`+\varepsilon` or :math:`-\varepsilon`, one sign per channel.
* l_2: the start is a tiling of windows, about five by five, each with the profile :math:`\pm\eta`: two rectangles of
  opposite sign that fade with the distance from their middles, the whole turned by 90 degrees in half of the cases. A
  proposal takes all of window 2's mass and what is missing to :math:`\varepsilon`, and puts it into window 1, along
  :math:`\pm\eta` plus what is there already (algorithm 3).
* l_1 (Croce and Hein, arXiv 2103.01208): as l_2, with l_1 norms, profiles that fade with the fourth power
  of the distance instead of the second, and the projection on ball and range in place of the scaling.

**Scores of a stochastic defence** are made of ``eot`` draws. A comparison of two proposals on different draws is one
of their luck: the search keeps the luckiest value that it ever saw, and soon accepts nothing more. So by default all
queries are answered with the same draws, those of the first call (``fixed_scores``). They are the attacker's own:
the rows are judged on others. With ``fixed_scores: false`` each query has fresh draws, which is what an attacker
faces who can do no more than submit images; the loss in the result is then that lucky value.

Not as in the reference:

* each image has its own windows and signs; there, all images of a batch share the windows;
* a window may lie at the last row and column, as in the paper; there it never does, which on images of 8 x 8 pixels
  is worth 5 to 17 points of accuracy after 300 queries;
* success is not looked at; there, an image is done once it is misclassified, and a proposal that is misclassified is
  kept at no gain in loss. Here every image costs all of its queries.
"""

import math
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

__all__ = ["SquareConfig", "window_share", "window_side"]

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_BLOCK = 250
"""Queries whose random numbers are drawn at once, with key ``("query", number of the block)``: opening a stream costs
more than filling it."""


@ATTACKS.register("square")
class SquareConfig(AttackConfig):
    """Square Attack.

    Arguments:
        queries: Proposals, after the start.
        p_init: First share of the image that a window covers, in (0, 1].
        loss: ``margin`` or ``ce``.
        fixed_scores: Answer all queries with the same draws, see the module; without meaning for static attacks.
        stop_on_success: Do not question further about images that are broken, looked at every 250 queries. For
            defences without randomness, where it changes no verdict; refused elsewhere.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    black_box: ClassVar[bool] = True
    attack: Literal["square"] = "square"
    queries: int = Field(default=5000, ge=1)
    p_init: float = Field(default=0.8, gt=0, le=1)
    loss: Literal["margin", "ce"] = "margin"
    fixed_scores: bool = True
    stop_on_success: bool = False

    def method(self) -> str:
        """``square-5000 linf``, with the loss where it is not the margin."""
        name = f"square-{self.queries} {self.norm}" + ("" if self.loss == "margin" else f" {self.loss}")
        return name if self.static or self.fixed_scores else f"{name} fresh scores"

    @property
    def evaluations(self) -> int:
        """The start and the queries, forward alone."""
        return self.queries + 1

    @property
    def stops(self) -> bool:
        """See :class:`AttackConfig`."""
        return self.stop_on_success

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`."""
        region = Region(x, self.norm, self.eps)
        scores = replace(target, fixed=target.fixed or self.fixed_scores)
        best = (_stripes if self.norm == "linf" else _tiles)(region, omega)
        loss = scores.evaluate(best, point_loss(self.loss)).loss
        left = torch.arange(len(x), device=x.device)
        for block in range(math.ceil(self.queries / _BLOCK)):
            if block and self.stop_on_success:
                left = scores.unbroken(best)
                if not len(left):
                    break
            if len(left) == len(x):
                best, loss = self._search(scores, region, omega, best, loss, block)
                continue
            part = scores.select(left), Region(x[left], self.norm, self.eps), omega.select(left.tolist())
            best, loss = best.clone(), loss.clone()
            best[left], loss[left] = self._search(*part, best[left], loss[left], block)
        target.calls, target.evaluations = scores.calls, sum(target.tally.evaluations.values())
        return AttackResult(best, loss)

    def _search(
        self, scores: Target, region: Region, omega: Omega, best: Tensor, best_loss: Tensor, block: int
    ) -> tuple[Tensor, Tensor]:
        """One block of queries from the best images so far; returns the better ones and their losses."""
        loss = point_loss(self.loss)
        propose, places = (_square, _ONE_WINDOW) if self.norm == "linf" else (_move, _TWO_WINDOWS)
        height, width = best.shape[2:]
        numbers = omega.uniform("query", block, best, shape=(_BLOCK, places + best.shape[1])).unbind(1)
        first = block * _BLOCK
        for query, uniform in zip(range(first, min(first + _BLOCK, self.queries)), numbers, strict=False):
            side = window_side(window_share(query, self.p_init), height, width, self.norm)
            proposal = propose(region, best, side, uniform)
            value = scores.evaluate(proposal, loss).loss
            better = value > best_loss
            best = torch.where(better.view(-1, 1, 1, 1), proposal, best)
            best_loss = torch.where(better, value, best_loss)
        return best, best_loss


def window_share(query: int, p_init: float) -> float:
    """Return the share of the image that the windows of this query cover."""
    return float(p_init / 2 ** sum(query > limit for limit in _HALVINGS))


def window_side(share: float, height: int, width: int, norm: str) -> int:
    """Side of the windows, at least 1 pixel and at most the image; odd and at least 3 for l_2 and l_1."""
    side = max(round(math.sqrt(share * height * width)), 1)
    if norm != "linf":
        side = max(side, 3)
        side += side % 2 == 0
    return min(side, height, width)


_ONE_WINDOW, _TWO_WINDOWS = 2, 5
"""Uniform numbers of a query apart from the signs: (row, column), or both of two windows and a turn."""


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _places(uniform: Tensor, count: int) -> Tensor:
    """Uniform among 0 ... count - 1. In float64, whose product with a float32 below 1 does not round up."""
    return (uniform.double() * count).floor().long()


def _stripes(region: Region, omega: Omega) -> Tensor:
    channels, _, width = region.x.shape[1:]
    signs = _signs(omega.uniform("stripes", 0, region.x, shape=(channels, 1, width)))
    return torch.where(signs > 0, region.upper, region.lower)


def _square(region: Region, best: Tensor, side: int, uniform: Tensor) -> Tensor:
    height, width = best.shape[2:]
    row = _places(uniform[:, 0], height - side + 1).view(-1, 1, 1, 1)
    column = _places(uniform[:, 1], width - side + 1).view(-1, 1, 1, 1)
    rows = torch.arange(height, device=best.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=best.device).view(1, 1, 1, -1)
    inside = (rows >= row) & (rows < row + side) & (columns >= column) & (columns < column + side)
    signs = _signs(uniform[:, _ONE_WINDOW:, None, None])
    # Adding 2 eps to an image of the region and projecting leads to its border, from wherever.
    return torch.where(inside, torch.where(signs > 0, region.upper, region.lower), best)


def _tiles(region: Region, omega: Omega) -> Tensor:
    x = region.x
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    rows, columns = (range(max(n - 5 * side, 0) // 2, n - side + 1, side) for n in (height, width))
    corners = [(row, column) for row in rows for column in columns]
    numbers = omega.uniform("tiles", 0, x, shape=(len(corners), 1 + channels))
    delta = torch.zeros_like(x)
    for (row, column), uniform in zip(corners, numbers.unbind(1), strict=True):
        delta[:, :, row : row + side, column : column + side] = _profiles(side, uniform, region.norm)
    return _fitted(region, delta)


def _move(region: Region, best: Tensor, side: int, uniform: Tensor) -> Tensor:
    count, channels, height, width = best.shape
    delta = best - region.x
    windows = []
    for k in (0, 2):
        row = _places(uniform[:, k], height - side + 1)
        column = _places(uniform[:, k + 1], width - side + 1)
        reach = torch.arange(side, device=best.device)
        windows.append(
            (
                torch.arange(count, device=best.device).view(-1, 1, 1, 1),
                torch.arange(channels, device=best.device).view(1, -1, 1, 1),
                (row.view(-1, 1) + reach).view(count, 1, side, 1),
                (column.view(-1, 1) + reach).view(count, 1, 1, side),
            )
        )
    first, second = windows
    union = torch.zeros_like(delta)
    union[first] = 1
    union[second] = 1
    power = _POWERS[region.norm]
    in_windows = _mass(delta * union, power)
    missing = (region.eps**power - _mass(delta, power).sum(1, keepdim=True)).clamp_min(0) / channels
    window = delta[first]
    shape = _profiles(side, uniform[:, _TWO_WINDOWS - 1 :], region.norm) + window / (_norm(window, power) + 1e-12)
    size = (missing + in_windows) ** (1 / power)
    if region.norm == "l1":
        size = size * channels  # more than the ball holds: the projection is to make it sparse
    moved = delta.clone()
    moved[second] = 0
    moved[first] = shape / (_norm(shape, power) + 1e-12) * size
    return _fitted(region, moved)


_POWERS = {"l2": 2, "l1": 1}


def _mass(window: Tensor, power: int) -> Tensor:
    """Sum of the sizes or squares in each channel, shape (B, C, 1, 1)."""
    return window.abs().pow(power).sum((2, 3), keepdim=True)


def _norm(window: Tensor, power: int) -> Tensor:
    """Return the norm of each channel, shape (B, C, 1, 1)."""
    return _mass(window, power) ** (1 / power)


def _fitted(region: Region, delta: Tensor) -> Tensor:
    """Return the image of a perturbation: scaled to the sphere for l_2, projected for l_1."""
    if region.norm == "l2":
        size = delta.square().sum((1, 2, 3), keepdim=True).sqrt()
        delta = region.eps * delta / (size + 1e-12)
    return region.project(region.x + delta)


def _profiles(side: int, uniform: Tensor, norm: Norm) -> Tensor:
    """Signed profiles, shape (B, C, side, side), of numbers of shape (B, 1 + C): the turn, and the signs."""
    profile = _profile(side, norm).to(uniform)
    turned = (uniform[:, 0] > 0.5).view(-1, 1, 1, 1)
    return torch.where(turned, profile.T, profile) * _signs(uniform[:, 1:, None, None])


def _profile(side: int, norm: Norm) -> Tensor:
    r""":math:`\eta` of unit norm, shape (side, side)."""
    upper, lower = side // 2, side - side // 2
    profile = torch.cat([_pyramid(upper, side, norm), -_pyramid(lower, side, norm)])
    unit: Tensor = profile / profile.norm(p=_POWERS[norm])
    return unit


def _pyramid(rows: int, columns: int, norm: Norm) -> Tensor:
    """Rectangles around the middle, the k-th of side 2 k - 1 and height 1 / k^2, for l_1 1 / k^4, of unit norm."""
    total = torch.zeros(rows, columns)
    if rows == 0:
        return total
    middle, centre = rows // 2, columns // 2
    for k in range(1, max(middle, centre) + 2):
        top, left = max(middle - k + 1, 0), max(centre - k + 1, 0)
        total[top : middle + k, left : centre + k] += 1 / k ** (4 if norm == "l1" else 2)
    unit: Tensor = total / total.norm(p=_POWERS[norm])
    return unit
