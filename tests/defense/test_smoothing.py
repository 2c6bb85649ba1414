from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from defense import (
    ClassifierConfig,
    GaussianMixtureDenoiser,
    InvalidInput,
    NoPurifierConfig,
    Omega,
    Purifier,
    get_schedule,
)
from defense.certify import ABSTAIN, ESTIMATE, SELECT, SequentialPlan, certify
from defense.purifiers.densepure import DensePureConfig
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.gaussian_noise import GaussianNoise
from defense.purifiers.one_shot import OneShotConfig
from defense.samplers import DDIM, Ancestral, time_grid
from defense.smoothing import Bare, Denoised, Purified, sample_counts, smoothing_counts, smoothing_level
from tasks.datasets import ImageSet

LINEAR = get_schedule("linear-1000")
SHAPE = (1, 4, 4)


# methods.md 5.3 (9.8): smallest t with enough noise, and the noise it has. The public loops count steps from 0: their
# index i is our t = i + 1, as in `test_schedules.py`.
@pytest.mark.parametrize(
    ("sigma", "linear", "linear_sigma", "cosine", "cosine_sigma", "closed", "abar"),
    [
        (0.12, 70, 0.12069, 573, 0.12012, 573.439, 0.945537),
        (0.25, 145, 0.25158, 1158, 0.25012, 1158.513, 0.800000),
        (0.50, 259, 0.50239, 1984, 0.50031, 1984.199, 0.500000),
        (0.75, 339, 0.75328, 2490, 0.75012, 2490.818, 0.307692),
        (1.00, 396, 1.00024, 2809, 1.00001, 2809.985, 0.200000),
    ],
)
def test_published_levels(
    sigma: float, linear: int, linear_sigma: float, cosine: int, cosine_sigma: float, closed: float, abar: float
) -> None:
    for name, index, reached in (("linear-1000", linear, linear_sigma), ("cosine-4000", cosine, cosine_sigma)):
        level = smoothing_level(get_schedule(name), sigma)
        assert level.t_star == index + 1 and level.sigma_eq == pytest.approx(reached, abs=5.1e-6)
        assert get_schedule(name).level(level.t_star - 1).sigma_eq < sigma <= level.sigma_eq
    assert 1 / (1 + (2 * sigma) ** 2) == pytest.approx(abar, abs=5.1e-7)
    # DensePure's closed form of the cosine schedule: our level is the next whole step.
    u = 2 * 1.008 * math.asin(math.sin(math.pi / (2 * 1.008)) / math.sqrt(1 + (2 * sigma) ** 2)) / math.pi
    assert 4000 * (1 - u) == pytest.approx(closed, abs=5.1e-4)
    assert smoothing_level(get_schedule("cosine-4000"), sigma).t_star == math.ceil(closed)


