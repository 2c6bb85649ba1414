from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import every
from mixtures import reverse
from torch import Tensor, nn

from defense import GaussianMixtureDenoiser, InvalidInput, get_schedule
from defense.denoisers import DENOISERS, DenoiserConfig, NetworkDenoiser, OracleConfig, Prediction
from defense.denoisers.predictions import SIGMA_DATA, implied_eps, network_input, noise_label
from defense.samplers import Ancestral, time_grid

PREDICTIONS: list[Prediction] = ["eps", "x0", "v", "edm"]
MEAN, VARIANCE = 0.3, 0.2


def optimal(prediction: Prediction, z: Tensor, abar: float) -> Tensor:
    """What an ideally trained network puts out for data N(MEAN, VARIANCE), from the definitions of the papers."""
    total = abar * VARIANCE + 1 - abar
    pull = z - math.sqrt(abar) * MEAN
    x0 = MEAN + math.sqrt(abar) * VARIANCE / total * pull
    eps = math.sqrt(1 - abar) / total * pull
    if prediction == "edm":
        sigma = math.sqrt((1 - abar) / abar)
        skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
        out = sigma * SIGMA_DATA / math.sqrt(sigma**2 + SIGMA_DATA**2)
        return (x0 - skip * z / math.sqrt(abar)) / out
    return {"eps": eps, "x0": x0, "v": math.sqrt(abar) * eps - math.sqrt(1 - abar) * x0}[prediction]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@given(abar=st.floats(1e-4, 1 - 1e-4))
def test_all_predictions_of_optimal_networks_imply_the_same_noise(prediction: Prediction, abar: float) -> None:
    z = torch.linspace(-3, 3, 61, dtype=torch.float64)
    eps = optimal("eps", z, abar)
    implied = implied_eps(prediction, optimal(prediction, z, abar), z, abar)
    assert (implied - eps).abs().max() < 1e-12


class Optimal(nn.Module):
    """An ideal network on ``linear-1000``, which has only its inputs to go by."""

    def __init__(self, prediction: Prediction) -> None:
        super().__init__()
        self.prediction: Prediction = prediction

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.prediction == "edm":
            sigma = math.exp(4 * labels[0].item())
            abar = 1 / (1 + sigma**2)
            z = images * math.sqrt(sigma**2 + SIGMA_DATA**2) * math.sqrt(abar)
        else:
            assert labels.dtype == torch.int64
            abar, z = float(get_schedule("linear-1000").abar[labels[0] + 1]), images
        return optimal(self.prediction, z, abar)


@every("prediction", PREDICTIONS)
@every("t", [1, 10, 100, 500, 1000])
def test_a_network_of_every_prediction_is_the_same_denoiser(prediction: Prediction, t: int) -> None:
    denoiser = NetworkDenoiser(Optimal(prediction), "linear-1000", (1, 4, 4), prediction=prediction)
    z = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    exact = GaussianMixtureDenoiser.gaussian(get_schedule("linear-1000"), VARIANCE, MEAN)(z, t)
    assert (denoiser(z, t) - exact).abs().max() < 1e-12
    eps, v = denoiser.with_variance(z, t)
    assert torch.equal(eps, denoiser(z, t)) and v is None


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_an_edm_network_sees_unit_variance_and_a_quarter_of_the_logarithm(sigma: float) -> None:
    abar = 1 / (1 + sigma**2)
    z = torch.ones(1, dtype=torch.float64) * math.sqrt(abar * SIGMA_DATA**2 + 1 - abar)
    assert network_input("edm", z, abar).item() == pytest.approx(1, rel=1e-9)
    assert noise_label("edm", abar) == pytest.approx(math.log(sigma) / 4, abs=1e-9)
    assert network_input("v", z, abar) is z


def test_the_variance_output_is_the_second_half_of_the_channels() -> None:
    class Twice(nn.Module):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return torch.cat([images * labels.view(-1, 1, 1, 1), -images], dim=1)

    denoiser = NetworkDenoiser(Twice(), "cosine-4000", (3, 2, 2), scale=0.25, learned_variance=True)
    z = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    eps, v = denoiser.with_variance(z, 401)
    assert v is not None and torch.equal(v, -z)
    torch.testing.assert_close(eps, 100 * z)
    torch.testing.assert_close(denoiser(z, 401), 100 * z)


class TestOracle:
    def test_it_is_the_closed_form(self) -> None:
        config = OracleConfig(
            schedule="edm", weights=[0.3, 0.7], means=[-0.6, 0.5], stds=[0.1, 0.15], shape=[1, 2, 2]
        )
        denoiser = config.resolved(Path()).build()
        exact = GaussianMixtureDenoiser(get_schedule("edm"), [0.3, 0.7], [-0.6, 0.5], [0.1, 0.15])
        z = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert torch.equal(denoiser(z, 300), exact(z, 300))
        assert denoiser.with_variance(z, 300)[1] is None and not config.learned_variance
        assert config.image_shape == denoiser.image_shape == (1, 2, 2) and not denoiser.training

    def test_its_id_is_that_of_the_law_and_the_schedule(self) -> None:
        config = OracleConfig(schedule="edm", means=[0.25])
        assert config.canonical() == (
            '{"format":"oracle","means":[0.25],"schedule":"edm","shape":null,"stds":[0.5],"weights":[1.0]}'
        )
        assert OracleConfig.model_validate_json(config.canonical()) == config
        assert config.sha256 is None

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"weights": [0.5, 0.5]}, "have 2, 1 and 1 values"),
            ({"weights": [0.5]}, "sum to 1, not to 0.5"),
            ({"means": [0.0, 1.0], "weights": [0.5, 0.6], "stds": [1.0, 1.0]}, "sum to 1, not to 1.1"),
        ],
    )
    def test_a_law_that_is_none_is_refused(self, fields: dict[str, list[float]], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            OracleConfig.model_validate({"schedule": "edm"} | fields)

    def test_an_unknown_schedule_is_refused_at_plan_time(self) -> None:
        with pytest.raises(InvalidInput, match="did you mean 'linear-1000'"):
            OracleConfig(schedule="linear-100").resolved(Path())

    def test_a_learned_variance_is_refused(self) -> None:
        denoiser = OracleConfig(schedule="linear-1000").build()
        sampler = Ancestral(denoiser.schedule, time_grid(10, 2), variance="learned")
        with pytest.raises(InvalidInput, match="this denoiser has no variance output"):
            reverse(denoiser, torch.zeros(1, 1), sampler, lambda t, like: like)


def test_every_format_is_registered_with_its_name() -> None:
    assert DENOISERS.names() == ["diffusers", "guided-diffusion", "oracle", "score-sde"]
    for name in DENOISERS.names():
        assert issubclass(DENOISERS.get(name), DenoiserConfig)
        assert DENOISERS.get(name).model_fields["format"].default == name
    with pytest.raises(InvalidInput, match=r"unknown denoiser format 'difusers'; did you mean 'diffusers'\?"):
        DENOISERS.get("difusers")
