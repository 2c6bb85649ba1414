"""Another distribution's ``workflows``, ``tasks`` or ``defense`` in front of ours has an owner and a way out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import puregrid
from puregrid.installation import problem

ROOT = Path(puregrid.__file__).parents[1]


def distribution(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """What pip leaves behind of a distribution."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{info.name}/METADATA"]))


def python(*words: str, path: Path | str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


def copy_of_ours(site: Path) -> None:
    """The three packages' faces and the front door, as a wheel lays them out."""
    shutil.copytree(ROOT / "puregrid", site / "puregrid", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("defense", "tasks", "workflows"):
        (site / name).mkdir()
        shutil.copy(ROOT / name / "__init__.py", site / name)
    for name in ("aggregate", "lazy", "errors", "redaction"):
        shutil.copy(ROOT / "defense" / f"{name}.py", site / "defense")


def test_this_installation_is_sound() -> None:
    assert problem(ROOT) is None


def test_a_distribution_earlier_on_the_path_is_named(tmp_path: Path) -> None:
    distribution(tmp_path, "other-workflows", "2.11", {"workflows/__init__.py": "raise RuntimeError('it was run')\n"})
    done = python("-c", "import puregrid", path=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message == (
        "ImportError: puregrid's package `workflows` is hidden by the distribution other-workflows 2.11, whose "
        f"`workflows` in {tmp_path / 'workflows'} comes before {ROOT / 'workflows'} on Python's path. Install "
        "puregrid in an environment of its own (python -m venv), or uninstall the other: pip uninstall "
        "other-workflows"
    )
    assert "it was run" not in done.stderr


@pytest.mark.slow
def test_a_module_of_ones_own_earlier_on_the_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("")
    done = python("-c", "import puregrid", path=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert f"package `tasks` is hidden by {tmp_path / 'tasks.py'}, which belongs to no installed" in done.stderr
    assert "Rename it, start Python in another folder" in done.stderr


def test_a_folder_without_init_hides_nothing_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "workflows").mkdir()
    both = f"{tmp_path}{os.pathsep}{ROOT}"
    assert python("-c", "import puregrid", path=both, cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_a_folder_without_init_that_goes_before_an_editable_installation_is_named(tmp_path: Path) -> None:
    copy_of_ours(tmp_path / "ours")
    (tmp_path / "here" / "tasks").mkdir(parents=True)
    # What setuptools installs for `pip install -e`: a finder behind the path's own.
    code = f"""
import importlib.machinery, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if path is None:
            return importlib.machinery.PathFinder.find_spec(name, [{str(tmp_path / "ours")!r}])
sys.path = [{str(tmp_path / "here")!r}] + [place for place in sys.path if place != {str(ROOT)!r}]
sys.meta_path = [each for each in sys.meta_path if "editable" not in repr(each).lower()] + [Finder]
import puregrid
"""
    done = python("-I", "-c", code, path=tmp_path / "here", cwd=tmp_path / "here")
    assert done.returncode == 1
    assert f"package `tasks` is hidden by {tmp_path / 'here' / 'tasks'}" in done.stderr


@pytest.mark.slow
def test_a_module_that_is_imported_already_is_seen(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "defense.py").write_text("")
    elsewhere = str(tmp_path / "elsewhere")
    code = f"import sys; sys.path.insert(0, {elsewhere!r}); import defense; del sys.path[0]; import puregrid"
    done = python("-c", code, path=ROOT, cwd=tmp_path)
    assert done.returncode == 1
    assert f"package `defense` is hidden by {tmp_path / 'elsewhere' / 'defense.py'}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["defense", "tasks", "workflows"])
def test_files_that_another_distribution_wrote_over_ours_are_seen(tmp_path: Path, name: str) -> None:
    copy_of_ours(tmp_path)
    sound = python("-c", "import puregrid; print(puregrid.InvalidInput.__module__)", path=tmp_path, cwd=tmp_path)
    assert (sound.returncode, sound.stdout) == (0, "defense.errors\n"), sound.stderr
    distribution(tmp_path, "Other.Things", "1.0", {f"{name}/__init__.py": '"""Somebody else\'s."""\n'})
    done = python("-c", "import puregrid", path=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert (
        f"ImportError: puregrid's package `{name}` in {tmp_path / name} has been overwritten by the distribution "
        f"Other.Things 1.0, which installs a `{name}` too" in done.stderr
    )
    assert "pip uninstall Other.Things; pip install --force-reinstall --no-deps puregrid" in done.stderr


def test_a_package_that_an_uninstallation_took_along_is_missing(tmp_path: Path) -> None:
    copy_of_ours(tmp_path)
    shutil.rmtree(tmp_path / "tasks")
    code = f"import sys; sys.path = [p for p in sys.path if p != {str(ROOT)!r}]; import puregrid"
    done = python("-S", "-c", code, path=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert f"puregrid's package `tasks` is missing from {tmp_path}" in done.stderr


@pytest.mark.parametrize("how", ["module", "script"])
def test_the_command_line_prints_the_message_and_no_traceback(tmp_path: Path, how: str) -> None:
    site = tmp_path / "site"
    distribution(site, "other-workflows", "2.11", {"workflows/__init__.py": ""})
    script = tmp_path / "bin" / "puregrid"
    script.parent.mkdir()
    script.write_text("import sys\nfrom puregrid.cli import main\nsys.exit(main())\n")
    words = ["-m", "puregrid", "--help"] if how == "module" else [str(script), "--help"]
    # Of the front door there is one copy, after the other distribution.
    done = python(*words, path=Path(f"{site}{os.pathsep}{ROOT}"), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: puregrid's package `workflows` is hidden by the distribution other-workflows"
    )
    assert "Traceback" not in done.stderr