class Linear(nn.Module):
    """Two classes on either side of the plane ``w x = b``."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.w = torch.full(SHAPE, 0.5)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.w.to(x)).flatten(1).sum(1) - self.offset
        return torch.stack([-score, score], 1)


def omega(*ids: int, role: str = ESTIMATE, seed: int = 0) -> Omega:
    return Omega.of("cell", seed, role, ids)


def grey(*levels: float) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, *SHAPE)


def recorded(noisy: list[Tensor]) -> Bare:
    class Recording(Linear):
        def forward(self, x: Tensor) -> Tensor:
            noisy.append(x.clone())
            return super().forward(x)

    return Bare(Recording(4.0))


def test_the_noise_is_gaussian_unclipped_and_in_pixel_units() -> None:
    seen: list[Tensor] = []
    sample_counts(recorded(seen), grey(0.02, 0.98), 0.25, omega(3, 4), 0, 16_000, 2000, 2)
    for image, level in ((torch.cat(seen[:8]), 0.02), (torch.cat(seen[8:]), 0.98)):
        noise = ((image - level) / 0.25).double().numpy()
        assert noise.shape == (16_000, *SHAPE) and noise.min() < -3.8 and noise.max() > 3.8
        assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
        correlation = np.corrcoef(noise.reshape(16_000, -1).T) - np.eye(16)
        assert abs(correlation).max() < 5 / math.sqrt(16_000)
    assert not torch.equal(seen[0] - 0.02, seen[8] - 0.98)


@pytest.mark.slow
def test_a_linear_classifier_has_the_counts_of_the_closed_form_and_its_certificate_the_distance() -> None:
    # |w| = .5 * 4 = 2, score of a grey image at level v: 8 v - offset, so the distance is (8 v - offset) / 2.
    x, sigma, base = grey(0.52, 0.55, 0.48), 0.25, Bare(Linear(4.0))
    distance = np.array([0.08, 0.20, -0.08])
    chosen = smoothing_counts(base, x, sigma, omega(0, 1, 2, role=SELECT), 0, 100, 100, 2)
    counts = smoothing_counts(base, x, sigma, omega(0, 1, 2), 0, 20_000, 2000, 2)
    for d, few, many in zip(distance, chosen, counts, strict=True):
        p = stats.norm.cdf(d / sigma)
        assert abs(many.per_class[1] - 20_000 * p) < 4 * math.sqrt(20_000 * p * (1 - p))
        found = certify(few, many, 0.001, sigma, n=20_000)
        assert found.prediction == int(d > 0) and 0 < found.radius <= abs(d)
        assert found.radius > abs(d) - sigma * 0.08
        early = SequentialPlan(n=20_000).certify(few, many, sigma)
        assert early.prediction == found.prediction and 0 < early.radius < found.radius


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.integers(1, 90).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(1, n), max_size=5))),
    st.sampled_from([1, 7, 16]),
)
def test_parts_of_the_samples_count_like_the_whole(case: tuple[int, set[int]], batch: int) -> None:
    n, inner = case
    x, base = grey(0.5, 0.52), Bare(Linear(4.0))
    whole = smoothing_counts(base, x, 0.25, omega(5, 9), 0, n, batch, 2)
    edges = sorted(inner | {0, n})
    parts = [
        smoothing_counts(base, x, 0.25, omega(5, 9), a, b - a, batch, 2)
        for a, b in reversed(list(itertools.pairwise(edges)))
    ]
    for i in range(2):
        total = parts[0][i]
        for part in parts[1:]:
            total = total + part[i]
        assert total == whole[i]
    alone = smoothing_counts(base, x[1:], 0.25, omega(9), 0, n, batch, 2)
    assert alone == whole[1:]


def test_every_sample_is_computed_among_the_same_neighbours() -> None:
    whole: list[Tensor] = []
    sample_counts(recorded(whole), grey(0.5), 0.25, omega(0), 0, 30, 10, 2)
    part: list[Tensor] = []
    assert sample_counts(recorded(part), grey(0.5), 0.25, omega(0), 13, 9, 10, 2).sum() == 9
    assert [len(batch) for batch in part] == [10, 10]
    assert torch.equal(part[0], whole[1]) and torch.equal(part[1], whole[2])


def test_selection_and_estimation_see_other_noise_and_so_do_seeds_and_images() -> None:
    seen: list[Tensor] = []
    for keys in (omega(0, role=SELECT), omega(0), omega(0, seed=1), omega(1)):
        sample_counts(recorded(seen), grey(0.5), 0.25, keys, 0, 20, 20, 2)
    noise = torch.stack(seen).sub(0.5).reshape(-1, 16)
    assert len(torch.unique(noise, dim=0)) == 80
    again: list[Tensor] = []
    sample_counts(recorded(again), grey(0.5), 0.25, omega(0), 0, 20, 20, 2)
    assert torch.equal(again[0], seen[1])


def one_shot(sigma: float, denoiser: GaussianMixtureDenoiser, **options: bool) -> Diffusion:
    return Diffusion(denoiser, [DDIM(LINEAR, [LINEAR.t_for_sigma(sigma), 0], **options)])


def test_one_shot_denoising_takes_the_noise_of_the_certificate_as_its_own() -> None:
    # Gaussian data N(m, s2) in [-1, 1]: z0hat is affine in y, (1 - g) m + g (2 y - 1) with g = a s2 / (a s2 + 1 - a).
    sigma, mean, variance = 0.25, 0.1, 0.3
    a = smoothing_level(LINEAR, sigma).abar
    gain = a * variance / (a * variance + 1 - a)
    seen: list[Tensor] = []

    class Seeing(Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return super().forward(x)

    purifier = one_shot(sigma, GaussianMixtureDenoiser.gaussian(LINEAR, variance, mean))
    noisy = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Denoised(purifier, Seeing(4.0))(noisy, sigma, omega(*range(6)))
    expected = ((1 - gain) * mean + gain * (2 * noisy - 1) + 1) / 2
    assert torch.allclose(seen[0], expected, atol=1e-12)


def test_a_denoised_linear_classifier_has_the_certificate_of_the_closed_form() -> None:
    # f(D(y)) is linear in y again: boundary where (1 - g) m + g (2 v - 1) = 0 for grey level v, i.e. at
    # v* = (1 - (1 - g) m / g) / 2, distance 4 (v - v*) from a grey image of 16 pixels.
    sigma, mean, variance = 0.25, 0.1, 0.3
    a = smoothing_level(LINEAR, sigma).abar
    gain = a * variance / (a * variance + 1 - a)
    boundary = (1 - (1 - gain) * mean / gain) / 2
    base = Denoised(one_shot(sigma, GaussianMixtureDenoiser.gaussian(LINEAR, variance, mean)), Linear(4.0))
    x = grey(boundary + 0.05)
    few = smoothing_counts(base, x, sigma, omega(0, role=SELECT), 0, 100, 100, 2)[0]
    many = smoothing_counts(base, x, sigma, omega(0), 0, 10_000, 1000, 2)[0]
    p = stats.norm.cdf(0.2 / sigma)
    assert abs(many.per_class[1] - 10_000 * p) < 4 * math.sqrt(10_000 * p * (1 - p))
    found = certify(few, many, 0.001, sigma)
    assert found.prediction == 1 and 0.2 - sigma * 0.06 < found.radius <= 0.2


@pytest.mark.slow
def test_densepure_votes_over_reverse_seeds_with_a_law_that_is_known() -> None:
    # Reverse steps to Gaussian data leave the output N(mean, v) given y; a vote of K is a binomial tail in P(right).
    sigma, k = 0.5, 5
    t = LINEAR.t_for_sigma(sigma)
    denoiser = GaussianMixtureDenoiser.gaussian(LINEAR, 0.3, 0.0)
    purifier = Diffusion(denoiser, [Ancestral(LINEAR, time_grid(t, 10))], shared_forward=True)
    noisy = grey(0.55).expand(3000, *SHAPE).double()
    keys = Omega.of("cell", 0, ESTIMATE, [0] * 3000, range(3000))
    one = Denoised(purifier, Linear(4.0))(noisy, sigma, keys).mean()
    # Mean and variance of the chain's output, from its own means and from samples' independence.
    z = math.sqrt(LINEAR.level(t).abar) * (2 * grey(0.55)[:1, :, :1, :1].double() - 1)
    variance = 0.0
    sampler = purifier.rounds[0]
    for i, level in enumerate(sampler.grid[:-1]):
        slope_at = torch.tensor([[1.0]], dtype=torch.float64)
        slope = float(sampler.transition(i, slope_at, denoiser(slope_at, level)).mean)
        step = sampler.transition(i, z, denoiser(z, level))
        z, variance = step.mean, slope**2 * variance + float(step.std) ** 2
    p = stats.norm.cdf(float(z) * 4 / math.sqrt(variance))  # sum of 16 pixels / 4
    assert 0.55 < p < 0.95 and abs(one - p) < 4 * math.sqrt(p * (1 - p) / 3000)
    voted = Denoised(purifier, Linear(4.0), votes=k)(noisy, sigma, keys).mean()
    expected = stats.binom.sf(k // 2, k, p)
    assert abs(voted - expected) < 4 * math.sqrt(expected * (1 - expected) / 3000)


class Echo(Purifier):
    """Keeps its input, with noise of its own on it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.keys: list[Omega] = []

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        self.seen.append(x)
        self.keys.append(omega)
        return x + omega.normal("forward", 0, x)


