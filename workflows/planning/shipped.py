r"""What units cost on a machine that nobody has measured yet: shipped costs, scaled by one second of this machine.

A plan of a fresh store has no commits to measure by. ``shipped_costs.json`` holds, for the networks that come with
puregrid or are public, the processor seconds :math:`c_m` of an image and evaluation of network m on a reference
machine, and for each kind of computation its multiple :math:`f_k` of that (a gradient costs more than an answer). A
unit is then expected to take :math:`s\, c_m f_k` seconds an image and evaluation, where :math:`s` is how much longer
a fixed convolution takes here. It is a guess: right within a factor of two or so, and replaced by the first commits.
``python -m scripts.shipped_costs`` measures the file anew.
"""

import json
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from tasks.stages.kind import Kind
from workflows.planning.costs import Cost

__all__ = ["group", "shipped_costs", "shipped_file", "speed"]

_MODES = ("exact", "bpda", "surrogate", "soft")


def shipped_file() -> Path:
    """Return the file of the shipped costs."""
    return Path(__file__).with_name("shipped_costs.json")


def group(kind: Kind) -> str:
    """Return the computation of a kind, whatever its network: ``evaluate``, ``attack bpda``, ``corrupt``."""
    if kind.stage != "attack":
        return kind.stage
    name, _, mode = kind.threat.partition(" ")
    if name == "ladder":
        return "attack ladder"  # it judges the images of its rungs, and follows no gradient
    return next((f"attack {known}" for known in _MODES if mode.startswith(known)), "attack")


def speed(seconds: float = 1.0) -> float:
    """Measure this machine: processor seconds of a fixed convolution with its gradient, in one thread.

    Arguments:
        seconds: How long to measure, after a first round that is not counted.
    """
    import torch

    weight = torch.full((64, 64, 3, 3), 0.01, requires_grad=True)
    images = torch.full((16, 64, 16, 16), 0.1)

    def gradient() -> None:
        torch.autograd.grad(torch.nn.functional.conv2d(images, weight, padding=1).sum(), weight)

    threads, rounds = torch.get_num_threads(), 0
    torch.set_num_threads(1)
    try:
        gradient()
        began = time.process_time()
        while (spent := time.process_time() - began) < seconds or not rounds:
            gradient()
            rounds += 1
    finally:
        torch.set_num_threads(threads)
    return spent / rounds


@cache
def _shipped() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(shipped_file().read_text(encoding="utf-8"))
    return content


def shipped_costs(kinds: Iterable[Kind]) -> dict[Kind, Cost]:
    """Guess the cost of kinds of units on the processors of this machine; kinds of unknown networks are left out."""
    shipped, found = _shipped(), dict[Kind, float]()
    for kind in set(kinds):
        factor, each = shipped["factors"].get(group(kind)), shipped["networks"].get(kind.model)
        if kind.stage in shipped["images"]:
            found[kind] = shipped["images"][kind.stage]
        elif factor is not None and each is not None:
            found[kind] = factor * each["seconds"]
    if not found:
        return {}
    scale = speed() / shipped["reference_seconds"]
    return {kind: Cost(0, scale * rate) for kind, rate in found.items()}
