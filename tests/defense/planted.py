"""Purifiers and classifiers that are broken on purpose, each in one way, and sound ones of the same build."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from defense.models import Models
from defense.probe import Probe, probe_purifier
from defense.purifiers import IterativePurifier, Purifier, PurifierConfig
from defense.randomness import Omega
from tasks.datasets import DigitsConfig

TEST_SET = torch.from_numpy(DigitsConfig().read().images)
IMAGES = TEST_SET[[0, 1, 2, 3, 5, 7, 11, 13]]


def probed_config(config: PurifierConfig) -> Probe:
    """What a probe says of a purifier on :data:`IMAGES`."""
    return probe_purifier(config.build(), IMAGES, config=config, models=Models(), reference=TEST_SET)


class Chain(IterativePurifier):
    """Three guided steps with noise, smooth: a sound purifier, or one with a fault by name."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.fault = fault
        self.net = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.net.weight = nn.Parameter(0.3 * torch.randn(1, 1, 3, 3, generator=generator), requires_grad=False)
        self.eval()

    @property
    def length(self) -> int:
        return 3

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        if self.fault == "start detached":
            x = x.detach()
        return x + 0.1 * omega.normal("forward", 0, x)

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        target = x.detach() if self.fault == "guidance detached" or not guidance_path else x
        inside = z.detach() if self.fault == "step detached" and i == 1 else z
        change = 0.4 * torch.tanh(self.net(inside))
        if self.fault == "residual detached":
            change = change.detach()
        if self.fault == "weights of the data" and i == 0:
            target = target * z.data.abs().mean((1, 2, 3), keepdim=True)
        z = z - change - 0.2 * (z - target)
        if self.fault == "global noise in a step":
            z = z + 0.05 * torch.randn_like(z)
        return z + 0.02 * omega.normal("reverse", i, z)

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        return z

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        y = super().forward(x, omega)
        return (8 * y).round() / 8 if self.fault == "more than its chain" else y


class Backward(torch.autograd.Function):
    """The identity with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.how = how
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.how(gradient), None


def nearest(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest test image of each image, and its distance."""
    known = TEST_SET.to(x)
    distance = torch.cdist(x.detach().flatten(1), known.flatten(1)).min(1)
    return known[distance.indices], distance.values.view(-1, 1, 1, 1)


def _hidden() -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))


def _callers() -> str:
    return " ".join(frame.function + frame.filename for frame in inspect.stack(0))


