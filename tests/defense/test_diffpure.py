from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from defense import (
    PURIFIERS,
    DiffPure,
    DiffPureConfig,
    DiffusersConfig,
    GaussianMixtureDenoiser,
    InvalidInput,
    NoPurifierConfig,
    Omega,
    get_schedule,
)
from defense.gradients import GradientMode, purify
from defense.purifiers import diffusion
from defense.purifiers.diffusion import Diffusion
from defense.samplers import DDIM, Ancestral, ReverseSDE, Variance, time_grid

LINEAR = DiffusersConfig(schedule="linear-1000", path="unet")
COSINE = DiffusersConfig(schedule="cosine-4000", path="unet")


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 3, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def omega(*image_ids: int, draw: int = 0) -> Omega:
    return Omega.of("spec", 0, "judge", image_ids, draw)


class TestPurification:
    @pytest.mark.parametrize("variance", ["small", "large"])
    def test_two_steps_are_the_equations_with_the_named_noises(
        self, mixture: GaussianMixtureDenoiser, variance: Variance
    ) -> None:
        x, keys, (a, a_s) = images(2), omega(5, 9), get_schedule("linear-1000").abar[[100, 50]]
        z = a**0.5 * (2 * x - 1) + (1 - a) ** 0.5 * keys.normal("forward", 0, x)
        z0 = ((z - (1 - a) ** 0.5 * mixture(z, 100)) / a**0.5).clamp(-1, 1)
        beta = 1 - a / a_s
        mean = (a_s**0.5 * beta * z0 + (a / a_s) ** 0.5 * (1 - a_s) * z) / (1 - a)
        var = beta if variance == "large" else beta * (1 - a_s) / (1 - a)
        z = mean + var**0.5 * keys.normal("reverse", 100, x)
        z0 = ((z - (1 - a_s) ** 0.5 * mixture(z, 50)) / a_s**0.5).clamp(-1, 1)
        out = DiffPure(mixture, 100, steps=2, variance=variance, clip_denoised=True)(x, keys)
        torch.testing.assert_close(out, (z0 + 1) / 2, rtol=0, atol=1e-12)

    def test_a_step_of_a_subclass_is_the_one_that_is_taken(self, mixture: GaussianMixtureDenoiser) -> None:
        """Gradient modes walk the steps one by one: they differentiate the function that is evaluated."""

        class Halved(Diffusion):
            def step(self, i: int, z: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
                return super().step(i, z, *args, **more) / 2

        x, keys = images(2), omega(5, 9)
        purifier = Halved(mixture, [DDIM(mixture.schedule, time_grid(100, 3), eta=1.0)])
        z = purifier.start(x, keys)
        for i in range(3):
            z = purifier.step(i, z, x, keys)
        assert torch.equal(purifier(x, keys), purifier.finish(z, x, keys))
        at = x.clone().requires_grad_()
        exact = purify(purifier, at, keys, GradientMode("exact"))
        assert torch.equal(exact.detach(), purifier(x, keys))

    @pytest.mark.parametrize("together", [0, 40, 1 << 18])
    def test_noise_that_is_made_for_steps_ahead_is_that_of_each_step(
        self, mixture: GaussianMixtureDenoiser, monkeypatch: pytest.MonkeyPatch, together: int
    ) -> None:
        monkeypatch.setattr(diffusion, "_AHEAD", together)
        x, keys, schedule = images(2), omega(5, 9), mixture.schedule
        asked: list[int] = []
        normals = Omega.normals
        monkeypatch.setattr(Omega, "normals", lambda *a: asked.append(len(a[2])) or normals(*a))
        for sampler in (
            Ancestral(schedule, time_grid(100, 5)),
            ReverseSDE(schedule, time_grid(100, 5)),
            DDIM(schedule, time_grid(100, 5)),
        ):
            purify = Diffusion(mixture, [sampler, sampler.respaced(3)])
            z = purify.start(x, keys)
            for i in range(purify.length):
                z = purify.step(i, z, x, keys)
            assert torch.equal(purify(x, keys), purify.finish(z, x, keys))
        # Of eight steps in two rounds: two that end a round of ancestral sampling have no noise, and DDIM has none.
        assert asked == {0: [1] * 14, 40: [2, 2, 2, 2, 2, 2, 1, 1], 1 << 18: [7, 7, 1]}[together]

    def test_an_image_is_purified_the_same_whatever_else_is_in_the_batch(
        self, mixture: GaussianMixtureDenoiser
    ) -> None:
        purify, x = DiffPure(mixture, 100, steps=10), images(4)
        whole = purify(x, omega(7, 3, 11, 0))
        torch.testing.assert_close(purify(x[[2, 0]], omega(11, 7)), whole[[2, 0]], rtol=0, atol=1e-12)
        torch.testing.assert_close(purify(x[1:2], omega(3)), whole[1:2], rtol=0, atol=1e-12)

    def test_the_same_omega_gives_the_same_bits(self, mixture: GaussianMixtureDenoiser) -> None:
        purify, x = DiffPure(mixture, 100, steps=10), images(2)
        assert torch.equal(purify(x, omega(1, 2)), purify(x, omega(1, 2)))

    @pytest.mark.parametrize("other", [omega(1, draw=1), omega(2), Omega.of("spec", 1, "judge", [1])])
    def test_another_draw_image_id_or_seed_gives_another_image(
        self, mixture: GaussianMixtureDenoiser, other: Omega
    ) -> None:
        purify, x = DiffPure(mixture, 100, steps=10), images(1)
        assert (purify(x, omega(1)) - purify(x, other)).abs().max() > 1e-3

    def test_clipping_keeps_the_output_in_the_image_range(self, mixture: GaussianMixtureDenoiser) -> None:
        x = torch.tensor([-5.0, 0.0, 1.0, 6.0], dtype=torch.float64).view(1, 1, 2, 2)
        clipped = DiffPure(mixture, 5, clip_denoised=True)(x, omega(0))
        assert clipped.min() == 0 and clipped.max() == 1
        free = DiffPure(mixture, 5)(x, omega(0))
        assert free.min() < 0 and free.max() > 1

    @pytest.mark.parametrize("variance", ["small", "large"])
    def test_the_gradient_is_that_of_finite_differences(
        self, mixture: GaussianMixtureDenoiser, variance: Variance
    ) -> None:
        purify = DiffPure(mixture, 100, steps=5, variance=variance, clip_denoised=False)
        x = images(2).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: purify(x, omega(1, 2)), x, eps=1e-6, atol=1e-6, rtol=1e-5)

    def test_the_bare_classifier_gets_the_image_itself(self) -> None:
        x = images(1)
        assert NoPurifierConfig().build()(x, omega(0)) is x
        assert not NoPurifierConfig().stochastic and NoPurifierConfig().noise_level is None


