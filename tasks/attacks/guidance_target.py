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
attack is adaptive: it knows the purifier, and what guides it. Steps, starts, restarts and the choice of points are
those of ``pgd``; with ``reselect`` the choice is by the defence's answers alone.

This attack is ours. :math:`\beta` weighs two losses of logits, so that the loss should be of one scale for both:
``margin``, the default here, or ``dlr``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from defense.errors import InvalidInput
from defense.purifiers import PurifierConfig
from tasks.attacks.base import ATTACKS
from tasks.attacks.losses import PointLoss
from tasks.attacks.pgd import PGDConfig
from tasks.attacks.target import Evaluation, Oracle, Target

__all__ = ["GuidanceTargetConfig", "Pulled"]


@ATTACKS.register("guidance-target")
class GuidanceTargetConfig(PGDConfig):
    """PGD on the defence and on what its guidance pulls to; on the bare classifier, which has no guidance, it is PGD.

    Arguments:
        share: beta, above 0; 1 leaves the defence's own answer out.
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

    @property
    def evaluations(self) -> int:
        """As those of ``pgd``, and as many of the classifier at the point that is pulled to."""
        looks = 0 if self.static else (self.steps + (self.keep == "best")) * self.restarts
        return super().evaluations + looks

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
        """Return the sum of both losses; the target alone where there is no purifier."""
        return target if target.purifier is None else Pulled(target, self.share)


class Pulled:
    """The target with the loss at the point that its guidance pulls to.

    Arguments:
        target: A defence whose purifier is guided.
        share: beta.
    """

    def __init__(self, target: Target, share: float) -> None:
        self.target = target
        self.share = share

    def evaluate(self, x: torch.Tensor, loss: PointLoss) -> Evaluation:
        """Weighted loss and the defence's logits, without a gradient."""
        with torch.no_grad():
            value, logits = self._total(x, loss)
            return Evaluation(value, logits)

    def differentiate(self, x: torch.Tensor, loss: PointLoss) -> Evaluation:
        """Weighted loss, the defence's logits, and the gradient of the former."""
        at = x.detach().requires_grad_()
        value, logits = self._total(at, loss)
        (gradient,) = torch.autograd.grad(value.sum(), at)
        self.target.tally.see(self.target.omega.image_ids, gradient)
        return Evaluation(value.detach(), logits.detach(), gradient)

    def _total(self, x: torch.Tensor, loss: PointLoss) -> tuple[torch.Tensor, torch.Tensor]:
        logits, pulled = self.target.pulled_logits(x)
        own, guide = (self.target.over_draws(each, loss) for each in (logits, pulled))
        return (1 - self.share) * own + self.share * guide, logits
