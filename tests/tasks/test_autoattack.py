"""AutoAttack: image by image what the package finds, its flags and verdicts as data, and no trace of it elsewhere."""

from __future__ import annotations

import logging
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from defense import Purifier
from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks.autoattack import AutoAttackConfig, _Scores, reference_seed
from tasks.attacks.base import AttackResult
from tasks.attacks.losses import margin
from tasks.attacks.region import Norm, Region, perturbation_norms
from tasks.attacks.target import Target
from tasks.datasets import ImageSet


def omega(count: int, seed: int = 0) -> Omega:
    return Omega.of("spec", seed, "attack", range(count))


class Noisy(Purifier):
    """Adds noise of its key; the keys are kept."""

    def __init__(self, size: float = 0.05) -> None:
        super().__init__()
        self.size = size
        self.keys: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        self.keys.append((omega.image_ids, omega.draws))
        return x + self.size * omega.normal("noise", 0, x)


class Doubled(Purifier):
    """Deterministic, with the iterative look of guidance: it calls autograd."""

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(at.square().sum(), at)
        return x + 0 * gradient


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    """Ten classes of 4 x 4 images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 10)).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def easy(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Images whose clean answer is right by the widest margins of many, and one whose answer is wrong."""
    x = torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = linear(x).argmax(1)
    chosen = margin(linear(x), y).argsort()[:8]
    y = y[chosen]
    y[3] = (y[3] + 1) % 10
    return x[chosen], y


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's attacks with fewer steps, wherever it is called."""
    for attack, fewer in (
        (SquareAttack, {"n_queries": 50}),
        (FABAttack_PT, {"n_iter": 10}),
        (APGDAttack, {"n_iter": 30, "n_iter_orig": 30}),
        (APGDAttack_targeted, {"n_iter": 30, "n_iter_orig": 30}),
    ):

        def run(self: Any, x: Tensor, y: Tensor, whole: Any = attack.perturb, fewer: Any = fewer) -> Any:
            vars(self).update(fewer)
            return whole(self, x, y)

        monkeypatch.setattr(attack, "perturb", run)


def custom(*attacks: str, **more: Any) -> AutoAttackConfig:
    return AutoAttackConfig.model_validate(
        {"norm": "linf", "eps": 0.05, "version": "custom", "attacks": attacks, **more}
    )


def directly(network: nn.Module, x: Tensor, y: Tensor, attack: AutoAttackConfig, seed: int) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng():
        adversary = AutoAttack(
            network,
            norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[attack.norm],
            eps=attack.eps,
            version=attack.version,
            attacks=list(attack.attacks) if attack.attacks else None,
            seed=seed,
        )
        images, answers = adversary.run_standard_evaluation(x, y, batch_size=len(x))
    return images, answers


def same_as_directly(network: nn.Module, x: Tensor, y: Tensor, attack: AutoAttackConfig) -> AttackResult:
    count = len(x)
    target = Target(network, y, omega(count))
    found = attack.run(target, x, omega(count))
    images, answers = directly(network, x, y, attack, reference_seed(omega(count)))
    assert torch.equal(found.images, Region(x, attack.norm, attack.eps).project(images))
    np.testing.assert_allclose(found.images, images, rtol=0, atol=1e-6)
    assert torch.equal(found.columns["broken"], answers != y)
    np.testing.assert_allclose(found.loss, margin(network(found.images), y), rtol=0, atol=1e-5)
    assert float(perturbation_norms(found.images, x)[attack.norm].max()) <= attack.eps
    assert found.notes["reference_robust"] == int((answers == y).sum())
    assert found.notes["reference_images"] == count
    assert found.notes["reference_clean"] == int((network(x).argmax(1) == y).sum())
    assert target.evaluations <= count * attack.evaluations
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), pytest.param("l1", 1.5, marks=pytest.mark.nightly)])
def test_standard_on_the_shipped_network_is_the_package_image_by_image(
    network: nn.Module, digits_test: ImageSet, norm: Norm, eps: float, short: None
) -> None:
    x, y = torch.from_numpy(digits_test.images[:16]), torch.from_numpy(digits_test.labels[:16])
    found = same_as_directly(network, x, y, AutoAttackConfig(norm=norm, eps=eps))
    left = [found.notes[f"reference_{stage}"] for stage in ("clean", "after_apgd-ce", "after_apgd-t", "robust")]
    assert left == sorted(left, key=int, reverse=True) and 0 < int(left[-1]) < int(left[0])


