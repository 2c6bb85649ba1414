"""Settings of authors by name: what they expand to, what may be stated otherwise, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml

from defense.denoisers import digits_denoiser
from defense.errors import InvalidInput
from tasks.attacks import TransferConfig
from workflows.assets.bundled import find_sweep
from workflows.assets.catalogue import catalogue
from workflows.documents.authors import authors_setting, authors_settings, expanded, recognised
from workflows.grid.load import load_sweep, recorded_sweep
from workflows.grid.sweep import Sweep
from workflows.leaderboard.board import _settings
from workflows.leaderboard.entries import Entry
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


PLAIN = "{purifier: diffpure, form: ddim, t_star: 100, schedule: linear-1000, steps: 5, denoiser: small%s}"
ADBM = "{published: adbm, denoiser: small%s}"
PGD = (
    "{attack: pgd-eot, steps: 200, step_size: 0.007, eot: 20, random_start: true, keep: last, gradient: exact, "
    "norm: linf, eps: 0.1}"
)


@pytest.mark.parametrize(
    "written", [[ADBM % "", PLAIN % ""], [PLAIN % "", ADBM % ""], [ADBM % "", PLAIN % ", draws: 3"]]
)
def test_a_name_is_kept_whichever_entry_of_a_purifier_has_it(tmp_path: Path, written: list[str]) -> None:
    attacks = [PGD, "{as-published: adbm, norm: linf, eps: 0.1}"]
    for order in (attacks, attacks[::-1]):
        made = sweep(tmp_path, ", ".join(written), ", ".join(["none", *order]))
        assert {tuple(made.names[cell.defence.purifier.id]) for cell in made.cells} == {("adbm",)}
        assert [made.names[cell.attack.id] for cell in made.cells if cell.attack] == [{"adbm"}] * (
            len(made.cells) // 2
        )


@pytest.mark.parametrize("name", ["adbm", "aaopt", "flowpure", "freqpure"])
def test_the_record_of_a_sweep_in_python_has_the_names(tmp_path: Path, name: str) -> None:
    head = yaml.safe_load(HEAD)
    entry = {"published": name, "denoiser": DENOISERS.get(name, "small")}
    attack = {"as-published": name, "norm": "linf", "eps": 0.1, **({"denoiser": "small"} if name == "aaopt" else {})}
    own = {"amplitude_radius": 2, "phase_radius": 2} if name == "freqpure" else {}
    made = Sweep(
        "s",
        **head,
        defences=[{**entry, **own, "sigma_eq": 0.2, "steps": 2} if name != "aaopt" else entry],
        attacks=[attack],
    )
    again = recorded_sweep(made.text, tmp_path)
    assert again.id == made.id
    (cell,) = made.cells
    assert cell.attack is not None
    assert made.names == again.names == {cell.defence.purifier.id: {name}, cell.attack.id: {name}}


def test_a_level_of_ones_own_goes_before_that_of_the_setting_with_its_schedule(tmp_path: Path) -> None:
    (cell,) = sweep(tmp_path, "{published: flowpure, denoiser: flow, sigma_eq: 0.2}").cells
    assert cell.defence.purifier.noise_level is not None
    assert cell.defence.purifier.noise_level.sigma_eq == pytest.approx(0.2, abs=0.01)
    (cell,) = sweep(tmp_path, "{published: diffpure, denoiser: flow, sigma_eq: 0.2, form: ode}").cells
    assert cell.defence.purifier.parameter("schedule") == "flowpure"
    # What else is stated in levels of that schedule would mean another one.
    with pytest.raises(InvalidInput, match="is not the one that the denoiser was trained on"):
        sweep(tmp_path, "{published: heterogeneous, denoiser: flow, sigma_eq: 0.2}")


def test_what_the_authors_attack_is_may_be_said_again(tmp_path: Path) -> None:
    entry = "{as-published: adbm, norm: linf, eps: 0.1, knows: purifier, loss: ce, attacked: mean-loss}"
    assert (
        sweep(tmp_path, "none", entry).id == sweep(tmp_path, "none", "{as-published: adbm, norm: linf, eps: 0.1}").id
    )


def test_a_network_of_ones_own_is_recognised_by_its_name_alone(tmp_path: Path) -> None:
    (named,) = sweep(tmp_path, ADBM % "", PGD).cells
    (plain,) = sweep(tmp_path, PLAIN % "", PGD).cells
    assert named.attack is not None and plain.attack is not None
    found = recognised(named.defence.purifier, named.attack, ["adbm"])
    assert found is not None and found.name == "adbm"
    assert recognised(plain.defence.purifier, plain.attack) is None


def test_what_others_did_is_no_attack_of_this_ones_authors(tmp_path: Path) -> None:
    def attacks_of(defence: str) -> set[str]:
        made = sweep(tmp_path, defence, GRID)
        source: Any = SimpleNamespace(sweep=made)
        entry = Entry("", made.cells[0], "", "", "", {1: (source, list(made.cells))})
        return {setting.name for setting in _settings(entry).values() if setting is not None}

    GRID = ", ".join(
        f"{{as-published: {name}, norm: linf, eps: 0.1}}" for name in ("adbm", "diffpure", "rdc", "gdmp")
    )
    assert attacks_of("none") == attacks_of("{purifier: jpeg, quality: 50}") == set()
    assert attacks_of(ADBM % "") == {"adbm"}
    assert attacks_of("{published: likelihood-maximization, denoiser: small}") == {"rdc"}  # one method by two names
    assert attacks_of("{purifier: gdmp, denoiser: small, schedule: linear-1000, t_star: 9, steps: 3}") == {"gdmp"}


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
