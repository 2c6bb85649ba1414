"""The base of every attack.

The threat model is part of an attack's spec: what the attacker knows, through which gradient, with how many draws per
step (EOT), and how their losses are combined. An attack whose attacker knows the bare classifier alone is static: it
does not depend on the defence, and all defences share its images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from tasks.attacks.region import Norm, Region
from tasks.attacks.target import Attacked, Target

__all__ = ["ATTACKS", "EPS", "EPS_255", "AttackConfig", "AttackResult", "Region", "checked_result"]

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


_COUNTED = {"gradients", "gradient_zero", "gradient_nan"}
"""Columns that puregrid fills itself."""


def checked_result(result: Any, x: Tensor, attack: str) -> AttackResult:
    """Return what an attack made of images ``x``; raise InvalidInput where it is no such thing."""
    if not isinstance(result, AttackResult):
        raise InvalidInput(f"{attack} returns {type(result).__name__}, not an AttackResult.")
    for name, values in {"images": result.images, "loss": result.loss, **result.columns}.items():
        shape = tuple(values.shape) if isinstance(values, Tensor) else None
        what = type(values).__name__ if shape is None else f"{values.dtype} of shape {shape}"
        wanted = {"images": x.shape, "loss": x.shape[:1]}.get(name, (len(x), *(shape or ())[1:]))
        if shape != wanted or (name == "images" and values.dtype != torch.float32):
            raise InvalidInput(f"{attack} returns {name!r} as {what}, for float32 images of shape {tuple(x.shape)}.")
        if name in _COUNTED:
            raise InvalidInput(f"{attack} has a column {name!r}, which puregrid counts itself: name it otherwise.")
    if bad := int((~result.images.isfinite().flatten(1).all(1)).sum()):
        raise InvalidInput(f"{attack} makes NaN or infinite pixels of {bad} of {len(x)} images.")
    return replace(result, images=result.images.detach(), loss=result.loss.detach())


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
