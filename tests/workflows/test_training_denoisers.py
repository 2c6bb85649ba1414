"""Objectives of denoisers: published coefficients, what a perfect network loses, and trainings of a few steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from defense import InvalidInput, get_schedule
from defense.denoisers import DiffusersConfig
from defense.denoisers.predictions import consistency_scalings
from defense.schedules import vp_abar
from tasks.datasets import ImageSet
from workflows.training import load_config, train
from workflows.training.kinds.denoiser import DenoiserObjective
from workflows.training.objectives import (
    AdversarialBridge,
    AdversarialDenoising,
    AttackedFlow,
    ConsistencyTuning,
    DenoiserLoss,
    Denoising,
    GaussianFlow,
    PerturbationDiffusion,
    adbm_coefficients,
)
from workflows.training.objectives.addt import rank_mapped
from workflows.training.objectives.attacked import attacked

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0])


class Guide(nn.Module):
    """A classifier of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(64, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1)) @ self.weight


def batch(ask: Callable[[Tensor, Tensor], Tensor], schedule: str = "linear-1000", seed: int = 0) -> Denoising:
    generator = torch.Generator().manual_seed(seed)
    return Denoising(ask, X, Y, generator, get_schedule(schedule), Guide())


class TestADBM:
    @pytest.mark.parametrize(
        ("top", "t", "state", "target"),
        [
            (0.1, 0.02, 0.051677, 0.669255),
            (0.1, 0.05, 0.258176, 1.504863),
            (0.1, 0.1, 0.946722, 2.939650),
            (0.2, 0.05, 0.057574, 0.335587),
        ],
    )
    def test_the_coefficients_of_the_bridge(self, top: float, t: float, state: float, target: float) -> None:
        found = adbm_coefficients(float(vp_abar(t)), float(vp_abar(top)))
        assert found == pytest.approx((state, target), abs=2e-6)

    def test_the_target_leads_from_the_adversarial_to_the_clean_image(self) -> None:
        """(z - sqrt(1 - a) target) / sqrt(a) is clean, whatever delta; at T the state is that of x + delta."""
        a, top = float(vp_abar(0.07)), float(vp_abar(0.12))
        clean, noise, delta = (torch.randn(3, generator=torch.Generator().manual_seed(i)).double() for i in range(3))
        in_state, in_target = adbm_coefficients(a, top)
        z = math.sqrt(a) * clean + math.sqrt(1 - a) * noise + in_state * delta
        torch.testing.assert_close((z - math.sqrt(1 - a) * (noise + in_target * delta)) / math.sqrt(a), clean)
        assert adbm_coefficients(top, top)[0] == pytest.approx(math.sqrt(top))

    def test_the_perturbation_is_within_its_budget_and_raises_the_loss_of_the_guide(self) -> None:
        rule, seen = AdversarialBridge(classifier="digits-cnn", eps=0.1), []

        def ask(z: Tensor, labels: Tensor) -> Tensor:
            seen.append((z, labels))
            return 0.1 * z

        assert rule.loss(batch(ask)) > 0
        assert len(seen) == 4 and all(torch.equal(seen[0][1], labels) for _, labels in seen)
        assert int(seen[0][1].max()) < 200
        losses = []
        for z, labels in (seen[0], seen[-1]):
            a = torch.tensor(get_schedule("linear-1000").abar)[labels + 1].view(-1, 1, 1, 1)
            clean = (z - (1 - a).sqrt() * 0.1 * z) / a.sqrt()
            losses.append(nn.functional.cross_entropy(Guide()((clean + 1) / 2), Y))
        assert losses[1] > losses[0]


def test_addt_mixes_noise_that_is_still_normal() -> None:
    """The perturbation is the numbers of a normal draw in the order of the gradient: its histogram is theirs."""
    values, normal = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mapped = rank_mapped(values, normal)
    assert torch.equal(mapped.flatten(2).sort(2).values, normal.flatten(2).sort(2).values)
    assert torch.equal(mapped.flatten(2).argsort(2), values.flatten(2).argsort(2))
    rule = AdversarialDenoising(classifier="digits-cnn")
    shares = rule.share(torch.tensor([0.999999, 0.9, 0.5]).double())
    assert shares.tolist() == pytest.approx([0.3, 0.09, 0.03], rel=1e-6)
    assert rule.loss(batch(lambda z, labels: z)) > 0


def test_a_perfect_velocity_loses_nothing() -> None:
    """It is -s n, which the network is told enough to know here."""

    def ask(at: Tensor, u: Tensor) -> Tensor:
        return -(at - X) / (1 - u.to(X)).view(-1, 1, 1, 1)

    assert float(GaussianFlow().loss(batch(ask, "flowpure"))) < 1e-12


