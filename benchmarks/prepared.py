"""Frozen weights that are cast to bfloat16 once against autocast, which casts them in every forward pass.

The digits denoiser under autocast, plain and prepared (``defense/prepared.py``), taking turns in one run on one
thread: operations that a forward pass asks the device for, seconds of processor, and whether all bits are equal. On a
GPU an operation costs about the same however small it is, so that their number is what a small batch waits for; there
is none here, and nothing is claimed for one.

    python benchmarks/prepared.py [--batch 8] [--rounds 10]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import defense
from defense import DiffusersConfig
from defense.prepared import prepare


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not str(func).startswith(("aten.view", "aten.t.", "aten.detach", "aten._unsafe_view", "aten.expand")):
            self.seen[str(func)] += 1  # what is left asks the device for something
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(defense.__file__).parent / "assets" / "digits-ddpm"
    config = DiffusersConfig(schedule="linear-1000", path=str(path)).resolved(Path())
    plain, prepared = config.build(), config.build()
    prepare(prepared)
    layers = sum(hasattr(layer, "_cast_weight") for layer in prepared.modules())
    z = torch.randn(options.batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {"plain": [], "prepared": []}
    answers, operations = {}, {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for name, network in (("plain", plain), ("prepared", prepared)):
            with Operations() as seen:
                answers[name] = network(z, 50)
            operations[name] = seen.seen
        for _ in range(options.rounds):
            for name, network in (("plain", plain), ("prepared", prepared)):
                began = time.process_time()
                network(z, 50)
                times[name].append(time.process_time() - began)
    for name, seconds in times.items():
        casts = operations[name]["aten._to_copy.default"]
        print(f"{name:<9}{operations[name].total():5d} operations, {casts:4d} casts, {median(seconds) * 1e3:7.2f} ms")
    ratio = median(a / b for a, b in zip(times["prepared"], times["plain"], strict=True))
    share = operations["prepared"].total() / operations["plain"].total()
    print(f"prepared / plain: operations {share:.2f}, processor {ratio:.2f}; {layers} layers")
    print(f"all bits equal: {torch.equal(answers['plain'], answers['prepared'])}")


if __name__ == "__main__":
    main()
