r"""Attack on the guidance target: PGD on the defence's loss and on that of the point which the guidance pulls to.

A guided purifier pulls every state towards something that is made of the attacked image itself. Whoever moves that
moves the defence, whatever its chain does to the image:

.. math:: L(x) = (1 - \beta)\, L_D(x) + \beta\, \frac1K \sum_{k=1}^K \ell(g(T(x; \omega_k)), y)

with :math:`L_D` the loss over the draws of the defence (:mod:`tasks.attacks.target`), T the point that the guidance
pulls to, and g the network whose answer there counts (:meth:`~defense.purifiers.Purifier.target_logits`):

* a distance to the input, by pixels or features (``gdmp``, ``guided-from-noise``, ``mimic-diffusion``,
  ``diff-ap``), the protected classifier's answer on it (``distribution-transfer``, ``contrastive-stateless``), or its
  confidence from there on (``coup``): the protected classifier, and the image x;
* an auxiliary network (``robust-reverse``, AGDM): that network, and x;
* the first answer of the defence (``osgd``): the protected classifier, and that answer, on the draw's own noise.

:math:`L_D` has the gradient mode of the entry; the second term is differentiated as it is, without the chain. The
attack is adaptive: it knows the purifier, and what guides it. Steps, starts and restarts are those of ``pgd``. L is
what the steps climb; which iterate is kept :math:`L_D` alone decides, so that no point is kept for what its guidance
would be asked. The evaluations are those of ``pgd``; with :math:`\beta = 1` no gradient goes through the chain.

This attack is ours. :math:`\beta` weighs two losses of logits, so that the loss should be of one scale for both:
``margin``, the default here, or ``dlr``.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from defense.errors import InvalidInput
from defense.purifiers import PurifierConfig
from defense.randomness import Omega
from tasks.attacks.base import ATTACKS
from tasks.attacks.losses import PointLoss
from tasks.attacks.pgd import PGDConfig
from tasks.attacks.target import Evaluation, Oracle, Tally, Target

__all__ = ["GuidanceTargetConfig", "Pulled"]


@ATTACKS.register("guidance-target")
class GuidanceTargetConfig(PGDConfig):
    """PGD on the defence and on what its guidance pulls to; on the bare classifier, which has no guidance, it is PGD.

    Arguments:
        share: beta, above 0; 1 leaves the defence's own answer out of the steps.
        loss: ``ce``, ``margin``, ``dlr`` or ``dlr-targeted``, of both terms.

    Raises:
        InvalidInput: ``eot_by: cosine``; when planned, a purifier that has no guidance, or whose guidance pulls to
            nothing that is known.
    """

    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = PGDConfig.unsaid
    attack: Literal["guidance-target"] = "guidance-target"  # type: ignore[assignment]
    share: float = Field(default=0.5, gt=0, le=1)
    loss: Literal["ce", "margin", "dlr", "dlr-targeted"] = "margin"
    gradient: str | None = "exact"

    @model_validator(mode="after")
    def _draws_as_given(self) -> Self:
        if self.eot_by != "given":
            raise InvalidInput(
                "`eot_by: cosine` chooses draws by the defence's answer alone: remove it.", keys=("eot_by",)
            )
        return self

    def check(self, purifier: PurifierConfig) -> None:
        """See :class:`AttackConfig`."""
        if not self.static and purifier.pulls_to is None:
            why = (
                "what its steps follow is no pull towards a point that is made of the image"
                if purifier.guided
                else "it has no guidance"
            )
            raise InvalidInput(
                f"guidance-target attacks what the guidance of a purifier pulls to, and {purifier.label()!r} has no "
                f"such point: {why}. Use pgd with `gradient: exact`, or `exclude` the combination."
            )

    def method(self) -> str:
        """``guidance-target-20 linf margin``, with the share where it is not a half."""
        name = super().method().replace("pgd-", "guidance-target-", 1)
        return name if self.share == 0.5 else f"{name} share {self.share:g}"

    def oracle(self, target: Target) -> Oracle:
        """Return the target with the gradient of both losses; the target alone where there is no purifier."""
        return target if target.purifier is None else Pulled(target, self.share)


class Pulled:
    """The target's own loss, with the gradient of its sum with the loss at the point that its guidance pulls to.

    The iterate that is kept is so the one that hurts the defence most.

    Arguments:
        target: A defence whose purifier is guided.
        share: beta.
    """

    def __init__(self, target: Target, share: float) -> None:
        self.target = target
        self.share = share

    def evaluate(self, x: torch.Tensor, loss: PointLoss) -> Evaluation:
        """The defence's loss and logits, without a gradient."""
        return self.target.evaluate(x, loss)

    def differentiate(self, x: torch.Tensor, loss: PointLoss) -> Evaluation:
        """The defence's loss and logits, and the gradient of the weighted sum."""
        point = _AtThePoint.of(self.target)  # before the draws go on
        pull = point.differentiated(x, loss).gradient
        assert pull is not None
        gradient = self.share * pull
        if self.share < 1:
            own = self.target.differentiated(x, loss)
            assert own.gradient is not None
            gradient = (1 - self.share) * own.gradient + gradient
        else:  # 0 times a gradient through a chain is a cost, and NaN where that gradient is infinite
            own = self.target.evaluate(x, loss)
        ids = self.target.omega.image_ids
        self.target.tally.see(ids, gradient)
        self.target.tally.points.update(ids * self.target.draws)
        return replace(own, gradient=gradient)


class _AtThePoint(Target):
    """What is answered on the same draws at the point that the guidance pulls to, in the batches of the target."""

    @classmethod
    def of(cls, target: Target) -> Self:
        """Its next draws; what is asked is no purification, and not counted as one."""
        values = {item.name: getattr(target, item.name) for item in fields(Target)}
        return cls(**{**values, "tally": Tally()})

    def answer(self, x: torch.Tensor, omega: Omega | None) -> torch.Tensor:
        """See :class:`Target`; as there the purifier's networks run in its precision, the classifier does not."""

        def classify(at: torch.Tensor) -> torch.Tensor:
            with torch.autocast(at.device.type, enabled=False):
                return self._classify(at)

        def at_the_point(images: torch.Tensor) -> torch.Tensor:
            assert self.purifier is not None and omega is not None
            with self.precision():
                return self.purifier.target_logits(classify, images, omega)

        return self._scaled(at_the_point, x)
