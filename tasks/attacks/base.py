"""The base of every attack, and the exact geometry of its budget.

The budget is a ball around the image, ``||x_adv - x||_p <= eps`` in units of [0, 1] pixels, cut with the image
range [0, 1]. Both hold exactly for the stored float32 images: bounds are formed in float64 and rounded inwards,
so that a check of stored images in float64 never finds one outside.

The threat model is part of an attack's spec: what the attacker knows, through which gradient, with how many draws per
step (EOT), and how their losses are combined. An attack whose attacker knows the bare classifier alone is static: it
does not depend on the defence, and all defences share its images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from defense.bounds import UNBOUNDED, Bound, beyond, diameter
from defense.errors import InvalidInput, inside
from defense.gradients import GradientMode
from defense.purifiers import PurifierConfig
from defense.randomness import Omega
from defense.registry import Registry
from defense.spec import Spec, Spelling
from tasks.attacks.target import Attacked, Target

__all__ = ["ATTACKS", "EPS", "EPS_255", "AttackConfig", "AttackResult", "Norm", "Region", "perturbation_norms"]

Norm = Literal["linf", "l2", "l1", "flow", "lpips"]
Knowledge = Literal["classifier", "purifier", "randomness"]

_NORMS = {"linf": "l_inf", "l2": "l_2", "l1": "l_1"}

EPS = "eps is a number in units of [0, 1] pixels, like 0.031; to write 8/255 use `eps_255: 8`."
EPS_255 = MappingProxyType(
    {
        "eps_255": Spelling(
            "eps",
            "eps in units of 1/255, like 8",
            convert=lambda eps: eps / 255,
            lost="the budget of {} is no pixel value: give `eps` (see `puregrid list attacks`).",
        )
    }
)
"""The short spelling of budgets of pixels."""


@dataclass(frozen=True)
class AttackResult:
    """The result of an attack.

    Arguments:
        images: Adversarial images, shape (B, C, H, W), float32, inside ball and range.
        loss: The loss that the attack maximised, at those images, shape (B,).
        notes: Notes of the attack on the batch: counts, which add up over batches, or texts.
        columns: What else it knows of each image, by name, numbers of shape (B,) or (B, ...). In the rows these are
            in ``attack_extra``, as lists of float64; puregrid's own attacks have columns (``docs/store.md``).
    """

    images: Tensor
    loss: Tensor
    notes: dict[str, int | float | str] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)


_EFFORT = ("steps", "eot", "restarts", "queries", "samples", "targets", "losses")


class AttackConfig(Spec, ABC):
    """The config of an attack: its name under ``attack``, its budget, its threat model, its parameters.

    Arguments:
        norm: ``linf``, ``l2`` or, where the attack has it, ``l1``.
        eps: Radius of the ball, units of [0, 1] pixels. ``eps_255`` may be written instead, in 1/255.
        knows: What the attacker knows: the bare ``classifier`` (a static attack), the ``purifier`` too, or also its
            ``randomness``, that is the draws on which the defence will be judged.
        gradient: How an attacker who knows the purifier differentiates it, a mode of :mod:`defense.gradients`; by
            default ``exact``. Naming one implies ``knows: purifier``, and ``blind`` implies ``classifier``.
        eot: Draws per evaluation of the attacked function.
        attacked: What is made of these draws: ``mean-loss``, or the loss of ``mean-logits``, ``mean-probability`` or
            a ``vote``.
        unbounded: Fields that are meant although they are beyond their bounds (:mod:`defense.bounds`), like ``eps``.
    """

    named_by: ClassVar[str | None] = "attack"
    spellings: ClassVar[Mapping[str, Spelling]] = EPS_255
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    """Norms that the attack knows. One that bounds no distance of pixels stands alone: no ball is drawn then."""
    black_box: ClassVar[bool] = False
    """Whether the attack looks at no gradient of what it attacks."""
    keeps_best: ClassVar[bool] = False
    """Whether it returns the best point that it saw, broken or not; others may return the image where none is."""

    attack: str
    norm: Norm = Field(description="norm is linf or l2: eps means nothing without it.")
    eps: float = Field(gt=0, description=EPS)
    knows: Knowledge = "classifier"
    gradient: str | None = None
    eot: int = Field(default=1, ge=1)
    attacked: Attacked = "mean-loss"
    unbounded: tuple[str, ...] = UNBOUNDED

    @classmethod
    def class_named(cls, name: str) -> type[AttackConfig]:
        """See :class:`Spec`."""
        return ATTACKS.get(name)

    @model_validator(mode="before")
    @classmethod
    def _threat(cls, data: Any) -> Any:
        """One spelling of each threat model."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        knows = data.get("knows")
        if data.get("gradient") is None and knows != "classifier":
            data["gradient"] = cls.model_fields["gradient"].default  # attacks that are made for a known purifier
        gradient = data.get("gradient")
        if isinstance(gradient, str):
            blind = GradientMode.parse(gradient).name == "blind"
            if knows is None:
                data["knows"] = "classifier" if blind else "purifier"
            elif blind != (knows == "classifier"):
                raise InvalidInput(
                    f"gradient {gradient!r} does not go with `knows: {knows}`: blind is the gradient of an attacker "
                    "who knows the classifier alone, the other modes are for those who know the purifier."
                )
            if blind:
                data["gradient"] = None
        elif gradient is None and knows in ("purifier", "randomness"):
            data["gradient"] = "exact"
        return data

    @model_validator(mode="after")
    def _known_norm(self) -> Self:
        if self.norm not in self.norms:
            known = " or ".join(self.norms)
            raise InvalidInput(f"attack {self.attack!r} has no norm {self.norm!r}: write `norm: {known}`.")
        return self

    @model_validator(mode="after")
    def _within_the_images(self) -> Self:
        self._check_distances(None)
        return self

    def _check_distances(self, image_shape: tuple[int, int, int] | None) -> None:
        """Refuse a budget or step that is longer than the distance of any two images."""
        longest = diameter(self.norm, image_shape)
        for name in ("eps", "step_size"):
            value = self.parameter(name)
            # Beyond a rounding: sqrt(C H W) itself may be written.
            if longest is None or value is None or name in self.unbounded or value <= longest * (1 + 1e-9):
                continue
            images = "" if image_shape is None else f" of shape {image_shape}"
            why = f"the largest {_NORMS[self.norm]} distance between two images{images} with pixels in [0, 1]"

            def meant(value: float, name: str = name) -> str:
                written = f"eps_255: {value:g}" if name == "eps" else f"{name}: {value / 255:.3g}"
                return f"did you mean `{written}`{'' if name == 'eps' else f', that is {value:g}/255'}? "

            bound = Bound(longest, why, meant if value / 255 <= longest else lambda value: "")
            raise beyond(name, value, bound, can_lift=True, also=f" ({value * 255:.6g}/255)")

    def check_budget(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse a budget or step, also of an attack inside, that is longer than the distance of any two images.

        Arguments:
            image_shape: (C, H, W).

        Raises:
            InvalidInput: One is; with the path of the field.
        """
        self._check_distances(image_shape)
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, AttackConfig):
                with inside(name):
                    value.check_budget(image_shape)
            elif isinstance(value, tuple):
                for place, item in enumerate(value):
                    if isinstance(item, AttackConfig):
                        with inside(name, place):
                            item.check_budget(image_shape)

    @model_validator(mode="after")
    def _static_has_no_draws(self) -> Self:
        if self.static and (self.eot > 1 or self.attacked != "mean-loss"):
            raise InvalidInput(
                "eot and `attacked` are for attackers who know the purifier: the bare classifier has no draws. Add "
                "`gradient: exact` (or `knows: purifier`), or remove them."
            )
        return self

    def check(self, purifier: PurifierConfig) -> None:
        """Refuse a purifier for which the attack has no meaning, before any compute; most attacks refuse none.

        Raises:
            InvalidInput: Why it has none, and what to do.
        """

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """Refuse a classifier or images that the attack cannot work on, before any compute; most take all.

        Arguments:
            classes: Number of classes.
            image_shape: (C, H, W).

        Raises:
            InvalidInput: Why it cannot, and what to do; with the path of the field.
        """

    @property
    def stops(self) -> bool:
        """Whether images that are broken are not attacked further: right where answers are certain, else a bias."""
        return False

    @property
    def single_step(self) -> bool:
        """Whether it takes one gradient step."""
        return bool(self.parameter("steps") == 1)

    @property
    def loss_unknown(self) -> bool:
        """Whether it may return images without a look at their loss, which is then NaN."""
        return False

    @property
    def effort(self) -> dict[str, int | tuple[str, ...]]:
        """Numbers and parts that say how long it looks: a shortened attack has fewer, and is the same in kind."""
        return {name: value for name in _EFFORT if (value := self.parameter(name)) is not None}

    @property
    def autoattack(self) -> str | None:
        """The version of AutoAttack that it runs, ``standard`` for one; None for every other attack."""
        return None

    @property
    def static(self) -> bool:
        """Whether the attack sees the bare classifier alone."""
        return self.knows == "classifier"

    def on_bare_classifier(self) -> Self:
        """Return the attack on a defence that is no defence: knowing the purifier then means nothing."""
        return self.model_copy(update={"knows": "classifier", "gradient": None, "eot": 1, "attacked": "mean-loss"})

    def label(self) -> str:
        """Short name without the budget, for tables: the method, and the threat model unless it is static."""
        if self.static:
            return self.method()
        words = [self.method(), "by scores" if self.black_box else str(self.gradient)]
        if self.knows == "randomness":
            words.append("fixed draws")
        if self.eot > 1:
            words.append(f"eot {self.eot}")
        return " ".join(words)

    def method(self) -> str:
        """Name of the method and its norm, with the parameters that distinguish two settings."""
        return f"{self.attack} {self.norm}"

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Evaluations of the attacked function that one image costs, forward or forward-backward, one draw each."""

    @abstractmethod
    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """Attack one batch.

        Arguments:
            target: The attacked function, with the true labels.
            x: Clean images in [0, 1], shape (B, C, H, W).
            omega: The attack's own randomness, one stream per image.
        """


ATTACKS: Registry[type[AttackConfig]] = Registry("attack", "puregrid.attacks", subclass_of=AttackConfig)


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
