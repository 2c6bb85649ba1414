"""Networks away from their defaults, and a pickle that would do harm, visibly."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


class Touch:
    """Pickles as a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)


def varied(net: nn.Module) -> nn.Module:
    """The network with parameters and batch statistics away from their defaults, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (1 if "running_var" in name else 0.1))
    return net.eval()
