r"""Central differences against autograd, at fixed randomness, in float64.

For a part D, a random cotangent w and a direction u of changes of +-1 in every pixel,

.. math:: s_h(u) = \frac{\langle w, D(x + h u; \omega)\rangle - \langle w, D(x - h u; \omega)\rangle}{2h}, \qquad
          a(u) = \langle g, u\rangle, \quad g = \nabla_x \langle w, D(x; \omega)\rangle \text{ by autograd.}

Where a is the derivative, :math:`s_h \to a` until rounding takes over, as :math:`h^2`; with a kink between the two
ends the error is of the order of the change of slope at this h and vanishes at a smaller one. A wrong gradient is as
wrong at every h. So each image and direction is judged at the h that agrees best (:data:`LOCAL`), and a part by the
share of them that agree at none.

At the size of an attack's steps (:data:`ATTACK`) a true derivative may still say nothing: of a rounding it is zero,
and that of a wave of short period is large and points anywhere. There the agreement
over directions, and of it the median over images,

.. math:: 2 \langle s, a\rangle / (\|s\|^2 + \|a\|^2) = 1 - \|s - a\|^2 / (\|s\|^2 + \|a\|^2),

which is 1 for equal slopes and 0 for unrelated ones or where either is much larger, says how much of a change the
gradient predicts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from defense.probe.borders import no_way_in
from defense.probe.record import Check, ModeGradient, answer, not_applicable
from defense.probe.subject import LARGE, Subject

__all__ = [
    "ATTACK",
    "LOCAL",
    "Differences",
    "elsewhere",
    "gradient",
    "gradient_at_attack_scale",
    "loss_gradient",
    "measure",
    "mode_gradient",
]

LOCAL = (1e-7, 1e-5, 1e-4, 1e-3)
"""Step sizes h at which a derivative is one, in pixels of [0, 1]."""

ATTACK = (4 / 255, 16 / 255)
"""Step sizes of attacks."""

_TOLERANCE, _TOLERANCE_32 = 2e-3, 2e-2
"""Relative error from which on an image and direction disagree: of parts in float64, and of those that cannot be.

