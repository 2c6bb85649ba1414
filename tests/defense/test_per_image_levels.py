"""A noise level for each image: the numbers of one level for a batch, the gradient of the choice, the rules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import CLASSIFIER, MSE, gradient, images, omega, relative

from defense import GaussianMixtureDenoiser, get_schedule, purify
from defense.denoisers import NetworkDenoiser
from defense.denoisers.predictions import LABELLED, Prediction
from defense.guidance import Guidance
from defense.purifiers import SSNI, DiffCAP, Diffusion, DistanceGuidance, ScoreReference, SimilarityGuidance
from defense.purifiers.per_image import PerImageDiffusion
from defense.purifiers.ssni import expected_perturbation_score
from defense.samplers import DDIM, Ancestral, ProbabilityFlow, ReverseSDE, Sampler, forward_noise, time_grid

LINEAR = get_schedule("linear-1000")


class Net(nn.Module):
    """Two convolutions that are told the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        told = labels.to(z.dtype).view(-1, 1, 1, 1) / 1000
        return 0.8 * z + self.second(torch.tanh(self.first(z) + told))  # type: ignore[no-any-return]


def denoiser(prediction: Prediction = "eps", kind: torch.dtype = torch.float64, scale: float = 1) -> NetworkDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().to(kind).requires_grad_(False)
    return NetworkDenoiser(net, LINEAR, (1, 8, 8), prediction=prediction, scale=scale).eval()


