"""Langevin purification against its closed form on a quadratic energy, and the energy networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from defense import gradients
from defense.energy import (
    ENERGIES,
    Cifar10Energy,
    DigitsEnergy,
    EnergyConfig,
    Scaled,
    energy_gradient,
)
from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.ebm import EBM, EBMConfig
from defense.randomness import Omega


class Quadratic(nn.Module):
    """``E(z) = |z|^2 / (2 s2)``: a Gaussian of variance s2."""

    def __init__(self, s2: float) -> None:
        super().__init__()
        self.s2 = s2

    def forward(self, z: Tensor) -> Tensor:
        return z.flatten(1).square().sum(1) / (2 * self.s2)


def images(n: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, *(shape or (1, 3, 3)), generator=generator, dtype=torch.float64).to(dtype)


def omega(*image_ids: int, draw: int = 0) -> Omega:
    return Omega.of("spec", 0, "judge", image_ids, draw)


@pytest.fixture
def smooth_energy() -> DigitsEnergy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DigitsEnergy(hidden=16).double().eval().requires_grad_(False)


class TestQuadraticEnergy:
    S2, TAU = 0.3, 0.2

    def chain(self, steps: int, **options: Any) -> EBM:
        return EBM(Quadratic(self.S2), steps, self.TAU, **options)

    def test_the_chain_is_linear_with_the_named_noises(self) -> None:
        x, keys, a = images(2), omega(5, 9), 1 - self.TAU**2 / (2 * self.S2)
        z = 2 * x - 1
        for k in range(7):
            z = a * z + self.TAU * keys.normal("langevin", k, x)
        torch.testing.assert_close(self.chain(7)(x, keys), (z + 1) / 2, rtol=0, atol=1e-12)

    def test_the_slope_is_the_product_of_the_coefficients(self) -> None:
        x, steps = images(2).requires_grad_(), 50
        (gradient,) = torch.autograd.grad(self.chain(steps)(x, omega(0, 1)).sum(), x)
        slope = (1 - self.TAU**2 / (2 * self.S2)) ** steps
        torch.testing.assert_close(gradient, torch.full_like(x, slope), rtol=0, atol=1e-12)

    def test_long_runs_forget_the_image_and_have_the_energy_s_distribution(self) -> None:
        x = torch.full((4, 1, 50, 50), 0.9)
        z = 2 * self.chain(150)(x, omega(*range(4))) - 1
        # The chain's own stationary variance, from var = a^2 var + tau^2; it tends to s2 with tau.
        a = 1 - self.TAU**2 / (2 * self.S2)
        variance = self.TAU**2 / (1 - a**2)
        assert variance == pytest.approx(self.S2, rel=0.04)
        assert float(z.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / z.numel()))
        assert abs(float(z.mean()) - 0.8 * a**150) < 4 * math.sqrt(variance / z.numel())

    def test_the_surrogate_is_the_beginning_of_the_chain(self) -> None:
        x, keys = images(2), omega(3, 4)
        full = self.chain(10)
        short = full.surrogate(3)
        assert short.length == 3 and full.surrogate(99).length == 10
        assert torch.equal(short(x, keys), self.chain(3)(x, keys))

    def test_the_output_leaves_the_range_unless_clamped(self) -> None:
        x, keys = images(30) - 0.5, omega(*range(30))
        free, clamped = self.chain(20)(4 * x, keys), self.chain(20, clamp=True)(4 * x, keys)
        assert free.min() < 0 and free.max() > 1 and torch.equal(clamped, free.clamp(0, 1))
        assert self.chain(20, clamp=True).surrogate(2).clamp

    def test_a_lower_temperature_is_a_steeper_energy(self) -> None:
        x, keys = images(2), omega(0, 1)
        expected = EBM(Quadratic(0.3), 5, self.TAU)(x, keys)
        for cooled in (
            EBM(Quadratic(1.0), 5, self.TAU, temperature=0.3),
            EBM(Scaled(Quadratic(1.0), 0.3), 5, self.TAU),
            EBM(Quadratic(1.0), 9, self.TAU, temperature=0.3).surrogate(5),
        ):
            torch.testing.assert_close(cooled(x, keys), expected, rtol=0, atol=1e-14)


class TestChain:
    def test_the_same_omega_gives_the_same_bits_and_another_draw_others(self, smooth_energy: DigitsEnergy) -> None:
        purify, x = EBM(smooth_energy, 5, 0.1), images(2, 1, 8, 8)
        assert torch.equal(purify(x, omega(1, 2)), purify(x, omega(1, 2)))
        assert (purify(x, omega(1, 2)) - purify(x, omega(1, 2, draw=1))).abs().min(0).values.max() > 1e-3

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_run_without_gradients_equals_one_with_them_bit_for_bit(
        self, smooth_energy: DigitsEnergy, dtype: torch.dtype
    ) -> None:
        purify, x = EBM(smooth_energy.to(dtype), 20, 0.1), images(3, 1, 8, 8, dtype=dtype)
        with torch.no_grad():
            plain = purify(x, omega(1, 2, 3))
        followed = purify(x.clone().requires_grad_(), omega(1, 2, 3))
        assert plain.dtype == dtype and not plain.requires_grad and followed.requires_grad
        assert torch.equal(plain, followed.detach())
        assert torch.equal(plain, purify(x, omega(1, 2, 3)))  # gradients enabled, but none asked for

    def test_an_image_is_purified_the_same_whatever_else_is_in_the_batch(self, smooth_energy: DigitsEnergy) -> None:
        purify, x = EBM(smooth_energy, 10, 0.1), images(4, 1, 8, 8)
        whole = purify(x, omega(7, 3, 11, 0))
        torch.testing.assert_close(purify(x[[2, 0]], omega(11, 7)), whole[[2, 0]], rtol=0, atol=1e-12)

    @pytest.mark.slow
    def test_the_gradient_is_that_of_finite_differences(self, smooth_energy: DigitsEnergy) -> None:
        purify, x = EBM(smooth_energy, 4, 0.3), images(1, 1, 8, 8).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: purify(x, omega(1)), x, eps=1e-6, atol=1e-7, rtol=1e-6)

    @pytest.mark.parametrize("segment", [1, 3, 20])
    def test_the_gradient_engine_replays_the_chain(self, smooth_energy: DigitsEnergy, segment: int) -> None:
        """In float32: were the states of the two passes not the same bits, it would raise."""
        purify, x = EBM(smooth_energy.float(), 20, 0.3), images(2, 1, 8, 8, dtype=torch.float32).requires_grad_()
        flowing = images(2, 1, 8, 8, dtype=torch.float32).flip(3)
        (plain,) = torch.autograd.grad(purify(x, omega(1, 2)), x, flowing)
        replayed = gradients.purify(purify, x, omega(1, 2), "exact", segment=segment)
        (exact,) = torch.autograd.grad(replayed, x, flowing)
        torch.testing.assert_close(exact, plain, rtol=1e-5, atol=1e-6)
        assert (exact - flowing).abs().max() > 0.1  # not that of BPDA

    def test_a_smooth_energy_bends_the_gradient_and_a_piecewise_linear_one_does_not(
        self, smooth_energy: DigitsEnergy
    ) -> None:
        def gradient(energy: nn.Module, x: Tensor) -> Tensor:
            x = x.requires_grad_()
            out = EBM(energy, 3, 0.3)(x, omega(1))
            return torch.autograd.grad(out.sum(), x)[0]

        bent = gradient(smooth_energy, images(1, 1, 8, 8))
        assert (bent - 1).abs().max() > 0.05
        linear = gradient(Cifar10Energy(channels=4).double().requires_grad_(False), images(1, 3, 32, 32))
        assert torch.equal(linear, torch.ones_like(linear))  # that of BPDA

    def test_whether_guidance_is_followed_has_no_meaning(self, smooth_energy: DigitsEnergy) -> None:
        purify, x = EBM(smooth_energy, 1, 0.3), images(1, 1, 8, 8)
        z = x.clone().requires_grad_()
        gradients = [
            torch.autograd.grad(purify.step(0, z, x, omega(0), guidance_path=path).sum(), z)[0]
            for path in (True, False)
        ]
        assert torch.equal(*gradients)

    @pytest.mark.parametrize(("steps", "size"), [(0, 0.1), (5, 0.0), (5, -0.1)])
    def test_a_chain_that_cannot_be_is_refused(self, steps: int, size: float) -> None:
        with pytest.raises(ValueError, match="Langevin"):
            EBM(Quadratic(1.0), steps, size)


class TestEnergyGradient:
    def test_it_is_that_of_the_formula(self) -> None:
        z = images(2)
        with torch.no_grad():
            found = energy_gradient(Quadratic(0.5), z)
        torch.testing.assert_close(found, z / 0.5, rtol=0, atol=1e-14)
        assert not found.requires_grad and not z.requires_grad

    def test_it_can_be_differentiated_with_respect_to_the_weights(self) -> None:
        net = DigitsEnergy(hidden=4)
        energy_gradient(net, images(1, 1, 8, 8).float().requires_grad_(), create_graph=True).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters() if p.dim() == 2)


class TestNetworks:
    def test_the_digits_energy_is_half_the_squared_reconstruction_error(self, smooth_energy: DigitsEnergy) -> None:
        z = 2 * images(3, 1, 8, 8) - 1
        error = (z.flatten(1) - smooth_energy.reconstruct(z)).norm(dim=1)
        torch.testing.assert_close(smooth_energy(z), error**2 / (2 * smooth_energy.scale**2))

    def test_the_cifar_network_has_the_shapes_of_the_published_checkpoints(self) -> None:
        net = Cifar10Energy()
        assert {name: tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight")} == {
            "f.0.weight": (32, 3, 3, 3),
            "f.2.weight": (64, 32, 4, 4),
            "f.4.weight": (128, 64, 4, 4),
            "f.6.weight": (256, 128, 4, 4),
            "f.8.weight": (1, 256, 4, 4),
        }
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2,)
        assert ENERGIES.get("cifar10-energy").unit == pytest.approx(5e-5)  # tau^2 / 2 with tau = 0.01

    @pytest.mark.parametrize("name", ["digits-energy", "cifar10-energy"])
    def test_each_energy_is_of_its_own_image_alone(self, name: str) -> None:
        architecture = ENERGIES.get(name)
        net, z = architecture.build().double(), images(3, *architecture.image_shape)
        assert net(z).shape == (3,)
        torch.testing.assert_close(net(z[1:2]), net(z)[1:2], rtol=0, atol=1e-12)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(Cifar10Energy().state_dict(), tmp_path / "energy.safetensors")
    return tmp_path


class TestConfig:
    def test_a_name_and_a_mapping_are_two_spellings_of_one_spec(self) -> None:
        said = {"steps": 20, "step_size": 0.1}
        named = EBMConfig.model_validate({"energy": "digits-energy", **said})
        mapped = EBMConfig.model_validate({"energy": {"energy": "digits-energy"}, **said})
        assert named == mapped == EBMConfig.model_validate({"energy": EnergyConfig(energy="digits-energy"), **said})
        assert named.id == mapped.id and PURIFIERS.get("ebm") is EBMConfig

    @pytest.mark.parametrize(
        ("energy", "usual"), [("digits-energy", (200, 0.05, 0.3)), ("cifar10-energy", (1500, 0.01, 1.0))]
    )
    def test_steps_size_and_temperature_are_those_of_the_architecture_by_default(
        self, energy: str, usual: tuple[int, float, float]
    ) -> None:
        said = dict(zip(("steps", "step_size", "temperature"), usual, strict=True))
        config = EBMConfig.model_validate({"energy": energy})
        assert config == EBMConfig.model_validate({"energy": energy, **said})
        assert said.items() <= config.identity().items()

    def test_its_label_and_properties(self) -> None:
        config = EBMConfig.model_validate({"energy": "digits-energy", "steps": 20, "step_size": 0.05})
        assert config.label() == "ebm 20 x 0.05 T=0.3" and config.evaluations == 20
        assert config.image_shape == (1, 8, 8) and config.stochastic and config.differentiable
        longer = config.model_copy(update={"steps": 40, "temperature": 1.0, "clamp": True})
        assert longer.label() == "ebm 40 x 0.05 clamped"
        assert longer.model_key() == config.model_key() == config.energy.id and longer.id != config.id

    def test_resolving_fills_in_the_hash_and_the_place_is_not_in_the_id(self, weights: Path) -> None:
        config = EnergyConfig(energy="cifar10-energy", weights="energy.safetensors").resolved(weights)
        assert config.sha256 is not None and len(config.sha256) == 64
        (weights / "moved.safetensors").write_bytes((weights / "energy.safetensors").read_bytes())
        moved = EnergyConfig(energy="cifar10-energy", weights="moved.safetensors").resolved(weights)
        assert moved.id == config.id

    def test_a_resolved_config_reads_its_own_identity(self, weights: Path) -> None:
        energy = {"energy": "cifar10-energy", "weights": "energy.safetensors"}
        config = EBMConfig.model_validate({"energy": energy, "steps": 2, "step_size": 0.01}).resolved(weights)
        again = EBMConfig.model_validate(config.identity())
        assert again.id == config.id

    def test_it_builds_a_frozen_network_in_its_units(self, weights: Path) -> None:
        config = EnergyConfig(energy="cifar10-energy", weights="energy.safetensors").resolved(weights)
        net, z = config.build(), images(2, 3, 32, 32, dtype=torch.float32)
        assert not net.training and not any(p.requires_grad for p in net.parameters())
        torch.testing.assert_close(net(z), 20_000 * net.net(z))

    def test_purifiers_share_a_network_that_the_caller_holds(self, weights: Path) -> None:
        energy = {"energy": "cifar10-energy", "weights": "energy.safetensors"}
        config = EBMConfig.model_validate({"energy": energy, "steps": 2, "step_size": 0.01}).resolved(weights)
        held = config.energy.build()
        asked: list[Any] = []

        def load(wanted: Any) -> nn.Module:
            asked.append(wanted)
            return held

        assert config.build(Models(load=load)).energy is held and asked == [config.energy]
        x = images(1, 3, 32, 32, dtype=torch.float32)
        assert torch.equal(config.build(Models(load=load))(x, omega(0)), config.build()(x, omega(0)))

    def test_what_cannot_be_loaded_is_refused(self, weights: Path) -> None:
        def resolve(**fields: Any) -> EnergyConfig:
            return EnergyConfig(**{"energy": "cifar10-energy", "weights": "energy.safetensors", **fields}).resolved(
                weights
            )

        with pytest.raises(InvalidInput, match="unknown energy 'cifar-energy'; did you mean 'cifar10-energy'"):
            resolve(energy="cifar-energy")
        with pytest.raises(InvalidInput, match=r"needs `weights`.*puregrid ships none.*puregrid train"):
            resolve(weights=None)
        with pytest.raises(InvalidInput, match=r"has sha256 .*, not 00000000"):
            resolve(sha256="00000000")
        with pytest.raises(InvalidInput, match="cannot be read"):
            resolve(weights="elsewhere.safetensors")
        with pytest.raises(InvalidInput, match="not of the architecture DigitsEnergy"):
            resolve(energy="digits-energy").build()
        with pytest.raises(ValueError, match="resolve the config"):
            EnergyConfig(energy="cifar10-energy").build()

    @pytest.mark.parametrize(
        "fields",
        [{"steps": 0}, {"steps": "20"}, {"step_size": 0.0}, {"clamp": 1}, {"energy": 3}, {"energy": {"weights": "a"}},
         {"energy": {"energy": "digits-energy", "unit": 1.0}}, {"temperature": 0.0}],
    )  # fmt: skip
    def test_no_wrong_field_gets_through(self, fields: dict[str, Any]) -> None:
        with pytest.raises(InvalidInput):
            EBMConfig.model_validate({"energy": "digits-energy", "steps": 20, "step_size": 0.1, **fields})
