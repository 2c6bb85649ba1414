"""The exact geometry of a budget.

The budget is a ball around the image, ``||x_adv - x||_p <= eps`` in units of [0, 1] pixels, cut with the image
range [0, 1]. Both hold exactly for the stored float32 images: bounds are formed in float64 and rounded inwards,
so that a check of stored images in float64 never finds one outside.
"""

from typing import Literal

import torch
from torch import Tensor

from defense.randomness import Omega

__all__ = ["Norm", "Region", "largest_signs", "perturbation_norms"]

Norm = Literal["linf", "l2", "l1", "flow", "lpips"]


def perturbation_norms(x_adv: Tensor, x: Tensor) -> dict[str, Tensor]:
    """l_inf, l_2 and l_1 norm of each perturbation, in float64, shape (B,)."""
    delta = (x_adv.double() - x.double()).flatten(1)
    return {"linf": delta.abs().amax(1), "l2": delta.norm(dim=1), "l1": delta.abs().sum(1)}


class Region:
    """The images that an attacker may submit: ball cut with [0, 1].

    Arguments:
        x: Clean images in [0, 1], float32, shape (B, C, H, W).
        norm: Norm of the ball.
        eps: Its radius.
    """

    def __init__(self, x: Tensor, norm: Norm, eps: float) -> None:
        self.x = x
        self.norm: Norm = norm
        self.eps = eps
        if norm == "linf":
            # Rounded inwards: float32 of x + eps may lie half a unit in the last place outside the ball.
            exact = x.double()
            lower, upper = (exact - eps).float().clamp(0, 1), (exact + eps).float().clamp(0, 1)
            self.lower = _nearer(lower, x, exact - lower.double() > eps)
            self.upper = _nearer(upper, x, upper.double() - exact > eps)
        else:
            self._centre = x.double()

    def project(self, x: Tensor, *, strict: bool = True) -> Tensor:
        """Nearest point of the region for l_inf and l_1; for l_2, scaled into the ball, then clamped to the range.

        Clamping to a range that holds the centre only shortens the perturbation, so the result is in both. Without
        ``strict`` an l_2 projection may end outside by a rounding, and costs a fraction: for points on the way to one
        that is projected again.
        """
        if self.norm == "linf":
            return x.clamp(self.lower, self.upper)
        centre = self._centre
        if self.norm == "l2" and not strict:
            near = x - self.x
            length = near.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
            scale: Tensor = (self.eps / length).clamp_max(1)
            return (self.x + near * scale).clamp(0, 1)
        if self.norm == "l1":
            inside = x.clamp(0, 1)
            # What is in the range and, beyond doubt of float64 sums, in the ball stays as it is.
            outside = _l1(inside.double() - centre) > self.eps * (1 - 1e-12)
            return torch.where(outside, self._inwards(_onto_l1_ball(x.double() - centre, centre, self.eps)), inside)
        delta = x.double() - centre
        size = delta.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
        # Short of the sphere by what a float64 sum may err.
        moved = self._inwards(delta * (self.eps * (1 - 1e-9) / size))
        return torch.where(size > self.eps, moved, x).clamp(0, 1)

    def shown(self, x: Tensor) -> Tensor:
        """Return the image that a point of an attack stands for: itself."""
        return x

    def _inwards(self, delta: Tensor) -> Tensor:
        """Return the image of a float64 perturbation, every pixel rounded to float32 towards the centre.

        Where all pixels are equal, their roundings would not cancel.
        """
        moved = (self._centre + delta).float()
        return _nearer(moved, self.x, (moved.double() - self._centre).abs() > delta.abs())

    def random_start(self, omega: Omega, restart: int = 0) -> Tensor:
        """Return a uniform point of the ball (keys ``("start", 2 r)`` and ``("start", 2 r + 1)``), projected."""
        if self.norm == "linf":
            return self.project(self.x + self.eps * (2 * omega.uniform("start", 2 * restart, self.x) - 1))
        if self.norm == "l2":
            direction = omega.normal("start", 2 * restart, self.x)
            unit = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        else:
            # Exponential numbers over their sum are uniform on the simplex; signs take it to the faces of the ball.
            numbers = omega.uniform("start", 2 * restart, self.x, shape=(2, *self.x.shape[1:])).double()
            sizes = -torch.log1p(-numbers[:, 0])
            unit = (sizes / _l1(sizes).clamp_min(1e-300) * torch.where(numbers[:, 1] < 0.5, -1.0, 1.0)).to(self.x)
        radius = omega.uniform("start", 2 * restart + 1, self.x, shape=(1, 1, 1)) ** (1 / self.x[0].numel())
        return self.project(self.x + self.eps * radius * unit)

    def ascend(self, x: Tensor, gradient: Tensor, size: float | Tensor, *, strict: bool = True) -> Tensor:
        """Steepest ascent in this norm, then projected, as strictly as :meth:`project` says.

        That is ``size * sign(g)`` for l_inf, ``size * g / ||g||_2`` for l_2, and for l_1 ``size * sign(g)`` in the
        one pixel of largest gradient. ``size`` is one for all images or one an image, shape (B, 1, 1, 1).
        """
        if self.norm == "linf":
            return self.project(x + size * gradient.sign())
        if self.norm == "l1":
            return self.project(x + size * largest_signs(gradient, torch.ones_like(x[:, 0, 0, 0], dtype=torch.long)))
        # In two stages: a tiny gradient must neither underflow when squared nor count as zero.
        scale = gradient.flatten(1).abs().amax(1).view(-1, 1, 1, 1).clamp_min(torch.finfo(gradient.dtype).tiny)
        gradient = gradient / scale
        length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-12)
        return self.project(x + size * gradient / length, strict=strict)


