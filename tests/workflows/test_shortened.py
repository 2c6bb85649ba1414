"""A shortened attack of authors: what was cut is known from the specs, and what makes it theirs cannot be changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from defense.errors import InvalidInput
from tasks.attacks import APGDConfig, AttackConfig, AutoAttackConfig, DiffHammerConfig, PGDEOTConfig
from workflows.documents.authors import authors_setting
from workflows.documents.shortened import Departure, departure
from workflows.grid.load import load_sweep

HEAD = """\
datasets: [{dataset: digits, images: {first: 4}}]
classifiers: [digits-cnn]
denoisers: {small: {format: oracle, schedule: linear-1000, shape: [1, 8, 8]}}
defences: [{published: diffpure, denoiser: small}]
attacks:
"""

LINF = {"norm": "linf", "eps": 0.1}


def attack(folder: Path, entry: str) -> AttackConfig:
    (folder / "s.yaml").write_text(f"{HEAD}  - {{{entry}, norm: linf, eps: 0.1}}\n")
    (cell,) = load_sweep(folder / "s.yaml").cells
    assert cell.attack is not None
    found: AttackConfig = cell.attack
    return found


@pytest.mark.parametrize(
    ("name", "own", "cut", "otherwise"),
    [
        ("freqpure", "", (), ()),
        ("freqpure", "steps: 10, eot: 4", ("eot 4 of 20", "steps 10 of 200"), ()),
        ("freqpure", "steps: 10, step_size: 0.03", ("steps 10 of 200",), ("step_size 0.03 for 0.007",)),
        (
            "gradual-noise",
            "eot: 4, gradient: surrogate(2)",
            ("eot 4 of 20",),
            ("gradient surrogate(2) for surrogate(5)",),
        ),
        ("aaopt", "denoiser: small, steps: 5", ("steps 5 of 20",), ()),
        ("diffpure", "steps: 10, calls: 2", ("calls 2 of 20", "steps 10 of 100"), ()),
        (
            "diffpure",
            "attacks: [apgd-ce], calls: 40",
            ("attacks apgd-ce of apgd-ce + apgd-dlr",),
            ("calls 40 for 20",),
        ),
        ("flowpure", "losses: [margin]", ("losses margin of margin + ce + dlr",), ()),
        ("osgd", "steps: 50", (), ("steps 50 for 40",)),
    ],
)
def test_what_was_cut_is_read_from_the_specs(
    tmp_path: Path, name: str, own: str, cut: tuple[str, ...], otherwise: tuple[str, ...]
) -> None:
    entry = f"as-published: {name}, {own}" if own else f"as-published: {name}"
    assert departure(authors_setting(name).attack, attack(tmp_path, entry)) == Departure(cut, otherwise)


def test_another_kind_of_attack_and_none_at_all() -> None:
    other = APGDConfig.model_validate(LINF)
    assert departure(authors_setting("osgd").attack, other).otherwise == ("apgd-100 linf for pgd-40 linf last",)
    assert departure(authors_setting("consistency").attack, other) == Departure()


def test_what_is_said_of_it() -> None:
    assert Departure().sentence() == ""
    assert Departure(("steps 1 of 2", "eot 1 of 20"), ("step_size 0.1 for 0.007",)).sentence() == (
        "Their attack is shortened here: steps 1 of 2, eot 1 of 20. Set otherwise: step_size 0.1 for 0.007."
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("as-published: freqpure, gradient: exact", r"`gradient: exact` is not what the authors of 'freqpure'"),
        ("as-published: freqpure, gradient: [surrogate(2), bpda]", r"`gradient: bpda` is not .* \(surrogate\(1\)\)"),
        ("as-published: freqpure, loss: margin", r"`loss: margin` is not .* \(ce\)"),
        ("as-published: diffpure, version: standard", r"`version: standard` is not .* \(rand\)"),
        ("as-published: flowpure, losses: [brier]", r"losses"),
        ("as-published: aaopt, denoiser: small, gradient: exact", r"`gradient: exact` is not"),
        ("as-published: osgd, knows: purifier", r"`knows: purifier` is not .* \(classifier\)"),
    ],
)
def test_what_makes_it_theirs_is_not_to_be_changed(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        attack(tmp_path, entry)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert re.search(r"s.yaml:\d+: ", str(caught.value))


def test_effort_is_what_a_shorter_attack_has_less_of() -> None:
    effort: Any = AutoAttackConfig.model_validate({**LINF, "version": "rand", "gradient": "exact"}).effort
    assert effort == {"attacks": ("apgd-ce", "apgd-dlr"), "steps": 100, "calls": 20, "eot": 1}
    assert AutoAttackConfig.model_validate(LINF).effort == {
        **{"attacks": ("apgd-ce", "apgd-t", "fab-t", "square"), "steps": 100, "calls": 1, "targets": 9},
        **{"queries": 5000, "eot": 1},
    }
    assert PGDEOTConfig.model_validate(LINF).effort == {"steps": 200, "eot": 20, "restarts": 1}
    assert DiffHammerConfig.model_validate(LINF).effort["losses"] == ("margin", "ce", "dlr")
