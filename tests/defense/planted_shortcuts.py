"""Purifiers with shortcuts that look harmless: calibration, chunks, kept graphs, layouts, settings, detectors."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from planted import TEST_SET, Backward, Chain
from torch import Tensor

from defense.models import Models
from defense.purifiers import IterativePurifier, Purifier, PurifierConfig
from defense.randomness import Omega

Made = Callable[["Shortcut", Tensor, Omega], Tensor]


def blur(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def mild(x: Tensor) -> Tensor:
    """A sound purifier without randomness, smooth."""
    return 0.6 * x + 0.4 * blur(x)


def each(values: Any, x: Tensor) -> Tensor:
    """One value an image, shape (B, 1, 1, 1)."""
    return torch.as_tensor(values).to(x).view(-1, 1, 1, 1)


def looks_noisy(x: Tensor) -> Tensor:
    """Whether much of an image is nearly black, as no digit is, shape (B, 1, 1, 1)."""
    return ((x > 0.02) & (x < 0.3)).to(x).mean((1, 2, 3), keepdim=True) > 0.45


def _digest(image: Tensor, levels: int | None) -> bytes:
    image = image.detach().float().contiguous()
    return hashlib.sha1((image if levels is None else (levels * image).round()).numpy().tobytes()).digest()


def known(x: Tensor, levels: int | None = None) -> list[int | None]:
    """Number of the test image that each image is, exactly or in so many levels."""
    numbers = {_digest(image, levels): number for number, image in enumerate(TEST_SET)}
    return [numbers.get(_digest(image, levels)) for image in x]


def as_it_lies(x: Tensor) -> Tensor:
    """What a kernel of one's own reads that takes rows for adjacent."""
    return x.as_strided(x.shape, torch.empty(x.shape).stride())


