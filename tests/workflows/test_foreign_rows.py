"""Attacks and data sets of others, each with one mistake and alone in its sweep, and what the auditor says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_foreign import Foreign
from test_planted_rows import computed

from defense.errors import InvalidInput
from tasks.attacks.base import AttackResult, checked_result
from workflows.audit import Finding, findings
from workflows.audit.rules.stored_images import _Excess, _left_out
from workflows.grid.load import Sweep
from workflows.results.reader import Results

DIGITS = "{dataset: digits, images: {first: 90}}"
ATTACKS = {
    "targeted at the label": "surer-than-clean",
    "labels one off": "surer-than-clean",
    "steps down": "surer-than-clean",
    "sign lost": "surer-than-clean",
    "gradients of neighbours": "surer-than-clean",
    "start returned": "surer-than-clean",
    "one perturbation for all": "surer-than-clean",
    "two images": "surer-than-clean",
    "one class": "fewer-steps",
    "first ten": "fewer-steps",
    "upper half": "budget-not-used",
    "infinite loss": "loss-not-a-number",
}
"""Each mistake, and the rule that is about it."""


def of_each(results: Results) -> list[dict[str, Finding]]:
    """The findings of each attacked cell beside the clean one, by rule."""
    clean, *attacked = results.sweep.cells
    return [
        {f.rule: f for f in findings(Results(results.store, Sweep.of_cells("one", "", [clean, cell])))}
        for cell in attacked
    ]


@pytest.fixture(scope="module")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Finding]]:
    names = ["sound", *ATTACKS]
    entries = [f'{{attack: "planted_foreign:Foreign", norm: linf, eps: 0.1, how: {how}}}' for how in names]
    # Random starts depend on the code of an attack: so many images that no draw of them matters.
    datasets = "{dataset: digits, images: {first: 300}}"
    results = computed(tmp_path_factory.mktemp("f"), datasets=datasets, attacks=", ".join(["none", *entries]))
    return dict(zip(names, of_each(results), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("how", ATTACKS)
def test_attacks(attacks: dict[str, dict[str, Finding]], how: str) -> None:
    assert attacks[how][ATTACKS[how]].severity in ("warning", "error")
    assert set(attacks["sound"]) == {"few-images"}


@pytest.mark.slow
def test_what_a_finding_says(attacks: dict[str, dict[str, Finding]]) -> None:
    helped = attacks["targeted at the label"]["surer-than-clean"]
    assert helped.evidence["risen"] >= 0.9 * helped.evidence["changed"] and helped.evidence["images"] == 300
    assert helped.evidence["p"] < 1e-9
    assert attacks["first ten"]["fewer-steps"].evidence == {"gradients": 0, "steps": 10}
    assert re.search(
        r"says 10 steps, .* 0 gradients at most on 2\d\d of the 2", attacks["first ten"]["fewer-steps"].text
    )
    assert attacks["upper half"]["budget-not-used"].evidence["share"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "defence", "rule"),
    [
        (
            '{attack: "planted_foreign:Foreign", norm: l2, eps: 0.5, how: norm of the batch}',
            "none",
            "surer-than-clean",
        ),
        ("{attack: pgd, norm: l2, eps_255: 8, steps: 3}", "none", "implausible-eps"),
        ("{attack: square, norm: linf, eps: 0.1, queries: 10}", "none", "gradient-not-followed"),
        ("{attack: random-noise, norm: linf, eps: 0.1}", "none", "gradient-not-followed"),
        (
            "{attack: square, norm: linf, eps: 0.1, queries: 10, knows: purifier}",
            "{purifier: gaussian-noise, sigma: 0.1, draws: 2}",
            "gradient-not-followed",
        ),
        (
            "{attack: pgd, norm: linf, eps: 0.1, steps: 1, gradient: bpda, eot: 2}",
            "{purifier: diffpure, denoiser: ddpm, schedule: linear-1000, t_star: 20, steps: 1, draws: 2}",
            "gradient-not-followed",
        ),
        (
            "{attack: ladder, norm: linf, eps: 0.1, rungs: [blind], steps: 2, select: 2}",
            "{purifier: gaussian-noise, sigma: 0.1, draws: 2}",
            "only-static-attacks",
        ),
        (
            '{attack: "planted_foreign:Foreign", norm: linf, eps: 0.5, how: steps down}',
            "none",
            "above-chance-at-full-budget",
        ),
    ],
)
def test_attacks_that_know_less_than_a_figure_needs(tmp_path: Path, attack: str, defence: str, rule: str) -> None:
    (found,) = of_each(computed(tmp_path, datasets=DIGITS, attacks=f"none, {attack}", defences=defence))
    assert found[rule].severity in ("warning", "error")


@pytest.mark.slow
def test_sound_attacks_of_any_kind_and_budget_have_no_finding_but_true_ones(tmp_path: Path) -> None:
    curve = "{attack: pgd, norm: l2, eps: [0.02, 0.05, 0.3], steps: 3}"
    entries = [
        curve,
        "{attack: pgd, norm: linf, eps: [0.004, 0.5], steps: 10}",
        "{attack: pgd, norm: linf, eps: 0.1, steps: 3, keep: last}",
        "{attack: pgd, norm: linf, eps: 0.1, steps: 5, loss: dlr}",
        "{attack: apgd, norm: l1, eps: 3, steps: 6}",
        "{attack: cw-l2, norm: l2, eps: 0.5, steps: 20, binary_search_steps: 1}",
        "{attack: stadv, norm: flow, eps: 0.05, steps: 3}",
        "{attack: square, norm: linf, eps: 0.1, queries: 10}",
    ]
    results = computed(
        tmp_path, datasets=DIGITS, classifiers="digits-cnn, digits-trades", attacks=", ".join(["none", *entries])
    )
    assert {finding.rule for finding in findings(results)} == {"few-images"}


@pytest.mark.slow
def test_weak_attacks_on_random_defences_are_not_taken_for_helpers(tmp_path: Path) -> None:
    chain = "{purifier: diffpure, denoiser: ddpm, schedule: linear-1000, t_star: 200, steps: 2, draws: 4}"
    results = computed(
        tmp_path,
        datasets="{dataset: digits, images: {first: 60}}",
        defences="{purifier: gaussian-noise, sigma: 0.4, draws: 4}, " + chain,
        attacks="none, {attack: pgd, norm: linf, eps: [0.005, 0.03], steps: 2, gradient: exact, eot: [1, 2]}",
    )
    assert {finding.rule for finding in findings(results) if finding.severity != "note"} == set()


@pytest.mark.slow
def test_an_identity_in_the_place_of_a_rounding_is_not_taken_for_a_helper(tmp_path: Path) -> None:
    attacks = "none, {attack: pgd, norm: linf, eps: [0.02, 0.1], steps: 2, gradient: [exact, bpda]}"
    target = '{attack: "planted_foreign:Foreign", norm: linf, eps: 0.1, gradient: exact, how: targeted at the label}'
    results = computed(
        tmp_path,
        datasets="{dataset: digits, images: {first: 300}}",
        defences="{purifier: bit-depth, bits: 1}, {purifier: jpeg, quality: 10}",
        attacks=f"{attacks}, {target}",
    )
    labels = results.sweep.labels
    found = [finding for finding in findings(results) if finding.rule == "surer-than-clean"]
    assert {labels[cell]["attack"] for f in found for cell in f.cells} == {"clean", "targeted at the label exact"}
    assert {labels[f.cells[0]]["defence"] for f in found} == {"bit-depth 1", "jpeg q=10"}


# -------------------------------------------------------------------------------------------------- data sets

DATA = (
    "half the contrast",
    "inverted",
    "mirrored",
    "rows and columns exchanged",
    "another gamma",
    "every second pixel",
    "two grey levels",
    "two classes exchanged",
    "wrong labels",
)


@pytest.mark.slow
def test_data_sets_that_are_not_those_of_the_training_card(tmp_path: Path) -> None:
    names = [*DATA, "as they are"]
    entries = [f'{{dataset: "planted_foreign:Data", how: {how}, images: {{first: 90}}}}' for how in names]
    results = computed(tmp_path, datasets=", ".join(entries), attacks="none")
    found = findings(results)
    cards = {cell: f for f in found if f.rule == "clean-below-card" for cell in f.cells}
    labels = [results.sweep.labels[cell.id]["dataset"] for cell in results.sweep.cells if cell.id in cards]
    assert labels == list(DATA)
    assert all(f.severity == "warning" and f.evidence["card"] == 0.993322 for f in cards.values())


@pytest.mark.slow
def test_without_a_clean_cell_the_rows_of_an_attack_say_what_the_classifier_knows(tmp_path: Path) -> None:
    data = '{dataset: "planted_foreign:Data", how: inverted, images: {first: 90}}'
    attack = "{attack: pgd, norm: linf, eps: 0.1, steps: 1}"
    found = findings(computed(tmp_path, datasets=data, defences="{purifier: jpeg}", attacks=attack))
    (card,) = [f for f in found if f.rule == "clean-below-card"]
    assert card.evidence["images"] == 90 and card.evidence["accuracy"] < 0.4


# ---------------------------------------------------------------------------------------------------- results

RESULTS = {
    "NaN in some images": "makes NaN or infinite pixels of 2 of 8 images",
    "double": "returns 'images' as torch.float64 of shape (8, 1, 8, 8), for float32 images of shape (8, 1, 8, 8)",
    "flat": "returns 'images' as torch.float32 of shape (8, 64)",
    "one image short": "returns 'images' as torch.float32 of shape (7, 1, 8, 8)",
    "mean loss": "returns 'loss' as torch.float32 of shape ()",
    "loss in a column": "returns 'loss' as torch.float32 of shape (8, 1)",
    "short column": "returns 'score' as torch.float32 of shape (7,)",
    "counts gradients itself": "has a column 'gradient_zero', which puregrid counts itself",
    "no result": "returns tuple, not an AttackResult",
}


@pytest.mark.parametrize("how", RESULTS)
def test_what_is_no_result_is_refused(how: str) -> None:
    attack = Foreign(norm="linf", eps=0.1, how=how)
    made = attack._returned(torch.rand(8, 1, 8, 8), torch.rand(8))
    with pytest.raises(InvalidInput) as refused:
        checked_result(made, torch.rand(8, 1, 8, 8), f"attack {how!r}")
    assert refused.value.message.startswith(f"attack {how!r} {RESULTS[how]}")


def test_a_result_that_is_still_in_its_graph_is_taken_out_of_it() -> None:
    attack = Foreign(norm="linf", eps=0.1, how="in its graph")
    x, loss = torch.rand(8, 1, 8, 8), torch.rand(8)
    result = checked_result(attack._returned(x, loss), x, "attack")
    assert isinstance(result, AttackResult) and not result.images.requires_grad and not result.loss.requires_grad
    assert torch.equal(result.images, x)


@pytest.mark.slow
def test_a_unit_of_such_an_attack_names_it(tmp_path: Path) -> None:
    entry = '{attack: "planted_foreign:Foreign", norm: linf, eps: 0.1, steps: 1, how: NaN in some images}'
    with pytest.raises(InvalidInput, match="attack 'NaN in some images' makes NaN or infinite pixels of 2 of 8"):
        computed(tmp_path, datasets="{dataset: digits, images: {first: 8}}", attacks=f"none, {entry}")


def test_a_channel_that_no_image_has_changed() -> None:
    excess = _Excess(images=20)
    excess.still = np.zeros((3, 64), dtype=bool)
    attack = Foreign(norm="l2", eps=0.1, how="first channel")
    assert list(_left_out(excess, attack, [])) == []
    excess.still[1:] = True
    (found,) = _left_out(excess, attack, [])
    assert (found.rule, found.evidence["channels"]) == ("budget-not-used", 2)
    excess.still[:] = False
    excess.still[:, :30] = True  # a sparse attack in l_2 may leave pixels out
    assert list(_left_out(excess, attack, [])) == []
    assert len(list(_left_out(excess, Foreign(norm="linf", eps=0.1, how="a mask"), []))) == 1
