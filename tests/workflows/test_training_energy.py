"""Energy networks are trained by the losses that the formulas say, reproducibly, and come back as purifiers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from defense.checkpoints import sha256_file
from defense.classifiers import ClassifierConfig
from defense.energy import EnergyConfig, Scaled
from defense.errors import InvalidInput
from defense.purifiers.ebm import EBMConfig
from defense.randomness import Omega
from tasks.attacks import PGDConfig, Target
from tasks.datasets import DigitsConfig, ImageSet
from workflows.cli import app
from workflows.training import load_config
from workflows.training.kinds.energy import EnergyObjective, EnergyTraining
from workflows.training.loop import fit

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "defense" / "assets" / "digits-energy"
CONFIGS = REPOSITORY / "workflows" / "configs"
ENERGY: dict[str, Any] = {
    "train": "energy",
    "dataset": {"dataset": "digits"},
    "energy": "digits-energy",
    "objective": "pcd",
    "noise": 0.2,
    "step_size": 0.1,
    "langevin_steps": 2,
    "chains": 12,
    "rejuvenate": 0.3,
    "batch": 8,
    "steps": 4,
    "lr": 0.001,
    "ema": 0.9,
}


@pytest.fixture(autouse=True)
def settings_come_back() -> Iterator[None]:
    """Training fixes torch's threads, determinism and global seed; later tests must not notice."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.set_rng_state(state)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return DigitsConfig(split="train").read()


