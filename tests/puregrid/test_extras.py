"""A package that is missing is named with its pip command; every one that is imported is in pyproject.toml."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import puregrid
from defense.packages import BASE as BASE_MODULES
from defense.packages import EXTRAS, MissingPackage, installed

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


@cache
def installed_modules() -> Mapping[str, list[str]]:
    """Distributions by top-level module: half a second to find."""
    return packages_distributions()


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
# PyTorch's builds for GPUs bring it, and nothing imports it elsewhere.
WITH_TORCH = {"triton"}
# The published contract suites are for tests, which have pytest.
TESTING = {"pytest"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("defense", BASE | ON_REQUEST | WITH_TORCH | TESTING),
        ("tasks", BASE | ON_REQUEST | names(["puregrid[run]"])),
        ("workflows", BASE | names(["puregrid[all]"])),
        ("puregrid", BASE | names(["puregrid[run]"]) | TESTING | {"hypothesis"}),
    ],
)
def test_what_a_package_imports_is_what_its_extra_brings(package: str, allowed: set[str]) -> None:
    distributions = installed_modules()
    wrong = {
        (module, path.name)
        for module, path in third_party(package)
        if not {re.sub("[-_.]+", "-", name).lower() for name in distributions.get(module, [module])} & allowed
        and module != "markupsafe"  # jinja2's own
    }
    assert not wrong


@pytest.mark.parametrize("extra", EXTRAS)
def test_messages_know_every_package_of_an_extra(extra: str) -> None:
    distributions = installed_modules()
    known = {re.sub("[-_.]+", "-", name).lower() for module in EXTRAS[extra] for name in distributions[module]}
    assert names(PROJECT["optional-dependencies"][extra]) <= known


def test_messages_know_every_package_that_puregrid_depends_on() -> None:
    assert set(BASE_MODULES.values()) == BASE
    distributions = installed_modules()
    for module, distribution in BASE_MODULES.items():
        assert re.sub("[-_.]+", "-", distributions[module][0]).lower() == distribution


def test_all_is_everything_and_dev_holds_all() -> None:
    optional = PROJECT["optional-dependencies"]
    assert names(optional["all"]) == names(["puregrid[run,mlflow,report]"])
    assert names(optional["all"]) <= names(optional["dev"])
    assert names(optional["all"]) <= names(optional["cluster"])


def test_a_module_of_no_extra_is_an_import_error_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all") as caught, installed():
        import no_such_module_at_all  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(caught.value, MissingPackage)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "extra", "words"),
    [
        ("typer", "run", ["--help"]),
        ("pandas", "run", ["tables", "quickstart"]),
        pytest.param(
            "ray", "run", ["run", "quickstart", "--store", "here", "--mlflow", "off"], marks=pytest.mark.slow
        ),
        pytest.param("jinja2", "report", ["report", "quickstart"], marks=pytest.mark.nightly),
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


@pytest.mark.slow
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


CALLS = {
    "sklearn": "puregrid.DigitsConfig().read()",
    "torchvision": "puregrid.Cifar10Config(root='here').read()",
    "PIL": "puregrid.JPEGConfig(quality=50).build()(torch.zeros(1, 1, 8, 8), None)",
    "torchmetrics": "import tasks.quality; tasks.quality.ssim(np.ones((1, 1, 8, 8)), np.zeros((1, 1, 8, 8)))",
    "timm": "puregrid.ClassifierConfig(classifier='timm:resnet18').resolved(Path())",
}
MISSING = {
    "sklearn": "data set digits needs sklearn, of puregrid's extra `run`, which is not installed: pip install "
    "'puregrid[run]', or 'puregrid[all]' for everything.",
    "torchvision": "data set cifar10 needs torchvision, which is not installed: pip install torchvision.",
    "PIL": "purifier jpeg needs PIL, which is not installed: pip install pillow.",
    "torchmetrics": "SSIM needs torchmetrics, which is not installed: pip install torchmetrics.",
    "timm": "classifier 'timm:resnet18' needs timm, of puregrid's extra `timm`, which is not installed: pip install "
    "'puregrid[timm]'.",
}


@pytest.mark.slow
def test_a_call_deep_inside_says_what_it_needs_and_how_to_install_it(tmp_path: Path) -> None:
    """All in one process: none of these packages is imported before it is needed."""
    code = f"""
import sys
from importlib.machinery import PathFinder
from pathlib import Path
import numpy as np
import torch
import puregrid
puregrid.ClassifierConfig, puregrid.Cifar10Config, puregrid.JPEGConfig
found = PathFinder.find_spec
missing = None
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] == missing else found(name, path, target)
PathFinder.find_spec = classmethod(find_spec)
for missing, call in {CALLS!r}.items():
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        del sys.modules[name]
    try:
        exec(call)
    except puregrid.MissingPackage as error:
        assert isinstance(error, (puregrid.InvalidInput, ImportError))
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines() == list(MISSING.values()), done.stderr


@pytest.mark.slow
@pytest.mark.nightly
def test_a_sweep_file_says_where_it_needs_a_package(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "puregrid", "plan", "quickstart"],
        cwd=tmp_path,
        env=without("sklearn", tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"{MISSING['sklearn']}\n") and "quickstart.yaml:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.nightly
def test_python_says_so_too(tmp_path: Path) -> None:
    code = """
import puregrid
try:
    puregrid.run("quickstart")
except puregrid.MissingPackage as error:
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