def _nearer(x: Tensor, goal: Tensor, where: Tensor) -> Tensor:
    """Return the next float towards ``goal`` where asked, else ``x`` itself.

    By arithmetic, which is exact between neighbouring floats: where each pixel is chosen as if by chance,
    ``torch.where`` spends most of its time on branches that the processor guessed wrong.
    """
    return x.nextafter(goal).sub_(x).mul_(where).add_(x)


def largest_signs(gradient: Tensor, count: Tensor) -> Tensor:
    """Return signs of the largest components of each image's gradient and zero elsewhere, scaled to unit l_1 norm.

    Arguments:
        gradient: Shape (B, C, H, W).
        count: How many components, shape (B,), at least 1. Those that equal the smallest of them are taken too.
    """
    sizes = gradient.flatten(1).abs()
    least = sizes.sort(1, descending=True).values.gather(1, count.unsqueeze(1) - 1)
    signs = torch.where(sizes >= least, gradient.flatten(1).sign(), 0.0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


def _l1(delta: Tensor) -> Tensor:
    return delta.flatten(1).abs().sum(1).view(-1, *[1] * (delta.dim() - 1))


def _onto_l1_ball(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    r"""The perturbation nearest to ``delta`` with l_1 norm at most eps and ``x + delta`` in [0, 1], in float64.

    By the conditions of optimality its pixels are

    .. math:: \mathrm{sign}(\delta_i)\, \min(\max(|\delta_i| - \lambda,\, 0),\, b_i)

    with :math:`b_i` the room that pixel i has in the direction of :math:`\delta_i`, and the least
    :math:`\lambda \ge 0` for which the norm is at most eps. The norm falls with :math:`\lambda`, linearly between the
    points :math:`|\delta_i|` and :math:`|\delta_i| - b_i`. These are sorted, bisection finds the piece on which
    the norm passes eps, and there a linear equation is left.
    """
    sizes = delta.flatten(1).abs()
    room = torch.where(delta.flatten(1) > 0, 1 - x.flatten(1), x.flatten(1))

    def shrunk(by: Tensor) -> Tensor:
        return torch.minimum((sizes - by).clamp_min(0), room)

    bends = torch.cat([torch.zeros_like(sizes[:, :1]), sizes, (sizes - room).clamp_min(0)], 1).sort(1).values
    # The norm exceeds eps at the lower end of the piece, if anywhere, and not at the upper.
    lower = torch.zeros(len(sizes), 1, dtype=torch.long, device=sizes.device)
    upper = torch.full_like(lower, bends.shape[1] - 1)
    for _ in range(bends.shape[1].bit_length()):
        middle = (lower + upper) // 2
        exceeds = shrunk(bends.gather(1, middle)).sum(1, keepdim=True) > eps
        lower, upper = torch.where(exceeds, middle, lower), torch.where(exceeds, upper, middle)
    start, stop = bends.gather(1, lower), bends.gather(1, upper)
    shrinking = ((sizes >= stop) & (sizes - room <= start)).sum(1, keepdim=True).clamp_min(1)
    excess = (shrunk(start).sum(1, keepdim=True) - eps).clamp_min(0)
    magnitudes = shrunk(torch.minimum(start + excess / shrinking, stop))
    # For what a float64 sum may err; and for components so large that their last digit is larger than the room.
    magnitudes = magnitudes * (eps * (1 - 1e-9) / magnitudes.sum(1, keepdim=True).clamp_min(1e-300)).clamp_max(1)
    return (delta.flatten(1).sign() * magnitudes).view_as(delta)
