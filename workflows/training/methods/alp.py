r"""Adversarial training with adversarial logit pairing.

.. math:: \min_\theta\ \frac{1}{2B} \sum_i \left[\mathrm{CE}(f(x_i), y_i) + \mathrm{CE}(f(x_i'), y_i)\right]
          + \frac{\lambda}{B} \sum_i \lVert f(x_i) - f(x_i') \rVert_2^2

with :math:`x'` from projected gradient ascent on the cross-entropy. Kannan, Kurakin, Goodfellow, "Adversarial logit
pairing", arXiv 1803.06373, section 3: the first term is training on a mixed batch, the second pairs the logits of an
image with those of its attacked self; lambda weights it. The norm there is an l_2 loss; here it is the squared
distance, summed over classes.

Clean and attacked images pass through the network together and share their batch statistics, as a mixed batch does.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from workflows.training.methods.at import adversarial
from workflows.training.methods.base import METHODS, RobustMethod

__all__ = ["LogitPairing", "pairing"]


def pairing(clean: Tensor, attacked: Tensor) -> Tensor:
    """Mean over images of the squared distance between two sets of logits, shape (B, classes) each; a scalar."""
    return (clean - attacked).square().sum(1).mean()


@METHODS.register("at-alp")
class LogitPairing(RobustMethod):
    """Mixed-batch adversarial training whose clean and adversarial logits are paired.

    Arguments:
        weight: lambda, the weight of the pairing term.
    """

    method: Literal["at-alp"] = "at-alp"
    weight: float = Field(default=0.5, ge=0)

    def loss(
        self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int, smoothing: float = 0.0
    ) -> Tensor:
        """See :class:`Method`."""
        attacked = adversarial(self, net, x, y, generator)
        logits = net(torch.cat([x, attacked])).float()
        # The mean over both halves is half the sum of the two means.
        loss = F.cross_entropy(logits, torch.cat([y, y]), label_smoothing=smoothing)
        return loss + self.weight * pairing(*logits.chunk(2))
