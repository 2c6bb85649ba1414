"""Training is reproducible, says what it did, and leaves weights that a sweep can name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from loops import every
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from defense.classifiers import ClassifierConfig
from defense.denoisers import DiffusersConfig
from defense.purifiers import PURIFIERS
from defense.randomness import Omega
from tasks.attacks import PGDConfig
from tasks.datasets import ImageSet
from workflows.cli import app
from workflows.training import load_config, loop, train
from workflows.training.augment import augmented
from workflows.training.kinds.classifier import (
    ClassifierObjective,
    ClassifierTraining,
    accuracy,
    noisy_accuracy,
    pgd_accuracy,
)
from workflows.training.kinds.denoiser import DenoiserObjective, DenoiserTraining, eps_mse

REPOSITORY = Path(__file__).parents[2]
ASSETS = REPOSITORY / "defense" / "assets"
CONFIGS = REPOSITORY / "workflows" / "configs"
ZOO = [f"digits-{way}" for way in ("cnn", "gaussian", "at", "at-alp", "trades", "trades-awp", "macer")]
ROBUST = [name for name in ZOO if "-at" in name or "-trades" in name]
SMALL: dict[str, dict[str, Any]] = {
    "digits-flowpure": {"purifier": "flowpure", "t_start": 0.5},
    "digits-consistency": {"purifier": "consistency", "sigma_eq": 0.15},
    "digits-adbm": {"purifier": "diffpure", "form": "ddim", "sigma_eq": 0.165, "steps": 5},
    "digits-addt": {"purifier": "diffpure", "form": "ddim", "sigma_eq": 0.15, "steps": 5},
}
"""Small denoisers that ship, in half precision, and the purifier that each was trained for."""
OTHERS = ["digits-aaopt", "digits-flowpure-pgd"]
"""Those that are not asked for the noise of images."""
CLASSIFIER: dict[str, Any] = {
    "train": "classifier",
    "dataset": {"dataset": "digits"},
    "classifier": "digits-cnn",
    "batch": 16,
    "steps": 6,
    "lr": 0.003,
    "weight_decay": 0.01,
    "shift": 1,
    "method": {"method": "gaussian", "noise": 0.1},
    "ema": 0.9,
}
STANDARD: dict[str, Any] = {**CLASSIFIER, "method": "standard"}
DENOISER: dict[str, Any] = {
    "train": "denoiser",
    "dataset": {"dataset": "digits"},
    "schedule": "linear-1000",
    "unet": {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
    },
    "batch": 8,
    "steps": 3,
    "lr": 0.001,
    "ema": 0.9,
    "focus_t": 300,
    "focus_share": 0.5,
}
DIGESTS = {
    "train_digest": "11a4815f120a8f4b61db4aae33184f9866ee8974e0fb43b0981cb9112634de3b",
    "test_digest": "72f17156a53066e17f83b8258479685b506740c38148728917da8b5fcbec0fe2",
    "train_images": 1198,
}


@pytest.fixture(autouse=True)
def settings_come_back() -> Iterator[None]:
    """Training fixes torch's threads, determinism and global seed; later tests must not notice."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.set_rng_state(state)


def _shipped(name: str) -> tuple[DenoiserTraining, DiffusersConfig, dict[str, Any]]:
    """Config, entry and card of a small denoiser that ships."""
    config = load_config(CONFIGS / f"{name}.yaml")
    assert isinstance(config, DenoiserTraining) and config.objective is not None
    folder = DiffusersConfig(
        path=str(ASSETS / name), schedule=config.schedule, prediction=config.objective.prediction
    )
    return config, folder.resolved(Path("/")), yaml.safe_load((ASSETS / name / "card.yaml").read_text())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _train(folder: Path, config: dict[str, Any], **changes: Any) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({**config, "out": str(folder / "out"), **changes}, sort_keys=False)
    (folder / "config.yaml").write_text(text)
    return CliRunner().invoke(app, ["train", str(folder / "config.yaml")])


def _trained(folder: Path, config: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], Path]:
    result = _train(folder, config, **changes)
    assert result.exit_code == 0, result.output
    card: dict[str, Any] = yaml.safe_load(result.stdout)
    return card, folder / "out"


def _config(**fields: Any) -> ClassifierTraining:
    return ClassifierTraining.model_validate({**CLASSIFIER, "out": "nowhere", **fields})


