"""Mistakes of attacks and data sets that nobody made on purpose, and what the auditor says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted_accident_rows import TEST, Accident
from test_planted_rows import computed

from workflows.audit import Finding, findings
from workflows.audit.rules.images import _classes_left_out, _near
from workflows.grid.load import Sweep
from workflows.results.reader import Results

pytestmark = pytest.mark.slow

ATTACKS = {
    "half": "budget-not-used",
    "in standardised units": "budget-not-used",
    "another norm": "budget-not-used",
    "returns in the loop": "fewer-steps",
    "keeps the worst": "no-gain-over-start",
    "as bytes": "outside-ball",
}
"""Each mistake, and the rule that is about it."""

WEAK = ("gradient of the start", "mean over the batch")
"""What is weak everywhere has no rule, as docs/auditor.md says."""


@pytest.fixture(scope="module")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Finding]]:
    names = ["none", *ATTACKS, *WEAK]
    kind = Accident.model_fields["attack"].default
    entries = [f'{{attack: "{kind}", norm: linf, eps: 0.1, steps: 10, loss: margin, how: {how}}}' for how in names]
    results = computed(
        tmp_path_factory.mktemp("attacks"),
        datasets="{dataset: digits, images: {first: 90}}",
        attacks=", ".join(["none", *entries]),
    )
    clean, *cells = results.sweep.cells
    return {
        how: {f.rule: f for f in findings(Results(results.store, Sweep.of_cells("one", "", [clean, cell])))}
        for how, cell in zip(names, cells, strict=True)
    }


@pytest.mark.parametrize("how", ATTACKS)
def test_attacks(attacks: dict[str, dict[str, Finding]], how: str) -> None:
    assert attacks[how][ATTACKS[how]].severity in ("warning", "error")


@pytest.mark.parametrize("how", ["none", *WEAK])
def test_an_attack_that_is_sound_or_weak_everywhere_has_no_finding(
    attacks: dict[str, dict[str, Finding]], how: str
) -> None:
    assert set(attacks[how]) == {"few-images"}


def test_gradients_are_counted_against_steps(attacks: dict[str, dict[str, Finding]]) -> None:
    assert attacks["returns in the loop"]["fewer-steps"].evidence == {"gradients": 2, "steps": 10}


DATA = {"sorted by class": "few-classes", "nearly repeated": "repeated-images"}


@pytest.mark.parametrize("how", DATA)
def test_data_sets(tmp_path: Path, how: str) -> None:
    entry = f'{{dataset: "planted_accident_rows:Data", how: {how}, images: {{first: 90}}}}'
    found = {finding.rule: finding for finding in findings(computed(tmp_path, datasets=entry, attacks="none"))}
    assert set(found) == {DATA[how], "few-images"} and found[DATA[how]].severity == "warning"
    if how == "sorted by class":
        assert (found["few-classes"].evidence["classes"], found["few-classes"].evidence["of"]) == (2, 10)
    else:
        assert found["repeated-images"].evidence == {"repeated": 67, "images": 90}  # 23 images, up to four times


def test_distinct_images_and_random_choices_of_classes_are_no_finding() -> None:
    assert _near(TEST.images) == 0
    assert _near(np.concatenate([TEST.images[:5], TEST.images[:3] + 0.005])) == 3
    rng = np.random.default_rng(0)
    many = np.arange(100_000) % 1000
    for n in (10, 100, 1000):
        assert _classes_left_out(rng.choice(TEST.labels, n), TEST.labels) == 0
        assert _classes_left_out(rng.choice(many, n), many) == 0
    # Half of the images are in classes left out: 252 sets of five, each with probability 2^-n.
    halves = np.arange(1000) % 10
    assert _classes_left_out(halves[halves < 5][:20], halves) == pytest.approx(252 * 2.0**-20)
    assert _classes_left_out(halves[halves < 5][:14], halves) == 0  # 0.015 is above 1 %
    assert _classes_left_out(halves[:0], halves) == 0
    # The first 64 of a thousand classes with 50 images each are of two: 500 * 999 pairs.
    assert _classes_left_out(np.arange(64) // 50, np.arange(50_000) // 50) == pytest.approx(499_500 * 0.002**64)


def test_images_of_low_contrast_are_no_copies_and_copies_of_them_are() -> None:
    dark = (0.1 + 0.006 * np.random.default_rng(0).normal(size=(200, 1, 8, 8))).astype(np.float32)
    assert _near(dark) == 0
    assert _near(np.concatenate([dark, dark[:7] + 1e-4])) == 7


def test_an_attack_that_may_abort_early_is_not_held_to_its_steps(tmp_path: Path) -> None:
    attack = "{attack: cw-l2, norm: l2, eps: 0.02, steps: 1000, binary_search_steps: 1}"
    datasets = "{dataset: digits, images: {first: 8}}"
    rows = computed(tmp_path, datasets=datasets, attacks=f"none, {attack}")
    assert "fewer-steps" not in {finding.rule for finding in findings(rows)}
