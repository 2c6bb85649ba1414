"""Planted faults, each in a sweep of clean images and one ladder, and the rule that finds it.

Every group is one computed store; the report of a fault is that of its two cells alone. What rows cannot show is left
to the probe, which runs the defence: a detached residual whose gradient is nearly right, statistics over the batch,
a wrong count of evaluations.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_small import ASSETS, compute, small_sweep
from planted_rows import HOW, RANDOM

from workflows.audit import Finding, findings
from workflows.grid.load import Sweep
from workflows.results.reader import Results
from workflows.store import Store

pytestmark = pytest.mark.slow

LADDER = (
    "{attack: ladder, norm: linf, eps: EPS, rungs: [blind, bpda, exact, black-box], steps: 8, eot: 1, queries: 30, "
    "select: 4}"
)
HEAD = """
sweep: planted
datasets: [{datasets}]
classifiers: [{classifiers}]
denoisers: {{ddpm: {{path: {assets}/digits-ddpm, schedule: linear-1000}}}}
defences: [{defences}]
attacks: [{attacks}]
chunk: 600
compute: {{batch: 600}}
"""


def computed(folder: Path, **parts: str) -> Results:
    usual = {
        "datasets": "{dataset: digits, images: {first: 50}}",
        "classifiers": "digits-cnn",
        "defences": "none",
        "attacks": f"none, {LADDER.replace('EPS', '0.2')}",
    }
    sweep = small_sweep(folder, HEAD.format(assets=ASSETS.as_posix(), **{**usual, **parts}))
    compute(sweep, str(folder / "store"))
    return Results(Store(str(folder / "store")), sweep)


def report(results: Results, part: str, label: str) -> dict[str, Finding]:
    """Findings by rule of the cells whose part has this label, as if the sweep had no others; clean ones stay."""
    cells = [
        cell
        for cell in results.sweep.cells
        if results.sweep.labels[cell.id][part].startswith(label) or (part == "attack" and cell.attack is None)
    ]
    assert len(cells) == 2, [results.sweep.labels[cell.id][part] for cell in results.sweep.cells]
    alone = Sweep.of_cells("planted", results.sweep.text, cells)
    return {finding.rule: finding for finding in findings(Results(results.store, alone))}


def found(rules: dict[str, Finding]) -> set[str]:
    return {rule for rule, finding in rules.items() if finding.severity != "note"}


# --------------------------------------------------------------------------------------------------- defences

DEFENCES = {
    "detached": "zero-gradients",
    "negated": "no-gain-over-start",
    "rounded": "zero-gradients",
    "signed": "zero-gradients",
    "steep": "zero-gradients",
    "shattered": "adaptive-weaker-than-static",
    "not-finite": "gradients-not-finite",
    "looked-up": "nothing-changed",
    "blended": "nothing-changed",
    "by-number": "nothing-changed",
    "gradients-off": "nothing-changed",
    "for-the-judge": "random-though-deterministic",
    "noisy-for-the-judge": "judged-otherwise",
    "undeclared": "random-though-deterministic",
    "alternating": "random-though-deterministic",
    "reseeded": "draws-identical",
    "washed-out": "clean-at-chance",
}


@pytest.fixture(scope="module")
def defences(tmp_path_factory: pytest.TempPathFactory) -> Results:
    draws = {how: 4 if how in RANDOM else 1 for how in DEFENCES}
    entries = [f'{{purifier: "planted_rows:Planted", how: {how}, draws: {n}}}' for how, n in draws.items()]
    return computed(tmp_path_factory.mktemp("defences"), defences=", ".join(entries))


def test_no_fault_is_forgotten() -> None:
    assert set(DEFENCES) == {*HOW, "alternating"}


@pytest.mark.parametrize("how", DEFENCES)
def test_defences(defences: Results, how: str) -> None:
    rules = report(defences, "defence", how)
    assert DEFENCES[how] in found(rules), sorted(rules)


# ------------------------------------------------------------------------------------------------ classifiers

CLASSIFIERS = {
    "LARGE": "zero-gradients",
    "ROTATED": "clean-below-chance",
    "COARSE": "zero-gradients",
    "ONE_HOT": "zero-gradients",
    "AGAINST": "no-gain-over-start",
    "CLIPPED": "zero-gradients",
    "CONSTANT": "clean-at-chance",
}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Results:
    entries = ", ".join(f'{{classifier: "planted_rows:{name}", name: {name}}}' for name in CLASSIFIERS)
    return computed(
        tmp_path_factory.mktemp("classifiers"), datasets="{dataset: digits, images: {first: 90}}", classifiers=entries
    )


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(classifiers: Results, name: str) -> None:
    rules = report(classifiers, "classifier", name)
    assert CLASSIFIERS[name] in found(rules), sorted(rules)


# ---------------------------------------------------------------------------------------------------- attacks


def _wrong(how: str) -> str:
    return f'{{attack: "planted_rows:Wrong", how: {how}}}'


ATTACKS = {
    "idle": (_wrong("idle"), "attack-did-nothing"),
    "tiny": (_wrong("tiny"), "attack-did-nothing"),
    "half": (_wrong("half"), "attack-did-nothing"),
    "quarter": (_wrong("quarter"), "budget-not-used"),
    "one-pixel": (_wrong("one-pixel"), "budget-not-used"),
    "wrong-centre": (_wrong("wrong-centre"), "outside-ball"),
    "coarse": (_wrong("coarse"), "outside-ball"),
    "not-clipped": (_wrong("not-clipped"), "outside-range"),
    "shuffled": (_wrong("shuffled"), "outside-ball"),
    "loss-lost": (_wrong("loss-lost"), "loss-not-a-number"),
    "descending": ('{attack: "planted_rows:Descending", steps: 8, loss: margin}', "no-gain-over-start"),
    "short-steps": ("{attack: pgd, steps: 8, step_size: 0.0001}", "step-size-too-small"),
    "long-steps": ("{attack: pgd, steps: 8, step_size: 0.9}", "step-size-too-large"),
}
EPS = 0.1


@pytest.fixture(scope="module")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Finding]]:
    """The reports; the sound rung beside each is computed once."""
    sound = "{attack: pgd, steps: 8}"
    ladders = [
        f"{{attack: ladder, norm: linf, eps: {EPS}, rungs: [{sound}, {rung}]}}" for rung, _ in ATTACKS.values()
    ]
    # A budget of 8 is refused unless the entry says that it is meant.
    lifted = "unbounded: [eps]"
    ladders.append(f"{{attack: ladder, norm: linf, eps: 8, {lifted}, rungs: [{{attack: pgd, steps: 8, {lifted}}}]}}")
    ladders.append(f"{{attack: ladder, norm: linf, eps_255: 0.03, rungs: [{sound}]}}")
    results = computed(tmp_path_factory.mktemp("attacks"), attacks=", ".join(["none", *ladders]))
    clean, *attacked = results.sweep.cells
    names = [*ATTACKS, "large-eps", "small-eps"]
    reports = {}
    for name, cell in zip(names, attacked, strict=True):
        alone = Sweep.of_cells("planted", results.sweep.text, [clean, cell])
        reports[name] = {finding.rule: finding for finding in findings(Results(results.store, alone))}
    return reports


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_that_hide_behind_a_sound_one(attacks: dict[str, dict[str, Finding]], name: str) -> None:
    finding = attacks[name][ATTACKS[name][1]]
    assert finding.severity != "note" and "rung 2 of the ladder" in finding.text


def test_budgets_that_are_no_numbers_of_their_norm(attacks: dict[str, dict[str, Finding]]) -> None:
    large, small = (attacks[name]["implausible-eps"] for name in ("large-eps", "small-eps"))
    assert large.severity == small.severity == "warning"
    assert "was 8/255 meant" in large.text and large.evidence["limit"] == 1
    assert "was eps 0.03 meant" in small.text and small.evidence["eps_255"] == pytest.approx(0.03)


# -------------------------------------------------------------------------------------------------- data sets

DATA = {
    "shifted-labels": ("", "clean-below-chance"),
    "shuffled-labels": ("", "clean-at-chance"),
    "repeated": ("accept: [duplicates], ", "repeated-images"),
    "one-class": ("accept: [one-class], ", "one-class"),
    "seen": ("", "trained-on-judged-images"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Results:
    entries = [
        f'{{dataset: "planted_rows:Data", how: {how}, {accept}images: {{first: {60 if how == "one-class" else 90}}}}}'
        for how, (accept, _) in DATA.items()
    ]
    entries.append("{dataset: digits, split: train, images: {first: 90}}")
    folder = tmp_path_factory.mktemp("data")
    return computed(folder, datasets=", ".join(entries), attacks=f"none, {LADDER.replace('EPS', '0.2')}")


@pytest.mark.parametrize("how", DATA)
def test_data_sets(data: Results, how: str) -> None:
    rules = report(data, "dataset", how)
    assert DATA[how][1] in found(rules), sorted(rules)


def test_the_training_split_and_the_networks_that_have_seen_it(data: Results) -> None:
    rules = report(data, "dataset", "digits (train)")
    assert rules["training-split"].severity == "warning"
    seen = rules["trained-on-judged-images"]
    assert seen.severity == "error" and (seen.evidence["seen"], seen.evidence["images"]) == (90, 90)


# ------------------------------------------------------------------------------------------------------ sound


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two sound classifiers; a small one stands for those of others."""
    rungs = "rungs: [blind, exact, black-box], steps: 4, eot: 2, queries: 10, select: 2"
    small = f"{{attack: ladder, norm: linf, eps: 0.1, {rungs}}}"
    plain = "{purifier: jpeg, quality: 75}, {purifier: bit-depth, bits: 4}"
    chain = "{purifier: diffpure, denoiser: ddpm, schedule: linear-1000, t_star: 40, steps: 2, draws: 2}"
    return computed(
        tmp_path_factory.mktemp("sound"),
        datasets="{dataset: digits, images: {first: 24}}",
        classifiers="digits-cnn, digits-at",
        defences=f"none, {{purifier: gaussian-noise, sigma: 0.1, draws: 4}}, {plain}, {chain}",
        attacks=f"none, {small}",
    )


@pytest.mark.parametrize("classifier", ["digits-cnn", "digits-at"])
def test_sound_defences_have_no_finding_but_true_ones(sound: Results, classifier: str) -> None:
    labels = sound.sweep.labels
    names = {labels[cell.id]["defence"] for cell in sound.sweep.cells}
    for name in sorted(names):
        cells = [
            c
            for c in sound.sweep.cells
            if (labels[c.id]["classifier"], labels[c.id]["defence"]) == (classifier, name)
        ]
        rules = findings(Results(sound.store, Sweep.of_cells("sound", sound.sweep.text, cells)))
        assert {f.rule for f in rules} <= {"few-images"}, (name, [f.text for f in rules])