class TestDepth:
    @pytest.mark.parametrize(("denoiser", "t_star", "sigma"), [(LINEAR, 146, 0.25), (COSINE, 1159, 0.25)])
    def test_t_star_and_sigma_eq_are_two_spellings_of_one_spec(
        self, denoiser: DiffusersConfig, t_star: int, sigma: float
    ) -> None:
        by_t = DiffPureConfig(denoiser=denoiser, schedule=denoiser.schedule, t_star=t_star)
        by_sigma = DiffPureConfig(denoiser=denoiser, sigma_eq=sigma)
        assert by_sigma == by_t and by_sigma.id == by_t.id
        assert by_sigma.noise_level == get_schedule(denoiser.schedule).level(t_star)
        assert DiffPureConfig(denoiser=denoiser, sigma_eq=by_t.noise_level.sigma_eq).id == by_t.id

    def test_all_steps_are_written_out_even_where_the_default_is_meant(self) -> None:
        config = DiffPureConfig(denoiser=LINEAR, schedule="linear-1000", t_star=100)
        assert config.steps == config.evaluations == 100
        assert config.id == DiffPureConfig(denoiser=LINEAR, schedule="linear-1000", t_star=100, steps=100).id
        assert config.label() == "diffpure t*=100"

    def test_fewer_steps_cost_less_and_are_another_spec(self) -> None:
        full, fast = (
            DiffPureConfig(denoiser=LINEAR, schedule="linear-1000", t_star=100, steps=steps) for steps in (100, 25)
        )
        assert fast.evaluations == 25 and fast.label() == "diffpure t*=100 in 25 steps"
        assert fast.id != full.id and fast.model_key() == full.model_key() == LINEAR.id

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"t_star": 100}, "t_star is given without `schedule`.*Write `schedule: linear-1000`"),
            ({}, "takes one noise level: either `t_star` with `schedule`, or `sigma_eq`"),
            ({"schedule": "linear-1000"}, "takes one noise level"),
            ({"schedule": "linear-1000", "t_star": 100, "sigma_eq": 0.1}, "takes one noise level"),
            ({"schedule": "cosine-4000", "t_star": 100}, "'cosine-4000' is not the one that.*'linear-1000'"),
            ({"schedule": "linear-100", "t_star": 100}, "did you mean 'linear-1000'"),
            ({"schedule": 1000, "t_star": 100}, "the name of a noise schedule, not 1000"),
            ({"schedule": "linear-1000", "t_star": 1001}, "t_star = 1001 is not on schedule"),
            ({"schedule": "linear-1000", "t_star": 100, "steps": 101}, "steps = 101 does not fit t_star = 100"),
            ({"sigma_eq": 0.0}, "sigma_eq = 0.0 is not on schedule"),
            ({"sigma_eq": "0.1"}, "sigma_eq is a number"),
            ({"sigma_eq": True}, "sigma_eq is a number"),
        ],
    )
    def test_a_t_star_that_cannot_be_run_is_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            DiffPureConfig(denoiser=LINEAR, **fields)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("t_star", "100"),
            ("t_star", 100.0),
            ("t_star", True),
            ("t_star", 0),
            ("steps", "25"),
            ("clip_denoised", "yes"),
            ("clip_denoised", 1),
            ("variance", "medium"),
            ("tstar", 100),
        ],
    )
    def test_no_value_is_read_as_another_type(self, field: str, value: object) -> None:
        fields: dict[str, Any] = {"schedule": "linear-1000", "t_star": 50, field: value}
        with pytest.raises(InvalidInput) as caught:
            DiffPureConfig(denoiser=LINEAR, **fields)
        assert caught.value.keys == (field,)


