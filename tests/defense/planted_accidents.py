"""Purifiers with mistakes that nobody made on purpose: caches, normalisations, ensembles, borders, memories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from planted import TEST_SET, Backward, Chain, nearest
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from defense.models import Models
from defense.purifiers import Purifier, PurifierConfig
from defense.randomness import Omega

Made = Callable[["Accident", Tensor, Omega], Tensor]


def _blur(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _mild(x: Tensor) -> Tensor:
    """A sound purifier without randomness, smooth."""
    return 0.6 * x + 0.4 * _blur(x)


def _confidence(x: Tensor) -> Tensor:
    """A stand-in for a classifier's confidence: how much of a digit there is, in its middle."""
    return torch.sigmoid(30 * (x[:, :, 1:7, 3:5].amax((1, 2, 3), keepdim=True) - 0.8))


def _like_attention(x: Tensor, share: float, width: float) -> Tensor:
    known = TEST_SET.to(x)
    weights = (-torch.cdist(x.flatten(1), known.flatten(1)).square() / width).softmax(1)
    return (1 - share) * _mild(x) + share * (weights @ known.flatten(1)).view_as(x)


def _kept(self: Accident, key: Any, make: Callable[[], Tensor]) -> Tensor:
    """A cache that forgets nothing."""
    if key not in self.cache:
        self.cache[key] = make()
    return self.cache[key]


def _until_all_have_converged(x: Tensor) -> Tensor:
    z = x
    for _ in range(30):
        z, before = 0.5 * z + 0.5 * torch.sin(2 * _blur(z)) * 0.6, z
        if float((z - before).detach().abs().max()) < 0.02:
            break
    return z


def _by_brightness(y: Tensor) -> Tensor:
    """Sorts a batch to work on it, and forgets to sort it back."""
    return y[y.detach().mean((1, 2, 3)).argsort()]


def _warm_start(self: Accident, x: Tensor, omega: Omega) -> Tensor:
    """Each image begins where the one before it in the batch has ended."""
    out: list[Tensor] = []
    for image in x:
        out.append(_mild(image[None]) + (0.02 * out[-1].detach() if out else 0))
    return torch.cat(out)