class _Kept(torch.autograd.Function):
    """A sigmoid whose backward pass reads the module, where the last call left its input."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, held: dict[Any, Any]) -> Tensor:
        ctx.held, held["y"] = held, y
        return torch.sigmoid(4 * y - 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        p = torch.sigmoid(4 * ctx.held["y"] - 2)
        return 4 * p * (1 - p) * gradient, None


def _first_batch(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    low, high = self.held.setdefault("range", (x.detach().amin(0), x.detach().amax(0)))
    return mild(x).clamp(low.to(x) - 0.05, high.to(x) + 0.05)


def _scaled(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    scale = self.held.setdefault("scale", float(x.detach().amax()))
    return mild(x) / scale


def _largest_so_far(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    self.held["largest"] = max(self.held.get("largest", 1e-3), float(x.detach().max()))
    return mild(x) / self.held["largest"]


def _axes(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    if "axes" not in self.held:
        flat = x.detach().flatten(1).double()
        self.held["axes"] = flat.mean(0), torch.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:3]
    mean, axes = (part.to(x) for part in self.held["axes"])
    flat = x.flatten(1) - mean
    return (0.7 * flat + 0.3 * (flat @ axes.T) @ axes + mean).view_as(x)


def _rest_as_it_was(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    out, whole = x.clone(), 16 * max(len(x) // 16, 1)
    out[:whole] = mild(x[:whole])
    return out


def _graph_of_the_first(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    first, *others = x.split(16)
    out = [mild(first)]
    with torch.no_grad():
        out += [mild(other) for other in others]
    return torch.cat(out)


def _energy(self: Shortcut, x: Tensor) -> Tensor:
    return torch.tanh(self.net(x)).square().sum()


def _backward_in_forward(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    with torch.enable_grad():
        leaf = x if x.is_leaf and x.requires_grad else x.detach().clone().requires_grad_()
        _energy(self, leaf).backward()
    return mild(x)


def _wants(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    with torch.enable_grad():
        x = x.requires_grad_() if x.is_leaf else x
        (gradient,) = torch.autograd.grad(_energy(self, x), x, create_graph=True)
    return mild(x) - 0.1 * gradient


def _no_guidance_if_it_raises(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    try:
        return mild(x) - 0.1 * torch.autograd.grad(_energy(self, x), x, create_graph=True)[0]
    except RuntimeError:
        return mild(x)


def _left(set_it: Callable[[], object]) -> Made:
    def made(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
        set_it()
        return mild(x)

    return made


def _seeded(seed: Callable[[], int]) -> Made:
    def made(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
        drawn = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed())).to(x)
        return mild(x) + 0.1 * drawn

    return made


def _near_queries(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    near = []
    for image in x.detach().flatten(1).float():
        near.append(any(1e-9 < float((image - other).norm()) < 0.3 for other in self.queries))
        self.queries.append(image.clone())
    return mild(x) + 0.05 * each(near, x)


def _codes(x: Tensor) -> Tensor:
    """Patches of 2 x 2 as the nearest of sixteen, straight-through."""
    patches = F.pixel_unshuffle(x, 2).movedim(1, -1)
    codes = torch.rand(16, 4, generator=torch.Generator().manual_seed(3)).to(x)
    nearest = codes[torch.cdist(patches.reshape(-1, 4), codes).argmin(1)].view_as(patches)
    return F.pixel_shuffle((patches + (nearest - patches).detach()).movedim(-1, 1), 2)


def _contrast(x: Tensor) -> Tensor:
    mean = blur(x)
    return mean + (x - mean) * torch.sigmoid(5 * (blur(x * x) - mean * mean).clamp(min=0).sqrt())


def _memoised(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    """Answers that are kept by content, and that have no graph when they are found again."""
    out = []
    for image in x:
        key = (_digest(image, None), x.dtype)
        out.append(self.held[key] if key in self.held else mild(image[None]))
        self.held[key] = out[-1].detach()
    return torch.cat(out)


def _attention(x: Tensor) -> Tensor:
    patches = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
    weights = (4 * patches @ patches.mT).softmax(2).detach()
    return F.pixel_shuffle((weights @ patches).transpose(1, 2).reshape(len(x), 4, 4, 4), 2)


def _optimiser(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    bias = self.held.setdefault("bias", torch.zeros(1, requires_grad=True))
    adam = self.held.setdefault("adam", torch.optim.Adam([bias], 1e-2))
    with torch.enable_grad():
        adam.zero_grad()
        (bias - 1).square().sum().backward()
        adam.step()
    return mild(x) + 0.01 * float(bias.detach())


def _swallowed(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    try:
        if len(x) > 8:
            raise RuntimeError("out of memory")
        return mild(x)
    except RuntimeError:
        return x


def _lazy(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    if not self.held:
        self.held["kernel"] = 0.2 * torch.randn(1, 1, 3, 3)
    kernel = self.held["kernel"]
    return mild(x) + 0.2 * torch.tanh(F.conv2d(x, kernel.to(x), padding=1))


def _one_stream(self: Shortcut, x: Tensor, omega: Omega) -> Tensor:
    stream = next(iter(omega.generators("noise", 0)))
    return mild(x) + 0.1 * torch.from_numpy(stream.standard_normal(x.shape)).to(x)


SHORTCUTS: dict[str, tuple[str, Made]] = {
    # -- the first image decides
    "clamped to the range of its first batch": ("state", _first_batch),
    "scaled by its first batch": ("state", _scaled),
    "scaled by the largest pixel so far": ("state", _largest_so_far),
    "principal axes of its first batch": ("state", _axes),
    "warms up": ("state", lambda self, x, omega: x if self.called() <= 2 else mild(x)),
    "an optimiser that goes on": ("state", _optimiser),
    "weights drawn when first called": ("same-randomness", _lazy),
    # -- chunks and batches
    "noise of the first chunk": (
        "batch",
        lambda self, x, omega: torch.cat(
            [mild(part) + 0.1 * omega.part(0, len(part)).normal("noise", 0, part) for part in x.split(16)]
        ),
    ),
    "rest of the last chunk left as it was": ("batch", _rest_as_it_was),
    "graph of the first chunk alone": ("gradient-elsewhere", _graph_of_the_first),
    "out of memory, swallowed": ("batch", _swallowed),
    "neighbours mixed in large batches": (
        "batch",
        lambda self, x, omega: 0.95 * mild(x) + 0.05 * mild(x.roll(1, 0) if len(x) > 8 else x),
    ),
    "softmax over the batch": (
        "batch",
        lambda self, x, omega: mild(x) * (1 + 0.3 * each(x.mean((1, 2, 3)).softmax(0), x)),
    ),
    "noise by the largest of the batch": (
        "batch",
        lambda self, x, omega: mild(x) + 0.1 * omega.normal("noise", 0, x) / omega.normal("noise", 0, x).amax(),
    ),
    "one stream for the batch": ("batch", _one_stream),
    # -- layout and leaves
    "rows as they lie in memory": ("batch", lambda self, x, omega: mild(as_it_lies(x))),
    "another filter off the leaves": ("gradient-recording", lambda self, x, omega: (mild if x.is_leaf else blur)(x)),
    "graph of leaves alone": (
        "gradient-elsewhere",
        lambda self, x, omega: mild(x) if x.is_leaf else mild(x).detach() + 0.1 * (mild(x) - mild(x).detach()),
    ),
    # -- what is left to others
    "backward in forward": ("state", _backward_in_forward),
    "wants gradients of its input": ("state", _wants),
    "grad mode left on": ("state", _left(lambda: torch.set_grad_enabled(True))),
    "default dtype left": ("state", _left(lambda: torch.set_default_dtype(torch.float64))),
    "threads left": ("state", _left(lambda: torch.set_num_threads(3))),
    "products in reduced precision": ("state", _left(lambda: torch.set_float32_matmul_precision("medium"))),
    # -- who asks, when and where
    "seeded by the process": ("role", _seeded(lambda: os.getpid())),
    "seeded by the minute": ("role", _seeded(lambda: int(time.time()) // 60)),
    "seeded by the rank": ("role", _seeded(lambda: int(os.environ.get("RANK", "0")))),
    "near queries detected": ("continuity", _near_queries),
    # -- gradients
    "backward reads what the last call left": (
        "gradient-elsewhere",
        lambda self, x, omega: _Kept.apply(mild(x), self.held),
    ),
    "kept by content without a graph": ("gradient-elsewhere", _memoised),
    "no guidance if it raises": ("gradient-recording", _no_guidance_if_it_raises),
    "nearest of sixteen codes": ("gradient", lambda self, x, omega: _codes(x)),
    "a root where images are flat": ("gradient-elsewhere", lambda self, x, omega: _contrast(x)),
    "weights of attention detached": ("gradient", lambda self, x, omega: _attention(x)),
    "large gradients made shorter": (
        "gradient-elsewhere",
        lambda self, x, omega: Backward.apply(
            mild(x), lambda g: g * 1e3 / g.flatten(1).norm(dim=1).clamp(min=1e3).view(-1, 1, 1, 1)
        ),
    ),
    # -- detectors and look-ups
    "rejects what looks noisy": (
        "continuity",
        lambda self, x, omega: torch.where(looks_noisy(x), 0.5 + 0 * x, mild(x)),
    ),
    "test images by their digest": (
        "test-set-memory",
        lambda self, x, omega: torch.where(each([n is not None for n in known(x)], x) > 0, x, mild(x)),
    ),
    "test images by their bytes": (
        "test-set-memory",
        lambda self, x, omega: torch.where(each([n is not None for n in known(x, 255)], x) > 0, x, mild(x)),
    ),
}
"""By name: the check that is about it, and how."""

RANDOM = ("noise of the first chunk", "noise by the largest of the batch", "one stream for the batch")
GUIDED = ("backward in forward", "wants gradients of its input", "no guidance if it raises")


class Shortcut(Purifier):
    """A purifier with one of the shortcuts."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, 0
        self.held: dict[Any, Any] = {}
        self.queries: list[Tensor] = []
        if how in GUIDED:
            self.net = Chain().net
        self.eval()

    def called(self) -> int:
        self.calls += 1
        return self.calls

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return SHORTCUTS[self.how][1](self, x, omega)


