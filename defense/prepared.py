r"""Weights that are cast to bfloat16 once, and not again in every forward pass.

Autocast computes a convolution or a linear layer as

.. math:: y = \mathrm{op}(\mathrm{bf16}(x), \mathrm{bf16}(W), \mathrm{bf16}(b)),

and casts W and b in each call, since it remembers only those of weights that are trained (``cached_cast`` in
PyTorch's ``autocast_mode.cpp`` asks for ``requires_grad``). For frozen networks that is two further operations a
layer and a step, which is what a small batch on a GPU waits for. A prepared layer keeps W and b as they are and,
beside them, what autocast makes of them; under autocast to bfloat16 it uses those. Rounding is a function of the
number, so the result has the same bits. Without autocast, or under another type, nothing is different.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["prepare"]

_BF16 = torch.bfloat16


class _Cast:
    """The casts of a layer's weights, made anew if somebody has written to them."""

    weight: Any
    bias: Any

    def _cast(self, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias as autocast would cast them; None where it would not."""
        device = x.device.type
        if not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) != _BF16:
            return None
        if x.dtype not in (torch.float32, _BF16) or self.weight.dtype != torch.float32:
            return None
        if self._cast_version != self._versions():
            self._make_casts()
        return self._cast_weight, self._cast_bias

    def _versions(self) -> tuple[int, int]:
        return self.weight._version, -1 if self.bias is None else self.bias._version

    def _make_casts(self) -> None:
        # Ordinary tensors, whatever mode the first caller is in: others may differentiate through the layer.
        with torch.inference_mode(False), torch.no_grad():
            self._cast_weight = self.weight.to(_BF16)
            self._cast_bias = None if self.bias is None else self.bias.to(_BF16)
        self._cast_version = self._versions()


class _Linear(_Cast, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        cast = self._cast(x)
        return super().forward(x) if cast is None else F.linear(x, *cast)


class _Conv1d(_Cast, nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        cast = self._cast(x)
        return super().forward(x) if cast is None else self._conv_forward(x, *cast)


class _Conv2d(_Cast, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        cast = self._cast(x)
        return super().forward(x) if cast is None else self._conv_forward(x, *cast)


_PREPARED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, nn.Conv1d: _Conv1d, nn.Conv2d: _Conv2d}


def prepare(network: nn.Module) -> list[Tensor]:
    """Have the frozen linear and convolutional layers of a network keep their bfloat16 weights.

    Layers of other classes, derived ones among them, compute as they did: what they do with their weights is theirs.
    Preparing a network again changes nothing.

    Arguments:
        network: The network, on its device; its layers are changed in place.

    Returns:
        What all its layers keep.
    """
    kept: list[Tensor | None] = []
    for layer in network.modules():
        prepared = _PREPARED.get(type(layer))
        if prepared is not None and not any(weight.requires_grad for weight in layer.parameters(recurse=False)):
            layer.register_buffer("_cast_weight", None, persistent=False)  # so that it moves with the layer
            layer.register_buffer("_cast_bias", None, persistent=False)
            layer.__class__ = prepared
            layer._make_casts()  # type: ignore[operator]
        if isinstance(layer, _Cast):
            kept += [layer._cast_weight, layer._cast_bias]
    return [cast for cast in kept if cast is not None]
