"""What a gradient of many draws remembers for its backward pass: batch by batch against all of them at once.

The digits classifier behind Gaussian noise, and behind the digits denoiser with the exact gradient and its bit check,
4 images in batches of 4. Printed are the most bytes that autograd keeps at once for 1 and for ``--draws`` draws,
their ratio, and seconds of processor; both ways in one run, and their gradients must have equal bits.

    python benchmarks/draws_memory.py [--draws 20] [--attacked mean-loss]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "tasks"))

import torch
from test_draws_memory import AtOnce, X, made, remembered

import defense
from defense import ClassifierConfig, DiffPureConfig, DiffusersConfig
from defense.purifiers import PURIFIERS
from tasks.attacks import Target
from tasks.attacks.losses import point_loss
from tasks.attacks.target import Attacked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--attacked", choices=get_args(Attacked), default="mean-loss")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = ClassifierConfig(classifier="digits-cnn").resolved(Path()).build()
    path = Path(defense.__file__).parent / "assets" / "digits-ddpm"
    denoiser = DiffusersConfig(schedule="linear-1000", path=str(path)).resolved(Path())
    purifiers = {
        "gaussian noise": PURIFIERS.get("gaussian-noise")(sigma=0.2).build(),
        "diffusion, exact": DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=60, steps=2).build(),
    }
    for name, purifier in purifiers.items():
        gradients = []
        for how, kind in (("at once", AtOnce), ("batch by batch", Target)):
            most, took = [], 0.0
            for draws in (1, options.draws):
                target = made(kind, purifier, network, draws, len(X), options.attacked)
                began = time.process_time()
                with remembered() as peak:
                    found = target.differentiate(X, point_loss("ce"))
                took = time.process_time() - began
                most.append(peak())
            gradients.append(found.gradient)
            print(
                f"{name:<18}{how:<16}1 draw {most[0] / 2**10:9.0f} KiB"
                f"  {options.draws} draws {most[1] / 2**10:9.0f} KiB  ratio {most[1] / most[0]:6.2f}  {took:6.2f} s"
            )
        assert torch.equal(*gradients), "the gradients differ"


if __name__ == "__main__":
    main()