def test_any_purifier_stands_behind_the_noise_with_randomness_of_its_own_for_each_sample_and_vote() -> None:
    echo = Echo()
    sample_counts(Purified(echo, Linear(4.0), votes=3), grey(0.5), 0.5, omega(2), 0, 40, 20, 2)
    assert len(echo.seen) == 6
    assert all(float(x.min()) == 0 and float(x.max()) == 1 for x in echo.seen)
    assert {keys.role for keys in echo.keys} == {f"certify-estimate/vote-{v}" for v in range(3)}
    assert echo.keys[3].draws == tuple(range(20, 40)) and set(echo.keys[3].image_ids) == {2}
    own = torch.cat([keys.normal("forward", 0, x) for keys, x in zip(echo.keys, echo.seen, strict=True)])
    assert len(torch.unique(own.reshape(120, -1), dim=0)) == 120
    # The purifier's key ("forward", 0) and the certificate's noise do not meet.
    noise = [omega(2).normal("smoothing", 0, grey(0.5))]
    assert not any(torch.equal(noise[0][0], each) for each in own)
    free = Echo()
    Purified(free, Linear(4.0), clamp=False)(grey(-0.5, 1.5), 0.5, omega(0, 1))
    assert free.seen[0].min() == -0.5 and free.seen[0].max() == 1.5


