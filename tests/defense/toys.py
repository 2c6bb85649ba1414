"""Every kind of purifier around small smooth networks in float64, for tests of gradients and guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from defense import Omega, Purifier, get_schedule
from defense.corrections import Correction
from defense.denoisers.base import Denoiser
from defense.guidance import Guidance, distance
from defense.purifiers import (
    OSGD,
    AAOpt,
    ConfidenceGuidance,
    ContrastiveGuidance,
    Diffusion,
    DistanceGuidance,
    FrequencyExchange,
    FreshNoise,
    Heterogeneous,
    LangevinPurifier,
    MediatorPull,
    RobustGuidance,
    ScoreOptN,
    ScoreOptO,
    Sequence,
    SimilarityGuidance,
    TransferGuidance,
)
from defense.purifiers.gaussian_noise import GaussianNoise
from defense.samplers import DDIM, Ancestral, ProbabilityFlow, ReverseSDE, Sampler, time_grid

LINEAR = get_schedule("linear-1000")


class SmoothDenoiser(Denoiser):
    """Noise and variance output of two convolutions; counts its calls."""

    schedule = LINEAR
    image_shape = None

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.calls = 0

    def with_variance(self, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        self.calls += 1
        eps, v = self.second(torch.tanh(self.first(z) + t / 1000)).chunk(2, 1)
        return eps + 0.8 * z, torch.tanh(v)

    def forward(self, z: Tensor, t: int) -> Tensor:
        return self.with_variance(z, t)[0]


class SmoothClassifier(nn.Module):
    """Five classes and a latent of images of 8x8 pixels; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3 * 36, 5)
        self.calls = 0

    def latent(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.softplus(2 * self.features(x)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.latent(x))  # type: ignore[no-any-return]


def _frozen(build: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double().requires_grad_(False).eval()


DENOISER: SmoothDenoiser = _frozen(SmoothDenoiser, 0)
CLASSIFIER: SmoothClassifier = _frozen(SmoothClassifier, 1)


def ancestral(t_star: int, steps: int, **options: Any) -> Ancestral:
    return Ancestral(LINEAR, time_grid(t_star, steps), **{"variance": "large", **options})


def guided(guidance: Guidance, sampler: Sampler | None = None, **options: Any) -> Diffusion:
    return Diffusion(DENOISER, [sampler or ancestral(100, 10)], guidance=guidance, **options)


MSE, SSIM = distance("mse"), distance("ssim")

UNGUIDED: dict[str, Purifier] = {
    "ddpm small": Diffusion(DENOISER, [ancestral(100, 10, variance="small")]),
    "ddpm large": Diffusion(DENOISER, [ancestral(100, 10)]),
    "ddpm learned": Diffusion(DENOISER, [ancestral(100, 10, variance="learned")]),
    "ddpm clipped": Diffusion(DENOISER, [ancestral(100, 10, clip=True)]),
    "ddim": Diffusion(DENOISER, [DDIM(LINEAR, time_grid(100, 10))]),
    "ddim half": Diffusion(DENOISER, [DDIM(LINEAR, time_grid(100, 10), eta=0.5)]),
    "sde": Diffusion(DENOISER, [ReverseSDE(LINEAR, time_grid(100, 10))]),
    "ode": Diffusion(DENOISER, [ProbabilityFlow(LINEAR, time_grid(100, 10))]),
    "ldsde": LangevinPurifier(DENOISER, 10, 20),
    "one-shot": Diffusion(DENOISER, [DDIM(LINEAR, [145, 0])]),
    "densepure": Diffusion(DENOISER, [ancestral(145, 5, variance="small")], shared_forward=True),
    "gradual-noise": Diffusion(
        DENOISER, [ancestral(t, n, variance="small") for t, n in ((30, 3), (50, 5), (125, 4))]
    ),
}
GUIDED: dict[str, Purifier] = {
    "gdmp mse": Diffusion(DENOISER, [ancestral(36, 6)] * 3, guidance=SimilarityGuidance("mse", 60000, 100, 8.0)),
    "gdmp ssim": Diffusion(DENOISER, [ancestral(36, 6)] * 2, guidance=SimilarityGuidance("ssim", 300, 100, 8.0)),
    "gdmp constant": Diffusion(DENOISER, [ancestral(36, 6)] * 2, guidance=SimilarityGuidance("mse", 900, 1, None)),
    "gdmp learned": guided(SimilarityGuidance("mse", 60000, 100, 8.0), ancestral(36, 6, variance="learned")),
    "gdmp sde": guided(SimilarityGuidance("mse", 60000, 100, 8.0), ReverseSDE(LINEAR, time_grid(36, 6))),
    "from noise mse": guided(DistanceGuidance(MSE, 2.0), ancestral(300, 10), from_noise=True),
    "from noise ssim": guided(DistanceGuidance(SSIM, 2.0), ancestral(300, 10), from_noise=True),
    "from noise clamped": guided(DistanceGuidance(MSE, 2.0), ancestral(300, 10), from_noise=True, clamp=True),
    **{
        f"transfer {form} {sees}": guided(
            TransferGuidance(MSE, CLASSIFIER, form=form, s=5.0, lam=2.0, classifier_sees=sees)  # type: ignore[arg-type]
        )
        for form in ("soft-label", "logit", "confidence", "none")
        for sees in ("denoised", "noisy")
    },
    "transfer ode": guided(TransferGuidance(MSE, CLASSIFIER, s=5.0), ProbabilityFlow(LINEAR, time_grid(100, 10))),
    "transfer ssim learned": guided(
        TransferGuidance(SSIM, CLASSIFIER, s=5.0), ancestral(100, 10, variance="learned")
    ),
    **{
        f"robust {label} {target} {sees}": guided(
            RobustGuidance(CLASSIFIER, 5.0, target=target, label=label, auxiliary_sees=sees)  # type: ignore[arg-type]
        )
        for label in ("prediction", "entropy")
        for target, sees in (("diffused", "noisy"), ("input", "noisy"), ("input", "denoised"))
    },
    "robust class alone": guided(RobustGuidance(CLASSIFIER, 5.0, latent_weight=0.0)),
    "robust latent alone": guided(RobustGuidance(CLASSIFIER, 5.0, class_weight=0.0)),
}
SEQUENCES: dict[str, Purifier] = {
    "chain": Sequence([GaussianNoise(0.1), UNGUIDED["ddpm small"], GUIDED["gdmp mse"]]),
}
OPTIMISED: dict[str, Purifier] = {
    **{
        f"score-opt O {how}": ScoreOptO(DENOISER, 0.1, 0.2, 4, 0.05, how)  # type: ignore[arg-type]
        for how in ("adam", "sgd")
    },
    **{f"score-opt N {how}": ScoreOptN(DENOISER, 100, 4, 0.05, how) for how in ("adam", "sgd")},  # type: ignore[arg-type]
    "aaopt": AAOpt(DENOISER, 0.1, 0.2, 4, 0.05),
    "aaopt perturbations": AAOpt(DENOISER, 0.1, 0.2, 4, 0.05, "sgd", lam=0.3, perturbation=DENOISER),
}


def corrected(correction: Correction, sampler: Sampler) -> Diffusion:
    return Diffusion(DENOISER, [sampler], correction=correction)


CORRECTED: dict[str, Purifier] = {
    "freqpure replace": corrected(FrequencyExchange(2, 2, 50, None), DDIM(LINEAR, time_grid(400, 6), eta=1.0)),
    "freqpure radii": corrected(FrequencyExchange(2, 3, 50, None), DDIM(LINEAR, time_grid(400, 6), eta=1.0)),
    "freqpure phase": corrected(FrequencyExchange(2, 2, 50, 0.3), DDIM(LINEAR, time_grid(400, 6), eta=1.0)),
    "diff-ap published": corrected(
        MediatorPull(30000, 2000), FreshNoise(LINEAR, time_grid(400, 5), renoise="published")
    ),
    "diff-ap exact": corrected(MediatorPull(30000, 2000), FreshNoise(LINEAR, time_grid(400, 5))),
}
OTHERS: dict[str, Purifier] = {
    "osgd": OSGD(DENOISER, 50, 5000.0),
    "heterogeneous": Heterogeneous(DENOISER, CLASSIFIER, 100, 50, 10, threshold=0.4),
}
GUIDED["coup"] = guided(ConfidenceGuidance(CLASSIFIER, 5.0), ReverseSDE(LINEAR, time_grid(100, 10)).noised_to(1.0))
GUIDED["contrastive"] = guided(ContrastiveGuidance(CLASSIFIER, 20.0))
EVERY: dict[str, Purifier] = {**UNGUIDED, **GUIDED, **CORRECTED, **OPTIMISED, **OTHERS, **SEQUENCES}


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def omega(*image_ids: int, draw: int = 0) -> Omega:
    return Omega.of("toy", 0, "judge", image_ids, draw)


def loss(purified: Tensor) -> Tensor:
    """Something smooth that no symmetry makes vanish."""
    return nn.functional.cross_entropy(CLASSIFIER(purified), torch.arange(len(purified)), reduction="sum")


def gradient(purify: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of :func:`loss` through ``purify``; zero where it does not depend on ``x``."""
    x = x.clone().requires_grad_()
    value = loss(purify(x))
    if not value.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(value, x, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
