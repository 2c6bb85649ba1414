"""Settings of authors by name: what they expand to, what may be stated otherwise, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from defense.denoisers import digits_denoiser
from defense.errors import InvalidInput
from tasks.attacks import TransferConfig
from workflows.assets.bundled import find_sweep
from workflows.assets.catalogue import catalogue
from workflows.documents.authors import authors_setting, authors_settings, expanded
from workflows.grid.load import load_sweep
from workflows.grid.sweep import Sweep
from workflows.published.papers import load_paper
from workflows.writing.schema import sweep_schema

HEAD = f"""\
datasets: [{{dataset: digits, images: {{first: 4}}}}]
classifiers: [digits-cnn]
denoisers:
  small: {{format: oracle, schedule: linear-1000, shape: [1, 8, 8]}}
  flow: {{format: oracle, schedule: flowpure, shape: [1, 8, 8]}}
  shipped: {{format: diffusers, path: {digits_denoiser().path}, schedule: linear-1000}}
"""
DENOISERS = {"flowpure": "flow", "flowpure-pgd": "flow", "ssni": "shipped"}
"""What a setting is about where it is not any noise prediction."""
OWN = {
    "aaopt-perturbation": ", perturbation: small",
    "agdm": ", auxiliary: digits-trades",
    "diffcap": ", t_star: 100, schedule: linear-1000",
    "freqpure": ", amplitude_radius: 2, phase_radius: 2",
}
"""What an entry states itself: networks and sizes of digits."""


def sweep(folder: Path, defence: str, attack: str = "none") -> Sweep:
    (folder / "s.yaml").write_text(f"{HEAD}defences: [{defence}]\nattacks: [{attack}]\n")
    return load_sweep(folder / "s.yaml")


@pytest.mark.parametrize("name", authors_settings())
def test_every_setting_is_a_cell(tmp_path: Path, name: str) -> None:
    setting = authors_setting(name)
    denoiser = ", denoiser: small" if setting.attack and "purifier" in setting.attack else ""
    network = "energy: digits-energy" if name == "ebm" else f"denoiser: {DENOISERS.get(name, 'small')}"
    entry = f"{{published: {name}, {network}{OWN.get(name, '')}}}"
    other = OWN[name] if name == "aaopt-perturbation" else ""  # the attacked purifier has one as well
    attack = f"{{as-published: {name}, norm: linf, eps_255: 8{denoiser}{other}}}"
    if setting.attack is None:
        with pytest.raises(InvalidInput, match=f"no attack of the authors of '{name}' is known"):
            sweep(tmp_path, entry, attack)
    (cell,) = sweep(tmp_path, entry, "none" if setting.attack is None else attack).cells
    assert cell.defence.purifier.purifier == setting.defence["purifier"]
    assert cell.defence.draws == setting.defence.get("draws", 1)
    for field, value in setting.defence.items():
        have = cell.defence.purifier.parameter(field)
        if have is not None and field not in ("amplitude_radius", "phase_radius", "sigma_eq"):
            assert have == value, field
    assert setting.traps and setting.source
    if setting.attack is None:
        return
    assert cell.attack is not None and cell.attack.attack == setting.attack["attack"]
    assert cell.attack.eps == pytest.approx(8 / 255)


def test_what_the_entry_states_goes_before(tmp_path: Path) -> None:
    (cell,) = sweep(
        tmp_path,
        "{published: diffpure, denoiser: small, sigma_eq: 0.2, steps: 7, draws: 3}",
        "{as-published: freqpure, norm: linf, eps: 0.1, steps: 5, eot: 2}",
    ).cells
    purifier = cell.defence.purifier
    assert (purifier.parameter("form"), purifier.parameter("steps"), cell.defence.draws) == ("sde", 7, 3)
    assert purifier.noise_level is not None and purifier.noise_level.sigma_eq == pytest.approx(0.2, abs=0.01)
    attack = cell.attack
    assert attack is not None and (attack.parameter("steps"), attack.eot, attack.gradient) == (5, 2, "surrogate(1)")


def test_an_attack_on_another_purifier_has_its_fields_in_its_source(tmp_path: Path) -> None:
    (cell,) = sweep(
        tmp_path,
        "{published: diff-ap, denoiser: small}",
        "{as-published: diff-ap, denoiser: small, norm: linf, eps: 0.1, steps: 5}",
    ).cells
    attack = cell.attack
    assert isinstance(attack, TransferConfig) and attack.purifier is not None
    assert (attack.source.parameter("steps"), attack.source.eot, attack.source.eps) == (5, 5, 0.1)
    assert not attack.purifier.guided and cell.defence.purifier.guided


@pytest.mark.parametrize(
    ("defence", "attack", "message"),
    [
        (
            "{published: freqpur, denoiser: small}",
            "none",
            r"yaml:7: .*no published setting 'freqpur'; did you mean",
        ),
        ("{published: [diffpure], denoiser: small}", "none", "published is one name, not"),
        ("{published: diffpure, purifier: jpeg}", "none", "`published` names the purifier: leave `purifier` out"),
        ("none", "{as-published: diff-ap, norm: linf, eps: 0.1}", "attack another purifier .* say with which"),
        ("none", "{as-published: diffpure, norm: linf, eps: 0.1, stepz: 2}", "unknown field 'stepz'"),
        ("{published: diffpure, denoiser: small, stepz: 2}", "none", "unknown field 'stepz'"),
    ],
)
def test_mistakes_have_their_place(tmp_path: Path, defence: str, attack: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        sweep(tmp_path, defence, attack)

    assert re.search(message, str(caught.value)), str(caught.value)


def test_other_entries_are_left_alone() -> None:
    entry: dict[str, Any] = {"purifier": "jpeg", "quality": 50}
    assert expanded(entry, "purifier") is entry and expanded({"published": 1}, "classifier") == {"published": 1}


def test_they_are_listed_with_their_traps() -> None:
    listed = {entry["name"]: entry for entry in catalogue("published")}
    assert list(listed) == authors_settings()
    assert any("gradient is that of one reverse step" in field for field in listed["freqpure"]["fields"])


def test_the_schema_takes_them() -> None:
    document = {
        "sweep": "s",
        "defences": [{"published": "freqpure", "denoiser": "small"}],
        "attacks": [{"as-published": "freqpure", "norm": "linf", "eps_255": 8}],
    }
    jsonschema.validate(document, sweep_schema())
    document["defences"] = [{"published": "freqpur"}]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, sweep_schema())


def test_claims_of_forms_are_those_forms_own() -> None:
    values = load_paper("aaopt").values
    assert {value.defence: value.accuracy for value in values if value.table == "BPDA"} == {
        "score-opt O": 81.36,
        "score-opt N": 90.07,
        "aaopt-perturbation": 91.36,
    }


def _attacks(name: str) -> dict[str, dict[str, bool]]:
    """Of each random defence of a sweep its attacks by label, and whether an entry names them as published."""
    found: dict[str, dict[str, bool]] = {}
    loaded = load_sweep(find_sweep(name))
    for cell in loaded.cells:
        if cell.defence.purifier.stochastic:
            entry: Any = loaded.document.data
            for key in cell.entries.threat or ():
                entry = entry[key]
            label = "clean" if cell.attack is None else cell.attack.attack
            named = isinstance(entry, dict) and "as-published" in entry
            found.setdefault(cell.defence.purifier.id, {})[label] = named
    return found


def test_the_bundled_sweep_has_each_defence_as_published_and_under_the_strongest_attack() -> None:
    assert {cell.images.count for cell in load_sweep(find_sweep("leaderboard")).cells} == {599}
    attacks = _attacks("leaderboard")
    assert len(attacks) == 35
    assert all({"clean", "strongest"} <= found.keys() for found in attacks.values())
    assert sum(any(found.values()) for found in attacks.values()) == 26


def test_so_has_that_of_cifar10() -> None:
    document = yaml.safe_load(find_sweep("leaderboard-cifar10").read_text())
    assert document["datasets"] == [{"dataset": "cifar10", "images": {"first": 64}}]
    names = []
    for part in document["include"]:
        (defence,) = part["defences"]
        clean, theirs, strongest = part["attacks"]
        assert (clean, strongest["attack"]) == ("none", "strongest")
        assert theirs["as-published"] == defence["published"] and theirs["eps_255"] == strongest["eps_255"] == 4
        assert authors_setting(defence["published"]).attack is not None
        names.append(defence["published"])
    assert len(names) == len(set(names)) == 15