@pytest.mark.slow
def test_custom_is_the_package_image_by_image(network: nn.Module, digits_test: ImageSet, short: None) -> None:
    x, y = torch.from_numpy(digits_test.images[:16]), torch.from_numpy(digits_test.labels[:16])
    same_as_directly(network, x, y, custom("apgd-ce", norm="l2", eps=0.5))


def test_nothing_global_is_left_changed(
    linear: nn.Module, easy: tuple[Tensor, Tensor], capfd: pytest.CaptureFixture[str], caplog: Any, short: None
) -> None:
    x, y = easy
    logger = logging.getLogger("auto-attack")
    logged = logger.level, logger.propagate, list(logger.handlers)
    torch.manual_seed(5)
    np.random.seed(6)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), sys.gettrace()
    clean = x.clone()
    caplog.set_level(logging.DEBUG)
    target = Target(linear, y, omega(8).within("eot"), Noisy(), draws=2, attacked="mean-logits")
    found = custom("apgd-ce", gradient="exact", eot=2).run(target, x, omega(8))
    assert found.notes["warning_randomized"] == 1
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    assert sys.gettrace() is before[3]
    assert torch.equal(x, clean)
    assert (logger.level, logger.propagate, list(logger.handlers)) == logged
    captured = capfd.readouterr()
    assert captured.out == captured.err == "" and not caplog.records


def test_the_global_generators_have_no_part(linear: nn.Module, easy: tuple[Tensor, Tensor], short: None) -> None:
    x, y = easy
    attack = custom("apgd-ce", gradient="exact", eps=0.3)

    def found(seed: int) -> Tensor:
        target = Target(linear, y, omega(8, seed).within("eot"), Noisy(), attacked="mean-logits")
        return attack.run(target, x, omega(8, seed)).images

    torch.manual_seed(1)
    one = found(0)
    torch.manual_seed(2)
    assert torch.equal(found(0), one)
    assert not torch.equal(found(1), one)
    assert reference_seed(omega(8)) != reference_seed(omega(8, 1)) != reference_seed(omega(7, 1))


@pytest.mark.parametrize(
    ("purifier", "version", "warnings"),
    [
        (Noisy(), "rand", set()),
        (Noisy(), "custom", {"warning_randomized"}),
        (Doubled(), "custom", {"warning_dynamic"}),
    ],
)
def test_the_package_s_flags_are_notes(
    linear: nn.Module, easy: tuple[Tensor, Tensor], purifier: Purifier, version: str, warnings: set[str], short: None
) -> None:
    x, y = easy
    attack = (
        AutoAttackConfig(norm="linf", eps=0.05, version="rand", gradient="exact")
        if version == "rand"
        else custom("apgd-ce", gradient="exact")
    )
    target = Target(linear, y, omega(8).within("eot"), purifier, attacked="mean-logits")
    found = attack.run(target, x, omega(8))
    assert {name for name in found.notes if name.startswith("warning")} == warnings
    assert found.notes["reference_images"] == 8
    assert found.columns["broken"].dtype == torch.bool
    assert bool(found.columns["broken"][3])  # its clean answer was wrong, which counts as broken


def test_a_softmax_output_is_a_note(easy: tuple[Tensor, Tensor], linear: nn.Module, short: None) -> None:
    x, y = easy
    found = custom("apgd-ce").run(Target(nn.Sequential(linear, nn.Softmax(1)), y, omega(8)), x, omega(8))
    assert found.notes["warning_softmax_output"] == 1