class TestFolder:
    def config(self, folder: Path) -> DiffPureConfig:
        denoiser = DiffusersConfig(schedule="linear-1000", path=folder.name)
        return DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=3).resolved(folder.parent)

    def test_where_the_weights_lie_is_not_in_the_id_but_what_they_are_is(
        self, unet_folder: Path, tmp_path: Path
    ) -> None:
        moved = Path(shutil.copytree(unet_folder, tmp_path / "elsewhere"))
        config = self.config(unet_folder)
        assert self.config(moved).id == config.id
        weights = moved / "diffusion_pytorch_model.safetensors"
        save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
        changed = self.config(moved)
        assert changed.id != config.id and changed.model_key() != config.model_key()
        assert str(tmp_path) not in config.canonical()

    def test_the_built_purifier_is_diffpure_around_the_network(self, unet_folder: Path) -> None:
        config = self.config(unet_folder)
        x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        by_hand = DiffPure(config.denoiser.build(), 3, steps=3, variance="small", clip_denoised=False)
        assert config.image_shape == (1, 8, 8)
        built = config.build()
        assert torch.equal(built(x, omega(0, 1)), by_hand(x, omega(0, 1)))
        assert not any(module.training for module in built.modules())

    def test_the_registry_names_it(self) -> None:
        assert PURIFIERS.get("diffpure") is DiffPureConfig and PURIFIERS.get("none") is NoPurifierConfig
        with pytest.raises(InvalidInput, match=r"unknown purifier 'difpure'; did you mean 'diffpure'\?"):
            PURIFIERS.get("difpure")