def test_the_own_noise_of_a_purifier_adds_to_that_of_the_certificate() -> None:
    # Behind noise .3, a purifier that adds .4 leaves .5: P = Phi(d / .5) with d = (8 * .55 - 4) / 2 = .2.
    base = Purified(GaussianNoise(0.4), Linear(4.0), clamp=False)
    counts = sample_counts(base, grey(0.55), 0.3, omega(0), 0, 8000, 1000, 2)[0]
    p = stats.norm.cdf(0.2 / 0.5)
    assert abs(counts[1] - 8000 * p) < 4 * math.sqrt(8000 * p * (1 - p))


def test_no_purifier_is_the_bare_classifier() -> None:
    x, keys = grey(0.5, 0.51), omega(0, 1)
    bare = sample_counts(Bare(Linear(4.0)), x, 0.25, keys, 0, 300, 100, 2)
    behind = Purified(NoPurifierConfig().build(), Linear(4.0), clamp=False)
    assert np.array_equal(bare, sample_counts(behind, x, 0.25, keys, 0, 300, 100, 2))


@pytest.mark.slow
def test_digits_trained_on_noise_are_certified_bare_and_denoised(digits_test: ImageSet) -> None:
    from defense import DiffusersConfig

    assets = Path(__file__).parents[2] / "defense" / "assets"
    x, labels = torch.from_numpy(digits_test.images[:6]), digits_test.labels[:6]
    denoiser = DiffusersConfig(schedule="linear-1000", path=str(assets / "digits-ddpm")).resolved(Path())
    gaussian = ClassifierConfig(classifier="digits-gaussian").resolved(Path()).build()
    plain = ClassifierConfig(classifier="digits-cnn").resolved(Path()).build()
    shot = OneShotConfig.model_validate({"denoiser": denoiser, "sigma_eq": 0.25}).build()
    dense = DensePureConfig.model_validate({"denoiser": denoiser, "sigma_eq": 0.25, "steps": 2}).build()
    ids = tuple(range(6))
    for base, n in ((Bare(gaussian), 400), (Denoised(shot, plain), 60), (Denoised(dense, plain, votes=3), 30)):
        few = smoothing_counts(base, x, 0.25, omega(*ids, role=SELECT), 0, 10, 10, 10)
        many = smoothing_counts(base, x, 0.25, omega(*ids), 0, n, 10, 10)
        found = [certify(a, b, 0.001, 0.25, n=n) for a, b in zip(few, many, strict=True)]
        answers = np.array([each.prediction for each in found])
        assert (answers == labels).mean() >= 0.8
        assert np.isin(answers[answers != labels], ABSTAIN).all()


