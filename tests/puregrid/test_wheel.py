"""The wheel in a virtual environment of its own: everything is inside, and a sweep runs from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import puregrid

ROOT = Path(puregrid.__file__).parents[1]
PACKAGES = ("defense", "puregrid", "tasks", "workflows")
TRIMMED = ("datasets.0.images.first=6", "chunk=3", "defences.1.t_star=50", "defences.1.steps=2", "attacks.1.eps=0.15")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    # Of what is installed already: nothing is downloaded.
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *options, str(source)], check=True, capture_output=True, text=True, timeout=300)
    (made,) = folder.glob("puregrid-*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds the wheel and sees the packages of this one, but not the repository."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(here) + "\n")
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(interpreter), "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([*install, *options], check=True, capture_output=True, text=True, timeout=300)
    return interpreter


def call(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW"))}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_it_holds_every_file_of_the_packages(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(
        ["git", "ls-files", "--", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not listed:
        pytest.skip("not a git checkout: which files belong to the packages is not known")
    assert set(listed) - inside == set()


@pytest.mark.nightly
def test_it_is_imported_from_the_environment_and_knows_its_version(python: Path, tmp_path: Path) -> None:
    code = "import puregrid, workflows; print(puregrid.__file__, workflows.__file__, puregrid.__version__, sep='\\n')"
    *files, version = call([python, "-c", code], tmp_path).stdout.split()
    assert all(Path(file).is_relative_to(python.parents[1]) for file in files)
    assert call([python.parent / "puregrid", "--version"], tmp_path).stdout == f"puregrid {version}\n"
    assert version == puregrid.__version__
    assert call([python, "-m", "puregrid", "--version"], tmp_path).stdout == f"puregrid {version}\n"


@pytest.mark.nightly
def test_the_quickstart_runs_by_name_from_an_empty_folder(python: Path, tmp_path: Path) -> None:
    command = python.parent / "puregrid"
    settings = [word for setting in TRIMMED for word in ("--set", setting)]
    done = call(
        [command, "run", "quickstart", "--store", "here", "--workers", "1", "--mlflow", "off", *settings], tmp_path
    )
    assert "digits-cnn" in done.stdout
    plan = json.loads(call([command, "plan", "quickstart", "--store", "here", "--json", *settings], tmp_path).stdout)
    assert (plan["cells"], plan["committed"], plan["missing"]) == (4, 10, 0)
    tables = call([command, "tables", "quickstart", "--store", "here", "--format", "csv", *settings], tmp_path)
    assert tables.stdout.count("digits-cnn") >= 4
    page = call([command, "report", "quickstart", "--store", "here", *settings], tmp_path).stdout.strip()
    assert "<svg" in (tmp_path / page).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "report.html"]
