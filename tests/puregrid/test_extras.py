"""What is not installed is named with its extra; every package that is imported has a place in pyproject.toml."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import puregrid
from puregrid.extras import MODULES, MissingExtra, extras

ROOT = Path(puregrid.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"defense", "puregrid", "tasks", "workflows"}


def names(requirements: list[str]) -> set[str]:
    """Normalised names of requirements, those of our own extras resolved."""
    found: set[str] = set()
    for requirement in requirements:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[([^]]+)\])?", requirement)
        assert match is not None
        if match[1] == "puregrid":
            for extra in match[2].split(","):
                found |= names(PROJECT["optional-dependencies"][extra])
        else:
            found.add(re.sub("[-_.]+", "-", match[1]).lower())
    return found


def third_party(package: str) -> Iterator[tuple[str, Path]]:
    """Top-level modules that a package imports at run time, wherever in its files."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                modules = [node.module]
            else:
                continue
            for module in modules:
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in OURS:
                    yield top, path


BASE = names(PROJECT["dependencies"])
ON_REQUEST = names(PROJECT["optional-dependencies"]["timm"]) | names(PROJECT["optional-dependencies"]["robustbench"])
# The published contract suites are for tests, which have pytest.
TESTING = {"pytest"}


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("defense", BASE | ON_REQUEST | TESTING),
        ("tasks", BASE | ON_REQUEST | names(["puregrid[run]"])),
        ("workflows", BASE | names(["puregrid[all]"])),
        ("puregrid", BASE | names(["puregrid[run]"]) | TESTING | {"hypothesis"}),
    ],
)
def test_what_a_package_imports_is_what_its_extra_brings(package: str, allowed: set[str]) -> None:
    distributions = packages_distributions()
    wrong = {
        (module, path.name)
        for module, path in third_party(package)
        if not {re.sub("[-_.]+", "-", name).lower() for name in distributions.get(module, [module])} & allowed
        and module != "markupsafe"  # jinja2's own
    }
    assert not wrong


@pytest.mark.parametrize("extra", MODULES)
def test_messages_know_every_package_of_an_extra(extra: str) -> None:
    distributions = packages_distributions()
    known = {re.sub("[-_.]+", "-", name).lower() for module in MODULES[extra] for name in distributions[module]}
    assert names(PROJECT["optional-dependencies"][extra]) <= known


def test_all_is_everything_and_dev_holds_all() -> None:
    optional = PROJECT["optional-dependencies"]
    assert names(optional["all"]) == names(["puregrid[run,mlflow,report]"])
    assert names(optional["all"]) <= names(optional["dev"])
    assert names(optional["all"]) <= names(optional["cluster"])


def test_a_module_of_no_extra_is_an_import_error_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all") as caught, extras():
        import no_such_module_at_all  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(caught.value, MissingExtra)


def without(module: str, folder: Path) -> dict[str, str]:
    """An environment in which a package is as if it were not installed."""
    (folder / "sitecustomize.py").write_text(
        f"from importlib.machinery import PathFinder\n"
        f"found = PathFinder.find_spec\n"
        f"def find_spec(cls, name, path=None, target=None):\n"
        f"    return None if name.partition('.')[0] == {module!r} else found(name, path, target)\n"
        f"PathFinder.find_spec = classmethod(find_spec)\n"
    )
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.mark.parametrize(
    ("module", "extra", "words"),
    [
        ("typer", "run", ["--help"]),
        ("pandas", "run", ["tables", "quickstart"]),
        pytest.param(
            "ray", "run", ["run", "quickstart", "--store", "here", "--mlflow", "off"], marks=pytest.mark.slow
        ),
        pytest.param("jinja2", "report", ["report", "quickstart"], marks=pytest.mark.slow),
    ],
)
def test_the_command_line_says_how_to_install_what_is_missing(
    module: str, extra: str, words: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "puregrid", *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=without(module, tmp_path), capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr == (
        f"error: this needs {module}, of puregrid's extra `{extra}`, which is not installed: "
        f"pip install 'puregrid[{extra}]', or 'puregrid[all]' for everything.\n"
    )


def test_a_tracking_uri_without_mlflow_is_refused_before_any_compute(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "puregrid",
        "run",
        "quickstart",
        "--store",
        "here",
        "--mlflow",
        "sqlite:///runs.db",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=without("mlflow", tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --mlflow: MLflow is not installed: pip install 'puregrid[mlflow]'.\n"
    assert not (tmp_path / "here").exists()


@pytest.mark.slow
def test_python_says_so_too(tmp_path: Path) -> None:
    code = """
import puregrid
try:
    puregrid.run("quickstart")
except puregrid.MissingExtra as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=without("ray", tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith("this needs ray, of puregrid's extra `run`")