@pytest.mark.parametrize(
    ("config", "weights"),
    [(CLASSIFIER, "model.safetensors"), (DENOISER, "diffusion_pytorch_model.safetensors")],
    ids=["classifier", "denoiser"],
)
class TestReproducible:
    @pytest.mark.slow
    def test_the_same_config_gives_the_same_bytes_and_another_seed_others(
        self, tmp_path: Path, config: dict[str, Any], weights: str
    ) -> None:
        cards: list[dict[str, Any]] = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            torch.manual_seed(len(cards))  # whatever the global generator was before
            card, out = _trained(tmp_path / name, config, seed=seed)
            assert _sha256(out / weights) == card["sha256"][weights]
            cards.append(card)
        assert cards[0]["sha256"] == cards[1]["sha256"]
        assert cards[0]["measured"] == cards[1]["measured"]
        assert cards[0]["sha256"][weights] != cards[2]["sha256"][weights]

    @pytest.mark.slow
    def test_another_setting_gives_other_weights(self, tmp_path: Path, config: dict[str, Any], weights: str) -> None:
        short = {**config, "steps": 3}
        changes: list[dict[str, Any]] = [{}, {"steps": 2}, {"batch": 4}, {"lr": 0.01}, {"ema": 0.0}, {"flip": True}]
        found = [_sha256(_trained(tmp_path / str(i), short, **each)[1] / weights) for i, each in enumerate(changes)]
        assert [each for each, other in zip(changes[1:], found[1:], strict=True) if other == found[0]] == []


class TestCard:
    def test_a_classifier_s_card_says_what_was_done_to_what(self, tmp_path: Path) -> None:
        card, out = _trained(tmp_path, CLASSIFIER)
        assert card["command"] == f"puregrid train {tmp_path / 'config.yaml'}"
        assert card["config"] == load_config(tmp_path / "config.yaml").identity()
        assert card["config"]["steps"] == 6
        assert card["config"]["label_smoothing"] == 0.0  # defaults are said
        assert card["data"] == DIGESTS
        assert card["sha256"] == {"model.safetensors": _sha256(out / "model.safetensors")}
        assert card["versions"]["torch"] == torch.__version__
        assert yaml.safe_load((out / "card.yaml").read_text()) == card
        # Three convolutions and their batch norms, 32, 32 and 64 channels, and two linear layers.
        assert card["parameters"] == 9 * (32 + 32 * 32 + 32 * 64) + 2 * (32 + 32 + 64) + 1024 * 64 + 64 + 640 + 10

    @pytest.mark.slow
    def test_a_denoiser_s_card_names_both_files(self, tmp_path: Path) -> None:
        card, out = _trained(tmp_path, DENOISER)
        assert card["data"] == DIGESTS
        names = ("config.json", "diffusion_pytorch_model.safetensors")
        assert card["sha256"] == {name: _sha256(out / name) for name in names}
        assert card["measured"]["test_images"] == 599
        assert list(card["measured"]["test_eps_mse"]) == ["t=25", "t=50", "t=100", "t=200", "t=400"]
        stored = load_file(out / "diffusion_pytorch_model.safetensors")
        assert card["parameters"] == sum(tensor.numel() for tensor in stored.values())

    def test_other_files_in_the_folder_are_left_alone_and_out_of_the_card(self, tmp_path: Path) -> None:
        (tmp_path / "out" / "notes").mkdir(parents=True)
        (tmp_path / "out" / "old.th").write_bytes(b"old")
        card, out = _trained(tmp_path, CLASSIFIER, steps=1)
        assert list(card["sha256"]) == ["model.safetensors"]
        assert (out / "old.th").read_bytes() == b"old"


