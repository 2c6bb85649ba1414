r"""TRADES.

.. math:: \min_\theta\ \mathbb E\left[\mathrm{CE}(f_\theta(x), y) + \beta \max_{\lVert d \rVert_p \le \varepsilon}
          \mathrm{KL}\left(p_\theta(\cdot|x)\ \Vert\ p_\theta(\cdot|x + d)\right)\right]

Zhang et al., "Theoretically principled trade-off between robustness and accuracy", arXiv 1901.08573, equation 5 and
algorithm 1. The inner maximisation starts at the image with Gaussian noise of standard deviation 0.001, since the
divergence has no slope at the image itself, and never looks at the label.

Batch norm: the inner maximisation runs in evaluation mode; of the loss, clean and adversarial images pass through
the network one after the other in training mode, each with their own batch statistics, the running ones taking both.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tasks.attacks.region import Region
from workflows.training.methods.base import METHODS, RobustMethod
from workflows.training.methods.inner import evaluation_mode, gaussian_start, maximise

__all__ = ["Trades", "divergent", "trades_loss"]


def _divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """``sum_i KL(softmax(reference_i) || softmax(logits_i))``."""
    return F.kl_div(
        F.log_softmax(logits.float(), 1), F.log_softmax(reference.float(), 1), reduction="sum", log_target=True
    )


def divergent(method: RobustMethod, net: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images inside the method's ball whose answer differs most from the image's, shape (B, C, H, W)."""
    region = Region(x, method.norm, method.eps)
    start = gaussian_start(region, generator)
    with evaluation_mode(net):
        with torch.no_grad():
            reference = net(x)
        return maximise(lambda images: _divergence(net(images), reference), region, start, method.steps, method.size)


def trades_loss(
    classifier: Callable[[Tensor], Tensor],
    x: Tensor,
    attacked: Tensor,
    y: Tensor,
    beta: float,
    smoothing: float = 0.0,
) -> Tensor:
    """``CE(f(x), y) + beta KL(p(x) || p(attacked))``, means over the batch; gradients flow through both images."""
    clean = classifier(x)
    robust = _divergence(classifier(attacked), clean) / len(x)
    natural: Tensor = F.cross_entropy(clean, y, label_smoothing=smoothing)
    return natural + beta * robust


@METHODS.register("trades")
class Trades(RobustMethod):
    """Cross-entropy on images, plus the divergence that an attack can cause.

    Arguments:
        beta: Weight of the divergence; the paper's 1 / lambda.
    """

    method: Literal["trades"] = "trades"
    beta: float = Field(default=6.0, ge=0)

    def loss(
        self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int, smoothing: float = 0.0
    ) -> Tensor:
        """See :class:`Method`."""
        attacked = divergent(self, net, x, generator)
        return trades_loss(net, x, attacked, y, self.beta, smoothing)