class Chosen(PerImageDiffusion):
    """Levels by the mean of the image, or as they are given."""

    def __init__(self, *args: Any, given: tuple[int, ...] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self.given = given

    @property
    def preparations(self) -> int:
        return 1

    def prepare(self, i: int, a: Tensor, t: Tensor, x: Tensor, omega: Any) -> tuple[Tensor, Tensor]:
        if self.given:
            return a, torch.tensor([self.given[image - 1] for image in omega.image_ids]).to(x)
        return a, self.rounded(20 + 100 * x.flatten(1).mean(1))


FORMS: dict[str, Sampler] = {
    "small": Ancestral(LINEAR, time_grid(60, 6)),
    "large": Ancestral(LINEAR, time_grid(60, 6), variance="large"),
    "clipped": Ancestral(LINEAR, time_grid(60, 6), clip=True),
    "ddim": DDIM(LINEAR, time_grid(60, 6)),
    "ddim half clipped": DDIM(LINEAR, time_grid(60, 6), eta=0.5, clip=True),
    "sde": ReverseSDE(LINEAR, time_grid(60, 6)),
    "ode": ProbabilityFlow(LINEAR, time_grid(60, 6)),
}
GUIDANCE: dict[str, Guidance] = {
    "gdmp": SimilarityGuidance("mse", 60000, 100, 8.0),
    "distance": DistanceGuidance(MSE, 2.0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("guided", [None, *GUIDANCE])
def test_one_level_for_all_is_bit_for_bit_what_a_batch_with_one_level_is(form: str, guided: str | None) -> None:
    guidance = None if guided is None else GUIDANCE[guided]
    network, x = denoiser(kind=torch.float32), images(3).float()
    shared = Chosen(network, FORMS[form], most=100, steps=6, given=(60, 60, 60), guidance=guidance)
    plain = Diffusion(network, [FORMS[form]], guidance=guidance)
    with torch.no_grad():
        assert torch.equal(shared(x, omega(1, 2, 3)), plain(x, omega(1, 2, 3)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("guided", [None, *GUIDANCE])
def test_an_image_with_its_own_level_is_what_it_would_be_alone_at_that_level(form: str, guided: str | None) -> None:
    guidance, network, x = None if guided is None else GUIDANCE[guided], denoiser(), images(4)
    given = (60, 4, 97, 1)  # one shorter than the number of steps, and a single one
    mixed = Chosen(network, FORMS[form], most=100, steps=6, given=given, guidance=guidance)
    with torch.no_grad():
        found, levels = mixed.with_levels(x, omega(1, 2, 3, 4))
        assert levels == given
        for i, t in enumerate(given):
            sampler = type(FORMS[form]).__new__(type(FORMS[form]))
            sampler.__dict__ |= FORMS[form].__dict__
            sampler = sampler.on(time_grid(t, min(6, t))).noised_to(float(LINEAR.abar[t]))
            alone = Diffusion(network, [sampler], guidance=guidance)(x[i : i + 1], omega(i + 1))
            torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", *LABELLED])
@pytest.mark.parametrize("scale", [1, 0.25])
def test_a_network_is_told_the_level_of_each_image(prediction: Prediction, scale: float) -> None:
    network, z, t = denoiser(prediction, scale=scale), 2 * images(3) - 1, torch.tensor([30.0, 400.0, 7.0])
    found = network.at_levels(z, LINEAR.levels(t))
    alone = [network(z[i : i + 1], int(level)) for i, level in enumerate(t)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-12, atol=1e-13)


def test_levels_are_those_of_the_schedule_and_carry_the_slope_of_log_abar() -> None:
    t = torch.tensor([10.0, 500.0], dtype=torch.float64, requires_grad=True)
    levels = LINEAR.levels(t, followed=True)
    assert levels.steps == (10, 500) and levels.shared is None
    assert levels.abar.flatten().tolist() == [float(LINEAR.abar[10]), float(LINEAR.abar[500])]
    (slope,) = torch.autograd.grad(levels.abar.log().sum(), t)
    expected = [(math.log(LINEAR.abar[k + 1]) - math.log(LINEAR.abar[k - 1])) / 2 for k in (10, 500)]
    torch.testing.assert_close(slope, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["small", "ddim half clipped", "ode"])
@pytest.mark.parametrize("soft", [False, True])
def test_every_segmentation_has_the_gradient_of_plain_autograd(form: str, soft: bool) -> None:
    purifier, x = Chosen(denoiser(), FORMS[form], most=120, steps=5, guidance=GUIDANCE["gdmp"]), images(3)
    keys = omega(1, 2, 3)
    expected = gradient(lambda x: (purifier.softened() if soft else purifier)(x, keys), x)
    for segment in (1, 2, 6):
        found = gradient(lambda x, s=segment: purify(purifier, x, keys, "soft" if soft else "exact", segment=s), x)
        assert relative(found, expected) < 1e-12


def test_one_level_for_all_is_followed_as_well() -> None:
    """What is rebuilt in the backward pass is what was computed without recording, to the last bit."""
    x, keys = images(1), omega(1)
    for purifier in (
        Chosen(denoiser(), FORMS["small"], most=120, steps=5),
        Chosen(denoiser(), FORMS["sde"], most=120, steps=3),
    ):
        for mode, plain in (("exact", purifier), ("soft", purifier.softened())):
            found = gradient(lambda x, p=purifier, m=mode: purify(p, x, keys, m), x)
            assert relative(found, gradient(lambda x, p=plain: p(x, keys), x)) < 1e-12


def test_straight_through_adds_the_derivative_with_respect_to_the_time_by_closed_form() -> None:
    """One step from N(0, s2) data: D(x, t) = k(t) z_t with z_t the forward state, k = sqrt(a) s2 / (a s2 + 1 - a)."""
    s2, x, keys = 0.3, images(3), omega(1, 2, 3)
    oracle = GaussianMixtureDenoiser.gaussian(LINEAR, s2)
    purifier = Chosen(oracle, FORMS["ddim"], most=120, steps=1)
    noise = keys.normal("forward", 0, x)

    def closed(x: Tensor, follow: bool) -> Tensor:
        t = 20 + 100 * x.flatten(1).mean(1)
        whole = t.detach().round()
        at = whole.long()
        log = torch.tensor(LINEAR.abar).log()
        slope = (log[at + 1] - log[at - 1]) / 2
        a = (log[at] + (slope * (t - t.detach()) if follow else 0)).exp().view(-1, 1, 1, 1)
        z = a.sqrt() * (2 * x - 1) + (1 - a).sqrt() * noise
        return (a.sqrt() * s2 / (a * s2 + 1 - a) * z + 1) / 2

    exact, soft = (gradient(lambda x, m=mode: purify(purifier, x, keys, m), x) for mode in ("exact", "soft"))
    assert relative(exact, gradient(lambda x: closed(x, False), x)) < 1e-9
    assert relative(soft, gradient(lambda x: closed(x, True), x)) < 1e-9
    assert relative(soft, exact) > 1e-3


REFERENCE = ScoreReference(minimum=2.0, maximum=10.0, mean=5.0, images=9, levels=3, denoiser="toy", data="toy")


class TestSSNI:
    def test_linear_and_sigmoid_as_published(self) -> None:
        values = torch.tensor([2.0, 6.0, 10.0, 50.0, 0.0])
        linear = SSNI(denoiser(), FORMS["small"], t_star=100, bias=5, reference=REFERENCE)
        assert linear.chosen(values).round().tolist() == [5, 55, 105, 105, 1]
        sigmoid = SSNI(denoiser(), FORMS["small"], t_star=100, bias=5, reference=REFERENCE, tau=2.0)
        wanted = [round(105 / (1 + math.exp(-(value - 5) / 2))) for value in (2.0, 6.0, 10.0, 50.0, 0.0)]
        assert sigmoid.chosen(values).round().tolist() == wanted

    def test_the_statistic_is_the_norm_of_the_mean_score(self) -> None:
        """For N(0, s2) data the score is -z / (a s2 + 1 - a)."""
        s2, x, keys = 0.3, images(2), omega(1, 2)
        found = expected_perturbation_score(GaussianMixtureDenoiser.gaussian(LINEAR, s2), x, keys, 3)
        total = torch.zeros_like(x)
        for t in (1, 2, 3):
            a = float(LINEAR.abar[t])
            total -= forward_noise(2 * x - 1, a, keys.normal("statistic", t, x)) / (a * s2 + 1 - a) / 3
        torch.testing.assert_close(found, total.flatten(1).norm(dim=1), rtol=1e-9, atol=0)

    def test_the_chain_takes_the_level_of_its_statistic_and_no_network_is_asked_for_it_twice(self) -> None:
        network, x, keys = denoiser(), images(3), omega(1, 2, 3)
        statistic = expected_perturbation_score(network, x, keys, 3)
        low, high = float(statistic.min()) - 0.5, float(statistic.max()) + 0.5
        fields = {"minimum": low, "maximum": high, "mean": (low + high) / 2}
        purifier = SSNI(
            network, FORMS["small"], t_star=80, bias=5, reference=REFERENCE.model_copy(update=fields), steps=4
        )
        found, levels = purifier.with_levels(x, keys)
        assert list(levels) == purifier.chosen(statistic).round().tolist() and len(set(levels)) > 1
        given = Chosen(network, FORMS["small"], most=85, steps=4, given=levels)
        assert torch.equal(found, given(x, keys))
        exact = gradient(lambda x: purify(purifier, x, keys, "exact"), x)
        assert relative(exact, gradient(lambda x: given(x, keys), x)) < 1e-12
        soft = gradient(lambda x: purify(purifier, x, keys, "soft"), x)
        assert relative(soft, gradient(lambda x: purifier.softened()(x, keys), x)) < 1e-12
        assert relative(soft, exact) > 1e-6


def test_diffcap_stops_where_two_states_in_a_row_first_look_alike() -> None:
    x, keys, network = images(3), omega(1, 2, 3), denoiser()

    def embed(x: Tensor) -> Tensor:
        return CLASSIFIER.latent(x) - CLASSIFIER.latent(torch.full_like(x, 0.5))

    states, alike = [2 * x - 1], []
    for k in range(1, 41):
        alpha = float(LINEAR.abar[k] / LINEAR.abar[k - 1])
        states.append(forward_noise(states[-1], alpha, keys.normal("cumulative", k, x)))
        alike.append(torch.cosine_similarity(embed((states[-2] + 1) / 2), embed((states[-1] + 1) / 2), dim=1))
    similarity = torch.stack(alike)
    threshold = float(similarity[2:12].max(0).values.min()) - 1e-9
    above = similarity > threshold
    wanted = [int(above[:, i].nonzero()[0]) + 1 if above[:, i].any() else 40 for i in range(3)]
    purifier = DiffCAP(network, FORMS["ddim"], embed, threshold=threshold, most=40, steps=5)
    found, levels = purifier.with_levels(x, keys)
    assert list(levels) == wanted
    for i, t in enumerate(wanted):
        z = states[t][i : i + 1]
        sampler = DDIM(LINEAR, time_grid(t, min(5, t)))
        for j, level in enumerate(sampler.grid[:-1]):
            z = sampler.transition(j, z, network(z, level)).mean
        torch.testing.assert_close(found[i : i + 1], (z + 1) / 2, rtol=1e-11, atol=1e-12)
    expected = gradient(lambda x: purifier(x, keys), x)
    assert relative(gradient(lambda x: purify(purifier, x, keys, "exact"), x), expected) < 1e-12
