"""A zoo of purifiers and attacks that are wrong on purpose, of which real units are run: all are flagged."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from audited import DATA, HEAD, PGD
from helpers_small import ASSETS, compute, small_sweep
from torch import Tensor

from defense.models import Models
from defense.purifiers import Purifier, PurifierConfig
from defense.randomness import Omega
from tasks.attacks import AttackConfig, AttackResult
from tasks.attacks.target import Target
from tasks.datasets import DigitsConfig
from workflows.audit import Finding, findings
from workflows.results.reader import Results
from workflows.statistics.exact_tests import sign_flip
from workflows.store import Store


class Leak(Purifier):
    """Gives back an image of the right class, whatever it is given."""

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        train = DigitsConfig(split="train").read()
        first = {int(label): i for i, label in reversed(list(enumerate(train.labels)))}
        return torch.stack([torch.from_numpy(train.images[first[int(DATA.labels[i])]]) for i in omega.image_ids])


class Leaky(PurifierConfig):
    purifier: Literal["test_audit_zoo:Leaky"] = "test_audit_zoo:Leaky"
    knows_label: bool = False

    @property
    def stochastic(self) -> bool:
        return False

    def label(self) -> str:
        return "leaky"

    def build(self, models: Models | None = None) -> Leak:
        return Leak()


class Wrong(AttackConfig):
    """Attacks that break the rules: ``far`` leaves the ball, ``bright`` the range, ``idle`` does nothing."""

    attack: Literal["test_audit_zoo:Wrong"] = "test_audit_zoo:Wrong"
    how: Literal["far", "bright", "idle"]

    def method(self) -> str:
        return self.how

    @property
    def evaluations(self) -> int:
        return 1

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        moved = {
            "far": (x + 2 * self.eps * (1 - 2 * x).sign()).clamp(0, 1),
            "bright": x + 0.9 * self.eps,
            "idle": x,
        }
        return AttackResult(moved[self.how].float(), torch.zeros(len(x)))


def zoo(folder: Path, **parts: str) -> tuple[Results, dict[str, Finding]]:
    text = HEAD.format(images=80, assets=ASSETS.as_posix(), **{"classifier": "digits-cnn", **parts})
    folder.mkdir(exist_ok=True)
    sweep = small_sweep(folder, text)
    compute(sweep, str(folder / "store"))
    results = Results(Store(str(folder / "store")), sweep)
    return results, {finding.rule: finding for finding in findings(results)}


def test_sound_attacks_on_a_bare_classifier_have_nothing_worse_than_a_note(tmp_path: Path) -> None:
    attacks = "none, {attack: pgd, norm: linf, eps: [0.05, 0.15], steps: 20}, {attack: fgsm, norm: linf, eps: 0.15}"
    attacks += ", {attack: pgd, norm: linf, eps: 1.0, steps: 20}"
    results, found = zoo(tmp_path, defences="none", attacks=attacks)
    table = results.robustness()
    assert table["avg"][1] > table["avg"][2] > table["avg"][4]
    assert list(found) == ["few-images"] and found["few-images"].severity == "note"


@pytest.mark.parametrize(
    ("how", "rule", "others"),
    [
        ("far", "outside-ball", set()),
        ("bright", "outside-range", set()),
        ("idle", "attack-did-nothing", set()),
    ],
)
def test_attacks_that_break_the_rules_are_flagged(tmp_path: Path, how: str, rule: str, others: set[str]) -> None:
    attack = f'{{attack: "test_audit_zoo:Wrong", norm: linf, eps: 0.1, how: {how}}}'
    _, found = zoo(tmp_path, defences="none", attacks=f"none, {attack}")
    assert {name for name, finding in found.items() if finding.severity == "error"} == {rule} | others
    evidence = found[rule].evidence
    if how == "far":
        assert evidence["images"] == 80 and evidence["largest"] == pytest.approx(0.2, abs=1e-6)
    elif how == "bright":
        assert evidence["highest"] == pytest.approx(1.09, abs=1e-6) and evidence["images"] > 70
    else:
        assert evidence["share"] == 1


def test_a_purifier_that_leaks_the_label_is_flagged(tmp_path: Path) -> None:
    parts = {"classifier": "{classifier: digits-cnn, mean: [0.8]}", "attacks": f"none, {PGD}"}
    results, found = zoo(tmp_path / "a", defences='none, {purifier: "test_audit_zoo:Leaky"}', **parts)
    table = results.robustness()
    bare, leaky = table["avg"][0], table["avg"][3]
    assert leaky > bare + 0.1
    finding = found["beats-bare-classifier"]
    assert (finding.evidence["purified"], finding.evidence["bare_clean"]) == (leaky, bare)
    attacked = results.sweep.cells[3]
    rows, clean = results.rows(attacked), results.rows(results.sweep.cells[0])
    purified, bare_answers = (
        np.stack(list(frame["prediction"])) == frame["label"].to_numpy()[:, None] for frame in (rows, clean)
    )
    assert any(
        f.severity == "error" and f.evidence["p"] == pytest.approx(sign_flip(bare_answers, purified))
        for f in findings(results)
        if f.rule == "beats-bare-classifier" and attacked.id in f.cells
    )
    assert "given-labels" not in found
    _, told = zoo(tmp_path / "b", defences='{purifier: "test_audit_zoo:Leaky", knows_label: true}', **parts)
    assert told["given-labels"].severity == "error" and "knows_label" in told["given-labels"].text