class TestLoadsBack:
    @pytest.mark.slow
    def test_a_trained_classifier_has_the_accuracy_of_its_card(self, tmp_path: Path, digits_test: ImageSet) -> None:
        card, _ = _trained(tmp_path, STANDARD, steps=40)
        config = ClassifierConfig(
            classifier="digits-cnn", weights="out/model.safetensors", sha256=card["sha256"]["model.safetensors"][:8]
        ).resolved(tmp_path)
        assert config.sha256 == card["sha256"]["model.safetensors"]
        with torch.no_grad():
            predicted = config.build()(torch.from_numpy(digits_test.images)).argmax(1).numpy()
        accuracy = float((predicted == digits_test.labels).mean())
        assert card["measured"] == {"test_accuracy": round(accuracy, 6), "test_images": 599}
        assert accuracy > 0.3  # ten classes: it has learnt

    @pytest.mark.slow
    def test_a_trained_denoiser_has_the_error_of_its_card(self, tmp_path: Path, digits_test: ImageSet) -> None:
        card, _ = _trained(tmp_path, DENOISER)
        config = DiffusersConfig(schedule="linear-1000", path="out").resolved(tmp_path)
        assert config.sha256 == card["sha256"]["diffusion_pytorch_model.safetensors"]
        assert config.config_sha256 == card["sha256"]["config.json"]
        assert config.image_shape == (1, 8, 8)
        denoiser = config.build()
        z0 = 2 * digits_test.images[:500] - 1
        eps = np.random.default_rng(0).standard_normal(z0.shape, dtype=np.float32)
        abar = float(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[99])
        noised = torch.from_numpy((np.sqrt(abar) * z0 + np.sqrt(1 - abar) * eps).astype(np.float32))
        with torch.no_grad():
            error = float(((denoiser(noised, 100) - torch.from_numpy(eps)) ** 2).mean())
        assert card["measured"]["test_eps_mse"]["t=100"] == pytest.approx(error, abs=2e-5)

    @pytest.mark.slow
    def test_the_figures_of_a_robust_network_are_those_of_its_budget_and_noise(
        self, tmp_path: Path, digits_test: ImageSet
    ) -> None:
        method = {"method": "at", "norm": "l2", "eps": 0.5, "steps": 2}
        card, _ = _trained(tmp_path / "at", CLASSIFIER, steps=20, method=method)
        found = card["measured"]["under_attack"]
        net = _net(tmp_path / "at")
        attack = PGDConfig(norm="l2", eps=0.5)
        assert (found["norm"], found["eps"], found["images"]) == ("l2", 0.5, 599)
        assert found["accuracy"] == pgd_accuracy(net, digits_test, attack) <= card["measured"]["test_accuracy"]
        assert "not adaptive beyond the classifier itself" in found["attack"]
        assert "under_noise" not in card["measured"]

        card, _ = _trained(tmp_path / "noise", CLASSIFIER, steps=20)
        found = card["measured"]["under_noise"]
        assert (found["sigma"], found["images"], found["noise_version"]) == (0.1, 599, 2)
        assert found["accuracy"] == noisy_accuracy(_net(tmp_path / "noise"), digits_test, 0.1)
        assert "under_attack" not in card["measured"]

    def test_eps_in_255ths_is_another_spelling_of_the_same_training(self) -> None:
        one, other = (
            _config(method={"method": "trades", "norm": "linf", **eps}) for eps in ({"eps_255": 8}, {"eps": 8 / 255})
        )
        assert one == other
        assert one.id == other.id
        assert one.identity()["method"]["beta"] == 6.0  # the default is said


def _net(folder: Path) -> torch.nn.Module:
    config = ClassifierConfig(classifier="digits-cnn", weights="out/model.safetensors")
    return config.resolved(folder).build()


