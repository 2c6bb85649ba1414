"""The papers' sweeps: everything that they need is told at once, and with it they are valid grids."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers_small import SMALL, compute
from typer.testing import CliRunner

import workflows
from defense.errors import InvalidInput
from tasks.datasets import Cifar10Config, DatasetConfig, FolderConfig, ImageSet
from workflows.cli import app
from workflows.grid.load import Sweep, load_sweep
from workflows.published.match import match_published
from workflows.published.papers import load_paper
from workflows.results.reader import Results
from workflows.store import Store

PAPERS = Path(workflows.__file__ or "").parent / "sweeps" / "papers"
SWEEPS = sorted(PAPERS.glob("*.yaml"))
SMOKE = sorted((PAPERS / "smoke").glob("*.yaml"))


def name(path: Path) -> str:
    return path.stem


class TestRequirements:
    """A sweep with a section `requires`, in a folder without anything."""

    @pytest.fixture(autouse=True)
    def variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PUREGRID_DATA", raising=False)
        monkeypatch.delenv("PUREGRID_WEIGHTS", raising=False)

    def write(self, folder: Path, requires: str) -> Path:
        path = folder / "sweep.yaml"
        path.write_text(f"requires:\n{requires}{SMALL}")
        return path

    def test_all_that_is_missing_is_reported_at_once_with_lines_and_sources(self, tmp_path: Path) -> None:
        (tmp_path / "other.pt").write_bytes(b"other")
        path = self.write(
            tmp_path,
            "  - {path: one.pt, source: https://example.org/one.pt, sha256: abcdef01}\n"
            '  - {path: "${PUREGRID_WEIGHTS}/two.pt", source: puregrid train two.yaml}\n'
            "  - {path: other.pt, source: its home page, sha256: deadbeef}\n"
            "  - {path: [a.tar, a], source: puregrid data fetch a}\n",
        )
        with pytest.raises(InvalidInput) as error:
            load_sweep(path)
        sha256 = hashlib.sha256(b"other").hexdigest()
        assert str(error.value).splitlines() == [
            f"{path}: 5 things are missing, and nothing was run:",
            f"  line 2: {tmp_path}/one.pt is not there (https://example.org/one.pt, sha256 abcdef01)",
            "  line 3: environment variable PUREGRID_WEIGHTS is not set (export PUREGRID_WEIGHTS=FOLDER)",
            "  line 3: ${PUREGRID_WEIGHTS}/two.pt is needed (puregrid train two.yaml)",
            f"  line 4: {tmp_path}/other.pt has sha256 {sha256}, not deadbeef (its home page)",
            f"  line 5: {tmp_path}/a.tar or {tmp_path}/a is not there (puregrid data fetch a)",
        ]

    def test_nothing_is_reported_where_nothing_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PUREGRID_WEIGHTS", str(tmp_path))
        (tmp_path / "two.pt").write_bytes(b"two")
        (tmp_path / "a").mkdir()
        sha256 = hashlib.sha256(b"two").hexdigest()[:8].upper()
        path = self.write(
            tmp_path,
            f'  - {{path: "${{PUREGRID_WEIGHTS}}/two.pt", source: here, sha256: "{sha256}"}}\n'
            "  - {path: [a.tar, a], source: here}\n",
        )
        # What a sweep requires is no part of what it is.
        assert load_sweep(path).id == load_sweep(self.write(tmp_path, "  - {path: a, source: b}\n")).id

    def test_a_file_that_an_override_replaces_is_not_asked_for(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "  - {path: none.safetensors, source: nowhere}\n")
        text = path.read_text().replace(
            "classifiers: [digits-cnn]", "classifiers: [{classifier: digits-cnn, weights: none.safetensors}]"
        )
        path.write_text(text)
        with pytest.raises(InvalidInput, match="1 thing is missing"):
            load_sweep(path)
        assert load_sweep(path, ["classifiers=[digits-cnn]"]).cells
        with pytest.raises(InvalidInput, match="1 thing is missing"):
            load_sweep(path, ["seeds=[1]"])

    @pytest.mark.parametrize(
        ("requires", "message"),
        [
            ("  - {path: a, sha256: abcdef01}\n", r"sweep\.yaml:2: .*field 'source' is missing"),
            ("  - {pth: a, source: b}\n", r"unknown field 'pth'; did you mean 'path'\?"),
            ("  - {path: a, source: b, sha256: abc}\n", r"requires\.0\.sha256"),
            ("  - a.pt\n", "a list of mappings"),
        ],
    )
    def test_a_wrong_section_is_refused(self, tmp_path: Path, requires: str, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            load_sweep(self.write(tmp_path, requires))

    def test_plan_ends_with_status_2_and_the_whole_list(self) -> None:
        result = CliRunner().invoke(app, ["plan", str(PAPERS / "distribution-transfer-table2-cifar10.yaml")])
        assert (result.exit_code, result.stdout) == (2, "")
        for part in ("PUREGRID_DATA is not set", "PUREGRID_WEIGHTS is not set", "puregrid data fetch cifar10"):
            assert part in result.stderr
        for part in ("fe6a5b48", "98807be3", "187c023a", "drive.google.com", "cifar10_uncond_50M_500K.pt"):
            assert part in result.stderr


def test_every_table_and_figure_has_its_sweep_and_each_a_trial() -> None:
    figures = [f"figure{number}" for number in (3, 4, 5, 6)]
    transfer = [*figures, "table1", "table2-cifar10", "table2-imagenet30", "table3"]
    assert [path.stem for path in SWEEPS] == ["agdm-cifar10", *(f"distribution-transfer-{part}" for part in transfer)]
    trials = {path.stem.rpartition("-")[0] for path in SMOKE if path.stem.endswith("digits")}
    parts = (*figures, "table1", "table2", "table3")
    assert trials == {"agdm", *(f"distribution-transfer-{part}" for part in parts)}


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders in which everything lies that the papers' sweeps name, made up; what is hashed, not what is loaded."""
    monkeypatch.setenv("PUREGRID_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PUREGRID_WEIGHTS", str(tmp_path / "weights"))
    for path in SWEEPS:
        for file in re.findall(r"\$\{PUREGRID_WEIGHTS\}/([\w./-]+)", path.read_text()):
            (tmp_path / "weights" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "weights" / file).write_text(file)

    def read(self: DatasetConfig) -> ImageSet:
        count = 1000 if self.image_shape[1] == 32 else 12
        numbers = np.arange(count)
        # Every image is another one, at little cost: its number in two pixels.
        images = np.zeros((count, *self.image_shape), dtype=np.float32)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers % 251 / 250, numbers // 251 / 250
        return ImageSet(images, numbers % len(self.class_names))

    monkeypatch.setattr(Cifar10Config, "read", read)
    monkeypatch.setattr(FolderConfig, "read", read)
    return tmp_path