class Faulty(Purifier):
    """A chain in front of which, or behind which, something is wrong."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault, self.calls = fault, 0
        self.chain = Chain()
        self.net = self.chain.net
        self.register_buffer("mean", torch.zeros(1, 1, 8, 8))
        self.eval()

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        self.calls += 1
        y = self.chain(x, omega)
        faults: dict[str, Callable[[], Tensor]] = {
            "negated gradient": lambda: Backward.apply(y, lambda g: -g),
            "gradient in noise": lambda: Backward.apply(
                y, lambda g: g + 9 * torch.randn(g.shape, generator=_gen()).to(g)
            ),
            "gradient of a sign": lambda: Backward.apply(y, torch.sign),
            "halved gradient": lambda: 0.5 * y + 0.5 * y.detach(),
            "gradient is NaN": lambda: y + 0 * ((x - x).abs() ** 0.5),
            "waves": lambda: y + 0.05 * torch.sin(500 * x),
            "rounding": lambda: (6 * y).round() / 6,
            "rounding, straight-through": lambda: y + ((6 * y).round() / 6 - y).detach(),
            "threshold": lambda: (y > 0.5).to(y),
            "sign": lambda: 0.5 + 0.5 * torch.sign(y - 0.3),
            "saturated": lambda: torch.sigmoid(4e4 * (y - 0.5)),
            "constant": lambda: torch.full_like(y, 0.5) + 0 * y,
            "look-up": lambda: nearest(x)[0] + 0 * y,
            "look-up near test images": lambda: torch.where(nearest(x)[1] < 1, nearest(x)[0], y) + 0 * y,
            "pulled to the test set": lambda: 0.9 * nearest(x)[0] + 0.1 * y,
            "nothing with gradients": lambda: x + 0 * y if torch.is_grad_enabled() else y,
            "more if a gradient is wanted": lambda: y + 1e-3 * x.requires_grad,
            "otherwise in inference mode": lambda: y + 1e-3 * torch.is_inference_mode_enabled(),
            "knows the judge": lambda: y + 0.1 * omega.role.startswith("judge"),
            "knows attacks": lambda: y + 0.1 * ("eot" in omega.role),
            "knows its spec": lambda: y + 0.1 * (omega.spec_id == PlantedConfig(fault="knows its spec").id),
            "knows the seed": lambda: y + 0.1 * (omega.seed == 0),
            "knows late draws": lambda: y + 0.1 * (max(omega.draws) > 500),
            "knows images": lambda: (
                y + 0.1 * torch.tensor([i % 2 for i in omega.image_ids]).to(y).view(-1, 1, 1, 1) / 9
                if max(omega.image_ids) > 10**5
                else y
            ),
            "looks up who calls": lambda: y + 0.1 * ("evaluate.py" in _callers()),
            "looks for attack libraries": lambda: y + 0.1 * ("autopgd" in _callers()),
            "detached for attackers": lambda: y.detach() + 0.3 * x if omega.role == "attack" else y + 0.3 * x,
            "training flag": lambda: y + 0.1 * self.training,
            "alone": lambda: y + 0.1 * (len(x) == 1),
            "mean of the batch": lambda: y - 0.1 * y.mean() + 0.1,
            "noise by position": lambda: y + 0.05 * torch.randn(y.shape, generator=_gen()).to(y),
            "copies noticed": lambda: y + 0.1 * (len(x) > 1 and torch.equal(x[0], x[1])),
            "double is another": lambda: y + 0.5 * (x.dtype == torch.float64),
            "float detached": lambda: y if x.dtype == torch.float64 else 0.5 * y + 0.5 * y.detach(),
            "batch of five detached": lambda: y if len(x) != 5 else y.detach() + 0.1 * (y - y.detach()),
            "alone detached": lambda: y if len(x) > 1 else 0.5 * y + 0.5 * y.detach(),
            "tired": lambda: y + 0.1 * (self.calls > 40),
            "first call": lambda: y + 0.1 * (self.calls == 1),
            "every other call": lambda: y + 0.1 * (self.calls % 2),
            "running mean": lambda: y + 0 * self.mean.add_(y.detach().mean(0, keepdim=True)),
            "global randn": lambda: y + 0.1 * torch.randn_like(y),
            "global numpy": lambda: y + 0.1 * float(np.random.rand()),
            "hidden seed": lambda: (torch.manual_seed(1), y + 0.1 * torch.randn_like(y))[1],
            "own generator": lambda: y + 0.1 * torch.randn(y.shape, generator=_hidden()).to(y),
            "minus one to one": lambda: 2 * y - 1,
            "bytes": lambda: 255 * y,
            "NaN": lambda: y / 0.0 * 0.0,
            "cropped": lambda: y[..., 1:],
            "double out": lambda: y.double(),
        }
        if self.fault == "in place":
            with torch.no_grad():
                x.add_(0.01)
        if self.fault == "raises alone" and len(x) == 1:
            raise ValueError("expected more than 1 image")
        return faults[self.fault]() if self.fault in faults else y


def _gen() -> torch.Generator:
    return torch.Generator().manual_seed(3)


class PlantedConfig(PurifierConfig):
    """A purifier with a fault."""

    purifier: Literal["planted:PlantedConfig"] = "planted:PlantedConfig"
    fault: str = ""
    says_stochastic: bool = True
    says_evaluations: int = 3

    @property
    def stochastic(self) -> bool:
        return self.says_stochastic

    @property
    def evaluations(self) -> int:
        return self.says_evaluations

    def label(self) -> str:
        return self.fault or "sound"

    def build(self, models: Models | None = None) -> Purifier:
        built = Faulty(self.fault) if self.fault not in _OF_STEPS else Chain(self.fault)
        if self.fault == "no noise":
            return _Quiet().eval()
        built.net.weight.requires_grad_(self.fault == "trainable")
        if self.fault == "training mode":
            built.net.train()
        return built


_OF_STEPS = (
    "",
    "start detached",
    "step detached",
    "guidance detached",
    "residual detached",
    "weights of the data",
    "global noise in a step",
    "more than its chain",
)


class _Quiet(Chain):
    def start(self, x: Tensor, omega: Omega) -> Tensor:
        return x

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        return z - 0.4 * torch.tanh(self.net(z))


class Net(nn.Module):
    """A small smooth classifier, sound or with a fault by name."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(8)
        self.fault, self.calls = fault, 0
        self.kernel = nn.Parameter(torch.randn(6, 1, 3, 3, generator=generator), requires_grad=False)
        self.head = nn.Parameter(torch.randn(10, 24, generator=generator), requires_grad=False)
        self.norm = nn.BatchNorm2d(6).requires_grad_(False)
        self.eval()
        if fault == "batch statistics":
            self.norm.train()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.fault == "rounds its input":
            x = (8 * x).round() / 8
        if self.fault == "detached features":
            x = x.detach() + 0.01 * (x - x.detach())
        hidden = torch.tanh(self.norm(nn.functional.conv2d(x, self.kernel)))
        logits = nn.functional.adaptive_avg_pool2d(hidden, 2).flatten(1) @ self.head.T
        faults: dict[str, Callable[[], Tensor]] = {
            "huge logits": lambda: 1e5 * logits,
            "softmax": lambda: logits.softmax(1),
            "rounded logits": lambda: (4 * logits).round() / 4,
            "negated": lambda: Backward.apply(logits, lambda g: -g),
            "noise": lambda: logits + 0.01 * torch.randn_like(logits),
            "judge": lambda: logits + 0.1 * torch.is_grad_enabled(),
            "caller": lambda: logits + 0.1 * ("evaluate.py" in _callers()),
            "tired": lambda: logits + 0.1 * (self.calls > 20),
        }
        return faults[self.fault]() if self.fault in faults else logits