class TestLoss:
    @pytest.fixture
    def losses(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The loss of every step, as reported to the progress bar."""
        reported: list[float] = []

        @contextmanager
        def recorder(steps: int) -> Iterator[Callable[[int, float], None]]:
            yield lambda step, loss: reported.append(loss)

        monkeypatch.setattr(loop, "training_progress", recorder)
        return reported

    @pytest.mark.slow
    def test_a_classifier_s_loss_starts_at_a_guess_and_falls(self, tmp_path: Path, losses: list[float]) -> None:
        train(_config(out=str(tmp_path), steps=60, batch=32), command="test")
        assert len(losses) == 60
        assert losses[0] == pytest.approx(np.log(10), abs=0.4)
        assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])

    @pytest.mark.slow
    def test_a_denoiser_s_loss_starts_at_the_noise_s_variance_and_falls(
        self, tmp_path: Path, losses: list[float]
    ) -> None:
        fields = {**DENOISER, "out": str(tmp_path), "steps": 80, "batch": 32, "lr": 0.01, "focus_share": 0.0}
        train(DenoiserTraining.model_validate(fields), command="test")
        assert losses[0] == pytest.approx(1.0, abs=0.5)
        assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


class TestObjective:
    """The losses themselves, on networks whose answer is known."""

    @pytest.mark.parametrize(
        ("focus_t", "focus_share", "levels"), [(300, 0.0, (1, 1000)), (5, 1.0, (1, 5)), (1000, 1.0, (1, 1000))]
    )
    def test_the_network_that_knows_the_noise_has_no_loss_at_any_level(
        self,
        digits_test: ImageSet,
        focus_t: int,
        focus_share: float,
        levels: tuple[int, int],
    ) -> None:
        fields = {**DENOISER, "out": "nowhere", "focus_t": focus_t, "focus_share": focus_share}
        objective: Any = DenoiserObjective(DenoiserTraining.model_validate(fields), digits_test)
        x = torch.from_numpy(digits_test.images).repeat(20, 1, 1, 1)
        abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        seen: list[int] = []

        def oracle(z: torch.Tensor, t: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            seen.extend(t.tolist())
            level = torch.tensor(abar[t.numpy()]).view(-1, 1, 1, 1)  # time step t of the network is level t + 1
            return (((z - level.sqrt() * (2 * x - 1)) / (1 - level).sqrt()).float(),)

        value = float(objective.loss(oracle, x, None, torch.Generator().manual_seed(0), 0))
        assert value < 1e-9
        first, last = levels
        assert first - 1 <= min(seen) <= first + 2
        assert last - 4 <= max(seen) <= last - 1

    def test_a_share_of_the_images_is_below_the_focus(self, digits_test: ImageSet) -> None:
        fields = {**DENOISER, "out": "nowhere", "focus_t": 100, "focus_share": 0.5}
        objective: Any = DenoiserObjective(DenoiserTraining.model_validate(fields), digits_test)
        seen: list[int] = []

        def silent(z: torch.Tensor, t: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            seen.extend(t.tolist())
            return (torch.zeros_like(z),)

        x = torch.zeros(5000, 1, 8, 8)
        value = float(objective.loss(silent, x, None, torch.Generator().manual_seed(0), 0))
        assert value == pytest.approx(1.0, abs=0.02)  # the variance of the noise
        # Half of the steps, and a tenth of the other half.
        assert np.mean(np.array(seen) < 100) == pytest.approx(0.55, abs=0.03)

    def test_a_classifier_is_trained_on_noised_images(self, digits_test: ImageSet) -> None:
        config = _config(method={"method": "gaussian", "noise": 0.25}, label_smoothing=0.1)
        objective: Any = ClassifierObjective(config, digits_test)
        x = torch.full((400, 1, 8, 8), 0.5)
        y = torch.zeros(400, dtype=torch.long)
        seen: list[torch.Tensor] = []

        def certain(noised: torch.Tensor) -> torch.Tensor:
            seen.append(noised)
            return torch.tensor([[2.0] + [0.0] * 9]).repeat(len(noised), 1)

        value = float(objective.loss(certain, x, y, torch.Generator().manual_seed(0), 0))
        assert float(seen[0].std()) == pytest.approx(0.25, abs=0.01)
        assert float(seen[0].mean()) == pytest.approx(0.5, abs=0.01)
        # Cross-entropy by hand: the target is 0.91 on the class and 0.01 on each of nine others.
        normaliser = np.log(np.exp(2) + 9)
        assert value == pytest.approx(0.91 * (normaliser - 2) + 0.09 * normaliser, rel=1e-5)


class TestAugmentation:
    IMAGE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])[None, None]

    def _shifted(self, down: int, right: int) -> list[list[float]]:
        result = torch.zeros(3, 3)
        for i in range(3):
            for j in range(3):
                if 0 <= i - down < 3 and 0 <= j - right < 3:
                    result[i, j] = self.IMAGE[0, 0, i - down, j - right]
        rows: list[list[float]] = result.tolist()
        return rows

    def test_one_pixel_shifts_are_all_nine_and_nothing_else_with_zeros_at_the_rim(self) -> None:
        x = self.IMAGE.repeat(300, 1, 1, 1)
        out = augmented(x, torch.Generator().manual_seed(0), shift=1, flip=False)
        possible = [self._shifted(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        assert [[5.0, 6.0, 0.0], [8.0, 9.0, 0.0], [0.0, 0.0, 0.0]] in possible  # up and left: a hand example
        found = [possible.index(image[0].tolist()) for image in out]
        counts = np.bincount(found, minlength=9)
        # 300 draws of nine equal chances: 33 each, standard deviation 5.4.
        assert counts.min() > 10
        assert counts.max() < 60

    def test_the_shift_is_the_drawn_one(self) -> None:
        generator = torch.Generator().manual_seed(3)
        by = torch.randint(5, (4, 2), generator=torch.Generator().manual_seed(3))
        out = augmented(self.IMAGE.repeat(4, 1, 1, 1), generator, shift=2, flip=False)
        assert [image[0].tolist() for image in out] == [self._shifted(2 - int(d), 2 - int(r)) for d, r in by]

    def test_all_channels_of_an_image_move_together_and_images_apart(self) -> None:
        x = torch.cat([self.IMAGE, 10 * self.IMAGE], 1).repeat(20, 1, 1, 1)
        out = augmented(x, torch.Generator().manual_seed(0), shift=1, flip=True)
        assert out.shape == x.shape
        assert out.is_contiguous()
        assert torch.equal(out[:, 1], 10 * out[:, 0])
        assert len({tuple(image.flatten().tolist()) for image in out}) > 5

    def test_a_flip_mirrors_left_and_right_of_half_of_the_images(self) -> None:
        x = self.IMAGE.repeat(200, 1, 1, 1)
        out = augmented(x, torch.Generator().manual_seed(0), shift=0, flip=True)
        mirrored = [[3.0, 2.0, 1.0], [6.0, 5.0, 4.0], [9.0, 8.0, 7.0]]
        found = [image[0].tolist() for image in out]
        assert {str(image) for image in found} == {str(mirrored), str(self.IMAGE[0, 0].tolist())}
        assert 70 < found.count(mirrored) < 130

    def test_without_augmentation_images_stay(self) -> None:
        assert torch.equal(augmented(self.IMAGE, torch.Generator(), shift=0, flip=False), self.IMAGE)


class TestWrongConfigs:
    @every(
        ("config", "changes", "line", "says"),
        [
            (CLASSIFIER, {"steps": "many"}, 6, ("steps = 'many' (str)", "valid integer")),
            (CLASSIFIER, {"steps": 0}, 6, ("steps = 0", "greater than or equal to 1")),
            (CLASSIFIER, {"lr": -1.0}, 7, ("lr = -1.0", "greater than 0")),
            (CLASSIFIER, {"ema": 1.0}, 13, ("ema = 1.0", "less than 1")),
            (CLASSIFIER, {"stepps": 5}, 15, ("stepps: unknown field 'stepps'", "did you mean 'steps'?")),
            (CLASSIFIER, {"train": "clasifier"}, 1, ("train: 'clasifier' cannot be trained", "mean 'classifier'?")),
            (
                CLASSIFIER,
                {"train": None},
                1,
                ("train: None cannot be trained; Valid names: classifier, denoiser, energy",),
            ),
            (CLASSIFIER, {"dataset": {"dataset": "digit"}}, 3, ("unknown dataset 'digit'", "mean 'digits'?")),
            (
                CLASSIFIER,
                {"dataset": {"dataset": "digits", "rot": "x"}},
                4,
                ("dataset.rot: unknown field 'rot'", "Valid names: accept, dataset, digest, split"),
            ),
            (CLASSIFIER, {"method": "standart"}, 10, ("unknown training method 'standart'", "mean 'standard'?")),
            (CLASSIFIER, {"method": {"method": "tardes"}}, 11, ("unknown training method", "mean 'trades'?")),
            (CLASSIFIER, {"method": {"method": "gaussian", "nois": 1.0}}, 12, ("unknown field 'nois'", "'noise'?")),
            (CLASSIFIER, {"method": {"method": "gaussian", "noise": -1.0}}, 12, ("noise = -1.0", "greater than 0")),
            (CLASSIFIER, {"method": {"method": "at", "eps": 0.1}}, 10, ("field 'norm' is missing",)),
            (CLASSIFIER, {"method": {"method": "at", "norm": "linf", "epss": 1}}, 13, ("mean 'eps'?",)),
            (CLASSIFIER, {"method": {"method": "at", "norm": "linf", "eps": 0.1, "eps_255": 8}}, 14, ("either",)),
            (CLASSIFIER, {"method": {"method": "at", "norm": "linf", "eps_255": "8"}}, 13, ("is no number",)),
            (
                CLASSIFIER,
                {"method": {"method": "macer", "noise": 0.25}, "label_smoothing": 0.1},
                15,
                ("label_smoothing is 0.1, but method 'macer'",),
            ),
            (CLASSIFIER, {"classifier": "digit-cnn"}, 0, ("unknown classifier 'digit-cnn'", "mean 'digits-cnn'?")),
            (
                CLASSIFIER,
                {"classifier": "resnet20"},
                0,
                ("classifier: 'resnet20' takes images of shape (3, 32, 32)",),
            ),
            (DENOISER, {"schedule": "linear"}, 0, ("unknown schedule 'linear'", "mean 'linear-1000'?")),
            (DENOISER, {"focus_t": 1001}, 0, ("focus_t: 1001 is beyond the 1000 steps of 'linear-1000'",)),
            (DENOISER, {"unet": {**DENOISER["unet"], "chanels": 3}}, 0, ("unet: ", "chanels")),
            (
                DENOISER,
                {"unet": {**DENOISER["unet"], "up_block_types": ["UpBlock2D"]}},
                0,
                ("unet: ", "up_block_types"),
            ),
            (DENOISER, {"unet": {**DENOISER["unet"], "sample_size": 16}}, 0, ("unet: ", "shape (1, 8, 8)")),
            (DENOISER, {"unet": {**DENOISER["unet"], "out_channels": 2}}, 0, ("unet: ", "shape (1, 8, 8)")),
        ],
    )
    def test_a_wrong_config_ends_with_status_2_and_its_place(
        self, tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], line: int, says: tuple[str, ...]
    ) -> None:
        result = _train(tmp_path, config, **changes)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        place = f"{tmp_path / 'config.yaml'}:{line}: " if line else f"{tmp_path / 'config.yaml'}: "
        assert result.stderr.startswith(f"error: {place}"), result.stderr
        for text in says:
            assert text in result.stderr
        assert not list((tmp_path / "out").glob("*"))

    def test_missing_broken_and_empty_configs(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        for text, says in (
            (None, f"{path}: the training config cannot be read (No such file or directory)"),
            ("train: [", f"{path}:1: not valid YAML"),
            (
                "",
                f"{path}:1: a training config is a mapping with the keys train, out, dataset, ...; this one is empty",
            ),
            ("train: classifier\ntrain: denoiser", f"{path}:2: train: this key is given twice (first in line 1)"),
            ("train: classifier", f"{path}:1: field "),
        ):
            if text is not None:
                path.write_text(text)
            result = CliRunner().invoke(app, ["train", str(path)])
            assert result.exit_code == 2
            assert result.stderr.startswith(f"error: {says}"), result.stderr

    def test_a_folder_that_cannot_be_made_is_named_before_training(self, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("")
        result = _train(tmp_path, CLASSIFIER, out=str(tmp_path / "taken"), steps=10**7)
        assert result.exit_code == 2
        assert f"out: the folder of weights '{tmp_path / 'taken'}' is a file, and a folder is needed" in result.stderr

    def test_numbers_may_be_written_as_in_a_sweep_file(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump({**CLASSIFIER, "out": "o"}).replace("lr: 0.003", "lr: 3e-3"))
        assert load_config(path).lr == 0.003


class TestShipped:
    @pytest.mark.parametrize("name", [*ZOO, "digits-ddpm", "digits-cond-ddpm", *SMALL, *OTHERS])
    def test_cards_match_the_weights_and_the_configs_that_ship(self, name: str) -> None:
        card = yaml.safe_load((ASSETS / name / "card.yaml").read_text())
        files = {path.name: _sha256(path) for path in (ASSETS / name).iterdir() if path.name != "card.yaml"}
        seen = card.get("training_images", {})
        assert files.pop(seen.get("file"), None) == seen.get("sha256")
        assert card["sha256"] == files
        config = load_config(CONFIGS / f"{name}.yaml")
        assert card["config"] == config.identity()
        assert card["command"] == f"puregrid train workflows/configs/{name}.yaml"
        assert (REPOSITORY / config.out).resolve() == ASSETS / name
        assert card["data"] == DIGESTS

    @pytest.mark.parametrize("name", ZOO)
    def test_a_shipped_classifier_has_the_figures_of_its_card(self, digits_test: ImageSet, name: str) -> None:
        card = yaml.safe_load((ASSETS / name / "card.yaml").read_text())
        config = ClassifierConfig(classifier=name).resolved(Path("/"))
        assert config.sha256 == card["sha256"]["model.safetensors"]
        net = config.build()
        measured = card["measured"]
        assert measured["test_accuracy"] == pytest.approx(accuracy(net, digits_test), abs=0.002)
        assert measured["test_accuracy"] > 0.95
        if "under_noise" in measured:
            found = measured["under_noise"]
            again = noisy_accuracy(net, digits_test, found["sigma"], noise=found["noise_version"])
            assert found["accuracy"] == pytest.approx(again, abs=0.004)
        assert ("under_attack" in measured) == (name in ROBUST)
        assert card["parameters"] == sum(p.numel() for p in net.parameters())

    @pytest.mark.parametrize(
        "names", [pytest.param(ROBUST[:1], marks=pytest.mark.slow), pytest.param(ROBUST, marks=pytest.mark.nightly)]
    )
    def test_the_shipped_robust_classifiers_have_the_figures_of_their_cards(
        self, digits_test: ImageSet, names: list[str]
    ) -> None:
        plain: dict[PGDConfig, float] = {}
        for name in names:
            found = yaml.safe_load((ASSETS / name / "card.yaml").read_text())["measured"]["under_attack"]
            attack = PGDConfig(norm=found["norm"], eps=found["eps"])
            net, undefended = (
                ClassifierConfig(classifier=n).resolved(Path("/")).build() for n in (name, "digits-cnn")
            )
            assert found["accuracy"] == pytest.approx(pgd_accuracy(net, digits_test, attack), abs=0.004), name
            if attack not in plain:
                plain[attack] = pgd_accuracy(undefended, digits_test, attack)
            assert found["accuracy"] > plain[attack] + 0.3, name

    @pytest.mark.slow
    def test_the_shipped_denoiser_has_the_error_of_its_card(self, digits_test: ImageSet) -> None:
        card = yaml.safe_load((ASSETS / "digits-ddpm" / "card.yaml").read_text())
        denoiser = (
            DiffusersConfig(schedule="linear-1000", path=str(ASSETS / "digits-ddpm")).resolved(Path("/")).build()
        )
        config = load_config(CONFIGS / "digits-ddpm.yaml")
        assert isinstance(config, DenoiserTraining)
        measured = eps_mse(config, denoiser.net, digits_test)
        assert measured == pytest.approx(card["measured"]["test_eps_mse"], abs=1e-4)
        assert card["parameters"] == sum(p.numel() for p in denoiser.parameters())

    @every("name", OTHERS)
    def test_a_network_of_attacks_has_the_loss_of_its_card(self, digits_test: ImageSet, name: str) -> None:
        config, denoiser, card = _shipped(name)
        net = denoiser.build()
        measured = DenoiserObjective(config, digits_test).measure(net.net, digits_test)
        assert measured["test_loss"] == pytest.approx(card["measured"]["test_loss"], rel=1e-3)
        assert card["parameters"] == sum(p.numel() for p in net.parameters()) < 100_000

    @every("name", SMALL)
    def test_a_small_denoiser_has_the_error_of_its_card_and_purifies(self, digits_test: ImageSet, name: str) -> None:
        config, denoiser, card = _shipped(name)
        net = denoiser.build()
        assert denoiser.prediction is not None
        assert eps_mse(config, net.net, digits_test, prediction=denoiser.prediction) == pytest.approx(
            card["measured"]["test_eps_mse"], abs=1e-4
        )
        assert card["parameters"] == sum(p.numel() for p in net.parameters()) < 100_000
        weights = load_file(ASSETS / name / "diffusion_pytorch_model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float16}

        fields = {**SMALL[name], "denoiser": denoiser}
        purifier = PURIFIERS.get(fields["purifier"]).from_entry(fields)
        x, y = torch.from_numpy(digits_test.images[:200]), torch.from_numpy(digits_test.labels[:200])
        noised = x + 0.15 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        classify = ClassifierConfig(classifier="digits-cnn").resolved(Path("/")).build()
        with torch.no_grad():
            omega = Omega.of(purifier.id, 0, "judge", range(200))
            clean, again = (purifier.build()(images, omega) for images in (x, noised))
            right = float((classify(clean).argmax(1) == y).float().mean())
        assert right > 0.95
        # What it is given is 0.15 from the image, and its own noise comes on top of that.
        assert float((clean - x).square().mean().sqrt()) < 0.09
        assert float((again - x).square().mean().sqrt()) < 0.14