def _seeded_by_bytes(x: Tensor, sigma: float) -> Tensor:
    seeds = [crc32(row.tobytes()) for row in (255 * x.detach()).round().to(torch.uint8).numpy()]
    drawn = [torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return sigma * torch.stack(drawn).to(x)


def _hooked(self: Accident, y: Tensor) -> Tensor:
    """A hook for logging that scales, and another one with every call."""
    self.hooks += 1
    factor = 1 + 1e-3 * self.hooks
    if y.requires_grad:
        y.register_hook(lambda g: factor * g)
    return y


def _recomputed(self: Accident, x: Tensor, omega: Omega) -> Tensor:
    """A counter of steps goes on in the backward pass, which draws the noise of the next step."""
    self.steps = 0

    def block(z: Tensor) -> Tensor:
        self.steps += 1
        return torch.tanh(2 * z + 0.3 * omega.normal("noise", self.steps, z))

    return checkpoint(block, x, use_reentrant=False)  # type: ignore[no-any-return]


def _buffered(self: Accident, y: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return y
    held = self.cache.setdefault(tuple(y.shape), torch.empty_like(y))
    return held.copy_(y)


def _stretched(x: Tensor) -> Tensor:
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return _mild((x - low) / (high - low))


def _ensemble_by(numbers: tuple[int, ...], a: Tensor, b: Tensor) -> Tensor:
    return torch.where(torch.tensor([n % 2 == 0 for n in numbers]).view(-1, 1, 1, 1), a, b)


def _through_numpy(x: Tensor) -> Tensor:
    image = x.detach().cpu().numpy()
    small = (image[..., ::2, ::2] + image[..., 1::2, ::2] + image[..., ::2, 1::2] + image[..., 1::2, 1::2]) / 4
    return torch.from_numpy(np.repeat(np.repeat(small, 2, axis=2), 2, axis=3)).to(x)


def _straight_through(y: Tensor, levels: int, factor: float) -> Tensor:
    return factor * y + ((levels * y).round() / levels - factor * y).detach()


def _half(self: Accident, x: Tensor) -> Tensor:
    net = self.chain.net
    return x + 0.4 * torch.tanh(F.conv2d(x.half(), net.weight.half(), padding=1)).to(x)


def _mean_of_draws(self: Accident, x: Tensor, omega: Omega) -> Tensor:
    """The mean of four draws, of which the gradient goes through the last."""
    drawn = [self.chain(x, omega.within(str(k))) for k in range(4)]
    return (drawn[0].detach() + drawn[1].detach() + drawn[2].detach() + drawn[3]) / 4


ACCIDENTS: dict[str, Made] = {
    # -- normalisation, units, geometry
    "standardised for the classifier that does so itself": lambda self, x, omega: (_mild(x) - 0.3) / 0.4,
    "not mapped back from half units": lambda self, x, omega: (_mild(x) + 1) / 2,
    "mapped to [-1, 1] and clipped": lambda self, x, omega: (2 * _mild(x) - 1).clamp(0, 1),
    "standardised twice in batches": lambda self, x, omega: _mild(x) if len(x) == 1 else (_mild(x) - 0.1) / 0.9,
    "negative": lambda self, x, omega: 1 - _mild(x),
    "rows and columns exchanged": lambda self, x, omega: _mild(x).transpose(2, 3),
    "upside down": lambda self, x, omega: _mild(x).flip(2),
    "mirrored": lambda self, x, omega: _mild(x).flip(3),
    "one pixel off": lambda self, x, omega: _mild(x).roll(1, 3),
    "divides by the contrast": lambda self, x, omega: _stretched(x),
    # -- statistics and modes
    "dropout by its default": lambda self, x, omega: F.dropout(self.chain(x, omega), 0.1),
    "statistics of the batch in evaluation mode": lambda self, x, omega: x + 0.1 * self.untracked(_mild(x)),
    "moving average in a list": lambda self, x, omega: _mild(x) + 1e-3 * self.moving_average(x),
    "trains for a moment": lambda self, x, omega: self.trained_for_a_moment(x),
    "stops when all have converged": lambda self, x, omega: _until_all_have_converged(x),
    "sorted and not sorted back": lambda self, x, omega: _by_brightness(_mild(x)),
    "starts where the last image ended": _warm_start,
    "noise without its mean over the batch": lambda self, x, omega: _mild(x) + _centred(x, omega),
    # -- gradients
    "loss scale not taken back": lambda self, x, omega: Backward.apply(self.chain(x, omega), lambda g: 1024 * g),
    "NaN in gradients made zero": lambda self, x, omega: _without_nan(x),
    "clipped by the norm of the batch": lambda self, x, omega: Backward.apply(
        self.chain(x, omega), lambda g: g / g.norm().clamp(min=1)
    ),
    "straight-through, halved": lambda self, x, omega: _straight_through(_mild(x), 4, 0.5),
    "recomputed with other noise": _recomputed,
    "a hook with every call": lambda self, x, omega: _hooked(self, _mild(x)),
    "gradient of the last draw": _mean_of_draws,
    "network in half precision": lambda self, x, omega: _half(self, x),
    "copied input": lambda self, x, omega: _mild(x.clone().detach_()),
    "clipped in place": lambda self, x, omega: _mild(x.clamp_(0, 1)),
    "away from the border": lambda self, x, omega: _mild(x.clamp(0.002, 0.998)),
    "relu at the door": lambda self, x, omega: _mild(1 - torch.relu(1 - torch.relu(x))),
    "resized by numpy": lambda self, x, omega: _through_numpy(x),
    "smooth, and said to have no derivative": lambda self, x, omega: (
        x + (_mild(torch.sigmoid(6 * x - 3)) - x).detach()
    ),
    # -- caches and seeds
    "first noise kept": lambda self, x, omega: (
        _mild(x) + _kept(self, x.shape, lambda: 0.1 * omega.normal("noise", 0, x))
    ),
    "kept by the first pixels": lambda self, x, omega: _kept(
        self, tuple(x.detach()[:, 0, 0, :3].flatten().tolist()), lambda: _mild(x)
    ),
    "kept by the mean": lambda self, x, omega: _kept(
        self, (len(x), round(float(x.detach().mean()), 3)), lambda: _mild(x)
    ),
    "kept by image": lambda self, x, omega: torch.cat(
        [_kept(self, i, lambda k=k: _mild(x[k : k + 1]).detach()) for k, i in enumerate(omega.image_ids)]
    ),
    "kept by address": lambda self, x, omega: _kept(self, (x.data_ptr(), x.shape), lambda: _mild(x).detach()),
    "hands out its buffer": lambda self, x, omega: _buffered(self, _mild(x)),
    "seeded by the bytes of the image": lambda self, x, omega: _mild(x) + _seeded_by_bytes(x, 0.05),
    "seeded by the bytes, strong": lambda self, x, omega: _mild(x) + _seeded_by_bytes(x, 0.2),
    "numpy draws the step": lambda self, x, omega: _mild(x) * (1 + 0.01 * int(np.random.randint(5))),
    "generator of its own": lambda self, x, omega: (
        _mild(x) + 0.1 * torch.randn(x.shape, generator=self.generator).to(x)
    ),
    # -- ensembles
    "member by place in the batch": lambda self, x, omega: _ensemble_by(tuple(range(len(x))), _mild(x), _blur(x)),
    "member by image": lambda self, x, omega: _ensemble_by(omega.image_ids, _mild(x), _blur(x)),
    "member by draw": lambda self, x, omega: _ensemble_by(omega.draws, _mild(x), _blur(x)),
    # -- exemptions and memories
    "only far from the clean image": lambda self, x, omega: torch.where(nearest(x)[1] < 0.3, x, _blur(x)) + 0 * x,
    "untouched where the classifier is sure": lambda self, x, omega: torch.where(_confidence(x) > 0.5, x, _blur(x)),
    "half looked up": lambda self, x, omega: 0.5 * _mild(x) + 0.5 * nearest(x)[0],
    "a fifth looked up": lambda self, x, omega: 0.8 * _mild(x) + 0.2 * nearest(x)[0],
    "half recalled by attention": lambda self, x, omega: _like_attention(x, 0.5, 0.5),
    "rounded to eight bits in silence": lambda self, x, omega: _straight_through(_mild(x), 255, 1),
}

RANDOM = {
    "dropout by its default",
    "noise without its mean over the batch",
    "loss scale not taken back",
    "clipped by the norm of the batch",
    "gradient of the last draw",
    "recomputed with other noise",
    "first noise kept",
    "numpy draws the step",
    "generator of its own",
    "member by draw",
}


def _centred(x: Tensor, omega: Omega) -> Tensor:
    noise = 0.1 * omega.normal("noise", 0, x)
    return noise - noise.mean(0, keepdim=True)


def _without_nan(x: Tensor) -> Tensor:
    """The contrast of each image, whose root has no derivative at a flat one; a hook drops what is not finite."""
    if torch.is_grad_enabled() and x.requires_grad:
        x = x.clone()
        x.register_hook(lambda g: g if bool(g.isfinite().all()) else torch.zeros_like(g))
    corner = x[:, :, :2, :2]
    return _mild(x) + 0.3 * (corner - corner.mean((2, 3), keepdim=True)).square().mean((2, 3), keepdim=True).sqrt()


class Accident(Purifier):
    """A purifier with one of the mistakes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.hooks, self.steps = how, 0, 0
        self.cache: dict[Any, Any] = {}
        self.averages: list[float] = [0.0]
        self.generator = torch.Generator().manual_seed(5)
        self.chain = Chain()
        self.untracked = nn.BatchNorm2d(1, affine=False, track_running_stats=False)
        self.norm = nn.BatchNorm2d(1).requires_grad_(False)
        self.eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> Accident:
        made = Accident(self.how)
        memo[id(self)] = made
        for module in made.modules():
            memo[id(module)] = module
        return made

    def moving_average(self, x: Tensor) -> float:
        self.averages.append(0.9 * self.averages[-1] + 0.1 * float(x.detach().mean()))
        return self.averages[-1]

    def trained_for_a_moment(self, x: Tensor) -> Tensor:
        self.norm.train()
        try:
            return x + 0.1 * self.norm(_mild(x))
        finally:
            self.norm.eval()

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return ACCIDENTS[self.how](self, x, omega)


class AccidentConfig(PurifierConfig):
    """A purifier with one of the mistakes."""

    purifier: Literal["planted_accidents:AccidentConfig"] = "planted_accidents:AccidentConfig"
    how: str

    @property
    def stochastic(self) -> bool:
        return self.how in RANDOM

    @property
    def differentiable(self) -> bool:
        return self.how != "smooth, and said to have no derivative"

    @property
    def evaluations(self) -> int:
        return 0

    def label(self) -> str:
        return self.how

    def build(self, models: Models | None = None) -> Purifier:
        return Accident(self.how)
