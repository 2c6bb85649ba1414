"""Rules for certificates alone, and for tables with cells of all kinds; the last test computes everything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from audited_certified import CERTIFICATE, DATA, HEAD, NOISE, ONE_SHOT, PGD, SIGMA, Audited, Chance, by_margin
from helpers_small import ASSETS, compute
from scipy import stats

from defense.certify import SequentialPlan
from defense.schedules import get_schedule
from tasks.stages import (
    SampleStage,
)
from workflows.analysis import Analysis
from workflows.audit import findings
from workflows.formats import FORMATS, render
from workflows.grid.load import load_sweep
from workflows.results.reader import Results
from workflows.statistics.proportions import wilson
from workflows.store import Store

CERTIFICATES = {
    "fixed": "{sigma: 0.25, n: 1000}",
    "two-class": "{sigma: 0.25, n: 1000, rule: two-class}",
    "sequential": "{sigma: 0.25, n: 1000, guarantee: sequential}",
}


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_radii_follow_from_their_counts(tmp_path: Path, kind: str) -> None:
    def half(columns: dict[str, Any]) -> None:
        columns["radius"][7] *= 2
        columns["prediction"][11] = -1

    threats = f"certificates: [{CERTIFICATES[kind]}]"
    sound = Audited(tmp_path / "a", by_margin(0.3), threats=threats)
    assert sound.rules() == {"few-images"}
    spoiled = Audited(tmp_path / "b", by_margin(0.3), threats=threats, spoil=half)
    finding = spoiled.one("radius-not-of-counts")
    assert (finding.severity, finding.evidence["images"], finding.evidence["of"]) == ("error", 2, 60)
    assert finding.evidence["image"] == 7
    assert finding.evidence["radius"] == pytest.approx(2 * finding.evidence["radius_of_counts"])


def test_a_class_below_one_half_that_the_two_class_rule_certifies_is_promised_no_more_than_its_bound(
    tmp_path: Path,
) -> None:
    """0.4 against 0.067 for each of nine others, where Phi(R / sigma) is 0.7."""
    threats = "attacks: [none]\ncertificates: [{sigma: 0.25, n: 1000, rule: two-class}]"
    audited = Audited(tmp_path, lambda spec, ids: 0.4, threats=threats, others=9)
    rows = audited.results.rows(audited.sweep.certified[0])
    assert (rows["prediction"] == rows["label"]).all() and (rows["radius"] > 0.1).all()
    assert audited.rules() == {"few-images"}


@pytest.mark.parametrize(("t_star", "fires"), [(60, True), (300, False)])
def test_a_purifier_too_shallow_for_the_noise(tmp_path: Path, t_star: int, fires: bool) -> None:
    defences = f"{{purifier: diffpure, denoiser: ddpm, schedule: linear-1000, t_star: {t_star}, steps: 2}}"
    audited = Audited(tmp_path, by_margin(), defences=defences, threats=CERTIFICATE)
    assert audited.rules() == {"few-images"} | ({"sigma-t-star-mismatch"} if fires else set())
    if fires:
        finding = audited.one("sigma-t-star-mismatch")
        assert finding.severity == "warning"
        level = get_schedule("linear-1000").level(60)
        assert (finding.evidence["sigma"], finding.evidence["sigma_eq"]) == (0.25, level.sigma_eq)


@pytest.mark.parametrize(("sigma", "fires"), [(0.0055, True), (0.0073, False)])
def test_a_schedule_too_coarse_for_the_noise(tmp_path: Path, sigma: float, fires: bool) -> None:
    """sigma_eq is 0.0050 after one step of linear-1000 and 0.0074 after two."""
    threats = f"attacks: [none]\ncertificates: [{{sigma: {sigma}, n: 1000}}]"
    defences = f"{{purifier: one-shot, denoiser: ddpm, sigma_eq: {sigma}, draws: 20}}"

    def chance(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
        return 0.9 if isinstance(spec, SampleStage) else 0.1

    audited = Audited(tmp_path, chance, defences=defences, threats=threats)
    assert bool(audited.of("sigma-t-star-mismatch")) is fires
    # Draws with so much more noise are not those of the certified classifier.
    assert bool(audited.of("certified-above-clean")) is not fires


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_radii_at_the_ceiling_are_held_down_by_the_samples(tmp_path: Path, kind: str) -> None:
    def sure(share: int) -> Chance:
        return lambda spec, ids: np.where(ids < share, 1.0, 0.9)

    threats = f"certificates: [{CERTIFICATES[kind]}]"
    finding = Audited(tmp_path / "a", sure(13), threats=threats).one("too-few-samples")
    assert finding.severity == "note"
    assert finding.evidence["share"] == pytest.approx(13 / 60)
    p = 0.001 ** (1 / 1000)
    if kind == "two-class":
        p = 0.0005 ** (1 / 1000)
    if kind == "sequential":
        p = float(SequentialPlan(1000, 0.001).lower_bound(1000, 1000))
    assert finding.evidence["ceiling"] == pytest.approx(SIGMA * stats.norm.ppf(p))
    assert not Audited(tmp_path / "b", sure(12), threats=threats).of("too-few-samples")  # a fifth, not more


ALL = f"attacks: [none]\ncorruptions: [{{corruption: fog, severity: 3}}]\n{CERTIFICATE}"


def _all(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
    return 0.9


def test_few_images_are_one_note_for_cells_of_all_kinds(tmp_path: Path) -> None:
    audited = Audited(tmp_path / "a", _all, threats=ALL, images=100)
    finding = audited.one("few-images")
    assert set(finding.cells) == {cell.id for cell in audited.sweep.cells} and len(finding.cells) == 3
    shares = [np.stack(audited.results.rows(cell)["prediction"].to_list()) for cell in audited.sweep.cells]
    labels = DATA.labels[:100]
    accuracies = [float((s == (labels[:, None] if s.ndim == 2 else labels)).mean()) for s in shares]
    widths = [(b - a) / 2 for a, b in (wilson(accuracy, 100) for accuracy in accuracies)]
    assert finding.evidence["half_width"] == pytest.approx(max(widths))
    enough = Audited(tmp_path / "b", _all, threats=ALL, images=512)
    assert not enough.of("few-images")


def test_tables_name_the_cells_of_every_finding(tmp_path: Path) -> None:
    audited = Audited(tmp_path / "a", _all, threats=ALL, images=100)
    analysis = Analysis(audited.results)
    text = " ".join(render(analysis, "text").split())
    labels = [audited.sweep.labels[cell.id] for cell in audited.sweep.cells[1:]]
    assert labels[0]["defence"].startswith("one-shot t*=146") and labels[0]["corruption"] == "fog 3"
    fog, certificate = (f"digits-cnn, {each['defence']}" for each in labels)
    fog, certificate = f"{fog}, fog 3", f"{certificate}, certificate s=0.25 n=1000"
    assert f"cells: the cell of the robustness table; {fog}; {certificate}" in text
    assert f"cells: {fog} evidence: corruptions 1, severities 1, cells 1" in text
    assert "few-images" in render(analysis, "csv")


def test_several_cells_of_a_defence_are_named_together_and_a_sweep_may_have_certificates_alone(
    tmp_path: Path,
) -> None:
    threats = "certificates: [{sigma: 0.25, n: [1000, 2000]}]"
    audited = Audited(tmp_path, _all, threats=threats, images=100)
    (finding,) = audited.found
    assert finding.names == ("digits-cnn, one-shot t*=146, all 2 certificates",)
    assert "names" not in finding.as_dict()
    analysis = Analysis(audited.results)
    for how in FORMATS:
        shown = render(analysis, how)
        assert how not in ("text", "md") or finding.names[0] in shown
    assert json.loads(render(analysis, "json"))["findings"][0]["cells"] == [*finding.cells]


@pytest.mark.nightly
def test_real_certificates_of_digits_are_not_beaten_by_a_real_attack(tmp_path: Path) -> None:
    text = HEAD.format(
        images=20,
        classifiers="digits-cnn",
        assets=ASSETS.as_posix(),
        defences=f"{ONE_SHOT}, {NOISE}",
        threats=f"attacks: [none, {PGD.replace('eot: 10', 'eot: 3')}]\n"
        "corruptions: [{corruption: contrast, severity: [2, 5]}]\n"
        "certificates: [{sigma: 0.25, n: 400}]\ncompute: {batch: 200}",
    )
    path = tmp_path / "real.yaml"
    path.write_text(text)
    sweep = load_sweep(path)
    compute(sweep, str(tmp_path / "store"))
    results = Results(Store(str(tmp_path / "store")), sweep)
    found = findings(results)
    assert [finding.text for finding in found if finding.severity != "note"] == []
    assert {finding.rule for finding in found} >= {"few-images", "incomplete-benchmark"}
    # Images were compared: certified beyond the distance that the attack moved them.
    for certificate, attacked in zip(sweep.certified, (sweep.adversarial[1], sweep.adversarial[3]), strict=True):
        rows, moved = results.rows(certificate), results.attack_rows(attacked)
        right = rows["prediction"] == rows["label"]
        assert ((rows["radius"] >= moved["l2"]) & right).sum() >= 5
    assert math.isfinite(results.robustness()["avg"].min())