class TestAttacked:
    """Objectives that learn of attacked images."""

    BUDGETS = torch.tensor([0.1, 0.0, 0.7, 0.02]).view(-1, 1, 1, 1)
    L2 = torch.tensor([False, False, True, False]).view(-1, 1, 1, 1)

    def test_images_are_in_their_balls_and_fool_the_guide(self) -> None:
        found = attacked(Guide(), X, Y, self.BUDGETS, torch.Generator().manual_seed(3), steps=8, l2=self.L2)
        delta = (found - X).flatten(1)
        sizes = [float(d.norm() if l2 else d.abs().max()) for d, l2 in zip(delta, self.L2, strict=True)]
        assert sizes[1] == 0 and all(
            0.5 * eps <= size <= eps * (1 + 1e-9) for size, eps in zip(sizes, self.BUDGETS.double(), strict=True)
        )
        assert found.min() >= 0 and found.max() <= 1 and not found.requires_grad

        def losses(x: Tensor) -> Tensor:
            return nn.functional.cross_entropy(Guide()(x), Y, reduction="none")

        assert (losses(found) > losses(X))[[0, 2, 3]].all()

    def test_a_step_size_may_be_that_of_all_images(self) -> None:
        start = torch.Generator().manual_seed(3)
        budgets = torch.full((4, 1, 1, 1), 0.2)
        first = 0.2 * (2 * torch.rand(X.shape, generator=start).to(X) - 1)
        found = attacked(Guide(), X, Y, budgets, torch.Generator().manual_seed(3), steps=1, step_size=0.01)
        moved = found - (X + first).clamp(0, 1)
        inner = (found > 0) & (found < 1) & ((found - X).abs() < 0.2 - 1e-9)
        torch.testing.assert_close(moved[inner].abs(), torch.full_like(moved[inner], 0.01), rtol=0, atol=1e-7)

    def test_a_perfect_model_of_perturbations_loses_nothing(self) -> None:
        """Its state is sqrt(abar) gamma + sqrt(1 - abar) n, gamma twice the clean less the attacked image."""
        rule = PerturbationDiffusion(classifier="digits-cnn", linf=(0.1,), l2=(0.5,), inner_steps=2)
        same = torch.Generator().manual_seed(0)
        kind = (torch.rand(4, generator=same, dtype=torch.float64) * 3).long().view(-1, 1, 1, 1)
        radii = torch.tensor([0.0, 0.1, 0.5])[kind]
        gamma = 2 * (X - attacked(Guide(), X, Y, radii, same, steps=2, l2=kind == 2))
        assert gamma.abs().max() > 0.05

        def ask(z: Tensor, labels: Tensor) -> Tensor:
            a = torch.tensor(get_schedule("linear-1000").abar)[labels + 1].view(-1, 1, 1, 1)
            return (z - a.sqrt() * gamma) / (1 - a).sqrt()

        assert float(rule.loss(batch(ask))) < 1e-12
        assert float(rule.loss(batch(lambda z, labels: ask(z, labels) - gamma))) > 1e-4

    def test_a_perfect_velocity_leads_from_the_attacked_to_the_clean_image(self) -> None:
        rule = AttackedFlow(classifier="digits-cnn", eps=0.3, step_size=0.05, inner_steps=2)

        def ask(at: Tensor, u: Tensor) -> Tensor:
            return (X - at) / (1 - u.to(X)).view(-1, 1, 1, 1)

        assert float(rule.loss(batch(ask, "flowpure"))) < 1e-9
        assert float(rule.loss(batch(lambda at, u: 0 * at, "flowpure"))) > 1e-4

    def test_without_an_attack_there_is_nothing_to_learn(self) -> None:
        with pytest.raises(InvalidInput, match="give their radii, `linf`, `l2` or both"):
            PerturbationDiffusion(classifier="digits-cnn")


def test_a_network_that_knows_the_image_loses_nothing() -> None:
    """The F of a consistency model whose f is the clean image at every level."""

    def ask(seen: Tensor, label: Tensor) -> Tensor:
        skip, out, scale, _ = consistency_scalings((label / 250).exp().view(-1, 1, 1, 1))
        safe = torch.where(out > 0, out, 1.0)
        return torch.where(out > 1e-9, (2 * X - 1 - skip * seen / scale) / safe, 0.0)

    first = float(ConsistencyTuning(sigma_max=2.0, grid=5).loss(batch(ask, "edm")))
    assert first < 2e-5  # at the lowest level f is the noised image itself, whatever the network: sigma_min^2
    assert float(ConsistencyTuning(sigma_max=2.0, grid=5).loss(batch(lambda z, label: z, "edm"))) > 0.01


UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}