def load(path: Path) -> Sweep:
    overrides = ["requires=[]"]
    if "table3" in path.stem:  # the official arrays are checked by md5
        overrides.append("corruptions.0={corruption: benchmark, origin: official, path: nowhere}")
        with pytest.raises(InvalidInput, match="cifar10-c is not at"):
            load_sweep(path, overrides)
        overrides[-1] = "corruptions.0={corruption: [gaussian_noise, glass_blur], origin: generated}"
    return load_sweep(path, overrides)


@pytest.mark.parametrize("path", SWEEPS, ids=name)
def test_with_what_it_requires_a_paper_s_sweep_is_a_valid_grid(path: Path, made_up: Path) -> None:
    sweep = load(path)
    required = [one["path"] for one in yaml.safe_load(path.read_text())["requires"]]
    named = set(re.findall(r"\$\{PUREGRID_WEIGHTS\}/[\w./-]+", path.read_text()))
    # Everything that is named is required, so that nothing else can be missing.
    assert named == {one for one in required if isinstance(one, str) and "WEIGHTS" in one}
    purifiers = {cell.defence.purifier.purifier for cell in sweep.cells}
    assert ("robust-reverse" if path.stem.startswith("agdm") else "distribution-transfer") in purifiers
    shapes = {(cell.images.dataset.image_shape, cell.classifier.architecture.image_shape) for cell in sweep.cells}
    assert all(images == classifier for images, classifier in shapes)


@pytest.mark.slow
def test_the_settings_that_the_paper_states_are_those_of_its_sweeps(made_up: Path) -> None:
    paper = load_paper("distribution-transfer")
    sweeps = {path.stem.removeprefix("distribution-transfer-"): load(path) for path in SWEEPS}
    for part in ("table1", "table2-cifar10", "figure3"):
        cells = sweeps[part].cells
        steps = {cell.attack.steps for cell in cells if cell.attack is not None}  # type: ignore[attr-defined]
        assert steps == {paper.settings["attack_steps"]}
        levels = [cell.defence.purifier.noise_level for cell in cells]
        depths = {
            (level.t_star, round(level.sigma_eq, 3))
            for cell, level in zip(cells, levels, strict=True)
            if level is not None and cell.defence.purifier.purifier == "distribution-transfer"
        }
        assert depths == {(paper.settings["t_star"], 0.099)}
    budgets = {round(c.attack.eps * 255, 6) for c in sweeps["table1"].cells if c.attack is not None}
    assert budgets == {8, 128}
    figure = {round(c.attack.eps * 255, 6) for c in sweeps["figure3"].cells if c.attack is not None}
    assert max(figure) == 80 and {c.images.count for c in sweeps["figure3"].cells} == {1000}
    classifiers = {cell.classifier.label() for cell in sweeps["table2-cifar10"].cells}
    assert classifiers == {v.classifier for v in paper.values if v.table == "2" and v.dataset == "cifar10"}
    assert {c.classifier.label() for c in sweeps["table2-imagenet30"].cells} == {
        v.classifier for v in paper.values if v.table == "2" and v.dataset == "imagenet30"
    }
    # By the noise that is meant, on another schedule.
    thirty = {c.defence.purifier.noise_level for c in sweeps["table2-imagenet30"].cells}
    assert {level.t_star for level in thirty if level is not None} == {58}
    assert {c.images.count for c in sweeps["agdm-cifar10"].cells} == {512}


@pytest.mark.parametrize("path", [path for path in SMOKE if path.stem.endswith("digits")], ids=name)
def test_a_trial_on_digits_needs_nothing(path: Path) -> None:
    assert load_sweep(path).cells


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in SMOKE if path.stem.endswith("cifar10")], ids=name)
def test_a_trial_on_cifar10_finds_its_weights(path: Path, data_root: Path, weights_root: Path) -> None:
    assert load_sweep(path).cells


@pytest.mark.slow
@pytest.mark.parametrize("part", ["table3", pytest.param("figure6", marks=pytest.mark.nightly)])
def test_a_trial_can_be_run_and_read(part: str, tmp_path: Path) -> None:
    sweep = load_sweep(PAPERS / "smoke" / f"distribution-transfer-{part}-digits.yaml", ["datasets.0.images.first=4"])
    compute(sweep, str(tmp_path))
    results = Results(Store(str(tmp_path)), sweep)
    for cell in sweep.cells:
        assert len(results.rows(cell)) == 4
    assert match_published(results).empty  # no paper has figures of the digits
