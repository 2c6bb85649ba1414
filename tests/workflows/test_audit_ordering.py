"""Rules on accuracies in a wrong order: each fires with the right numbers, and not on the sound counterpart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import EXACT, GDMP, NOISE, PGD, Audited, Right, by_threat
from scipy import stats

from tasks.stages import AttackStage, EvaluateStage


def test_a_sound_ladder_on_a_stochastic_defence_has_no_findings(tmp_path: Path) -> None:
    bpda = EXACT.replace("exact", "bpda")
    square = '{attack: "audited:Query", norm: linf, eps: 0.1, gradient: exact}'
    right = by_threat({"clean": 0.95, "none": 0.3, "bpda": 0.7, "exact eot": 0.5, "Query": 0.8, "pgd": 0.9})
    audited = Audited(tmp_path, right, defences=f"none, {NOISE}", attacks=f"none, {PGD}, {bpda}, {EXACT}, {square}")
    assert audited.found == []


def test_attacked_above_clean(tmp_path: Path) -> None:
    right = by_threat({"clean": 0.8, "eps 0.1": 0.85, "eps 0.05": 0.8})
    attacks = f"none, {PGD}, {PGD.replace('0.1', '0.05')}"
    audited = Audited(tmp_path, right, attacks=attacks)
    finding = audited.one("attacked-above-clean")
    assert finding.severity == "error"
    assert audited.cells(finding) == {("none", "clean", 0.0), ("none", "pgd-20 linf", 0.1)}
    evidence = finding.evidence
    # 416 and 442 of 520 images: 26 discordant pairs, all one way.
    assert (evidence["clean"], evidence["attacked"]) == (416 / 520, 442 / 520)
    assert evidence["p"] == pytest.approx(0.5**26, rel=1e-9)
    assert (evidence["images"], evidence["images_changed"]) == (520, 26)


@pytest.mark.parametrize(("more", "fires"), [(6, False), (7, True)])
def test_the_threshold_is_one_percent(tmp_path: Path, more: int, fires: bool) -> None:
    """0.5 ** 6 = 0.016, 0.5 ** 7 = 0.008."""
    audited = Audited(
        tmp_path, by_threat({"clean": 400 / 520, "pgd": (400 + more) / 520}), attacks=f"none, {PGD}", images=520
    )
    assert bool(audited.of("attacked-above-clean")) is fires


def test_beating_the_bare_classifier_is_an_error_under_attack_and_a_warning_clean(tmp_path: Path) -> None:
    right = by_threat({"none clean": 0.8, "none pgd": 0.1, "clean": 0.9, "pgd": 0.9})
    audited = Audited(tmp_path, right, defences=f"none, {NOISE}", attacks=f"none, {PGD}")
    found = {finding.severity: finding for finding in audited.of("beats-bare-classifier")}
    assert set(found) == {"error", "warning"}
    assert audited.cells(found["error"]) == {("none", "clean", 0.0), ("gaussian-noise", "pgd-20 linf", 0.1)}
    assert (found["error"].evidence["purified"], found["error"].evidence["bare_clean"]) == (0.9, 0.8)
    assert found["error"].evidence["p"] == pytest.approx(0.5**52, rel=1e-9)  # 52 images, all four draws of each


def test_the_bare_classifier_is_known_from_the_attacks_rows_too(tmp_path: Path) -> None:
    def spoil(spec: AttackStage, column: dict[str, Any]) -> None:
        wrong = column["ids"] >= 400
        column["clean_prediction"] = np.where(wrong, (column["label"] + 1) % 10, column["label"])

    audited = Audited(tmp_path, by_threat({}, 0.9), defences=NOISE, attacks=PGD, rows=spoil)
    evidence = audited.one("beats-bare-classifier").evidence
    assert (evidence["purified"], evidence["bare_clean"]) == (468 / 520, 400 / 520)
    assert evidence["p"] == pytest.approx(0.5**68, rel=1e-9)


def test_adaptive_weaker_than_static(tmp_path: Path) -> None:
    bpda = EXACT.replace("exact", "bpda")
    attacks = f"none, {PGD}, {bpda}, {EXACT}"
    weak = by_threat({"clean": 0.95, "bpda": 0.8, "exact": 0.75, "pgd": 0.7})
    audited = Audited(tmp_path, weak, defences=NOISE, attacks=attacks)
    found = audited.of("adaptive-weaker-than-static")
    assert [finding.severity for finding in found] == ["error", "error"]
    by_accuracy = {finding.evidence["adaptive"]: finding for finding in found}
    assert set(by_accuracy) == {0.8, 0.75}
    assert by_accuracy[0.75].evidence["static"] == 0.7
    assert by_accuracy[0.75].evidence["p"] == pytest.approx(0.5**26, rel=1e-9)


def test_a_weak_rung_below_a_strong_one_is_a_warning(tmp_path: Path) -> None:
    right = by_threat({"clean": 0.95, "bpda": 0.8, "exact": 0.5, "pgd": 0.7})
    attacks = f"none, {PGD}, {EXACT.replace('exact', 'bpda')}, {EXACT}"
    finding = Audited(tmp_path, right, defences=NOISE, attacks=attacks).one("adaptive-weaker-than-static")
    assert finding.severity == "warning" and finding.evidence["adaptive"] == 0.8


@pytest.mark.parametrize("defences", ["none", NOISE])
def test_black_box_stronger_than_white_box(tmp_path: Path, defences: str) -> None:
    square = '{attack: "audited:Query", norm: linf, eps: 0.1, gradient: exact}'
    attacks = f"none, {EXACT}, {square}"
    masked = by_threat({"clean": 0.95, "Query": 0.4, "pgd": 0.6})
    audited = Audited(tmp_path / "a", masked, defences=defences, attacks=attacks)
    finding = audited.one("black-box-beats-white-box")
    assert finding.severity == "error"
    assert (finding.evidence["white_box"], finding.evidence["black_box"]) == (0.6, 0.4)
    sound = by_threat({"clean": 0.95, "Query": 0.6, "pgd": 0.4})
    assert Audited(tmp_path / "b", sound, defences=defences, attacks=attacks).found == []


def test_one_step_stronger_than_many(tmp_path: Path) -> None:
    attacks = f"none, {PGD}, {{attack: fgsm, norm: linf, eps: 0.1}}"
    audited = Audited(tmp_path / "a", by_threat({"clean": 0.95, "fgsm": 0.2, "pgd": 0.3}), attacks=attacks)
    finding = audited.one("single-step-beats-iterative")
    assert (finding.evidence["iterative"], finding.evidence["single_step"]) == (0.3, 0.2)
    assert Audited(tmp_path / "b", by_threat({"clean": 0.95, "fgsm": 0.4, "pgd": 0.3}), attacks=attacks).found == []


def test_accuracy_that_rises_with_the_budget(tmp_path: Path) -> None:
    attacks = "none, {attack: pgd, norm: linf, eps: [0.05, 0.1, 0.2], steps: 20}"
    audited = Audited(
        tmp_path / "a", by_threat({"clean": 0.95, "0.05": 0.5, "0.1": 0.3, "0.2": 0.4}), attacks=attacks
    )
    finding = audited.one("not-monotone-in-eps")
    assert finding.severity == "error"
    assert audited.cells(finding) == {("none", "pgd-20 linf", 0.1), ("none", "pgd-20 linf", 0.2)}
    assert (finding.evidence["at_smaller"], finding.evidence["at_larger"]) == (0.3, 0.4)
    assert (finding.evidence["smaller_eps"], finding.evidence["larger_eps"]) == (0.1, 0.2)
    # 52 images one way; the lower of two smaller budgets was chosen, so p is doubled.
    assert finding.evidence["p"] == pytest.approx(2 * 0.5**52, rel=1e-9)
    sound = by_threat({"clean": 0.95, "0.05": 0.5, "0.1": 0.3, "0.2": 0.3})
    assert Audited(tmp_path / "b", sound, attacks=attacks).found == []


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.5), ("l2", 4.0)])  # 64 pixel values
def test_above_chance_where_every_image_may_be_submitted(tmp_path: Path, norm: str, eps: float) -> None:
    attacks = f"none, {{attack: pgd, norm: {norm}, eps: [{0.5 * eps}, {eps}], steps: 20}}"
    audited = Audited(tmp_path / "a", by_threat({"clean": 0.95, "pgd": 0.2}), attacks=attacks)
    finding = audited.one("above-chance-at-full-budget")
    assert finding.severity == "error"
    assert {cell[2] for cell in audited.cells(finding)} == {eps}
    assert (finding.evidence["accuracy"], finding.evidence["chance"]) == (0.2, 0.1)
    expected = stats.binomtest(104, 520, 0.1, alternative="greater").pvalue
    assert finding.evidence["p"] == pytest.approx(float(expected))
    assert Audited(tmp_path / "b", by_threat({"clean": 0.95, "pgd": 0.1}), attacks=attacks).found == []


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        ("steps", "{attack: pgd, norm: linf, eps: 0.1, steps: [5, 20, 80], gradient: exact, eot: 10}"),
        ("eot", "{attack: pgd, norm: linf, eps: 0.1, steps: 20, gradient: exact, eot: [2, 8, 32]}"),
        ("restarts", "{attack: pgd, norm: linf, eps: 0.1, steps: 20, gradient: exact, eot: 8, restarts: [2, 3, 4]}"),
    ],
)
def test_an_attack_that_still_gets_stronger(tmp_path: Path, name: str, attack: str) -> None:
    def right(last: float) -> Right:
        def of(spec: EvaluateStage) -> float:
            if spec.source is None:
                return 0.95
            value = getattr(spec.source.attack, name)
            return {5: 0.7, 2: 0.7, 20: 0.5, 8: 0.5, 3: 0.5}.get(value, last)

        return of

    audited = Audited(tmp_path / "a", right(0.4), defences=NOISE, attacks=f"none, {attack}")
    finding = audited.one("not-converged")
    assert finding.severity == "warning" and name in finding.text
    assert (finding.evidence["at_smaller"], finding.evidence["at_larger"]) == (0.5, 0.4)
    assert (finding.evidence["smaller"], finding.evidence["larger"]) in {(20, 80), (8, 32), (3, 4)}
    assert Audited(tmp_path / "b", right(0.5), defences=NOISE, attacks=f"none, {attack}").found == []


@pytest.mark.parametrize(("weak", "fires"), [(0.65, True), (0.59, False)])
def test_a_loss_that_is_far_weaker_than_another(tmp_path: Path, weak: float, fires: bool) -> None:
    attacks = f"none, {PGD}, {PGD.replace('steps', 'loss: margin, steps')}"
    audited = Audited(tmp_path, by_threat({"clean": 0.95, "margin": 0.5, "pgd": weak}), attacks=attacks)
    assert [f.rule for f in audited.found] == ["losses-disagree"] * fires
    if fires:
        finding = audited.found[0]
        assert finding.severity == "warning" and "With loss ce" in finding.text
        assert (finding.evidence["weaker_loss"], finding.evidence["stronger_loss"]) == (0.65, 0.5)
        assert finding.evidence["p"] == pytest.approx(2 * 0.5**78, rel=1e-9)  # chosen from two


def test_answers_that_no_attack_changes(tmp_path: Path) -> None:
    attacks = f"none, {PGD}, {EXACT}"
    still = by_threat({"none clean": 0.9, "none pgd": 0.2, "clean": 0.9, "exact": 0.9, "pgd": 0.9})
    audited = Audited(tmp_path / "a", still, defences=f"none, {NOISE}", attacks=attacks)
    (finding,) = audited.found
    assert (finding.severity, finding.rule) == ("error", "nothing-changed")
    assert (finding.evidence["bare_clean"], finding.evidence["bare_attacked"]) == (0.9, 0.2)
    assert {c[1] for c in audited.cells(finding)} == {"clean", "pgd-20 linf exact eot 10"}
    # A few of 520 images that fall make it a warning, 5 % are enough for none; and a budget that does nothing to the
    # bare classifier is no evidence.
    one = by_threat({"none clean": 0.9, "none pgd": 0.2, "clean": 0.9, "exact": 467 / 520, "pgd": 0.9})
    (finding,) = Audited(tmp_path / "b", one, defences=f"none, {NOISE}", attacks=attacks).found
    assert (finding.severity, finding.rule, finding.evidence["changed"]) == ("warning", "nothing-changed", 1 / 520)
    more = by_threat({"none clean": 0.9, "none pgd": 0.2, "clean": 0.9, "exact": 442 / 520, "pgd": 0.9})
    assert Audited(tmp_path / "d", more, defences=f"none, {NOISE}", attacks=attacks).found == []
    harmless = by_threat({}, 0.9)
    assert Audited(tmp_path / "c", harmless, defences=f"none, {NOISE}", attacks=attacks).found == []


def test_a_ladder_is_no_evidence_for_the_gradients_of_its_rungs(tmp_path: Path) -> None:
    """It holds the black box's images, so it would hide that the gradients are weaker; it has the exact gradient."""
    square = '{attack: "audited:Query", norm: linf, eps: 0.1, gradient: exact}'
    ladder = "{attack: ladder, norm: linf, eps: 0.1, rungs: [exact, black-box], steps: 2, queries: 10, eot: 2}"
    right = by_threat({"clean": 0.95, "ladder": 0.4, "Query": 0.4, "exact": 0.6, "bpda": 0.6})
    audited = Audited(tmp_path / "a", right, defences=NOISE, attacks=f"none, {EXACT}, {square}, {ladder}")
    assert [f.rule for f in audited.found] == ["black-box-beats-white-box"]
    bpda = EXACT.replace("exact", "bpda")
    assert Audited(tmp_path / "b", right, defences=GDMP, attacks=f"none, {bpda}, {ladder}").found == []
    only = Audited(tmp_path / "c", right, defences=GDMP, attacks=f"none, {ladder.replace('[exact', '[bpda')}")
    assert [f"{f.severity} {f.rule}" for f in only.found] == ["warning guidance-gradient-missing"]
    one = Audited(tmp_path / "d", right, defences=NOISE, attacks=f"none, {ladder.replace('eot: 2', 'eot: 1')}")
    assert [f"{f.severity} {f.rule}" for f in one.found] == ["warning eot-of-one"]


def test_norms_are_never_compared_with_each_other(tmp_path: Path) -> None:
    """A flow of 0.1 and a ball of 0.1 are different budgets; of neither follows anything for the other."""
    flow = "{attack: stadv, eps: [0.1, 2.0], steps: 2}"
    l2 = "{attack: pgd, norm: l2, eps: 0.1, steps: 20}"
    right = by_threat({"clean": 0.95, "flow eps 2": 0.4, "flow": 0.5, "l2": 0.9, "linf": 0.3})
    assert Audited(tmp_path, right, attacks=f"none, {PGD}, {l2}, {flow}").found == []