def trained(folder: Path, **fields: Any) -> tuple[dict[str, Any], Path]:
    out = folder / "net"
    content = {
        "train": "denoiser",
        "out": str(out),
        "dataset": {"dataset": "digits"},
        "schedule": "linear-1000",
        "unet": UNET,
        "batch": 8,
        "steps": 2,
        "lr": 0.001,
        **fields,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return train(load_config(folder / "config.yaml"), command="test"), out


OBJECTIVES: dict[str, dict[str, Any]] = {
    "adbm": {"objective": {"objective": "adbm", "classifier": "digits-cnn", "eps": 0.15}},
    "addt": {"objective": {"objective": "addt", "classifier": "digits-cnn", "inner_steps": 1}},
    "flowpure": {"objective": "flowpure", "schedule": "flowpure"},
    "consistency": {"objective": "consistency", "schedule": "edm"},
    "aaopt": {"objective": {"objective": "aaopt", "classifier": "digits-cnn", "linf": [0.1], "inner_steps": 1}},
    "flowpure-attacked": {
        "objective": {
            "objective": "flowpure-attacked",
            "classifier": "digits-cnn",
            "eps": 0.2,
            "step_size": 0.1,
            "inner_steps": 1,
        },
        "schedule": "flowpure",
    },
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_training_ends_with_a_card_and_a_network_that_loads(name: str, tmp_path: Path) -> None:
    card, out = trained(tmp_path, **OBJECTIVES[name])
    assert card["config"]["objective"]["objective"] == name
    measured = card["measured"]
    # What is not the noise of images is told by its loss.
    other = name in ("aaopt", "flowpure-attacked")
    assert ("test_loss" in measured) == other and ("test_eps_mse" in measured) != other
    figures = [measured["test_loss"]] if other else measured["test_eps_mse"].values()
    assert all(math.isfinite(value) and value > 0 for value in figures)
    predicts = {"consistency": "consistency"}.get(name, "flowpure" if "flowpure" in name else "eps")
    fields = {"path": str(out), "schedule": card["config"]["schedule"], "prediction": predicts}
    net = DiffusersConfig.model_validate(fields).resolved(tmp_path).build()
    with torch.no_grad():
        assert net(torch.zeros(1, 1, 8, 8), 100).isfinite().all()


@pytest.mark.parametrize("radii", [{"linf": [2, 4, 8]}, {"linf": [0.0]}, {"l2": [128.0]}, {"l2": [-1.0]}])
def test_radii_that_are_not_of_pixels_between_0_and_1_are_refused(radii: dict[str, list[float]]) -> None:
    with pytest.raises(InvalidInput, match=r"less than or equal to|greater than 0"):
        DenoiserLoss.from_entry({"objective": "aaopt", "classifier": "digits-cnn", **radii})


def test_the_mean_loss_is_that_of_the_test_images_there_are_without_a_graph() -> None:
    graphs: list[bool] = []

    class Ones(DenoiserObjective):
        def __init__(self) -> None:
            self.config = SimpleNamespace(seed=0)  # type: ignore[assignment]

        def loss(self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int) -> Tensor:
            graphs.append(torch.is_grad_enabled())
            return torch.tensor(2.0)

    few = ImageSet(np.zeros((3, 1, 8, 8), np.float32), np.zeros(3, np.int64))
    assert Ones()._loss(nn.Linear(1, 1), few, 100) == 2.0
    assert graphs == [False]


class TestClasses:
    def test_a_class_conditional_network_says_which_class_is_none(self, tmp_path: Path) -> None:
        card, out = trained(tmp_path, unet={**UNET, "num_class_embeds": 11}, label_dropout=0.2)
        assert json.loads((out / "config.json").read_text())["_null_class"] == 10
        assert card["measured"]["test_eps_mse"] != card["measured"]["test_eps_mse_with_class"]
        config = DiffusersConfig(path=str(out), schedule="linear-1000").resolved(tmp_path)
        assert config.classes == 10 and config.unconditional
        net, z = config.build(), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            told = net.conditional(z, 50, torch.tensor([3, 7]))
            none = net.net(z, torch.tensor([49, 49]), class_labels=torch.tensor([10, 10]), return_dict=False)[0]
            assert torch.equal(net(z, 50), none) and not torch.allclose(told, none)

    @pytest.mark.parametrize(
        ("embeds", "dropout", "message"),
        [
            (7, 0.0, "num_class_embeds = 7 does not fit the 10 classes"),
            (10, 0.1, "labels are left out, in a share above 0, exactly where"),
            (11, 0.0, "labels are left out, in a share above 0, exactly where"),
        ],
    )
    def test_embeddings_fit_the_classes(self, embeds: int, dropout: float, message: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=message):
            trained(tmp_path, unet={**UNET, "num_class_embeds": embeds}, label_dropout=dropout)


def test_a_start_is_a_network_of_the_same_form_and_its_hash_is_in_the_card(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not the one that `unet` describes"):
        trained(tmp_path, start="digits-ddpm")
    first = tmp_path / "first"
    first.mkdir()
    card, out = trained(first)
    again = tmp_path / "again"
    again.mkdir()
    continued, _ = trained(again, start=str(out), lr=1e-12)
    assert continued["config"]["start_sha256"] == card["sha256"]["diffusion_pytorch_model.safetensors"]
    for key, value in card["measured"]["test_eps_mse"].items():
        assert continued["measured"]["test_eps_mse"][key] == pytest.approx(value, rel=1e-3)


def test_objectives_are_on_their_schedules(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="objective 'flowpure' is on 'flowpure'"):
        trained(tmp_path, objective="flowpure")