def objective(data: ImageSet, **fields: Any) -> EnergyObjective:
    return EnergyObjective(EnergyTraining.model_validate({**ENERGY, "out": "nowhere", **fields}), data)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Quadratic(nn.Module):
    """``E(z) = c |z|^2 / 2``."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(c))

    def forward(self, z: Tensor) -> Tensor:
        return self.c / 2 * z.flatten(1).square().sum(1)


class TestLoss:
    X = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    Y = torch.zeros(8, dtype=torch.long)

    def test_score_matching_is_its_formula(self, data: ImageSet) -> None:
        n = torch.randn(self.X.shape, generator=seeded())
        expected = (0.2 * 1.5 * (2 * self.X - 1 + 0.2 * n) - n).square().mean()
        loss = objective(data, objective="dsm").loss(Quadratic(1.5), self.X, self.Y, seeded(), 0)
        torch.testing.assert_close(loss, expected)

    def test_score_matching_finds_the_precision_of_a_gaussian(self, data: ImageSet) -> None:
        """Pixels N(0, v) noised at s have the energy |z|^2 / (2 (v + s^2))."""
        z = 0.5 * torch.randn(4096, 1, 8, 8, generator=seeded(1))
        x, net = (z + 1) / 2, Quadratic(1.0)
        optimiser, trained = torch.optim.LBFGS(net.parameters()), objective(data, objective="dsm")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = trained.loss(net, x, self.Y, seeded(2), 0)
            torch.autograd.backward(loss)
            return loss

        optimiser.step(closure)
        assert float(net.c.detach()) == pytest.approx(1 / (0.25 + 0.04), rel=0.02)

    def test_contrastive_divergence_is_the_difference_of_energies_of_data_and_moved_chains(
        self, data: ImageSet
    ) -> None:
        trained = objective(data, objective="pcd", rejuvenate=0.0, magnitude=0.01)
        before = 0.3 * torch.randn(12, 1, 8, 8, generator=seeded(5))
        trained.load_state_dict({"chains": before})
        generator, c = seeded(), 1.5
        loss = trained.loss(Quadratic(c), self.X, self.Y, generator, 0)
        replay = seeded()
        noised = 2 * self.X - 1 + 0.2 * torch.randn(self.X.shape, generator=replay)
        chosen = torch.randperm(12, generator=replay)[:8]
        torch.rand(8, generator=replay)  # the draw that decides which chains start again: none
        z = before[chosen]
        for _ in range(2):
            z = z - 0.1**2 / 2 * c * z + 0.1 * torch.randn(z.shape, generator=replay)
        positive, negative = (c / 2 * t.flatten(1).square().sum(1) for t in (noised, z))
        expected = positive.mean() - negative.mean() + 0.01 * (positive**2 + negative**2).mean()
        torch.testing.assert_close(loss, expected)
        chains = trained.state_dict()["chains"]
        torch.testing.assert_close(chains[chosen], z)
        kept = sorted(set(range(12)) - set(chosen.tolist()))
        assert torch.equal(chains[kept], before[kept])
        assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=replay))

    def test_maximum_likelihood_lowers_data_and_lifts_samples(self, data: ImageSet) -> None:
        """For E = c |z|^2 / 2 the gradient in c is half the difference of the mean squared norms."""
        trained = objective(data, objective="pcd", langevin_steps=1, step_size=1e-6, noise=1e-6, rejuvenate=0.0)
        trained.load_state_dict({"chains": torch.full((12, 1, 8, 8), 0.5)})
        net = Quadratic(1.0)
        torch.autograd.backward(trained.loss(net, self.X, self.Y, seeded(), 0))
        expected = ((2 * self.X - 1).flatten(1).square().sum(1).mean() - 64 * 0.25) / 2
        assert net.c.grad is not None
        torch.testing.assert_close(net.c.grad, expected, rtol=1e-4, atol=1e-4)


class TestChains:
    def test_there_are_none_before_they_are_needed_and_score_matching_has_none(self, data: ImageSet) -> None:
        assert objective(data).state_dict() == {}
        trained = objective(data, objective="dsm", chains=1)
        trained.loss(Quadratic(1.0), TestLoss.X, TestLoss.Y, seeded(), 0)
        assert trained.state_dict() == {}

    @pytest.mark.parametrize(("start", "lowest", "std"), [("data", -2.2, 0.78), ("uniform", -1.0, 0.577)])
    def test_they_start_where_the_config_says(self, data: ImageSet, start: str, lowest: float, std: float) -> None:
        states = objective(data, start=start)._fresh(500, seeded())
        assert states.shape == (500, 1, 8, 8) and lowest <= float(states.min()) < -0.99
        assert float(states.std()) == pytest.approx(std, abs=0.02)

    def test_a_probability_of_one_starts_all_used_chains_again(self, data: ImageSet) -> None:
        trained = objective(data, objective="pcd", rejuvenate=1.0, langevin_steps=1, step_size=1e-6, noise=1e-6)
        trained.load_state_dict({"chains": torch.full((12, 1, 8, 8), 50.0)})
        trained.loss(Quadratic(1.0), TestLoss.X, TestLoss.Y, seeded(), 0)
        chains = trained.state_dict()["chains"]
        assert sorted(float(c.abs().max()) > 40 for c in chains) == [False] * 8 + [True] * 4

    def test_a_checkpoint_continues_with_the_same_bits(self, data: ImageSet) -> None:
        torch.manual_seed(0)
        one = objective(data)
        net, generator = one.network(), seeded()
        one.loss(net, TestLoss.X, TestLoss.Y, generator, 0)
        two = objective(data)
        two.load_state_dict({key: value.clone() for key, value in one.state_dict().items()})
        again = torch.Generator()
        again.set_state(generator.get_state())
        losses = [o.loss(net, TestLoss.X, TestLoss.Y, g, 1) for o, g in ((one, generator), (two, again))]
        assert torch.equal(*losses)
        assert torch.equal(one.state_dict()["chains"], two.state_dict()["chains"])


class TestResume:
    def test_a_training_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(self, data: ImageSet) -> None:
        trained = objective(data, steps=6, checkpoint_every=3)

        def run(resume: dict[str, Any] | None = None) -> tuple[list[Tensor], list[bytes]]:
            torch.manual_seed(0 if resume is None else 99)
            own, kept = EnergyObjective(trained.config, data), []

            def save(state: dict[str, Any]) -> None:
                file = io.BytesIO()
                torch.save(state, file)
                kept.append(file.getvalue())

            net = fit(trained.config, own, data, data, torch.device("cpu"), resume=resume, save=save).net
            return [*net.parameters(), own.state_dict()["chains"]], kept

        whole, kept = run()
        assert len(kept) == 2
        rest, _ = run(torch.load(io.BytesIO(kept[0]), weights_only=True))
        assert all(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))


def _train(folder: Path, **changes: Any) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({**ENERGY, "out": str(folder / "out"), **changes}, sort_keys=False)
    (folder / "config.yaml").write_text(text)
    return CliRunner().invoke(app, ["train", str(folder / "config.yaml")])


def _trained(folder: Path, **changes: Any) -> dict[str, Any]:
    result = _train(folder, **changes)
    assert result.exit_code == 0, result.output
    card: dict[str, Any] = yaml.safe_load(result.stdout)
    return card


class TestTraining:
    @pytest.mark.slow
    def test_the_same_config_gives_the_same_bytes_and_each_setting_others(self, tmp_path: Path) -> None:
        def weights(name: str, **changes: Any) -> str:
            torch.manual_seed(len(name))  # whatever the global generator was before
            return str(_trained(tmp_path / name, **changes)["sha256"]["model.safetensors"])

        first = weights("a")
        assert weights("again") == first
        changes: list[dict[str, Any]] = [
            {"seed": 1}, {"noise": 0.3}, {"step_size": 0.2}, {"langevin_steps": 3}, {"chains": 13},
            {"magnitude": 0.1},
            {"rejuvenate": 0.0}, {"objective": "dsm"},
            {"start": "uniform"},
        ]  # fmt: skip
        others = [weights(f"c{k}", **change) for k, change in enumerate(changes)]
        assert len({first, *others}) == 1 + len(changes)

    @pytest.mark.nightly
    def test_the_card_s_accuracies_are_those_of_the_purifier(self, tmp_path: Path) -> None:
        card = _trained(tmp_path, classifier="digits-cnn", purify_steps=[2, 5], eps=0.1)
        energy = EnergyConfig(energy="digits-energy", weights="out/model.safetensors").resolved(tmp_path)
        assert energy.sha256 == card["sha256"]["model.safetensors"]
        classifier = ClassifierConfig(classifier="digits-cnn").resolved(tmp_path).build()
        test = DigitsConfig().read()
        x, y = torch.from_numpy(test.images), torch.from_numpy(test.labels)
        attack = PGDConfig(norm="linf", eps=0.1)
        omega = Omega.of(attack.id, 0, "attack", range(599))
        attacked = torch.cat(
            [
                attack.run(Target(classifier, y[part], own), x[part], own).images
                for part in (slice(0, 500), slice(500, 599))
                for own in [omega.part(part.start, part.stop)]
            ]
        )
        accuracy = card["measured"]["purified"]["accuracy"]
        for steps in (2, 5):
            purify = EBMConfig.model_validate({"energy": energy, "steps": steps}).build()
            for kind, images in (("clean", x), ("static_attack", attacked)):
                with torch.no_grad():
                    purified = purify(images, Omega.of("training-card", 0, "judge", range(599)))
                    share = float((classifier(purified).argmax(1) == y).double().mean())
                assert accuracy[kind][f"steps={steps}"] == pytest.approx(share, abs=0.004)
        assert accuracy["clean"]["steps=0"] == pytest.approx(0.993322)

    def test_without_a_classifier_the_card_has_energies_alone(self, tmp_path: Path) -> None:
        measured = _trained(tmp_path)["measured"]
        assert set(measured) == {"test_images", "energy"} and measured["test_images"] == 599
        assert set(measured["energy"]) == {"noised test images", "uniform noise"}

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"chains": 7}, "7 persistent chains are fewer than the 8 images of a batch"),
            ({"energy": "cifar10-energy"}, "takes images of shape (3, 32, 32)"),
            ({"energy": "digits-enery"}, "did you mean 'digits-energy'"),
            ({"classifier": "resnet-cifar"}, "classifier"),
            ({"objective": "ml"}, "objective"),
            ({"purify_steps": [5, 2]}, "rise, from at least 1"),
            ({"purify_steps": []}, "rise, from at least 1"),
            ({"noise": 0.0}, "greater than 0"),
            ({"tau": 0.1}, "tau"),
        ],
    )
    def test_what_cannot_be_trained_is_refused_before_it_starts(
        self, tmp_path: Path, fields: dict[str, Any], message: str
    ) -> None:
        result = _train(tmp_path, **fields)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
        assert not (tmp_path / "out").exists()


class TestShipped:
    def test_the_files_are_those_of_the_card_and_of_the_config(self) -> None:
        card = yaml.safe_load((SHIPPED / "card.yaml").read_text())
        config = load_config(CONFIGS / "digits-energy.yaml")
        assert card["config"] == config.identity()
        assert card["sha256"] == {"model.safetensors": sha256_file(SHIPPED / "model.safetensors")}
        assert (SHIPPED / "model.safetensors").stat().st_size < 500_000

    def test_the_configs_are_valid(self) -> None:
        for name in ("digits-energy", "cifar10-energy"):
            assert isinstance(load_config(CONFIGS / f"{name}.yaml"), EnergyTraining)

    @pytest.mark.slow
    def test_the_default_purifier_keeps_clean_digits_and_undoes_a_static_attack(self) -> None:
        """On 100 images; the card has all 599."""
        test = DigitsConfig().read()
        x, y = torch.from_numpy(test.images[:100]), torch.from_numpy(test.labels[:100])
        classifier = ClassifierConfig(classifier="digits-cnn").resolved(Path.cwd()).build()
        attack = PGDConfig(norm="linf", eps=0.15)
        omega = Omega.of(attack.id, 0, "attack", range(100))
        attacked = attack.run(Target(classifier, y, omega), x, omega).images
        purify = EBMConfig.model_validate({"energy": "digits-energy"}).resolved(Path.cwd()).build()
        with torch.no_grad():
            purified = purify(torch.cat([x, attacked]), Omega.of("s", 0, "judge", [*range(100)] * 2))
            clean, static = (classifier(purified).argmax(1).view(2, 100) == y).double().mean(1)
            bare = (classifier(attacked).argmax(1) == y).double().mean()
        assert clean >= 0.85 and static >= 0.75 and bare <= 0.2

    def test_noise_has_a_higher_energy_than_digits(self) -> None:
        net = EnergyConfig(energy="digits-energy").resolved(Path.cwd()).build()
        assert isinstance(net, Scaled)
        digits = 2 * torch.from_numpy(DigitsConfig().read().images) - 1
        noise = 2 * torch.rand(digits.shape, generator=seeded()) - 1
        assert float(net(noise).min()) > float(net(digits).quantile(0.95))


def test_a_classifier_of_other_images_is_refused(data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    import workflows.training.kinds.energy as module

    class Other(ClassifierConfig):
        def resolved(self, base: Path) -> ClassifierConfig:
            return self

    monkeypatch.setattr(module, "ClassifierConfig", Other)
    name = next(name for name in _classifiers() if ClassifierConfig(classifier=name).architecture.image_shape[0] == 3)
    with pytest.raises(InvalidInput, match="takes images of shape"):
        objective(data, classifier=name)


def _classifiers() -> list[str]:
    from defense.classifiers import CLASSIFIERS

    return CLASSIFIERS.names()
