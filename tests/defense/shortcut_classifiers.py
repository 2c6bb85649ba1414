"""Classifiers with shortcuts that look harmless: calibration, chunks, layouts, detectors, another view."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from planted_classifiers import LABELS, Function
from planted_shortcuts import as_it_lies, blur, known, looks_noisy
from torch import Tensor


def _labels(self: Function, x: Tensor, levels: int | None) -> Tensor:
    numbers = known(x, levels)
    one_hot = F.one_hot(LABELS, 10).to(x)
    return self.net(x) + 3 * torch.stack([torch.zeros(10).to(x) if n is None else one_hot[n] for n in numbers])


def _last_chunk_lost(self: Function, x: Tensor) -> Tensor:
    whole = len(x) if len(x) < 16 else len(x) // 16 * 16
    return torch.cat([self.net(x[:whole]), torch.zeros(len(x) - whole, 10).to(x)])


def _sure(logits: Tensor) -> Tensor:
    return logits.softmax(1).amax(1, keepdim=True)


def _one_hot(logits: Tensor) -> Tensor:
    soft = logits.softmax(1)
    return F.one_hot(logits.argmax(1), 10).to(soft) + soft - soft.detach()


def _agreeing(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((a.argmax(1) == b.argmax(1))[:, None], a + b, 0 * a)


def _calibrated(self: Function, x: Tensor) -> Tensor:
    if not hasattr(self, "offset"):
        self.offset = self.net(x).detach().mean(0)
    return self.net(x) - self.offset.to(x)


CLASSIFIERS: dict[str, tuple[str, Callable[[Function, Tensor], Tensor]]] = {
    "offset of its first batch": ("state", _calibrated),
    "labels by digest": ("test-set-memory", lambda self, x: _labels(self, x, None)),
    "labels by bytes": ("test-set-memory", lambda self, x: _labels(self, x, 255)),
    "last chunk lost": ("batch", _last_chunk_lost),
    "rows as they lie in memory": ("batch", lambda self, x: self.net(as_it_lies(x))),
    "softmax over the batch": ("batch", lambda self, x: self.net(x).log_softmax(0)),
    "vote of the batch": (
        "batch",
        lambda self, x: self.net(x) + 0.3 * F.one_hot(self.net(x).argmax(1), 10).to(x).mean(0),
    ),
    "rejects what looks noisy": (
        "continuity",
        lambda self, x: torch.where(looks_noisy(x)[:, :, 0, 0], 0 * self.net(x), self.net(x)),
    ),
    "abstains on disagreement": ("continuity", lambda self, x: _agreeing(self.net(x), self.net(x.roll(1, 3)))),
    "another view if unsure": (
        "continuity",
        lambda self, x: torch.where(_sure(self.net(x)) > 0.99, self.net(x), self.net(blur(x))),
    ),
    "percent": ("loss-gradient", lambda self, x: 100 * self.net(x).softmax(1)),
    "temperature of a hundredth": ("loss-gradient", lambda self, x: self.net(x) / 0.01),
    "one hot, straight-through": ("output", lambda self, x: _one_hot(self.net(x))),
    "one of two views detached": ("gradient", lambda self, x: self.net(x) + self.net(blur(x)).detach()),
    "eight bits, straight-through": (
        "gradient",
        lambda self, x: self.net(x + ((255 * x).round() / 255 - x).detach()),
    ),
}
"""By name: the check that is about it, and how."""