class Rounding(nn.Module):
    """Has no gradient, but does not hold out against scores."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((20 * x).round() / 20)
        return logits


@pytest.mark.slow
def test_masked_gradients_are_notes(linear: nn.Module, easy: tuple[Tensor, Tensor]) -> None:
    x, y = easy
    attack = custom("apgd-dlr", "square", eps=0.5)
    found = attack.run(Target(Rounding(linear), y, omega(8)), x, omega(8))
    assert found.notes["warning_zero_gradient"] == 5  # once a restart
    assert found.notes["warning_square_gain"] == 1
    assert int(found.notes["reference_after_square"]) < int(found.notes["reference_after_apgd-dlr"])


def test_too_few_classes_are_refused(easy: tuple[Tensor, Tensor], linear: nn.Module) -> None:
    x = easy[0]
    target = Target(lambda x: linear(x)[:, :9], torch.zeros(8).long(), omega(8))
    with pytest.raises(InvalidInput, match="9 classes, but apgd-t and fab-t"):
        AutoAttackConfig(norm="linf", eps=0.1).run(target, x, omega(8))
    assert logging.getLogger("auto-attack").propagate


@pytest.mark.slow
def test_each_call_has_fresh_draws_keyed_by_position(
    linear: nn.Module, easy: tuple[Tensor, Tensor], short: None
) -> None:
    x, y = easy
    purifier = Noisy(0.2)
    ids = (50, 3, 9, 21, 4, 8, 70, 6)
    target = Target(linear, y, Omega.of("spec", 0, "eot", ids), purifier, draws=2, attacked="mean-logits")
    custom("apgd-ce", gradient="exact", eot=2, eps=0.02).run(target, x, omega(8))
    assert len({draws for _, draws in purifier.keys}) == len(purifier.keys) == target.calls
    for call, (images, draws) in enumerate(purifier.keys):
        count = len(images) // 2
        assert images == tuple(np.repeat(ids[:count], 2))
        assert draws == (2 * call, 2 * call + 1) * count
    sizes = {len(images) // 2 for images, _ in purifier.keys}
    assert len(sizes) > 1  # the package did drop images
    assert target.evaluations == sum(len(images) for images, _ in purifier.keys)


def test_a_call_answers_with_the_mean_over_its_draws(linear: nn.Module, easy: tuple[Tensor, Tensor]) -> None:
    x, y = easy

    def first_answer(attacked: Any) -> Tensor:
        target = Target(linear, y, omega(8).within("eot"), Noisy(0.2), draws=3, attacked=attacked)
        answer: Tensor = _Scores(target)(x)
        return answer

    logits = torch.stack(
        [
            linear(x + 0.2 * Omega.of("spec", 0, "attack/eot", range(8), draw).normal("noise", 0, x))
            for draw in range(3)
        ],
        1,
    )
    answers = {name: first_answer(name) for name in ("mean-logits", "mean-probability")}
    np.testing.assert_allclose(answers["mean-logits"], logits.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answers["mean-probability"].softmax(1), logits.softmax(2).mean(1), rtol=1e-5)


SLOW = [pytest.param(name, marks=pytest.mark.nightly) for name in ("apgd-t", "fab-t", "square")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apgd-ce", "fab", *SLOW])
def test_no_image_costs_more_than_it_says(linear: nn.Module, name: str) -> None:
    # Nothing breaks a budget of 1e-6.
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    attack = custom(name, eps=1e-6)
    target = Target(linear, linear(x).argmax(1), omega(2))
    found = attack.run(target, x, omega(2))
    assert not found.columns["broken"].any()
    assert 0.95 * attack.evaluations <= target.evaluations / 2 <= attack.evaluations


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "apgd", "targeted"),
    [("standard", 5 * 103, 5 * 104), pytest.param("plus", 505, 9 * 102, marks=pytest.mark.nightly)],
)
def test_in_the_l1_ball_standard_begins_with_larger_budgets_and_has_5_targets(
    linear: nn.Module, version: Any, apgd: int, targeted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SquareAttack, "perturb", lambda self, x, y: x.clone())
    monkeypatch.setattr(FABAttack_PT, "perturb", lambda self, x, y: x.clone())
    x = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(36, 10)).requires_grad_(False)
    y = network(x).argmax(1)
    attack = AutoAttackConfig(norm="l1", eps=1e-6, version=version)
    target = Target(network, y, omega(2))
    assert not attack.run(target, x, omega(2)).columns["broken"].any()
    costs = {"apgd-ce": 1 + apgd, "apgd-t": 1 + targeted, "apgd-dlr": 1 + apgd}
    expected = 9 + sum(costs.get(name, 0) + 1 for name in attack.names)
    assert target.evaluations / 2 == expected
    others = {"fab": 1 + 5 * 202, "square": 5003, "fab-t": 1 + 9 * 203}
    assert attack.evaluations == expected + sum(others.get(name, 0) for name in attack.names)


@pytest.mark.parametrize(
    ("cut", "wanted"),
    [
        ({"version": "rand", "steps": 5, "calls": 2}, 4 + (1 + 6 * 2) + 1 + (1 + 6 * 2) + 1),
        ({"attacks": ("apgd-ce", "apgd-t"), "steps": 5, "targets": 2}, 9 + (1 + 6) + 1 + (1 + 2 * 7) + 1),
        ({"attacks": ("square",), "queries": 7}, 9 + 9 + 1 + 1),
    ],
)
def test_a_shortened_attack_is_the_package_with_those_numbers(
    linear: nn.Module, cut: dict[str, Any], wanted: int
) -> None:
    # Nothing breaks a budget of 1e-6, so that every part runs to its end.
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    attack = AutoAttackConfig.model_validate({"norm": "linf", "eps": 1e-6, **cut})
    target = Target(linear, linear(x).argmax(1), omega(2))
    found = attack.run(target, x, omega(2))
    assert attack.shortened and not found.columns["broken"].any()
    assert [name for name in found.notes if name.startswith("reference_after")] == [
        f"reference_after_{name}" for name in attack.names
    ]
    assert attack.evaluations == wanted and 0.9 * wanted <= target.evaluations / 2 <= wanted


def test_the_package_s_own_numbers_stated_are_the_package(
    linear: nn.Module, easy: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = easy
    made: list[AutoAttack] = []

    def run(self: AutoAttack, x: Tensor, y: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        made.append(self)
        return x, y

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", run)

    def numbers(**cut: Any) -> list[dict[str, Any]]:
        AutoAttackConfig.model_validate({"norm": "linf", "eps": 0.1, **cut}).run(
            Target(linear, y, omega(8)), x, omega(8)
        )
        parts = (made[-1].apgd, made[-1].apgd_targeted, made[-1].fab, made[-1].square)
        return [{name: n for name, n in vars(part).items() if isinstance(n, int | float | str)} for part in parts]

    assert numbers(steps=100, targets=9, queries=5000, attacks=("apgd-ce", "apgd-t", "fab-t", "square")) == numbers()
    assert numbers(version="rand", steps=100, calls=20) == numbers(version="rand")
    apgd, targeted, fab, square = numbers(steps=10, targets=3, queries=50)
    assert [apgd[name] for name in ("n_iter", "n_iter_orig", "n_iter_2", "n_iter_min", "size_decr")] == [
        *(10, 10, 2, 1, 1),
    ]
    assert (targeted["n_iter"], targeted["n_target_classes"], fab["n_target_classes"]) == (10, 3, 3)
    assert (fab["n_iter"], square["n_queries"], numbers(version="rand", calls=4)[0]["eot_iter"]) == (10, 50, 4)


def test_specs() -> None:
    attack = AutoAttackConfig(norm="linf", eps=8 / 255)
    assert (attack.label(), attack.names) == ("autoattack-standard linf", ("apgd-ce", "apgd-t", "fab-t", "square"))
    adaptive = AutoAttackConfig(norm="linf", eps=0.1, version="rand", gradient="exact", eot=4)
    assert (adaptive.attacked, adaptive.static) == ("mean-logits", False)
    assert adaptive.label() == "autoattack-rand linf exact eot 4"
    for spec in (attack, adaptive, custom("fab", "square")):
        assert AutoAttackConfig.model_validate(spec.model_dump()) == spec
    assert custom("fab", "square").label() == "autoattack-fab+square linf"
    cut = AutoAttackConfig(norm="linf", eps=0.1, version="rand", attacks=("apgd-ce",), steps=10, calls=4)
    assert cut.label() == "autoattack-rand-apgd-ce linf steps 10 calls 4"
    # Ids from before there were these numbers stay.
    assert not {"steps", "calls", "targets", "queries"} & set(attack.identity()) and not attack.shortened
    assert AutoAttackConfig.model_validate(cut.model_dump()) == cut and cut.identity()["steps"] == 10
    assert AutoAttackConfig.model_validate({**custom("fab").model_dump(), "attacks": ["fab"]}) == custom("fab")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"version": "custom"}, "version: custom"),
        ({"attacks": ("fab",)}, "version: custom"),
        ({"attacks": ()}, "version: custom"),
        ({"attacks": ("square", "apgd-ce")}, "in this order"),
        ({"version": "rand", "queries": 10}, "`queries` is a number of square, which are not run"),
        ({"version": "rand", "targets": 2}, "`targets` is a number of apgd-t, fab-t"),
        ({"attacks": ("square",), "steps": 10}, "`steps` is a number of"),
        ({"targets": 10}, "targets"),
        ({"version": "custom", "attacks": ("fab", "fab")}, "twice"),
        ({"version": "custom", "attacks": ("apgd",)}, "no attack 'apgd'; did you mean 'apgd-"),
        ({"knows": "randomness"}, "repacks"),
        ({"gradient": "exact", "attacked": "mean-loss"}, "mean-loss"),
        ({"eot": 2}, "eot"),
    ],
)
def test_contradictions_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        AutoAttackConfig.model_validate({"norm": "linf", "eps": 0.1, **wrong})


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidInput):
        AutoAttackConfig.model_validate({"norm": "linf", "eps": 0.1, "version": "best"})
