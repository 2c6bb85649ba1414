"""Rules on what was tried: draws, gradients, budgets, depths, images, and AutoAttack's own warnings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from audited import EXACT, GDMP, NOISE, PGD, Audited, by_threat, worse_than_notes
from helpers_small import ASSETS

from defense.denoisers import DiffusersConfig
from defense.purifiers import PURIFIERS
from defense.schedules import get_schedule
from tasks.stages import AttackStage
from workflows.audit import Finding
from workflows.audit.rules.threat_model import depth_without_schedule, t_star_inconsistent
from workflows.audit.view import View, views
from workflows.statistics.proportions import wilson


def test_eot_of_one(tmp_path: Path) -> None:
    one = EXACT.replace("eot: 10", "eot: 1")
    right = by_threat({"clean": 0.95}, 0.5)
    finding = Audited(tmp_path / "a", right, defences=NOISE, attacks=f"none, {one}").one("eot-of-one")
    assert finding.severity == "warning" and finding.evidence == {"eot": 1, "accuracy": 0.5, "attacks": 1}
    both = Audited(tmp_path / "b", right, defences=NOISE, attacks=f"none, {one}, {EXACT}")
    assert both.one("eot-of-one").severity == "note"
    # Not where there is nothing to average over: a deterministic defence, or draws that the attacker knows.
    median = "{purifier: median, draws: 1}"
    assert Audited(tmp_path / "c", right, defences=median, attacks=f"none, {one}").found == []
    knows = one.replace("gradient: exact", "knows: randomness")
    assert Audited(tmp_path / "d", right, defences=NOISE, attacks=f"none, {knows}").found == []


def test_judged_on_one_draw(tmp_path: Path) -> None:
    right = by_threat({"clean": 0.95}, 0.5)
    defences = f"none, {NOISE.replace('draws: 4', 'draws: 1')}"
    audited = Audited(tmp_path, right, defences=defences, attacks=f"none, {EXACT}")
    finding = audited.one("judged-on-one-draw")
    assert audited.cells(finding) == {
        ("gaussian-noise", "clean", 0.0),
        ("gaussian-noise", "pgd-20 linf exact eot 10", 0.1),
    }
    assert worse_than_notes(audited.found) == ["warning judged-on-one-draw"]


def test_autoattack_standard_on_a_stochastic_defence(tmp_path: Path) -> None:
    attack = '{attack: "audited:AutoAttack", norm: linf, eps: 0.1, version: VERSION, gradient: exact, eot: 10}'
    right = by_threat({"clean": 0.95}, 0.5)
    standard = attack.replace("VERSION", "standard")
    audited = Audited(tmp_path / "a", right, defences=f"none, {NOISE}", attacks=f"none, {standard}")
    assert {cell[0] for cell in audited.cells(audited.one("autoattack-standard"))} == {"gaussian-noise"}
    rand = Audited(
        tmp_path / "b", right, defences=f"none, {NOISE}", attacks=f"none, {attack.replace('VERSION', 'rand')}"
    )
    assert rand.found == []


def test_guidance_gradient_missing(tmp_path: Path) -> None:
    def found(folder: str, *modes: str, defence: str = GDMP) -> list[Finding]:
        attacks = ", ".join(["none", *(EXACT.replace("gradient: exact", f"gradient: {mode}") for mode in modes)])
        right = by_threat({"clean": 0.95}, 0.5)
        return Audited(tmp_path / folder, right, defences=defence, attacks=attacks).of("guidance-gradient-missing")

    assert [f.severity for f in found("a", "bpda", "surrogate(2)")] == ["warning"]
    assert [f.severity for f in found("b", "exact-no-guidance-path")] == ["error"]
    assert [f.severity for f in found("c", "exact-no-guidance-path", "exact")] == ["note"]
    assert found("d", "bpda", "exact") == []
    assert found("e", "bpda", defence=NOISE) == []


def test_the_authors_attack_is_weaker_than_another(tmp_path: Path) -> None:
    defence = "{published: freqpure, denoiser: ddpm, amplitude_radius: 2, phase_radius: 2, steps: 2, draws: 4}"
    theirs = "{as-published: freqpure, norm: linf, eps: 0.1, steps: 20, eot: 10}"

    def found(folder: str, accuracy: float) -> list[Finding]:
        right = by_threat({"clean": 0.95, "surrogate(1)": accuracy}, 0.4)
        return Audited(tmp_path / folder, right, defences=defence, attacks=f"none, {theirs}, {EXACT}").of(
            "published-attack-weaker"
        )

    (finding,) = found("a", 0.8)
    assert finding.severity == "note" and finding.evidence == {"accuracy": 0.8, "strongest": 0.4}
    assert "leaves 80.0 %, another one 40.0 %. The gradient is that of one reverse step" in finding.text
    assert finding.text.endswith("Their attack is shortened here: eot 10 of 20, steps 20 of 200.")
    assert found("b", 0.44) == []


def test_which_purifiers_are_guided() -> None:
    denoiser = DiffusersConfig(path=str(ASSETS / "digits-ddpm"), schedule="linear-1000")
    common = {"denoiser": denoiser, "schedule": "linear-1000", "t_star": 20, "steps": 2}
    guided = {
        name: PURIFIERS.get(name).model_validate({"purifier": name, **common, **extra}).guided
        for name, extra in {
            "gdmp": {},
            "distribution-transfer": {},
            "guided-from-noise": {"scale": 1.0},
            "diffpure": {},
        }.items()
    }
    assert guided == {"gdmp": True, "distribution-transfer": True, "guided-from-noise": True, "diffpure": False}
    stages = [{"purifier": "median"}, {"purifier": "gdmp", **common}]
    assert PURIFIERS.get("chain").model_validate({"stages": stages}).guided
    assert not PURIFIERS.get("chain").model_validate({"stages": stages[:1]}).guided


def test_a_defence_that_knows_the_budget(tmp_path: Path) -> None:
    right = by_threat({"clean": 0.95}, 0.5)
    knowing = GDMP.replace("constant", "budget")
    found = Audited(tmp_path, right, defences=f"{GDMP}, {knowing}", attacks=f"none, {EXACT}")
    assert worse_than_notes(found.found) == ["warning defence-knows-eps"]
    assert found.one("defence-knows-eps").evidence == {"budgets": 1}


def test_a_purifier_that_no_attack_knows_of(tmp_path: Path) -> None:
    right = by_threat({"clean": 0.95, "none": 0.1}, 0.8)
    audited = Audited(tmp_path, right, defences=f"none, {NOISE}", attacks=f"none, {PGD}")
    finding = audited.one("only-static-attacks")
    assert finding.severity == "warning" and finding.evidence == {"accuracy": 0.8, "attacks": 1}
    assert audited.cells(finding) == {("gaussian-noise", "pgd-20 linf", 0.1)}
    assert worse_than_notes(audited.found) == ["warning only-static-attacks"]


@pytest.mark.parametrize(("images", "fires"), [(511, True), (512, False)])
def test_few_images(tmp_path: Path, images: int, fires: bool) -> None:
    audited = Audited(tmp_path, by_threat({"clean": 0.5}), images=images)
    assert [finding.rule for finding in audited.found] == ["few-images"] * fires
    if fires:
        evidence = audited.found[0].evidence
        low, high = wilson(256 / 511, 511)
        assert evidence["images"] == 511 and evidence["half_width"] == pytest.approx((high - low) / 2)
        assert evidence["half_width_at_one_half"] == pytest.approx(0.0432, abs=5e-4)


def test_no_clean_counterpart(tmp_path: Path) -> None:
    audited = Audited(tmp_path, by_threat({}, 0.5), attacks=PGD)
    assert [(f.severity, f.rule) for f in audited.found] == [("note", "clean-missing")]


def other_rows(view: View, **columns: float) -> View:
    changed = view.rows.assign(**columns)

    class Changed(View):
        @property
        def rows(self) -> pd.DataFrame:
            return changed

    return Changed(view.cell, view.ids, view.results)


def test_a_t_star_without_its_schedule(tmp_path: Path) -> None:
    audited = Audited(tmp_path, by_threat({"clean": 0.9}), defences=GDMP, images=20)
    (view,) = views(audited.results)
    assert list(depth_without_schedule([view])) == []
    (finding,) = depth_without_schedule([other_rows(view, abar=np.nan)])
    assert finding.evidence == {"t_star": 36.0, "rows": 20}


def test_a_t_star_that_is_one_step_off_its_schedule(tmp_path: Path) -> None:
    audited = Audited(tmp_path, by_threat({"clean": 0.9}), defences=GDMP, images=20)
    (view,) = views(audited.results)
    assert list(t_star_inconsistent([view])) == []
    before = get_schedule("linear-1000").level(35)
    off = other_rows(view, abar=before.abar, sigma_eq=before.sigma_eq)
    (finding,) = t_star_inconsistent([off])
    assert finding.severity == "error" and "t* = 36 on linear-1000" in finding.text
    assert finding.evidence == {
        "t_star": 36.0,
        "abar": before.abar,
        "sigma_eq": before.sigma_eq,
        "abar_of_t_star": float(get_schedule("linear-1000").abar[36]),
        "t_star_of_abar": 35,
    }
    (sigma,) = t_star_inconsistent([other_rows(view, sigma_eq=0.5)])
    assert set(sigma.evidence) == {"abar", "sigma_eq", "sigma_eq_of_abar"}


AUTOATTACK = "{attack: autoattack, norm: linf, eps: 0.1, version: VERSION, gradient: exact, eot: 2}"


def test_autoattacks_warnings_are_findings_with_their_counts(tmp_path: Path) -> None:
    def warned(*kinds: str) -> Callable[[AttackStage, dict[str, Any]], None]:
        def change(spec: AttackStage, column: dict[str, Any]) -> None:
            column["notes"] = {f"warning_{kind}": 2 for kind in kinds} | {"reference_robust": 10}

        return change

    right = by_threat({"clean": 0.95}, 0.5)
    rand, bare = AUTOATTACK.replace("VERSION", "rand"), AUTOATTACK.replace("VERSION", "standard")
    kinds = ("randomized", "square_gain", "dynamic", "never_seen")
    found = Audited(tmp_path / "a", right, attacks=f"none, {bare}", rows=warned(*kinds)).found
    assert {f.rule for f in found} == {"autoattack-warning"}
    # Two chunks with two warnings each.
    assert {(f.severity, *sorted(f.evidence.items())) for f in found} == {
        ("warning", ("accuracy", 0.5), ("warning_randomized", 4)),
        ("warning", ("accuracy", 0.5), ("warning_square_gain", 4)),
        ("note", ("accuracy", 0.5), ("warning_dynamic", 4)),
        ("note", ("accuracy", 0.5), ("warning_never_seen", 4)),
    }
    # That answers differ is what `rand` is for.
    behind = {"defences": NOISE, "attacks": f"none, {rand}"}
    assert Audited(tmp_path / "b", right, **behind, rows=warned("randomized")).found == []


def test_autoattacks_own_figure_stands_beside_that_of_fresh_draws(tmp_path: Path) -> None:
    def verdict(spec: AttackStage, column: dict[str, Any]) -> None:
        column["attack_broken"] = column["ids"] >= 130

    right = by_threat({"clean": 0.95}, 0.5)
    attacks = f"none, {AUTOATTACK.replace('VERSION', 'rand')}"
    finding = Audited(tmp_path / "a", right, defences=NOISE, attacks=attacks, rows=verdict).one(
        "autoattack-judged-once"
    )
    low, high = wilson(0.5, 520)
    assert finding.severity == "note"
    assert finding.evidence == {"reference": 0.25, "judged_again": 0.5, "low": low, "high": high, "images": 520}
    # A deterministic classifier answers as it did.
    assert Audited(tmp_path / "b", right, attacks=attacks, rows=verdict).found == []
