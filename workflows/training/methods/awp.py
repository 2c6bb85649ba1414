r"""TRADES with adversarial weight perturbation.

.. math:: \min_\theta\ \max_{v \in V}\ L_\mathrm{TRADES}(\theta + v), \qquad
          \lVert v_l \rVert = \gamma \lVert \theta_l \rVert \text{ for every layer } l

Wu, Xia, Wang, "Adversarial weight perturbation helps robust generalization", arXiv 2004.05884, equations 7 to 10.
The inner maximum over the weights is one step along the gradient, scaled layer by layer:

.. math:: v_l = \gamma\, \lVert \theta_l \rVert\, g_l / \lVert g_l \rVert, \qquad g = \nabla_\theta L(\theta)

Layers are the tensors of two or more dimensions (convolutions, linear layers); biases and batch norm stay. The
images are attacked first, at the unperturbed weights. The optimiser then applies, to the unperturbed weights, the
gradient at the perturbed ones. The weights themselves are never written: the perturbed network is a function of
them (``torch.func.functional_call``), so nothing has to be restored, and a training that dies has nothing to undo.

Batch norm: the pass that finds v works on copies of the running statistics, which so see each batch once.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from workflows.training.methods.base import METHODS, RobustMethod
from workflows.training.methods.trades import divergent, trades_loss

__all__ = ["TradesAWP", "perturbation"]


def perturbation(weights: dict[str, Tensor], gradients: dict[str, Tensor], gamma: float) -> dict[str, Tensor]:
    """``v_l = gamma ||theta_l|| g_l / ||g_l||`` for tensors of two or more dimensions; none for the others."""
    directions = {}
    for name, weight in weights.items():
        gradient = gradients[name]
        if weight.dim() > 1:
            scale = gamma * weight.detach().norm() / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
            directions[name] = scale * gradient.detach()
    return directions


@METHODS.register("trades-awp")
class TradesAWP(RobustMethod):
    """TRADES at the worst weights nearby.

    Arguments:
        beta: Weight of TRADES' divergence.
        gamma: Size of the weight perturbation, relative to each layer's norm.
        warm_up: Steps before the weights are perturbed.
    """

    method: Literal["trades-awp"] = "trades-awp"
    beta: float = Field(default=6.0, ge=0)
    gamma: float = Field(default=0.005, ge=0)
    warm_up: int = Field(default=0, ge=0)

    def loss(
        self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int, smoothing: float = 0.0
    ) -> Tensor:
        """See :class:`Method`."""
        attacked = divergent(self, net, x, generator)
        if step < self.warm_up or self.gamma == 0:
            return trades_loss(net, x, attacked, y, self.beta, smoothing)
        weights: dict[str, Tensor] = dict(net.named_parameters())
        moved = self._worst(net, weights, x, attacked, y, smoothing)
        changed = {name: weight + moved[name] if name in moved else weight for name, weight in weights.items()}

        def classifier(images: Tensor) -> Tensor:
            logits: Tensor = functional_call(net, changed, (images,))
            return logits

        return trades_loss(classifier, x, attacked, y, self.beta, smoothing)

    def _worst(
        self, net: nn.Module, weights: dict[str, Tensor], x: Tensor, attacked: Tensor, y: Tensor, smoothing: float
    ) -> dict[str, Tensor]:
        """Return the perturbation v at the current weights."""
        buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}

        def classifier(images: Tensor) -> Tensor:
            logits: Tensor = functional_call(net, {**weights, **buffers}, (images,))
            return logits

        loss = trades_loss(classifier, x, attacked, y, self.beta, smoothing)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        return perturbation(weights, dict(zip(weights, gradients, strict=True)), self.gamma)