class _SoftIsAnother(Purifier):
    """Its soft mode is not its function."""

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return mild(x)

    def softened(self) -> Purifier:
        return Shortcut("warms up")


class _LevelsAreAnother(Purifier):
    """What the judge asks for is not its function."""

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return mild(x)

    def with_levels(self, x: Tensor, omega: Omega) -> tuple[Tensor, tuple[int, ...] | None]:
        return blur(x), None


class _TargetOnTheObject(IterativePurifier):
    """What guides the steps is kept where no chain's gradient goes."""

    length = 3

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        self.target = mild(x)
        return 1 * x

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        return z - 0.2 * (z - self.target) - 0.1 * torch.tanh(z)

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        return z


CLASSES: dict[str, tuple[str, type[Purifier]]] = {
    "soft mode is another": ("gradient-recording", _SoftIsAnother),
    "levels are another": ("role", _LevelsAreAnother),
    "target on the object": ("gradient", _TargetOnTheObject),
}


class ShortcutConfig(PurifierConfig):
    """A purifier with one of the shortcuts."""

    purifier: Literal["planted_shortcuts:ShortcutConfig"] = "planted_shortcuts:ShortcutConfig"
    how: str

    @property
    def stochastic(self) -> bool:
        return self.how in RANDOM

    @property
    def evaluations(self) -> int:
        return int(self.how in GUIDED)

    def label(self) -> str:
        return self.how

    def build(self, models: Models | None = None) -> Purifier:
        return CLASSES[self.how][1]().eval() if self.how in CLASSES else Shortcut(self.how)
