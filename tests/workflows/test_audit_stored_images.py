"""Rules on the rows and images of attacks, as they are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import DATA, PGD, Audited, by_threat, worse_than_notes

from tasks.stages import AttackStage
from workflows.audit import findings
from workflows.results.reader import Results


def test_an_attack_that_did_nothing(tmp_path: Path) -> None:
    def still(share: float, kept: bool) -> Callable[[AttackStage, dict[str, Any]], None]:
        def spoil(spec: AttackStage, column: dict[str, Any]) -> None:
            where = column["ids"] < share * 520
            column["images"][where] = DATA.images[column["ids"][where]]
            if kept:
                column["adversarial_prediction"] = column["label"].copy()

        return spoil

    right = by_threat({"clean": 1.0}, 0.5)
    failed = Audited(tmp_path / "a", right, attacks=f"none, {PGD}", rows=still(0.1, True)).one("attack-did-nothing")
    assert failed.severity == "error"
    assert failed.evidence == {"share": 0.1, "images_right_before": 520, "accuracy_of_moved": 1.0}
    kept = by_threat({}, 1.0)
    assert Audited(tmp_path / "b", kept, attacks=f"none, {PGD}", rows=still(0.05, True)).found == []
    # A search that returns only what it broke: everything that moved is wrong.
    search = '{attack: "audited:AutoAttack", norm: linf, eps: 0.1}'
    rest = by_threat({"clean": 1.0}, 0.1)
    note = Audited(tmp_path / "c", rest, attacks=f"none, {search}", rows=still(0.1, False)).one("attack-did-nothing")
    assert note.severity == "note" and note.evidence["accuracy_of_moved"] == 0

    # Nothing at all was moved, but the attack says that it looks for broken images alone.
    def nothing(spec: AttackStage, column: dict[str, Any]) -> None:
        still(1.0, True)(spec, column)
        column["attack_broken"] = np.zeros(len(column["ids"]), dtype=bool)

    robust = Audited(tmp_path / "e", right, attacks=f"none, {search}", rows=nothing).one("attack-did-nothing")
    assert robust.severity == "note" and robust.evidence["share"] == 1
    # PGD is no such search.
    assert Audited(tmp_path / "d", rest, attacks=f"none, {PGD}", rows=still(0.1, False)).of("attack-did-nothing")[
        0
    ].severity == ("error")


def test_a_loss_that_is_no_number_and_gradients_that_are_zero(tmp_path: Path) -> None:
    def spoil(spec: AttackStage, column: dict[str, Any]) -> None:
        column["loss"][column["ids"] < 3] = np.nan
        column["attack_gradients"] = np.full(len(column["ids"]), 20)
        column["attack_gradient_zero"] = np.where(column["ids"] < 130, 10, 0)
        column["attack_gradient_nan"] = np.where(column["ids"] < 2, 5, 0)

    right = by_threat({"clean": 0.95}, 0.5)
    audited = Audited(tmp_path / "a", right, attacks=f"none, {PGD}", rows=spoil)
    assert audited.one("loss-not-a-number").evidence == {"images": 3, "share": 3 / 520}
    # 10 of 20 steps, on half of the images that the attack left right: those that it broke say nothing.
    assert audited.one("zero-gradients").evidence == {"share": 0.25, "images": 130, "of": 260}
    assert audited.one("gradients-not-finite").evidence == {"images": 2, "of": 520, "gradients": 10}
    assert {f.rule: f.severity for f in audited.found} == {
        "loss-not-a-number": "error",
        "gradients-not-finite": "error",
        "zero-gradients": "warning",
    }

    def seldom(spec: AttackStage, column: dict[str, Any]) -> None:
        column["attack_gradients"] = np.full(len(column["ids"]), 20)
        column["attack_gradient_zero"] = np.ones(len(column["ids"]), dtype=np.int64)  # 5 %
        column["attack_gradient_nan"] = np.zeros(len(column["ids"]), dtype=np.int64)

    assert Audited(tmp_path / "b", right, attacks=f"none, {PGD}", rows=seldom).found == []

    def broken(spec: AttackStage, column: dict[str, Any]) -> None:
        seldom(spec, column)
        column["attack_gradient_zero"] = np.where(column["ids"] < 260, 0, 20)  # DLR on images that are broken

    assert Audited(tmp_path / "c", right, attacks=f"none, {PGD}", rows=broken).found == []


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_image_outside_the_ball_is_found(tmp_path: Path, norm: str) -> None:
    def spoil(by: float) -> Callable[[AttackStage, dict[str, Any]], None]:
        def change(spec: AttackStage, column: dict[str, Any]) -> None:
            for place in np.flatnonzero(column["ids"] == 305):
                clean = DATA.images[305].astype(np.float64)
                size = (0.1 + by) / (8.0 if norm == "l2" else 1.0)
                column["images"][place] = clean + np.where(clean > 0.5, -1, 1) * size

        return change

    attack = PGD.replace("linf", norm)
    right = by_threat({"clean": 0.95}, 0.5)
    audited = Audited(tmp_path / "a", right, attacks=f"none, {attack}", rows=spoil(1e-5))
    finding = audited.one("outside-ball")
    assert finding.severity == "error" and (finding.evidence["images"], finding.evidence["of"]) == (1, 520)
    assert finding.evidence["largest"] == pytest.approx(0.1 + 1e-5, abs=2e-7)
    assert worse_than_notes(audited.found) == ["error outside-ball"]
    # Rounding to float32 is forgiven.
    assert Audited(tmp_path / "b", right, attacks=f"none, {attack}", rows=spoil(0.0)).found == []


@pytest.mark.parametrize("value", [-1e-7, 1.0000001, math.nan])
def test_images_outside_the_range(tmp_path: Path, value: float) -> None:
    def spoil(spec: AttackStage, column: dict[str, Any]) -> None:
        for place in np.flatnonzero(column["ids"] == 7):
            pixel = np.unravel_index(
                DATA.images[7].argmin() if not value > 0.5 else DATA.images[7].argmax(), (1, 8, 8)
            )
            column["images"][place][pixel] = value

    audited = Audited(tmp_path, by_threat({"clean": 0.95}, 0.5), attacks=f"none, {PGD}", rows=spoil)
    finding = audited.one("outside-range")
    assert (finding.evidence["images"], finding.evidence["of"]) == (1, 520)
    assert {f.severity for f in audited.found} == {"error"}


def test_rows_that_lie_about_their_norms(tmp_path: Path) -> None:
    def spoil(spec: AttackStage, column: dict[str, Any]) -> None:
        column["linf"] = np.full(len(column["ids"]), 0.05)

    audited = Audited(tmp_path, by_threat({"clean": 0.95}, 0.5), attacks=f"none, {PGD}", rows=spoil)
    assert audited.one("norms-disagree").evidence["images"] == 520
    assert audited.one("norms-disagree").evidence["difference"] == pytest.approx(0.0499, abs=1e-6)
    assert worse_than_notes(audited.found) == ["error norms-disagree"]


def test_images_that_cannot_be_read_are_reported_as_unchecked(tmp_path: Path) -> None:
    audited = Audited(tmp_path, by_threat({"clean": 0.99}, 0.5), attacks=f"none, {PGD}")
    attack = audited.sweep.cells[1].evaluate.source
    assert attack is not None and audited.found == []
    chunk = audited.sweep.cells[1].images.chunks[1].name
    audited.store.files.delete(audited.store.images_path(attack.id, chunk))
    again = findings(Results(audited.store, audited.sweep))
    assert [(f.severity, f.rule) for f in again] == [("note", "images-not-checked")]
    assert findings(Results(audited.store, audited.sweep), images=False) == []