The first is above that of parts which use float32 inside.
"""

_TOGETHER = 48
"""Images that go through the function at once."""


@dataclass(frozen=True)
class Differences:
    """Slopes of a part by central differences.

    Arguments:
        slopes: s_h(u), shape (H, N, K): step sizes :data:`LOCAL` and :data:`ATTACK`, images, directions.
        directions: u, shape (N, K, C, H, W).
    """

    subject: Subject
    slopes: Tensor
    points: Tensor
    directions: Tensor
    weight: Tensor

    def along(self, gradient: Tensor) -> Tensor:
        """Return a(u), shape (N, K), of a gradient, shape (N, C, H, W)."""
        return (self.directions * gradient.unsqueeze(1)).flatten(2).sum(2)

    def autograd(self, mode: str) -> Tensor:
        """Return the gradient of a mode, shape (N, C, H, W)."""
        return self.subject.gradient(self.points, self.subject.omega(len(self.points)), self.weight, mode)[1]

    @cached_property
    def exact(self) -> Tensor:
        """The gradient of the exact mode."""
        return self.autograd("exact")

    @cached_property
    def rounding(self) -> Tensor:
        """What rounding leaves of the slopes of a constant at the largest h, shape (N, 1)."""
        out = self.subject.value(self.points, self.subject.omega(len(self.points)))
        terms = (out * self.weight).double().abs().flatten(1).sum(1, keepdim=True).cpu()
        return terms * torch.finfo(out.dtype).eps / LOCAL[-1]

    def errors(self, gradient: Tensor) -> Tensor:
        """Return the relative error of each image and direction at the step size that agrees best, shape (N, K)."""
        a, s = self.along(gradient), self.slopes[: len(LOCAL)]
        # A direction in which nothing happens to change is measured against the others of its image.
        usual = torch.maximum(s.abs().median(0).values, a.abs()).square().mean(1, keepdim=True).sqrt()
        scale = torch.maximum(torch.maximum(s.abs(), a.abs()), 0.1 * usual)
        error = torch.where(scale > 0, ((s - a).abs() - self.rounding).clamp(min=0) / scale, torch.zeros_like(s))
        return error.nan_to_num(nan=1.0).min(0).values if bool(gradient.isfinite().all()) else torch.ones_like(a)

    @property
    def smooth(self) -> bool:
        """Whether slopes at the two ends of three decades of step sizes agree to a hundredth on half of all."""
        low, high = self.slopes[1], self.slopes[len(LOCAL) - 1]
        moving = high.abs() > 0.1 * self.slopes[len(LOCAL)].square().mean().sqrt()
        return bool(moving.any()) and float(((low - high).abs() < 0.01 * high.abs())[moving].double().mean()) > 0.5

    @property
    def rough(self) -> bool:
        """Whether slopes over the smallest steps are other ones than over the largest on most."""
        low, high = self.slopes[0], self.slopes[len(LOCAL) - 1]
        apart = float(((low - high).abs() > 0.05 * high.abs()).double().mean())
        return self.subject.images.dtype == torch.float64 and apart > 0.5

    def cosine(self, gradient: Tensor) -> float | None:
        """Return the largest cosine with the slopes at the scale of attacks; None where nothing changes."""
        return self._best(gradient, lambda s, a: float(s @ a / (s.norm() * a.norm())) if float(a.norm()) > 0 else 0.0)

    def agreement(self, gradient: Tensor) -> float | None:
        """Return the largest agreement with the slopes at the scale of attacks; None where nothing changes.

        It is the median over images: one of a sound part may lie at a jump that outweighs all others.
        """

        def median(s: Tensor, a: Tensor) -> float:
            s, a = s.reshape(len(self.points), -1), a.reshape(len(self.points), -1)
            both = (s * s).sum(1) + (a * a).sum(1)
            return float((2 * (s * a).sum(1) / both)[both > 0].median())

        return self._best(gradient, median)

    def _best(self, gradient: Tensor, how: Callable[[Tensor, Tensor], float]) -> float | None:
        a = self.along(gradient).flatten()
        moving = [s for s in self.slopes[len(LOCAL) :].flatten(1) if float(s.norm()) > 0]
        return max((how(s, a) for s in moving), default=None)


def measure(subject: Subject, images: int, directions: int) -> Differences:
    """Measure slopes in directions of random signs, of which the last one is constant over blocks of pixels."""
    images = min(images, len(subject.images))
    x, omega = _generic(subject.images[:images]), subject.omega(images)
    inside = ((0.499999 - (x - 0.5).abs()) / ATTACK[-1]).clamp(max=1)  # a part may refuse what is outside of [0, 1]
    u = _directions(x, directions) * inside.unsqueeze(1)
    weight = subject.weight(subject.value(x[:1], omega.part(0, 1)))
    return Differences(subject, _slopes(subject, x, u, weight, (*LOCAL, *ATTACK)), x, u.double().cpu(), weight)


def _slopes(subject: Subject, x: Tensor, u: Tensor, weight: Tensor, sizes: Sequence[float]) -> Tensor:
    """Return s_h(u), shape (H, N, K), at these step sizes, of images, shape (N, ...), and directions, (N, K, ...)."""
    omega = subject.omega(len(x))
    slopes = torch.empty(len(sizes), *u.shape[:2], dtype=torch.float64)
    jobs = [(i, j, k) for i in range(len(sizes)) for j in range(len(x)) for k in range(u.shape[1])]
    for start in range(0, len(jobs), _TOGETHER // 2):
        part = jobs[start : start + _TOGETHER // 2]
        ends = torch.stack([x[j] + sign * sizes[i] * u[j, k] for i, j, k in part for sign in (1, -1)])
        values = subject.value(ends, omega.select([j for _, j, _ in part for _ in range(2)]))
        along = (values.double() * weight.double()).flatten(1).sum(1).reshape(-1, 2).cpu()
        for (i, j, k), (above, below) in zip(part, along.tolist(), strict=True):
            slopes[i, j, k] = (above - below) / (2 * sizes[i])
    return slopes


def _generic(x: Tensor) -> Tensor:
    """Move images a little, into the inside of [0, 1].

    Black pixels and equal neighbours are kinks of clamps and medians, and a kink at the point itself is at the middle
    of every difference, however small.
    """
    generator = torch.Generator().manual_seed(6)
    noise = 2 * torch.rand(x.shape, generator=generator).to(x) - 1
    return 0.5 + 0.9 * (x - 0.5) + 0.02 * noise


def _directions(x: Tensor, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    signs = torch.randint(0, 2, (len(x), count, *x.shape[1:]), generator=generator, dtype=torch.int8)
    block = max(x.shape[-1] // 4, 1)
    coarse = signs[:, -1, :, ::block, ::block].repeat_interleave(block, -1).repeat_interleave(block, -2)
    signs[:, -1] = coarse[..., : x.shape[-2], : x.shape[-1]]
    return (2 * signs - 1).to(x)


def _at_the_range(found: Differences) -> Differences:
    """Measure the slopes where four fifths of the pixels are black or white, in directions of the others.

    An attack leaves many pixels there. They stay where they are, since clamps have kinks at them.
    """
    subject, weight = found.subject, found.weight
    x = found.points[:2].flatten(1)
    rank = x.argsort(1).argsort(1) / x.shape[1]
    black, white = rank < 0.4, rank >= 0.6
    points = torch.where(black, 0.0, torch.where(white, 1.0, 0.3 + 0.4 * x)).reshape(found.points[:2].shape)
    inside = ~(black | white).reshape(points.shape)
    u = _directions(points, 3) * inside.unsqueeze(1)
    return Differences(subject, _slopes(subject, points, u, weight, LOCAL), points, u.double().cpu(), weight)


def mode_gradient(found: Differences, mode: str, *, exact: bool) -> ModeGradient:
    """Return the errors of a gradient mode."""
    part = found.subject.part
    gradient = (found.exact if mode == "exact" else found.autograd(mode)).double().cpu()
    errors = found.errors(gradient)
    double = found.subject.images.dtype == torch.float64
    share = float((errors > (_TOLERANCE if double else _TOLERANCE_32)).double().mean())
    name = mode if part == "purifier" else "autograd"
    return ModeGradient(part, name, exact, float(errors.median()), share, found.cosine(gradient))


def gradient(found: Differences) -> Check:
    """Compare the exact gradient with the slopes."""
    part, claims = found.subject.part, found.subject.claims
    exact = mode_gradient(found, "exact", exact=claims.differentiable)
    cosine = "" if exact.cosine is None else f"; at the scale of an attack its cosine is {exact.cosine:.2f}"
    if not claims.differentiable:
        if exact.share and found.smooth:
            text = f"it says that it has no useful derivative, but has one, and gives another{cosine}"
            return answer("gradient", part, exact.share, text)
        why = f"it says that it has no useful derivative and gives another one{cosine}"
        return not_applicable("gradient", part, why)
    text = (
        f"{100 * exact.share:.0f} % of {found.slopes[0].numel()} images and directions disagree at every step size; "
        f"median relative error {exact.error:.2g}"
    )
    if exact.share and found.rough:
        text += "; it moves in steps, as what is rounded or computed in half precision does"
    return answer("gradient", part, exact.share, text)


def gradient_at_attack_scale(found: Differences) -> Check:
    """Compare the exact gradient with the slopes over steps of an attack's size."""
    agreement = found.agreement(found.exact.double().cpu())
    if agreement is None:
        text = "steps of 16/255 in random directions change nothing at all: the answer does not depend on the image"
        return answer("gradient-at-attack-scale", found.subject.part, 0.0, text)
    text = f"predicted and measured changes agree to {agreement:.2f}, where 1 is equal"
    return answer("gradient-at-attack-scale", found.subject.part, agreement, text)


