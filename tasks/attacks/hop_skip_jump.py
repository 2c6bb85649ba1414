r"""HopSkipJump: the smallest perturbation by answers alone, along a gradient that is estimated at the boundary.

Chen, Jordan and Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", arXiv 1904.02144,
algorithms 1 and 2. With :math:`\phi(x') = 1` where the answer to x' is wrong and -1 where it is right, one iteration
t goes from a point :math:`\tilde x` at the boundary

1. along the estimated direction of the margin's gradient (equations 12 and 16),

   .. math:: \tilde v = \frac{1}{B_t - 1} \sum_{b=1}^{B_t} (\phi(\tilde x + \delta u_b) - \bar\phi)\, u_b, \qquad
             B_t = B_0 \sqrt t,

   with :math:`u_b` uniform on the sphere, v the sign of it (l_inf) or its direction (l_2),
2. by :math:`\xi = \|\tilde x - x\|_p / \sqrt t`, halved until :math:`\phi(\tilde x + \xi v) = 1`,
3. and back to the boundary by bisection towards x: on the line (l_2), or by shrinking the box around x (l_inf), to a
   share :math:`\theta` of the distance.

For images of d values, :math:`\theta = d^{-3/2}` and :math:`\delta = \sqrt d\,\theta \|\tilde x - x\|_2` (l_2), or
:math:`\theta = d^{-2}` and :math:`\delta = d\,\theta\|\tilde x - x\|_\infty` (l_inf); in the first iteration
:math:`\delta = 0.1`. The first point is uniform noise that is answered wrongly. Where all classes but that of noise
were to be found, no noise is: here the negative of the image and noise of black and white pixels are tried as well.

The attacker sees the class that the defence answers and nothing else. With several draws that is what the
**majority** of them say (the lowest class of a tie). All queries of an image are answered by the same draws, as in
:mod:`tasks.attacks.rays`: bisection of an answer that changes from query to query means nothing. An image that is
answered wrongly as it is costs one query and stays.

The image is returned at its nearest point at the boundary, or at eps if that is further away. A point at the boundary
is a wrong answer of the majority of these draws and perhaps of no other ones. So the point behind it at distance eps
is asked too, and returned where more of the draws answer wrongly. Success is not looked at.

Keys: ``("start", k)`` for the k-th trial, ``("direction", k)`` for the k-th block of directions.
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
from tasks.attacks.region import Region
from tasks.attacks.target import Target

__all__ = ["HopSkipJumpConfig"]

_FIRST_DELTA = 0.1
_TRIALS = 50
_BLOCK = 100
"""Directions whose random numbers are drawn at once."""


@ATTACKS.register("hop-skip-jump")
class HopSkipJumpConfig(AttackConfig):
    """HopSkipJump: steps along an estimated gradient at the boundary, by answers alone.

    Arguments:
        queries: Questions an image.
        first: Directions of the first estimate, B_0; the t-th has sqrt(t) times as many.
    """

    black_box: ClassVar[bool] = True
    attack: Literal["hop-skip-jump"] = "hop-skip-jump"
    queries: int = Field(default=5000, ge=1)
    first: int = Field(default=100, ge=2, le=10_000)

    def method(self) -> str:
        """``hop-skip-jump-5000 l2 decisions``."""
        return f"hop-skip-jump-{self.queries} {self.norm} decisions"

    @property
    def evaluations(self) -> int:
        """The queries, and two for the points of which one is returned."""
        return self.queries + 2

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`."""
        answers = replace(target, fixed=True)
        search = _Search(answers, x, omega, self)
        search.start()
        t = 1
        while search.asking():
            search.iterate(t)
            t += 1
        near, far = search.ends()
        at, beyond = (answers.evaluate(images, point_loss("margin")) for images in (near, far))
        fooled = [(each.logits.argmax(-1) != answers.labels[:, None]).sum(1) for each in (at, beyond)]
        further = fooled[1] > fooled[0]
        images = torch.where(further.view(-1, 1, 1, 1), far, near)
        target.calls, target.evaluations = answers.calls, sum(target.tally.evaluations.values())
        return AttackResult(images, torch.where(further, beyond.loss, at.loss))


