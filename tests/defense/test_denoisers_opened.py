"""Predictions, schedules, solvers and classes beyond the usual noise prediction, against closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from toys import DENOISER, gradient, images, omega, relative

from defense import GaussianMixtureDenoiser, InvalidInput, Models, get_schedule, purify
from defense.denoisers import GuidedDiffusionConfig, NetworkDenoiser, ScoreSDEConfig
from defense.denoisers.guided_unet import GuidedUNet
from defense.denoisers.predictions import Prediction, consistency_scalings, implied_eps, network_input, noise_label
from defense.denoisers.song_unet import SongUNet
from defense.purifiers import ConsistencyConfig, DiffPureConfig, FlowPureConfig, Solved
from defense.schedules import vp_abar

LINEAR = get_schedule("linear-1000")


def test_the_coefficients_of_consistency_models() -> None:
    """Computed from the definition in openai/consistency_models by hand."""
    assert consistency_scalings(0.5) == pytest.approx((0.502004, 0.352139, 1.414214, -173.2868), abs=5e-7, rel=1e-6)
    assert consistency_scalings(1.0) == pytest.approx((0.200641, 0.446319, 0.894427, 0.0), abs=5e-7)
    assert consistency_scalings(0.002)[:2] == (1.0, 0.0)


Z0, EPS = (torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (1, 2))


@pytest.mark.parametrize("sigma", [0.003, 0.3, 2.5])
def test_what_a_perfect_network_would_say_implies_the_noise(sigma: float) -> None:
    """And it sees the image of its training, with the label of it."""
    abar = 1 / (1 + sigma**2)
    x, z = Z0 + sigma * EPS, math.sqrt(abar) * (Z0 + sigma * EPS)
    skip, out, scale, label = consistency_scalings(sigma)
    tau, u = sigma / (1 + sigma), 1 - sigma / 0.6
    flow = (1 - tau) * Z0 + tau * EPS
    said: dict[Prediction, tuple[Tensor, Tensor, float]] = {
        "consistency": ((Z0 - skip * x) / out, scale * x, label),
        "flow": (EPS - Z0, flow, tau),
        "flow-reversed": (Z0 - EPS, flow, 1 - tau),
        "flowpure": (-0.3 * EPS, (Z0 + 1) / 2 + 0.3 * (1 - u) * EPS, u),
        "ve": (-EPS, x, math.log(sigma / 2)),
    }
    for prediction, (output, seen, told) in said.items():
        torch.testing.assert_close(network_input(prediction, z, abar), seen, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(implied_eps(prediction, output, z, abar), EPS, rtol=1e-9, atol=1e-9)
        assert noise_label(prediction, abar) == pytest.approx(told, rel=1e-9)


def test_sub_vp_networks_see_the_sub_vp_process() -> None:
    schedule = get_schedule("sub-vp")
    for t in (1, 200, 1000):
        a = float(vp_abar(t / 1000))
        x = math.sqrt(a) * Z0 + (1 - a) * EPS
        abar = float(schedule.abar[t])
        z = math.sqrt(abar) * Z0 + math.sqrt(1 - abar) * EPS
        torch.testing.assert_close(network_input("sub-vp", z, abar), x, rtol=1e-9, atol=1e-12)


def test_schedules_of_other_processes() -> None:
    ve, flow, pure = (get_schedule(name) for name in ("ve", "rectified-flow", "flowpure"))
    assert [ve.level(t).sigma_eq for t in (1, 1000)] == pytest.approx([0.01, 50])
    assert flow.level(500).abar == pytest.approx(0.5) and flow.steps == 999
    assert [pure.level(t).sigma_eq for t in (500, 1000)] == pytest.approx([0.15, 0.3])
    assert all(
        (np.diff(get_schedule(name).abar) < 0).all() for name in ("ve", "sub-vp", "rectified-flow", "flowpure")
    )


class Velocity(nn.Module):
    """A velocity that is some function of image and time."""

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(3 * x.flip(3) - 1) * u.view(-1, 1, 1, 1)


def test_flowpure_is_euler_on_the_velocity() -> None:
    """x + (1 - t_start) 0.3 n, then N steps in pixels, written out."""
    network = NetworkDenoiser(Velocity().double(), "flowpure", (1, 8, 8), prediction="flowpure")
    config = FlowPureConfig.model_validate({"denoiser": Flow(), "t_start": 0.5, "steps": 4})
    assert config.t_star == 500 and config.label() == "flowpure t_start=0.5 in 4 steps"
    x, keys = images(2), omega(1, 2)
    state = x + 0.5 * 0.3 * keys.normal("forward", 0, x)
    for u in (0.5, 0.625, 0.75, 0.875):
        state = state + 0.125 * Velocity()(state, torch.full((2,), u, dtype=torch.float64))
    purifier = config.build(Models(load=lambda _: network))
    torch.testing.assert_close(purifier(x, keys), state, rtol=1e-10, atol=1e-12)
    expected = gradient(lambda x: purifier(x, keys), x)
    assert relative(gradient(lambda x: purify(purifier, x, keys), x), expected) < 1e-12


def test_flowpure_of_an_attack_is_euler_from_the_image_itself() -> None:
    network = NetworkDenoiser(Velocity().double(), "flowpure", (1, 8, 8), prediction="flowpure")
    config = FlowPureConfig.model_validate({"denoiser": Flow(), "t_start": 0.0, "steps": 4, "forward": "none"})
    assert config.label() == "flowpure t_start=0 in 4 steps from the image"
    assert not config.stochastic and config.noise_level is None and not config.diffuses
    x, keys = images(2), omega(1, 2)
    state = x
    for u in (0.0, 0.25, 0.5, 0.75):
        state = state + 0.25 * Velocity()(state, torch.full((2,), u, dtype=torch.float64))
    purifier = config.build(Models(load=lambda _: network))
    torch.testing.assert_close(purifier(x, keys), state, rtol=1e-10, atol=1e-12)
    assert torch.equal(purifier(x, omega(8, 9)), purifier(x, keys))
    expected = gradient(lambda x: purifier(x, keys), x)
    assert relative(gradient(lambda x: purify(purifier, x, keys), x), expected) < 1e-12
    noised = FlowPureConfig.model_validate({"denoiser": Flow(), "t_start": 0.0, "steps": 4})
    assert "forward" not in noised.identity() and config.identity()["forward"] == "none"


class Flow(ScoreSDEConfig):
    """A config whose network the tests give."""

    weights: str = "none"
    schedule: str = "flowpure"
    prediction: Prediction = "flowpure"


class TestWhatTakesWhichNetwork:
    def test_flowpure_takes_its_schedule_and_one_noise_level(self) -> None:
        with pytest.raises(InvalidInput, match="leave `t_star` and `sigma_eq` out"):
            FlowPureConfig.model_validate({"denoiser": Flow(), "t_start": 0.5, "sigma_eq": 0.1})
        with pytest.raises(InvalidInput, match="from 0 to below 1"):
            FlowPureConfig.model_validate({"denoiser": Flow(), "t_start": 1.0})
        with pytest.raises(InvalidInput, match="`diffpure` with `form: ddim`"):
            FlowPureConfig.model_validate({"denoiser": ScoreSDEConfig(weights="none"), "sigma_eq": 0.1})

    def test_consistency_takes_consistency_models(self) -> None:
        with pytest.raises(InvalidInput, match="which makes this `one-shot`"):
            ConsistencyConfig.model_validate({"denoiser": ScoreSDEConfig(weights="none"), "sigma_eq": 0.1})
        denoiser = ScoreSDEConfig(weights="none", prediction="consistency", schedule="edm")
        assert ConsistencyConfig.model_validate({"denoiser": denoiser, "sigma_eq": 0.25}).evaluations == 1

    def test_a_purifier_takes_no_network_that_must_be_told_the_class(self) -> None:
        denoiser = GuidedDiffusionConfig(weights="none", preset="256x256_diffusion")
        assert denoiser.classes == 1000 and not denoiser.unconditional
        with pytest.raises(InvalidInput, match="a purifier does not know the class"):
            DiffPureConfig.model_validate({"denoiser": denoiser, "sigma_eq": 0.1})


class TestSolvers:
    @pytest.mark.parametrize("solver", ["heun", "dpm++"])
    def test_exact_gradients_go_back_through_the_history(self, solver: Any) -> None:
        purifier, x, keys = Solved(DENOISER, 120, 7, solver=solver), images(3), omega(1, 2, 3)
        expected = gradient(lambda x: purifier(x, keys), x)
        for segment in (1, 3):
            found = gradient(lambda x, s=segment: purify(purifier, x, keys, segment=s), x)
            assert relative(found, expected) < 1e-12

    @pytest.mark.parametrize("solver", ["heun", "dpm++"])
    def test_errors_fall_as_those_of_second_order(self, solver: Any) -> None:
        """For N(0, s2) data the flow multiplies x by sqrt((s2 + sigma_s^2) / (s2 + sigma_t^2)).

        Half-way to the image: the last step is of first order, and the shorter the more steps there are.
        """
        s2, x, keys = 0.3, images(2), omega(1, 2)
        oracle = GaussianMixtureDenoiser.gaussian(LINEAR, s2)
        high, low = float(LINEAR.abar[400]), float(LINEAR.abar[200])
        noised = (2 * x - 1) + math.sqrt((1 - high) / high) * keys.normal("forward", 0, x)
        factor = (s2 + (1 - low) / low) / (s2 + (1 - high) / high)
        exact = math.sqrt(low * factor) * noised
        errors = []
        for steps in (20, 40, 80):
            purifier = Solved(oracle, 400, steps, solver=solver)
            z = purifier.start(x, keys)
            for i in range(steps // 2):
                z = purifier.step(i, z, x, keys)
            errors.append(float((z[:, :1] - exact).abs().max()))
        assert errors[0] / errors[1] > 3.3 and errors[1] / errors[2] > 3.3

    def test_heun_asks_twice_a_step_but_for_the_last(self) -> None:
        denoiser = ScoreSDEConfig(weights="none", schedule="linear-1000")
        config = DiffPureConfig.model_validate({"denoiser": denoiser, "sigma_eq": 0.1, "form": "heun", "steps": 5})
        before = DENOISER.calls
        config.build(Models(load=lambda _: DENOISER))(images(1), omega(1))
        assert config.evaluations == DENOISER.calls - before == 9

    def test_heun_written_out(self) -> None:
        x, keys, grid = images(2), omega(1, 2), (90, 45, 0)
        sigma = [math.sqrt((1 - LINEAR.abar[t]) / LINEAR.abar[t]) for t in grid]
        scale = [math.sqrt(LINEAR.abar[t]) for t in grid]
        state = (2 * x - 1) + sigma[0] * keys.normal("forward", 0, x)
        first = DENOISER(scale[0] * state, 90)
        euler = state + (sigma[1] - sigma[0]) * first
        state = state + (sigma[1] - sigma[0]) * (first + DENOISER(scale[1] * euler, 45)) / 2
        state = state - sigma[1] * DENOISER(scale[1] * state, 45)
        found = Solved(DENOISER, 90, 2, solver="heun")(x, keys)
        torch.testing.assert_close(found, (state + 1) / 2, rtol=1e-11, atol=1e-12)


SONG: dict[str, Any] = {"image_size": 8, "nf": 8, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()}


class TestClasses:
    def test_edm_networks_add_a_map_of_the_scaled_one_hot_class(self) -> None:
        torch.manual_seed(0)
        net = SongUNet(**SONG, channels=1, classes=4).eval()
        x, labels, classes = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 3, -1])
        with torch.no_grad():
            plain = SongUNet(**SONG, channels=1).eval()
            plain.load_state_dict({k: v for k, v in net.state_dict().items() if "map_label" not in k})
            told = net._temb(labels, x, classes)
            one_hot = torch.eye(4)[[0, 3, 0]] * torch.tensor([[1.0], [1.0], [0.0]])
            moved = 2 * one_hot @ net.map_label.weight.T + net.map_label.bias

            def shifted(label: Tensor, size: int) -> Tensor:
                return found(label, size) + moved

            import defense.denoisers.song_unet as module

            found, module._sinusoids = module._sinusoids, shifted
            try:
                expected = plain._temb(labels, x, None)
            finally:
                module._sinusoids = found
        torch.testing.assert_close(told, expected)

    def test_an_edm_network_is_asked_with_a_class_and_without(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        net = SongUNet(**{**SONG, "ch_mult": (1, 1)}, channels=1, classes=3)
        save_file(net.state_dict(), tmp_path / "net.safetensors")
        fields = {**SONG, "ch_mult": (1, 1), "channels": 1, "prediction": "edm", "schedule": "edm", "label_dim": 3}
        config = ScoreSDEConfig.model_validate({"weights": str(tmp_path / "net.safetensors"), **fields})
        assert config.classes == 3 and config.unconditional
        built, z = config.resolved(tmp_path).build(), torch.randn(2, 1, 8, 8)
        with torch.no_grad():
            none, first = built(z, 300), built.conditional(z, 300, torch.tensor([0, 0]))
            mixed = built.conditional(z, 300, torch.tensor([0, 2]))
        assert not torch.allclose(none, first)
        torch.testing.assert_close(mixed[0], first[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(mixed[1], first[1])

    def test_a_guided_diffusion_network_adds_the_embedding_of_the_class(self) -> None:
        torch.manual_seed(0)
        net = GuidedUNet(8, 32, 1, (1,), (), channels=1, classes=3).eval()
        x, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 9])
        with torch.no_grad():
            told = net(x, labels, torch.tensor([2, 1]))
            net.time_embed.register_forward_hook(lambda m, i, out: out + net.label_emb(torch.tensor([2, 1])))
            net.classes = 0
            torch.testing.assert_close(net(x, labels), told)

    def test_ids_of_unconditional_networks_are_what_they_were(self) -> None:
        song = ScoreSDEConfig(weights="none", sha256="0" * 64)
        openai = GuidedDiffusionConfig(weights="none", sha256="0" * 64, preset="lsun_bedroom")
        assert "label_dim" not in song.identity() and "num_classes" not in openai.identity()
        conditional = ScoreSDEConfig(weights="none", sha256="0" * 64, preset="edm_cifar10_cond_vp")
        assert conditional.identity()["label_dim"] == 10