def loss_gradient(subject: Subject) -> Check:
    """Count the images whose cross-entropy, of their own answer, has a gradient of exactly zero."""
    leaf = subject.images.clone().requires_grad_()
    logits = subject(leaf, subject.omega())
    if not logits.requires_grad:
        return answer("loss-gradient", subject.part, 1.0, "logits have no gradient at all by autograd")
    (found,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1), reduction="sum"), leaf)
    zero = float((found.flatten(1).abs().amax(1) == 0).double().mean())
    top = logits.detach().topk(2, 1).values
    margin = float((top[:, 0] - top[:, 1]).median())
    text = f"it is zero on {100 * zero:.0f} % of {len(leaf)} images; the median margin between logits is {margin:.3g}"
    return answer("loss-gradient", subject.part, zero, text)


def elsewhere(found: Differences, subject: Subject) -> Check:
    """Compare the verified gradient with those in float32, of one image alone, of copies, and of other weights.

    Where most pixels are at the ends of the range it is verified anew, and must lead into it.

    A backward pass is linear: the gradient of c times the weights is c times the gradient. One that clips, lets what
    is small underflow, normalises or passes one sign alone is right at one size, and attacks ask at others: those of
    a mean over draws, and of a cross-entropy that is nearly 0.
    """
    part, count = subject.part, len(found.points)
    weight, omega = found.weight.to(subject.images), subject.omega(count)
    x, last = found.points.to(subject.images), count - 1
    out, together = subject.gradient(x, omega, weight)
    alone = subject.gradient(x[last:], omega.part(last, last + 1), weight)[1]
    copies = replace(omega, image_ids=(omega.image_ids[last],) * 5, draws=(omega.draws[last],) * 5)
    many = subject.gradient(x[last:].expand(5, *x.shape[1:]), copies, weight)[1]
    chosen, crowd, theirs = subject.crowd(x, omega)
    clean = subject.images[:count]
    there = subject.gradient(clean, omega, weight)[1]
    apart = {
        "alone": _relative(alone, together[last:]),
        "in a batch of five": _relative(many[:1], together[last:]),
        f"in a batch of {LARGE}": _relative(subject.gradient(crowd, theirs, weight)[1], together[chosen]),
        "after another call": _relative(subject.gradient(x, omega, weight, apart=True)[1], together),
        "at the images, where it is not finite,": _relative(there, there),
    }
    for factor, words in _WEIGHTS.items():
        apart[words] = _relative(subject.gradient(x, omega, factor * weight)[1] / factor, together)
    if subject.claims.differentiable:
        edge = _at_the_range(found)
        apart["where most pixels are 0 or 1"] = float(edge.errors(edge.exact.double().cpu()).median())
        apart["by being zero at all pixels that are 0 or 1"] = no_way_in(subject)
    if found.subject.images.dtype == torch.float64:
        apart["in float32"] = _relative(together, found.exact)
        value = found.subject.value(found.points, found.subject.omega(count))
        spread = (value - value.mean(0)).abs().mean()  # an offset of all images is no part of the answer
        error = (out.double() - value).abs().mean()
        apart["in float32, of the value,"] = float(error / spread) if float(spread) else 0.0
    way = max(apart, key=lambda name: (math.isnan(apart[name]), apart[name]))
    return answer("gradient-elsewhere", part, apart[way], f"{way} it differs by {apart[way]:.2g}")


_WEIGHTS = {2.0**-13: "of a loss 8192 times as small", 2.0**13: "of one as much larger", -1.0: "of the opposite loss"}
"""Factors of the weights, powers of two so that nothing is rounded, and what a gradient of them is."""


def _relative(a: Tensor, b: Tensor) -> float:
    """Return the distance relative to the larger one, 0 for two zeros."""
    size = max(float(a.double().norm()), float(b.double().norm()))
    return float((a.double() - b.double()).norm()) / size if size else 0.0
