"""Defences that are broken on purpose, attacked for real: the auditor flags each, and nothing on sound classifiers.

Each is a mistake that somebody has made: a rounding whose derivative is zero, a random defence judged once, test
images behind the purifier, a reverse chain that is one step off the depth that it states, logits so large that
cross-entropy has no gradient. They are third-party parts, named as ``module:attribute`` in a sweep file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers_small import ASSETS, compute, small_sweep
from torch import Tensor

from defense.classifiers import Architecture
from defense.classifiers.digits_cnn import DigitsCNN
from defense.models import Models
from defense.purifiers import Purifier, PurifierConfig
from defense.purifiers.diffpure import DiffPureConfig
from defense.randomness import Omega
from defense.schedules import NoiseLevel, get_schedule
from tasks.datasets import DigitsConfig
from workflows.audit import Finding, findings
from workflows.results.reader import Results
from workflows.store import Store

pytestmark = pytest.mark.slow

HEAD = """
sweep: zoo
datasets: [{{dataset: digits, images: {{first: {images}}}}}]
classifiers: [{classifier}]
denoisers: {{ddpm: {{path: {assets}/digits-ddpm, schedule: linear-1000}}}}
defences: [{defences}]
attacks: [{attacks}]
chunk: 400
compute: {{batch: 400}}
"""
PGD = "{attack: pgd, norm: linf, eps: 0.15, steps: 20, loss: margin}"
EXACT = "{attack: pgd, norm: linf, eps: 0.15, steps: 20, loss: margin, gradient: exact}"


def audited(
    folder: Path, *, defences: str, attacks: str, classifier: str = "digits-cnn", images: int = 120
) -> Results:
    text = HEAD.format(
        images=images, classifier=classifier, defences=defences, attacks=attacks, assets=ASSETS.as_posix()
    )
    sweep = small_sweep(folder, text)
    compute(sweep, str(folder / "store"))
    return Results(Store(str(folder / "store")), sweep)


def by_rule(results: Results) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings(results):
        found.setdefault(finding.rule, []).append(finding)
    return found


def avg(results: Results) -> dict[tuple[str, str, float], float]:
    """Avg by (purifier, attack, eps)."""
    frame = results.robustness()
    return {(r.purifier, r.attack, r.eps): r.avg for r in frame.itertuples()}


# -------------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("classifier", ["digits-cnn", pytest.param("digits-at", marks=pytest.mark.nightly)])
def test_a_sound_classifier_has_no_error_and_no_warning(tmp_path: Path, classifier: str) -> None:
    attacks = """none,
      {attack: pgd, norm: linf, eps: [0.05, 0.15, 1.0], steps: 10, loss: [margin, ce]},
      {attack: apgd, norm: linf, eps: [0.05, 0.15], steps: 20}, {attack: fgsm, norm: linf, eps: [0.05, 0.15]},
      {attack: square, norm: linf, eps: 0.15, queries: 100}, {attack: pgd, norm: l2, eps: [0.3, 0.6], steps: 10}"""
    results = audited(tmp_path, defences="none", attacks=attacks, classifier=classifier, images=360)
    worse = [f"{finding.rule}: {finding.text}" for finding in findings(results) if finding.severity != "note"]
    assert worse == []
    # There was something to find: the attacks work, and not all alike.
    accuracy = avg(results)
    assert accuracy["none", "clean", 0.0] > 0.9
    assert accuracy["none", "pgd-10 linf margin", 0.15] < accuracy["none", "pgd-10 linf margin", 0.05] - 0.1
    assert accuracy["none", "pgd-10 linf margin", 1.0] <= 0.1


# --------------------------------------------------------------------------------- (a) a derivative that is zero


class _Rounding(Purifier):
    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return (x * 7).round() / 7


class Rounding(PurifierConfig):
    """Three bits, and the derivative that rounding really has."""

    purifier: Literal["test_broken_zoo:Rounding"] = "test_broken_zoo:Rounding"

    @property
    def stochastic(self) -> bool:
        return False

    def label(self) -> str:
        return "rounding"

    def build(self, models: Models | None = None) -> Purifier:
        return _Rounding().eval()


def test_a_gradient_that_rounding_has_shattered(tmp_path: Path) -> None:
    square = "{attack: square, norm: linf, eps: 0.15, queries: 300, knows: purifier}"
    results = audited(
        tmp_path, defences='none, {purifier: "test_broken_zoo:Rounding"}', attacks=f"none, {PGD}, {EXACT}, {square}"
    )
    accuracy = avg(results)
    assert accuracy["test_broken_zoo:Rounding", "pgd-20 linf margin exact", 0.15] > 0.6  # and it is worth nothing:
    found = by_rule(results)
    (static,) = found["adaptive-weaker-than-static"]
    assert static.severity == "error" and static.evidence["adaptive"] - static.evidence["static"] > 0.3
    (box,) = found["black-box-beats-white-box"]
    assert box.severity == "error" and box.evidence["white_box"] > box.evidence["black_box"]
    (zero,) = found["zero-gradients"]
    assert zero.evidence["share"] == 1 and zero.cells == (results.sweep.cells[-2].id,)


# ---------------------------------------------------------------------------- (b) randomness, judged on one draw


def test_a_random_defence_that_is_judged_on_one_draw(tmp_path: Path) -> None:
    noise = "{purifier: gaussian-noise, sigma: 0.3, draws: DRAWS}"
    attack = EXACT.replace("exact", "exact, eot: 4")
    (tmp_path / "one").mkdir()
    one = audited(tmp_path / "one", defences=noise.replace("DRAWS", "1"), attacks=f"none, {attack}")
    finding = by_rule(one)["judged-on-one-draw"][0]
    assert finding.severity == "warning" and len(finding.cells) == 2
    (tmp_path / "ten").mkdir()
    ten = audited(tmp_path / "ten", defences=noise.replace("DRAWS", "10"), attacks=f"none, {attack}")
    assert "judged-on-one-draw" not in by_rule(ten)
    # What one draw cannot show: an attacker who submits ten times does far better.
    worst = ten.robustness()["worst"]
    assert (worst < ten.robustness()["avg"] - 0.2).all()
    assert (one.robustness()["worst"] == one.robustness()["avg"]).all()


# ------------------------------------------------------------------------------------- (c) the answer is looked up


class _LookUp(Purifier):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("images", torch.from_numpy(DigitsConfig().read().images))

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        distance = torch.cdist(x.flatten(1), self.images.flatten(1))
        return self.images[distance.argmin(1)] + 0 * x  # with a gradient, so that nothing is said of that


class LookUp(PurifierConfig):
    """Gives back the nearest image of the test set."""

    purifier: Literal["test_broken_zoo:LookUp"] = "test_broken_zoo:LookUp"

    @property
    def stochastic(self) -> bool:
        return False

    def label(self) -> str:
        return "look-up"

    def build(self, models: Models | None = None) -> Purifier:
        return _LookUp().eval()


def test_a_purifier_that_holds_the_test_images(tmp_path: Path) -> None:
    results = audited(
        tmp_path, defences='none, {purifier: "test_broken_zoo:LookUp"}', attacks=f"none, {PGD}, {EXACT}"
    )
    accuracy = avg(results)
    name = "test_broken_zoo:LookUp"
    assert (
        accuracy[name, "pgd-20 linf margin exact", 0.15]
        == accuracy[name, "clean", 0.0]
        == accuracy["none", "clean", 0]
    )
    (finding,) = by_rule(results)["nothing-changed"]
    assert finding.severity == "error"
    assert finding.evidence["bare_clean"] - finding.evidence["bare_attacked"] > 0.5


# ---------------------------------------------------------------------------------------- (d) one step off in t*


class OneOff(DiffPureConfig):
    """DiffPure with the classic off-by-one: t* counts from 0 where the schedule counts noising steps from 1."""

    purifier: Literal["test_broken_zoo:OneOff"] = "test_broken_zoo:OneOff"  # type: ignore[assignment]

    @property
    def noise_level(self) -> NoiseLevel | None:
        """The level of the network's time index t* - 1, called t*."""
        before = get_schedule(self.schedule).level(self.t_star - 1)
        return NoiseLevel(self.t_star, before.abar, before.sigma_eq)


