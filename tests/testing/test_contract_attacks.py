"""Every built-in attack passes the published contract suite, and the suite catches who breaks it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from holding import demands, failed, hold, hold_alone
from loops import tiers
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

from defense.lpips import LpipsConfig
from defense.purifiers import Purifier
from defense.randomness import Omega
from defense.torchvision_cpu import allow_torchvision_import
from puregrid.testing import AttackContract, SmoothClassifier
from tasks.attacks import ATTACKS, AttackConfig, AttackResult, LadderConfig, Target
from tasks.attacks.losses import point_loss
from tasks.attacks.region import Region

LINF: dict[str, Any] = {"norm": "linf", "eps": 0.1}
L2: dict[str, Any] = {"norm": "l2", "eps": 0.5}
L1: dict[str, Any] = {"norm": "l1", "eps": 2.0}
KNOWING: dict[str, Any] = {"gradient": "exact", "eot": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "pgd linf": {"attack": "pgd", **LINF, "steps": 3},
    "pgd l2": {"attack": "pgd", **L2, "steps": 3},
    "pgd restarts": {"attack": "pgd", **LINF, "steps": 2, "restarts": 2, "loss": "dlr-targeted"},
    "pgd last": {"attack": "pgd", **LINF, "steps": 3, "keep": "last", "momentum": 0.9},
    **{
        f"pgd {gradient}": {"attack": "pgd", **LINF, "steps": 3, "gradient": gradient, "eot": 2}
        for gradient in ("exact", "bpda", "surrogate(1)")
    },
    "pgd vote": {"attack": "pgd", **LINF, "steps": 3, **KNOWING, "attacked": "vote"},
    "pgd fixed": {"attack": "pgd", **LINF, "steps": 3, "knows": "randomness"},
    "fgsm": {"attack": "fgsm", **LINF},
    "bpda-eot": {"attack": "bpda-eot", **LINF, "steps": 2, "eot": 2},
    "pgd-eot": {"attack": "pgd-eot", **LINF, "steps": 2, "eot": 2},
    **{
        f"apgd {norm}": {"attack": "apgd", **ball, "steps": 6}
        for norm, ball in (("linf", LINF), ("l2", L2), ("l1", L1))
    },
    "apgd exact": {"attack": "apgd", **LINF, "steps": 4, **KNOWING},
    "random-noise linf": {"attack": "random-noise", **LINF},
    "random-noise l2": {"attack": "random-noise", **L2},
    **{
        f"square {norm}": {"attack": "square", **ball, "queries": 20}
        for norm, ball in (("linf", LINF), ("l2", L2), ("l1", L1))
    },
    "square by scores": {"attack": "square", **LINF, "queries": 10, "knows": "purifier", "eot": 2},
    "square stopping": {"attack": "square", **LINF, "queries": 260, "stop_on_success": True},
    "spsa linf": {"attack": "spsa", **LINF, "steps": 3, "samples": 4},
    "spsa l2": {"attack": "spsa", **L2, "steps": 3, "samples": 4},
    "spsa by scores": {"attack": "spsa", **LINF, "steps": 2, "samples": 4, "knows": "purifier", "eot": 2},
    "cw-l2": {"attack": "cw-l2", **L2, "steps": 5, "binary_search_steps": 2},
    "stadv": {"attack": "stadv", "steps": 4},
    "low-frequency": {"attack": "low-frequency", "steps": 3, "kernels": [3]},
    "deviated-reconstruction": {"attack": "deviated-reconstruction", **LINF, "steps": 3, "eot": 2},
    "guidance-target": {"attack": "guidance-target", **LINF, "steps": 3, "eot": 2},
    "diffhammer": {"attack": "diffhammer", **LINF, "steps": 3, "eot": 3},
    "diffhammer grafted": {"attack": "diffhammer", **LINF, "steps": 3, "eot": 3, "graft": True},
    "autoattack": {"attack": "autoattack", **LINF, "version": "custom", "attacks": ["apgd-ce"]},
    "transfer": {
        "attack": "transfer",
        **LINF,
        "source": {"attack": "pgd", "steps": 3},
        "classifier": {"classifier": "digits-cnn"},
    },
    "ladder": {"attack": "ladder", **LINF, "rungs": ["blind", "exact"], "steps": 3, "eot": 2, "select": 4},
    "strongest": {"attack": "strongest", **LINF, "rungs": ["blind", "exact"], "steps": 3, "eot": 2, "select": 4},
    "pgd reselect": {"attack": "pgd", **LINF, "steps": 3, **KNOWING, "reselect": 4, "decay": "linear"},
    "pgd by cosine": {"attack": "pgd", **LINF, "steps": 9, **KNOWING, "reselect": 2, "eot_by": "cosine"},
    "apgd reselect": {"attack": "apgd", **LINF, "steps": 4, **KNOWING, "reselect": 4},
    "diffhammer fooled": {
        **{"attack": "diffhammer", **LINF, "steps": 3, "eot": 3, "graft": True},
        **{"restart_up_to": 0.9, "reselect": 5},
    },
    **{
        f"pgd band {norm}": {"attack": "pgd", **ball, "steps": 3, "band": 2.0}
        for norm, ball in (("linf", LINF), ("l2", L2))
    },
    "one-step-preview": {
        **{"attack": "one-step-preview", **LINF, "steps": 3, "previews": 2},
        "denoiser": {"format": "oracle", "schedule": "linear-1000"},
    },
    **{
        f"hop-skip-jump {norm}": {"attack": "hop-skip-jump", **ball, "queries": 60, "first": 10}
        for norm, ball in (("linf", LINF), ("l2", L2))
    },
    "hop-skip-jump of the defence": {
        **{"attack": "hop-skip-jump", **L2, "queries": 30, "first": 5},
        **{"knows": "purifier", "eot": 2},
    },
    "apgd band": {"attack": "apgd", **LINF, "steps": 4, "band": 2.0},
    "lagrangian-perceptual": {"attack": "lagrangian-perceptual", "steps": 3},
    "rays": {"attack": "rays", **LINF, "queries": 60},
    "rays of the defence": {"attack": "rays", **LINF, "queries": 20, "knows": "purifier", "eot": 2},
    "diffhammer reselect": {"attack": "diffhammer", **LINF, "steps": 2, "eot": 3, "reselect": 3},
    "diffhammer highest loss": {
        **{"attack": "diffhammer", **LINF, "steps": 3, "eot": 3},
        **{"keep": "highest-loss", "weighing": "fitted", "checkpoints": "package"},
    },
}

PERCEPTUAL = ("low-frequency", "lagrangian-perceptual")


@pytest.fixture(scope="session")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> LpipsConfig:
    """LPIPS with seeded random weights: the distance is another one, the mechanism the same."""
    allow_torchvision_import()
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = alexnet(weights=None)
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    torch.save({key: value for key, value in net.state_dict().items() if key.startswith("features.")}, path)
    return LpipsConfig(weights=path.name).resolved(path.parent)


class BuiltIn(AttackContract):
    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        name = fields["attack"]
        self.by_position = name == "autoattack"  # type: ignore[misc]
        some_stop = name in ("autoattack", "cw-l2", "diffhammer") and fields.get("keep") != "highest-loss"
        self.stops_early = some_stop or "eot_by" in fields  # type: ignore[misc]
        self.ascends = name not in ("random-noise", "one-step-preview", "rays", "hop-skip-jump")  # type: ignore[misc]

    def config(self) -> AttackConfig:
        return ATTACKS.get(self.fields["attack"]).model_validate(self.fields).resolved(Path())

    def images(self) -> Tensor:
        if self.fields["attack"] not in PERCEPTUAL:
            return super().images()
        # LPIPS takes three channels and no images so small.
        small = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
        return nn.functional.interpolate(small, 32, mode="bilinear").clamp(0, 1)

    def sources(self) -> Sequence[AttackConfig]:
        config = self.config()
        return (
            config.rungs if isinstance(config, LadderConfig) else (config.source,) if "source" in self.fields else ()
        )

    def target(
        self, config: AttackConfig, classifier: nn.Module, labels: Tensor, omega: Omega, purifier: Purifier | None
    ) -> Target:
        target = super().target(config, classifier, labels, omega, purifier)
        # As the attack stage does: rungs are compared on draws of their own.
        return replace(target, draws=config.select, fixed=True) if isinstance(config, LadderConfig) else target


FIRST = {fields["attack"]: name for name, fields in reversed(CONFIGS.items())}
"""By attack the first of its configs; the others are of its variants, which have tests of their own."""


@pytest.mark.parametrize(
    "name", tiers(CONFIGS, fast=("pgd linf", "pgd l2", "fgsm", "random-noise linf"), daily=FIRST.values())
)
def test_built_in_attacks_keep_the_contract(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = dict(CONFIGS[name])
    if name in PERCEPTUAL:
        fields["lpips"] = request.getfixturevalue("lpips")
    if name == "autoattack":
        # Of the package's five restarts of 100 steps, a tenth: each is asked for twelve times here.
        whole = APGDAttack.perturb

        def short(self: Any, *given: Any) -> Any:
            vars(self).update(n_iter=10, n_iter_orig=10)
            return whole(self, *given)

        monkeypatch.setattr(APGDAttack, "perturb", short)
    hold(BuiltIn(fields))


DRAWING = [name for name in CONFIGS if name.split()[0] in ("apgd", "random-noise", "square", "spsa", "autoattack")]


@pytest.mark.parametrize("name", ["pgd linf", "pgd l2", "pgd last", *DRAWING])
def test_another_seed_gives_other_images(name: str) -> None:
    suite = BuiltIn(CONFIGS[name])
    config = suite.config()
    found = []
    for seed in (0, 1):
        target, x, omega = suite._target(config)
        own = replace(target, omega=replace(target.omega, seed=seed))
        found.append(config.run(own, x, replace(omega, seed=seed)).images)
    assert not torch.equal(*found)


def test_no_built_in_attack_is_left_out() -> None:
    built_in = {name for name in ATTACKS.names() if ":" not in name}
    assert {fields["attack"] for fields in CONFIGS.values()} >= built_in


MADE = itertools.count()


class StepConfig(AttackConfig):
    """One step of steepest ascent, or something that breaks the contract in one way."""

    attack: Literal["step"] = "step"
    how: str = "right"

    def model_post_init(self, context: Any) -> None:
        object.__setattr__(self, "number", next(MADE))

    def label(self) -> str:
        return " step" if self.how == "label" else super().label()

    def identity(self) -> dict[str, Any]:
        return super().identity() | ({"how": "right"} if self.how == "identity" else {})

    def canonical(self) -> str:
        return super().canonical() + self.how

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        if self.how == "pickle":
            self.__dict__["eps"] = 0.5

    @property
    def evaluations(self) -> int:
        return 3 if self.how == "evaluations" else 2

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        if self.how == "bare" and target.purifier is None:
            raise ValueError("there is no purifier")
        if self.how == "past the purifier":
            target = replace(target, purifier=None)
        if self.how == "past the target":
            target.classifier(x)
        if self.how == "training":
            assert isinstance(target.classifier, nn.Module)
            target.classifier.train()
        if self.how == "global":
            torch.rand(1)
        region, loss = Region(x, self.norm, self.eps), point_loss("ce")
        gradient = target.differentiate(x, loss).gradient
        assert gradient is not None
        step: dict[str, Callable[[], Tensor]] = {
            "ball": lambda: (x + 1.0001 * self.eps * gradient.sign()).clamp(0, 1),
            "rounding": lambda: (x + self.eps * gradient.sign()).clamp(0, 1),
            "range": lambda: x + 0.99 * self.eps * gradient.sign(),
            "descent": lambda: region.ascend(x, -gradient, self.eps),
            "batch": lambda: region.ascend(x, gradient, self.eps * float(x.mean())),
            "labels": lambda: region.ascend(x, gradient, self.eps * float(0.9 ** target.labels.float().mean())),
            "double": lambda: region.ascend(x, gradient, self.eps).double(),
            "graph": lambda: region.ascend(x, gradient, self.eps).requires_grad_(),
            "anew": lambda: region.ascend(x, gradient, self.eps * 0.99 ** (self.number % 50)),  # type: ignore[attr-defined]
        }
        images = step.get(self.how, lambda: region.ascend(x, gradient, self.eps))()
        found = target.evaluate(images.float(), loss).loss
        if self.how == "inplace":
            x.mul_(0.5)
        return AttackResult(images, found[:1] if self.how == "one loss" else found)


class BlackBoxConfig(StepConfig):
    black_box: ClassVar[bool] = True


class Broken(AttackContract):
    def __init__(self, how: str) -> None:
        self.how = how

    def config(self) -> AttackConfig:
        knowing = KNOWING if self.how in ("bare", "past the purifier") else {}
        made = BlackBoxConfig if self.how == "black box" else StepConfig
        return made(**LINF, **knowing, how=self.how)


def test_an_attack_that_does_nothing_wrong_passes() -> None:
    assert failed(Broken("right")) == {}


BROKEN = [
    ("ball", "images_lie_inside_ball_and_range_in_float64", "a perturbation has linf norm 0.1000"),
    ("rounding", "images_lie_inside_ball_and_range_in_float64", "a perturbation has linf norm 0.1000"),
    ("range", "images_lie_inside_ball_and_range_in_float64", "outside [0, 1]"),
    ("double", "result_has_an_image_and_a_loss_for_every_image", "these are torch.float64"),
    ("graph", "result_has_an_image_and_a_loss_for_every_image", "still in a graph"),
    ("one loss", "result_has_an_image_and_a_loss_for_every_image", "loss has shape (1,) for 4 images"),
    ("inplace", "result_has_an_image_and_a_loss_for_every_image", "changed the clean images in place"),
    ("anew", "same_omega_gives_same_bits", "a config that was made anew gave other images"),
    ("batch", "image_is_attacked_alike_in_any_batch", "alone an image ends"),
    ("labels", "image_is_attacked_alike_in_any_batch", "an image ends"),
    ("global", "global_random_states_have_no_influence_and_stay", "drew from a global random generator"),
    ("training", "networks_are_left_as_they_were", "training mode of the whole of SmoothClassifier"),
    ("black box", "black_box_takes_no_gradient", "config.black_box is true"),
    ("evaluations", "evaluations_are_those_that_are_counted", "but image 3 was evaluated 2 times"),
    ("past the target", "classifier_is_asked_through_the_target_alone", "saw 12 images, the target counted 8"),
    ("past the purifier", "attack_that_knows_the_purifier_asks_it", "the purifier was never asked"),
    ("bare", "runs_on_the_bare_classifier", "there is no purifier"),
    ("descent", "loss_is_not_lower_than_at_the_clean_images", "the mean loss fell from"),
    ("identity", "spec_survives_reading_its_own_identity", "was read back as"),
    ("pickle", "config_can_be_pickled", "on its way through pickle"),
    ("label", "label_says_something", "is no label for a table"),
]


@pytest.mark.parametrize(("how", "demand", "message"), BROKEN)
def test_a_breach_fails_its_demand_alone(how: str, demand: str, message: str) -> None:
    hold_alone(Broken(how), demand, message)


def test_every_demand_can_fail() -> None:
    assert {f"test_{demand}" for _, demand, _ in BROKEN} == set(demands(AttackContract))


def test_the_smooth_classifier_distinguishes_its_images() -> None:
    """Else the demands on labels and losses would say nothing."""
    labels = Broken("right").labels()
    assert len(set(labels.tolist())) >= 2
    x = Broken("right").images()
    assert torch.equal(SmoothClassifier(1, 4)(x)[2:], SmoothClassifier(1, 4)(x[2:]))
