"""A denoiser of somebody else's that a compiler is done with in seconds, anew in every process.

A compiler that finds its program on disk proves little: here each worker makes its own, and only what g++ made of
equal source is shared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from defense.denoisers import DenoiserConfig, NetworkDenoiser


class Net(nn.Module):
    """Random, but always the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        luck = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.2, generator=luck).requires_grad_(False)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        time = (labels.to(x.dtype) / 1000).view(-1, 1, 1, 1)
        output: Tensor = self.second(nn.functional.silu(self.first(x) + time)) * time + 0.5 * x
        return output


class NetConfig(DenoiserConfig):
    """Needs no file."""

    format: Literal["compiled_parts:NetConfig"] = "compiled_parts:NetConfig"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 1, 8, 8

    def resolved(self, base: Path) -> NetConfig:
        return self

    def build(self) -> NetworkDenoiser:
        import torch._functorch.config
        import torch._inductor.config

        torch._inductor.config.fx_graph_cache = False
        torch._functorch.config.enable_autograd_cache = False
        return NetworkDenoiser(Net(), self.schedule, self.image_shape).eval()