def test_wrong_t_stars_roles_and_answers_are_refused() -> None:
    x, base = grey(0.5), Bare(Linear(4.0))
    gaussian = GaussianMixtureDenoiser.gaussian(LINEAR, 0.3)
    with pytest.raises(InvalidInput, match=r"sigma = 0.5 is level t_star = 260 .* begins at 146"):
        sample_counts(Denoised(one_shot(0.25, gaussian), Linear(4.0)), x, 0.5, omega(0), 0, 2, 2, 2)
    with pytest.raises(InvalidInput, match="not 'judge'"):
        sample_counts(base, x, 0.5, omega(0, role="judge"), 0, 2, 2, 2)
    with pytest.raises(InvalidInput, match=r"sigma = 0\.0"):
        sample_counts(base, x, 0.0, omega(0), 0, 2, 2, 2)
    with pytest.raises(InvalidInput, match="1 images with the randomness of 2"):
        sample_counts(base, x, 0.5, omega(0, 1), 0, 2, 2, 2)
    for first, count, batch, classes in ((-1, 2, 2, 2), (0, -1, 2, 2), (0, 2, 0, 2), (0, 2, 2, 1)):
        with pytest.raises(InvalidInput, match="the first two count"):
            sample_counts(base, x, 0.5, omega(0), first, count, batch, classes)

    def seventh(noisy: Tensor, sigma: float, omega: Omega) -> np.ndarray:
        return np.full(len(noisy), 7)

    with pytest.raises(InvalidInput, match="from 7 to 7; with 3 classes"):
        sample_counts(seventh, x, 0.5, omega(0), 0, 2, 2, 3)
    with pytest.raises(FloatingPointError, match="NaN"):
        sample_counts(Bare(Linear(math.nan)), x, 0.5, omega(0), 0, 2, 2, 2)
    with pytest.raises(InvalidInput, match="votes = 0"):
        Denoised(one_shot(0.25, gaussian), Linear(4.0), votes=0)
    shared = Diffusion(gaussian, [Ancestral(LINEAR, time_grid(145, 5))], shared_forward=True)
    with pytest.raises(InvalidInput, match="would not be independent"):
        Purified(shared, Linear(4.0))
    with pytest.raises(InvalidInput, match="noise alone"):
        Denoised(Diffusion(gaussian, [DDIM(LINEAR, [145, 0])], from_noise=True), Linear(4.0))
    assert sample_counts(base, x, 0.5, omega(0), 3, 0, 2, 2).tolist() == [[0, 0]]


def test_the_mean_of_inner_draws_is_that_of_their_probabilities() -> None:
    """Two draws that say 1 hardly and one that says 0 surely: the vote is 1, the mean is 0."""

    class Said(Purifier):
        def forward(self, x: Tensor, omega: Omega) -> Tensor:
            vote = int(omega.role.rpartition("-")[2])
            return x * 0 + (-2.0 if vote == 2 else 0.51)

    noisy, keys = grey(0.5).expand(2, *SHAPE).double(), omega(0, 1)
    net = Linear(4.0)
    logits = [net(torch.full((1, *SHAPE), value).double()).double() for value in (0.51, 0.51, -2.0)]
    votes = [int(each.argmax()) for each in logits]
    mean = int(torch.stack([each.softmax(1) for each in logits]).mean(0).argmax())
    assert votes == [1, 1, 0] and mean == 0
    assert Purified(Said(), net, votes=3, clamp=False)(noisy, 0.5, keys).tolist() == [1, 1]
    assert Purified(Said(), net, votes=3, clamp=False, mean=True)(noisy, 0.5, keys).tolist() == [0, 0]