def test_a_t_star_that_is_one_step_off(tmp_path: Path) -> None:
    diffpure = "denoiser: ddpm, schedule: linear-1000, t_star: 40, steps: 2, draws: 2"
    defences = f'{{purifier: diffpure, {diffpure}}}, {{purifier: "test_broken_zoo:OneOff", {diffpure}}}'
    results = audited(tmp_path, defences=defences, attacks="none", images=20)
    (finding,) = by_rule(results)["t-star-inconsistent"]
    assert finding.severity == "error"
    assert finding.cells == (results.sweep.cells[1].id,)  # and not the sound one
    assert (finding.evidence["t_star"], finding.evidence["t_star_of_abar"]) == (40, 39)


# --------------------------------------------------------------------------------- (e) logits too large for softmax


class _Scaled(DigitsCNN):
    def classify(self, latent: Tensor) -> Tensor:
        return 1e4 * super().classify(latent)


SCALED = Architecture(
    build=_Scaled,
    image_shape=(1, 8, 8),
    classes=10,
    mean=(0.3,),
    std=(0.4,),
    weights=ASSETS / "digits-cnn" / "model.safetensors",
)


def test_logits_that_are_too_large_for_cross_entropy(tmp_path: Path) -> None:
    attacks = f"none, {PGD}, {PGD.replace(', loss: margin', '')}"
    results = audited(tmp_path, defences="none", attacks=attacks, classifier='"test_broken_zoo:SCALED"')
    accuracy = avg(results)
    assert accuracy["none", "pgd-20 linf", 0.15] - accuracy["none", "pgd-20 linf margin", 0.15] > 0.3
    found = by_rule(results)
    (finding,) = found["losses-disagree"]
    assert finding.severity == "warning"
    (zero,) = found["zero-gradients"]  # of cross-entropy alone
    assert zero.evidence["share"] > 0.5 and zero.cells == (results.sweep.cells[2].id,)
    assert finding.evidence["weaker_loss"] == accuracy["none", "pgd-20 linf", 0.15]
