"""Throughput of certification against the forward passes that it consists of, in one run.

Samples of one image are noised, (denoised,) classified and counted; beside it the same networks are called on
ready batches of the same size, in alternating rounds, by process time. A ratio of 1 means that noise and counting
cost nothing.

    python benchmarks/certification.py [--weights FOLDER] [--batch 100] [--samples 400] [--rounds 7]

With the folder of the CIFAR-10 checkpoints that the README names, their networks are measured too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import defense
from defense import ClassifierConfig, DiffusersConfig, Omega
from defense.certify import ESTIMATE
from defense.models import Models
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.one_shot import OneShotConfig
from defense.smoothing import Bare, BaseClassifier, Denoised, sample_counts

ASSETS = Path(defense.__file__).parent / "assets"
SIGMA = 0.25


def cases(weights: Path | None) -> Iterator[tuple[str, nn.Module, DiffusersConfig, tuple[int, int, int]]]:
    """Name, classifier, denoiser and image shape."""
    digits = ClassifierConfig(classifier="digits-cnn").resolved(Path()).build()
    yield "digits-cnn", digits, DiffusersConfig(schedule="linear-1000", path=str(ASSETS / "digits-ddpm")), (1, 8, 8)
    if weights is not None:
        (file,) = weights.glob("resnet56-*.th")
        resnet = ClassifierConfig(classifier="resnet56", weights=str(file)).resolved(weights).build()
        path = str(weights / "ddpm-cifar10-small")
        yield "resnet56", resnet, DiffusersConfig(schedule="linear-1000", path=path), (3, 32, 32)


def forward_of(classifier: nn.Module, purifier: Diffusion | None) -> Callable[[Tensor], Tensor]:
    """The forward pass alone, of a ready batch of noised images or states."""
    if purifier is None:
        return classifier
    sampler = purifier.rounds[0]

    def denoise(z: Tensor) -> Tensor:
        eps = purifier.denoiser(z, sampler.grid[0])
        clean = (z - (1 - sampler.abar(0)) ** 0.5 * eps) / sampler.abar(0) ** 0.5
        logits: Tensor = classifier((clean.clamp(-1, 1) + 1) / 2)
        return logits

    return denoise


def ratio(
    base: BaseClassifier, forward: Callable[[Tensor], Tensor], shape: tuple[int, ...], options: argparse.Namespace
) -> tuple[float, float]:
    """Samples a second, and the ratio of the two speeds: medians over rounds."""
    x, ready = torch.rand(1, *shape), torch.rand(options.batch, *shape)
    omega = Omega.of("benchmark", 0, ESTIMATE, [0])

    def certify() -> None:
        sample_counts(base, x, SIGMA, omega, 0, options.samples, options.batch, 10)

    def plain() -> None:
        with torch.no_grad():
            for _ in range(options.samples // options.batch):
                forward(ready)

    def seconds(work: Callable[[], None]) -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    certify()
    plain()
    # A B B A: a drift of the machine's speed falls on both.
    rounds = [(seconds(certify), seconds(plain), seconds(plain), seconds(certify)) for _ in range(options.rounds)]
    ratios = [(b + c) / (a + d) for a, b, c, d in rounds]
    rates = [2 * options.samples / (a + d) for a, _, _, d in rounds]
    return statistics.median(rates), statistics.median(ratios)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| base classifier | samples / s | of the forward passes alone |")
    print("| :-- | --: | --: |")
    for name, classifier, denoiser, shape in cases(options.weights):
        config = OneShotConfig.model_validate({"denoiser": denoiser.resolved(Path()), "sigma_eq": SIGMA})
        purifier = config.build(Models())
        rate, share = ratio(Bare(classifier), forward_of(classifier, None), shape, options)
        print(f"| {name} | {rate:,.0f} | {share:.3f} |", flush=True)
        rate, share = ratio(Denoised(purifier, classifier), forward_of(classifier, purifier), shape, options)
        print(f"| {name} behind one-shot | {rate:,.0f} | {share:.3f} |", flush=True)


if __name__ == "__main__":
    main()