class _Search:
    """Points at the boundary of a batch; every image asks its own questions."""

    def __init__(self, target: Target, x: Tensor, omega: Omega, config: HopSkipJumpConfig) -> None:
        self.target, self.x, self.omega, self.config = target, x, omega, config
        size = x[0].numel()
        self.theta = size**-1.5 if config.norm == "l2" else size**-2.0
        self.delta_share = (math.sqrt(size) if config.norm == "l2" else size) * self.theta
        self.left = torch.full((len(x),), config.queries, device=x.device)
        self.point = x.clone()  # the last one at the boundary
        self.best = x.clone()  # the nearest of them
        self.best_distance = torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
        self.searching = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.blocks = 0

    def asking(self) -> bool:
        """Whether any image has a point and questions left."""
        return bool((self.searching & (self.left > 0)).any())

    def start(self) -> None:
        """Find a wrong answer for each image, and the boundary before it."""
        everybody = torch.arange(len(self.x), device=self.x.device)
        without = everybody[~self._wrong(everybody, self.x)]
        for trial in range(_TRIALS):
            without = without[self.left[without] > 0]
            if not len(without):
                break
            noise = self.omega.select(without.tolist()).uniform("start", trial, self.x[without])
            if trial == 1:
                noise = 1 - self.x[without]
            elif trial % 2:
                noise = noise.round()
            wrong = self._wrong(without, noise)
            found = without[wrong]
            if len(found):
                self.searching[found] = True
                self._to_boundary(found, noise[wrong])
            without = without[~wrong]

    def iterate(self, t: int) -> None:
        """One iteration of the images that have questions left."""
        who = torch.nonzero(self.searching & (self.left > 0)).flatten()
        distance = self._distance(who, self.point[who])
        delta = torch.full_like(distance, _FIRST_DELTA) if t == 1 else self.delta_share * distance
        v = self._direction(who, delta, int(self.config.first * math.sqrt(t)))
        step = distance / math.sqrt(t)
        going = torch.arange(len(who), device=who.device)
        while len(going := going[self.left[who[going]] > 0]):
            moved = (self.point[who[going]] + step[going].view(-1, 1, 1, 1) * v[going]).clamp(0, 1)
            wrong = self._wrong(who[going], moved)
            if wrong.any():
                self._to_boundary(who[going[wrong]], moved[wrong])
            going = going[~wrong]
            step = step / 2
            # A step below what float32 can tell: the estimate points nowhere.
            given_up = going[step[going] < 1e-7]
            self.searching[who[given_up]] = False
            going = going[step[going] >= 1e-7]

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the nearest points, in the ball, and those behind them at the distance eps."""
        region = Region(self.x, self.config.norm, self.config.eps)
        everybody = torch.arange(len(self.x), device=self.x.device)
        distance = self._distance(everybody, self.best).clamp_min(1e-12)
        scale = (self.config.eps / distance).view(-1, 1, 1, 1)
        return region.project(self.best), region.project((self.x + scale * (self.best - self.x)).clamp(0, 1))

    def _distance(self, who: Tensor, images: Tensor) -> Tensor:
        away = (images - self.x[who]).flatten(1)
        distance: Tensor = away.norm(dim=1) if self.config.norm == "l2" else away.abs().amax(1)
        return distance

    def _wrong(self, who: Tensor, images: Tensor) -> Tensor:
        """Ask about images of some positions, which may come several times; whether the majority is wrong."""
        self.left -= torch.bincount(who, minlength=len(self.x))
        some = self.target.select(who)
        with torch.no_grad():
            logits = some.logits(images)
        votes = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).sum(1)
        wrong: Tensor = votes.argmax(1) != some.labels
        return wrong

    def _direction(self, who: Tensor, delta: Tensor, count: int) -> Tensor:
        """Return v of each image, estimated of ``count`` answers or of as many as it has left."""
        # Sums of phi, of phi u and of u: nothing grows with the number of directions.
        total = torch.zeros(len(who), 1, dtype=self.x.dtype, device=who.device)
        asked, weighted, plain = torch.zeros_like(total), torch.zeros_like(self.x[who]), torch.zeros_like(self.x[who])
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            shape = (_BLOCK, *self.x.shape[1:])
            u = self.omega.select(who.tolist()).normal("direction", self.blocks, self.x[who], shape)[:, :size]
            self.blocks += 1
            u = u / u.flatten(2).norm(dim=2).view(len(who), size, 1, 1, 1)
            at = (self.point[who].unsqueeze(1) + delta.view(-1, 1, 1, 1, 1) * u).clamp(0, 1)
            # What is asked is the clamped image, and so the estimate is made of what it really moved.
            u = (at - self.point[who].unsqueeze(1)) / delta.view(-1, 1, 1, 1, 1)
            answered = torch.arange(size, device=who.device) < self.left[who].unsqueeze(1)
            rows, columns = answered.nonzero(as_tuple=True)
            phi = torch.zeros(len(who), size, dtype=u.dtype, device=u.device)
            if len(rows):
                phi[rows, columns] = torch.where(self._wrong(who[rows], at[rows, columns]), 1.0, -1.0).to(u)
            total, asked = total + phi.sum(1, keepdim=True), asked + phi.abs().sum(1, keepdim=True)
            weighted = weighted + torch.einsum("nb,nbchw->nchw", phi, u)
            plain = plain + torch.einsum("nb,nbchw->nchw", phi.abs(), u)
        mean = total / asked.clamp_min(1)
        # Where all answers are alike their mean is not taken away: nothing would be left.
        mean = torch.where(mean.abs() == 1, torch.zeros_like(mean), mean).view(-1, 1, 1, 1)
        v = weighted - mean * plain
        length = v.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        along: Tensor = v.sign() if self.config.norm == "linf" else v / length
        return along

    def _to_boundary(self, who: Tensor, images: Tensor) -> None:
        """Bisect from images that are answered wrongly towards the clean ones, and keep where that ends."""
        x, distance = self.x[who], self._distance(who, images)

        def between(place: Tensor, share: Tensor) -> Tensor:
            share = share[place].view(-1, 1, 1, 1)
            if self.config.norm == "l2":
                return x[place] + share.to(x) * (images[place] - x[place])
            reach = (share * distance[place].view(-1, 1, 1, 1)).to(x)
            return torch.minimum(torch.maximum(images[place], x[place] - reach), x[place] + reach)

        low = torch.zeros(len(who), dtype=torch.float64, device=x.device)
        high = torch.ones_like(low)
        places = torch.arange(len(who), device=x.device)
        # All images halve in step, so that none is closer than its threshold before the others.
        for _ in range(math.ceil(-math.log2(self.theta))):
            some = places[self.left[who] > 0]
            if not len(some):
                break
            middle = (low + high) / 2
            wrong = self._wrong(who[some], between(some, middle))
            high[some[wrong]] = middle[some[wrong]]
            low[some[~wrong]] = middle[some[~wrong]]
        point = between(places, high)
        self.point[who] = point
        near = self._distance(who, point)
        better = near < self.best_distance[who]
        self.best[who[better]], self.best_distance[who[better]] = point[better], near[better]
