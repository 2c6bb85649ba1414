"""Ladders: their rungs go through the rules like cells, and the ladder is compared with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import EXACT, NOISE, PGD, Audited, by_threat

from tasks.stages import AttackStage
from workflows.audit import findings
from workflows.audit.excess import REPORT_LEVEL, comparisons
from workflows.audit.view import rungs, views
from workflows.results.reader import Results

LADDER = "{attack: ladder, norm: linf, eps: 0.1, rungs: [blind, bpda, exact, black-box], steps: 20, queries: 10}"


def test_rungs_of_a_sound_ladder_are_judged_and_nothing_is_found(tmp_path: Path) -> None:
    right = by_threat({"clean": 0.95, "ladder": 0.4, "exact": 0.4, "bpda": 0.5, "square": 0.7, "pgd": 0.6})
    audited = Audited(tmp_path, right, defences=NOISE, attacks=f"none, {LADDER}")
    assert audited.found == []
    parts = rungs(audited.results, views(audited.results))
    assert [(rung.number, rung.accuracy) for rung in parts] == [(1, 0.6), (2, 0.5), (3, 0.4), (4, 0.7)]
    assert [rung.correct.shape for rung in parts] == [(520, 10)] * 4  # `select` draws
    assert [rung.name for rung in parts][2] == "rung 3 of the ladder, pgd-20 linf exact eot 10"


STRONGEST = LADDER.replace("attack: ladder", "attack: strongest").replace("black-box]", "black-box, refine]")


def test_rungs_of_the_strongest_attack_are_judged_like_those_of_a_ladder(tmp_path: Path) -> None:
    sound = {"clean": 0.95, "strongest": 0.3, "warm": 0.3, "exact": 0.4, "bpda": 0.5, "square": 0.7, "pgd": 0.6}
    audited = Audited(tmp_path / "a", by_threat(sound), defences=NOISE, attacks=f"none, {STRONGEST}")
    assert audited.found == []
    parts = rungs(audited.results, views(audited.results))
    assert [(rung.number, rung.accuracy) for rung in parts] == [(1, 0.6), (2, 0.5), (3, 0.4), (4, 0.7), (5, 0.3)]
    masked = {**sound, "strongest": 0.4, "warm": 0.4, "exact": 0.8, "bpda": 0.8, "pgd": 0.4}
    found = Audited(tmp_path / "b", by_threat(masked), defences=NOISE, attacks=f"none, {STRONGEST}").found
    assert ("adaptive-weaker-than-static", "error") in {(finding.rule, finding.severity) for finding in found}


@pytest.mark.parametrize(
    ("table", "rule", "severity", "named"),
    [
        (
            {"ladder": 0.4, "exact": 0.7, "bpda": 0.7, "square": 0.8, "pgd": 0.4},
            "adaptive-weaker-than-static",
            "error",
            3,
        ),
        (
            {"ladder": 0.4, "exact": 0.6, "bpda": 0.6, "square": 0.4, "pgd": 0.7},
            "black-box-beats-white-box",
            "error",
            4,
        ),
        ({"ladder": 0.4, "exact": 0.5, "bpda": 0.4, "square": 0.8, "pgd": 0.6}, "bpda-beats-exact", "warning", 2),
        ({"ladder": 0.6, "exact": 0.4, "bpda": 0.6, "square": 0.8, "pgd": 0.6}, "judged-otherwise", "error", 3),
    ],
)
def test_what_rungs_show(tmp_path: Path, table: dict[str, float], rule: str, severity: str, named: int) -> None:
    audited = Audited(tmp_path, by_threat({"clean": 0.96, **table}), defences=NOISE, attacks=f"none, {LADDER}")
    found = audited.of(rule)
    assert {finding.severity for finding in found} == {severity}, audited.found
    assert any(f"rung {named} of the ladder" in finding.text for finding in found)
    assert all(finding.cells and set(finding.cells) <= {cell.id for cell in audited.sweep.cells} for finding in found)


def test_ten_points_between_a_ladder_and_its_rung_are_the_luck_of_a_choice(tmp_path: Path) -> None:
    right = by_threat({"clean": 0.96, "ladder": 0.5, "exact": 0.4, "bpda": 0.6, "square": 0.8, "pgd": 0.6})
    assert Audited(tmp_path, right, defences=NOISE, attacks=f"none, {LADDER}").found == []


def test_one_attack_alone_below_the_ladder(tmp_path: Path) -> None:
    held = by_threat({"none clean": 0.96, "clean": 0.9, "ladder": 0.5, "square": 0.8, "pgd": 0.4})
    ladder = "{attack: ladder, norm: linf, eps: 0.1, rungs: [blind, black-box], steps: 20, queries: 10}"
    audited = Audited(tmp_path / "a", held, attacks=f"none, {PGD}, {ladder}")
    finding = audited.one("attack-beats-ladder")
    assert finding.severity == "error" and "although the ladder holds it" in finding.text
    assert (finding.evidence["ladder"], finding.evidence["attack"], finding.evidence["held"]) == (0.5, 0.4, 1)
    # On a random defence the choice may be wrong; and another attack may be stronger than all that it holds.
    more = by_threat({"clean": 0.96, "ladder": 0.5, "square": 0.8, "exact eot 10": 0.4, "bpda": 0.6, "pgd": 0.6})
    strong = EXACT.replace("steps: 20", "steps: 21")
    other = Audited(tmp_path / "b", more, defences=NOISE, attacks=f"none, {strong}, {LADDER}")
    assert [f.severity for f in other.of("attack-beats-ladder")] == ["warning"]
    assert "Add the attack" in other.one("attack-beats-ladder").action
    even = by_threat({"clean": 0.96, "ladder": 0.4, "square": 0.8, "exact": 0.4, "bpda": 0.6, "pgd": 0.6})
    assert Audited(tmp_path / "c", even, defences=NOISE, attacks=f"none, {EXACT}, {LADDER}").found == []


def test_a_rung_that_is_a_cell_too_is_compared_once(tmp_path: Path) -> None:
    right = by_threat({"clean": 0.95, "ladder": 0.4, "exact": 0.4, "bpda": 0.5, "square": 0.7, "pgd": 0.6})
    audited = Audited(tmp_path, right, defences=NOISE, attacks=f"none, {PGD}, {EXACT}, {LADDER}")
    parts = rungs(audited.results, views(audited.results))
    assert [rung.compared for rung in parts] == [False, True, False, True]


def test_rows_of_an_older_version_and_rungs_that_skip_are_said(tmp_path: Path) -> None:
    def old(spec: AttackStage, column: dict[str, Any]) -> None:
        column.pop("attack_rights", None)

    right = by_threat({"clean": 0.95, "ladder": 0.4, "exact": 0.4, "bpda": 0.5, "square": 0.7, "pgd": 0.6})
    finding = Audited(tmp_path / "a", right, defences=NOISE, attacks=f"none, {LADDER}", rows=old).found[0]
    assert (finding.rule, finding.severity) == ("rungs-not-judged", "note")
    assert "not judged: rows of an older version" in finding.text

    def skipped(spec: AttackStage, column: dict[str, Any]) -> None:
        if "attack_rights" in column:
            column["attack_rights"] = [[row[0], *[np.nan] * (len(row) - 1)] for row in column["attack_rights"]]

    ladder = LADDER.replace("steps", "skip: true, steps")
    skips = Audited(tmp_path / "b", right, defences=NOISE, attacks=f"none, {ladder}", rows=skipped)
    assert "skipped" in skips.one("rungs-not-judged").text
    assert not [rung for rung in rungs(skips.results, views(skips.results)) if rung.compared and rung.number > 1]


def test_the_rows_of_a_rung_are_looked_at(tmp_path: Path) -> None:
    def spoil(spec: AttackStage, column: dict[str, Any]) -> None:
        column["attack_gradients"] = np.full(len(column["ids"]), 20)
        zero = 20 if spec.attack.attack == "pgd" and spec.attack.gradient == "exact" else 0
        column["attack_gradient_zero"] = np.full(len(column["ids"]), zero)

    right = by_threat({"clean": 0.95, "ladder": 0.4, "exact": 0.4, "bpda": 0.5, "square": 0.7, "pgd": 0.6})
    audited = Audited(tmp_path, right, defences=NOISE, attacks=f"none, {LADDER}", rows=spoil)
    finding = audited.one("zero-gradients")
    # The weight of an image is its share of right draws, of those that were right before.
    assert finding.evidence == {"share": 1.0, "images": 208.0, "of": 208.0}
    assert "rung 3 of the ladder" in finding.text and finding.cells == (audited.sweep.cells[1].id,)


def test_what_chance_explains_among_many_comparisons_is_a_note(tmp_path: Path) -> None:
    """7 images one way are p = 0.008: enough in a report of two cells, not in one of thirty."""
    few = by_threat({"clean": 400 / 520, "pgd": 407 / 520})
    two = Audited(tmp_path / "a", few, attacks=f"none, {PGD}")
    assert two.one("attacked-above-clean").severity == "error"
    attacks = "none, {attack: pgd, norm: linf, eps: [0.1, 0.11, 0.12, 0.13, 0.14], steps: [20, 30, 40]}"
    table = {"clean": 400 / 520, "pgd-20 0.1": 407 / 520}
    many = Audited(tmp_path / "b", by_threat(table, 0.5), attacks=attacks)
    notes = {finding.severity for finding in many.of("attacked-above-clean")}
    assert notes == {"note"}
    evidence = many.of("attacked-above-clean")[0].evidence
    with comparisons() as counted:
        findings(Results(many.store, many.sweep), images=False)
    assert counted.made == 0  # those of a report are its own
    assert evidence["p_of_report"] == pytest.approx(evidence["p"] * evidence["comparisons"]) and (
        evidence["p_of_report"] >= REPORT_LEVEL
    )
