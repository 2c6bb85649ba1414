"""Sweeps by their bare name, from any folder; a file of that name goes first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import workflows
from defense.errors import InvalidInput
from workflows.assets.bundled import bundled_sweeps, find_sweep
from workflows.cli import app

SWEEPS = Path(workflows.__file__).parent / "sweeps"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_sweep_has_a_name() -> None:
    names = bundled_sweeps()
    assert {name: path for name, path in names.items() if "/" not in name} == {
        path.stem: path for path in SWEEPS.glob("*.yaml")
    }
    assert names["papers/agdm-cifar10"] == SWEEPS / "papers" / "agdm-cifar10.yaml"
    assert len(names) == len(list(SWEEPS.rglob("*.yaml")))


def test_a_name_is_found_from_any_folder() -> None:
    assert find_sweep("quickstart") == SWEEPS / "quickstart.yaml"
    assert find_sweep(Path("papers/smoke/agdm-digits")) == SWEEPS / "papers" / "smoke" / "agdm-digits.yaml"


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml"])
def test_a_file_of_the_working_directory_goes_first(elsewhere: Path, name: str) -> None:
    (elsewhere / name).write_text("sweep: mine\n")
    assert find_sweep("quickstart") == Path(name)


def test_a_folder_of_that_name_does_not(elsewhere: Path) -> None:
    (elsewhere / "quickstart").mkdir()
    assert find_sweep("quickstart") == SWEEPS / "quickstart.yaml"


def test_a_dot_in_a_name_is_no_suffix(elsewhere: Path) -> None:
    (elsewhere / "sweep-v1.2.yaml").write_text("")
    assert find_sweep("sweep-v1.2") == Path("sweep-v1.2.yaml")


def test_paths_are_left_to_the_reader() -> None:
    assert find_sweep("not/there.yaml") == Path("not/there.yaml")


def test_a_bundled_name_with_the_suffix_is_distinguished() -> None:
    with pytest.raises(InvalidInput) as caught:
        find_sweep("papers/agdm-cifar10.yaml")
    assert str(caught.value) == (
        "papers/agdm-cifar10.yaml: there is no such file; the bundled sweep is called 'papers/agdm-cifar10'."
    )


def test_plan_takes_the_name_and_refuses_a_wrong_one_with_all_of_them(elsewhere: Path) -> None:
    result = CliRunner().invoke(app, ["plan", "quickstart", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["distinct"] == 90
    wrong = CliRunner().invoke(app, ["plan", "quickstat"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr == (
        "error: quickstat: there is no such file, no quickstat.yaml and no bundled sweep of this name; did you mean "
        f"'quickstart'? Valid names: {', '.join(sorted(bundled_sweeps()))}.\n"
    )
    # Of the one that was planned, what was asked of its parts, and nothing else.
    assert {path.parent.relative_to(elsewhere).as_posix() for path in elsewhere.rglob("*.*")} == {"results/preflight"}
