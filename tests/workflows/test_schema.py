"""The schema of sweep files: what is right passes, what is wrong is marked, and both as `plan` sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from typer.testing import CliRunner

from workflows.assets.bundled import bundled_sweeps
from workflows.cli import app
from workflows.grid.load import load_sweep
from workflows.writing.first_sweep import DEFENCES, first_sweep
from workflows.writing.schema import sweep_schema

GOOD = """\
sweep: good
datasets: [{dataset: digits, images: {first: 4}}]
classifiers: [digits-cnn]
defences:
  - none
  - {purifier: diffpure, denoiser: digits-ddpm, schedule: linear-1000, t_star: [50, 100], steps: 5, draws: 3}
attacks:
  - none
  - {attack: pgd, norm: linf, eps_255: [2, 8], steps: 5}
  - {attack: ladder, norm: linf, eps: 0.1, rungs: [blind, exact, {attack: square, queries: 50}]}
  - mypackage.attacks:Mine
corruptions: [{corruption: benchmark, severity: [1, 5]}]
certificates: [{sigma: [0.25, 0.5], n: 1000}]
quality: true
probe: foreign
compute: {batch: 10}
exclude: [{defence: {t_star: 100}, seed: 1}]
"""


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    schema = sweep_schema()
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def test_a_file_with_all_sections_passes(validator: Draft7Validator) -> None:
    assert list(validator.iter_errors(yaml.safe_load(GOOD))) == []


@pytest.mark.parametrize("name", sorted(bundled_sweeps()))
def test_every_bundled_sweep_passes(validator: Draft7Validator, name: str) -> None:
    content = yaml.safe_load(bundled_sweeps()[name].read_text(encoding="utf-8"))
    assert [error.message[:200] for error in validator.iter_errors(content)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"sweap": "x"},
        {"chunk": 0},
        {"chunk": "ten"},
        {"compute": {"batch": 10, "treads": 1}},
        {"datasets": ["cifar11"]},
        {"datasets": [{"dataset": "digits", "images": {"frist": 3}}]},
        {"classifiers": [{"classifier": "digits-cnn", "wieghts": "x"}]},
        {"defences": [{"purifier": "difpure"}]},
        {"defences": [{"purifier": "jpeg", "quality": "high"}]},
        {"defences": [{"purifier": "diffpure", "aggregation": "majority"}]},
        {"attacks": [{"attack": "pgd", "norm": "linf", "eps": 0.1, "stepz": 3}]},
        {"attacks": [{"attack": "pgd", "norm": "l3", "eps": 0.1}]},
        {"attacks": [{"attack": "pgd", "norm": "linf", "eps": -0.1}]},
        {"attacks": [{"attack": "pgd", "norm": "linf", "eps": 0.1, "loss": ["ce", "hinge"]}]},
        {"attacks": [{"norm": "linf", "eps": 0.1}]},
        {"attacks": [{"attack": ["pgd", "fgsm"], "norm": "linf", "eps": 0.1}]},
        {"attacks": [{"attack": "pgd", "norm": "linf", "eps": 0.1, "converge": {"stepz": 10}}]},
        {"precision": {"half_width": "narrow"}},
        {"certificates": [{"sigma": 0.25, "samples": 10}]},
        {"silence": [{"rule": "no-such-rule", "reason": "because"}]},
        {"silence": [{"rule": "few-images"}]},
        {"include": [{"attackz": ["none"]}]},
        {"exclude": [{"attak": "none"}]},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_a_mistake_is_marked(validator: Draft7Validator, change: dict[str, Any]) -> None:
    assert list(validator.iter_errors({**yaml.safe_load(GOOD), **change}))


def test_fields_have_the_words_of_their_docstrings(validator: Draft7Validator) -> None:
    steps = validator.schema["definitions"]["attack.pgd"]["properties"]["steps"]
    assert steps["description"] == "Gradient steps. (whole number from 1)"


def test_the_command_writes_it_beside_sweep_files(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["schema"])
    written = CliRunner().invoke(app, ["schema", "--out", str(tmp_path / "sweep.schema.json")])
    assert printed.exit_code == written.exit_code == 0
    assert json.loads(printed.stdout) == json.loads((tmp_path / "sweep.schema.json").read_text()) == sweep_schema()
    assert "# yaml-language-server: $schema=sweep.schema.json" in written.stderr


class TestList:
    def test_one_entry_with_types_defaults_and_words(self) -> None:
        result = CliRunner().invoke(app, ["list", "attacks", "pgd"])
        assert result.exit_code == 0
        assert "  eps: number above 0, must be given\n" in result.stdout
        assert "  loss: ce | margin | dlr | dlr-targeted, default ce\n" in result.stdout
        assert "      Gradient steps.\n" in result.stdout

    @pytest.mark.parametrize(
        "kind", ["attacks", "classifiers", "corruptions", "datasets", "denoisers", "energies", "purifiers", "sweeps"]
    )
    def test_every_entry_of_every_kind_can_be_asked_for(self, kind: str) -> None:
        entries = json.loads(CliRunner().invoke(app, ["list", kind, "--json"]).stdout)
        for entry in entries[:: max(1, len(entries) // 3)]:
            shown = CliRunner().invoke(app, ["list", kind, entry["name"], "--json"])
            assert shown.exit_code == 0 and json.loads(shown.stdout)["name"] == entry["name"]

    def test_every_field_of_what_ships_is_explained(self) -> None:
        from workflows.assets.catalogue import catalogue, details

        silent = [
            f"{kind} {entry['name']} {field['name']}"
            for kind in ("attacks", "purifiers", "datasets", "denoisers")
            for entry in catalogue(kind)
            for field in details(kind, entry["name"])["fields"]
            if not field["text"]
        ]
        assert silent == []

    def test_an_unknown_name_gets_the_nearest(self) -> None:
        result = CliRunner().invoke(app, ["list", "attacks", "pgx"])
        assert result.exit_code == 2 and "did you mean 'pgd'" in result.stderr


class TestInit:
    @pytest.mark.parametrize("attack", ["pgd", "ladder", "square"])
    @pytest.mark.parametrize(
        "defence", ["diffpure", "gdmp", "distribution-transfer", "one-shot", "gaussian-noise", "jpeg", "none"]
    )
    def test_what_it_writes_is_a_sweep_that_editors_and_plan_take(
        self, tmp_path: Path, validator: Draft7Validator, defence: str, attack: str
    ) -> None:
        text = first_sweep("first", defence=defence, attack=attack)
        (tmp_path / "first.yaml").write_text(text)
        sweep = load_sweep(tmp_path / "first.yaml")
        assert {cell.defence.purifier.purifier for cell in sweep.cells} == {"none", defence}
        assert all(cell.images.count == 50 for cell in sweep.cells)
        assert list(validator.iter_errors(yaml.safe_load(text))) == []

    @pytest.mark.parametrize("defence", sorted(DEFENCES))
    def test_every_defence_on_cifar10_is_right_for_editors(self, validator: Draft7Validator, defence: str) -> None:
        text = first_sweep("first", dataset="cifar10", defence=defence)
        assert list(validator.iter_errors(yaml.safe_load(text))) == []

    def test_the_command_writes_it_and_overwrites_nothing(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        first = CliRunner().invoke(app, ["init", str(file), "--attack", "ladder"])
        assert first.exit_code == 0 and file.read_text() == first_sweep("mine", attack="ladder")
        file.write_text("sweep: kept\n")
        second = CliRunner().invoke(app, ["init", str(file)])
        assert second.exit_code == 2 and "is there already" in second.stderr and file.read_text() == "sweep: kept\n"

    def test_an_unknown_part_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["init", str(tmp_path / "mine.yaml"), "--defence", "difpure"])
        assert result.exit_code == 2 and "did you mean 'diffpure'" in result.stderr and not list(tmp_path.iterdir())
