"""The lock files: complete, the versions of constraints.txt, and what is installed from them is what was locked."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from loops import every
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import lock
from scripts.lock import Locked, condition, cpu_builds, fits, listed, locked, missing, pins, render

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "requirements"
LOCKS = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.txt"))}
VERSIONS = pins((ROOT / "constraints.txt").read_text())
SHA = "0123456789abcdef" * 4


def entries(name: str) -> list[str]:
    """The header of a lock and its packages."""
    header, *packages = re.split(r"\n(?=[^\s#])", LOCKS[name].strip())
    assert all(line[0] == "#" for line in header.splitlines())
    return [header, *packages]


def test_there_is_a_lock_for_everything_that_is_installed_and_for_nothing_else() -> None:
    assert set(LOCKS) == {*lock.EXTRAS, *lock.TOOLS, "cpu", "cuda"} == set(lock.WHAT)


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_one_version_and_hashes_and_nothing_else_is_in_a_lock(name: str) -> None:
    for entry in entries(name)[1:]:
        first, *hashes = entry.split(" \\\n    ")
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+(\+cpu)?( ; .+)?", first), first
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), first
        assert hashes == sorted(set(hashes))
    assert len(entries(name)) == len(pins(LOCKS[name])) + 1


def test_versions_are_those_of_the_constraints_and_all_of_them() -> None:
    found: dict[str, set[str]] = {}
    for text in LOCKS.values():
        for name, version in pins(text).items():
            found.setdefault(name, set()).add(version.removesuffix("+cpu"))
    assert found == {name: {version} for name, version in VERSIONS.items()}, "run python -m scripts.lock"


def needed(extras: set[str]) -> set[str]:
    """Names that the features need in this environment, theirs included, without puregrid."""
    waiting, seen = [("puregrid", frozenset(extras))], set()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        if name == "puregrid":
            lines = [*project["dependencies"]] + [
                line for extra in wanted for line in project["optional-dependencies"][extra]
            ]
        else:
            try:
                lines = distribution(name).requires or []
            except PackageNotFoundError:
                continue
        for requirement in map(Requirement, lines):
            markers = [{"extra": extra} for extra in wanted] or [{"extra": ""}]
            if requirement.marker is None or any(requirement.marker.evaluate(marker) for marker in markers):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in seen} - {"puregrid"}


@pytest.mark.slow
@pytest.mark.parametrize("name", lock.EXTRAS)
def test_a_lock_is_what_pyproject_asks_for_and_what_that_needs(name: str) -> None:
    for probe in ("torch", "ray", "mlflow"):
        if distribution(probe).version.partition("+")[0] != VERSIONS[probe]:
            pytest.skip(f"{probe} is another version here, which may need other packages")
    asked = needed(set(lock.EXTRAS[name]))
    # CUDA's libraries are in a lock of their own, with torch.
    asked = {package for package in asked if not lock.CUDA.fullmatch(package)}
    assert set(pins(LOCKS[name])) == asked | set(lock.ALONE.get(name, ())), "run python -m scripts.lock"


def test_the_image_has_nothing_that_the_suite_does_not_run_with() -> None:
    assert set(entries("cluster")[1:]) <= set(entries("development"))


def test_torch_is_pytorch_s_build_or_pypi_s_and_never_both_in_one_file() -> None:
    stated = cpu_builds(lock.CPU_BUILDS.read_text(), VERSIONS)
    # Three Pythons on two machines.
    assert {name: len(hashes) for name, hashes in stated.items()} == {"torch": 6, "torchvision": 6}
    assert pins(LOCKS["cpu"])["torch"] == f"{VERSIONS['torch']}+cpu" and len(pins(LOCKS["cpu"])) == 2
    assert set(re.findall(r"sha256:(\w+)", entries("cpu")[1])) == set(stated["torch"])
    assert pins(LOCKS["cuda"])["torch"] == VERSIONS["torch"]
    assert not [sha256 for sha256 in stated["torch"] if sha256 in LOCKS["cuda"]]
    # Where an index has the CPU build of torch alone, as a folder of wheels may, there is still PyPI's torchvision.
    assert pins(LOCKS["cpu"])["torchvision"] == pins(LOCKS["cuda"])["torchvision"] == VERSIONS["torchvision"]
    of_cpu, of_cuda = (
        set(re.findall(r"sha256:(\w+)", next(entry for entry in entries(name) if entry.startswith("torchvision=="))))
        for name in ("cpu", "cuda")
    )
    assert of_cpu == of_cuda | set(stated["torchvision"]) and not of_cuda & set(stated["torchvision"])
    for name in lock.EXTRAS:
        assert not [package for package in pins(LOCKS[name]) if lock.CUDA.fullmatch(package)]


@every(
    ("filename", "answer"),
    [
        ("a-1-py3-none-any.whl", True),
        ("a-1-py2.py3-none-any.whl", True),
        ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp313-cp313-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", True),
        ("a-1-cp37-abi3-manylinux_2_17_x86_64.whl", True),
        ("a-1-py3-none-manylinux_2_17_x86_64.whl", True),
        ("a-1-cp314-cp314-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp313-cp313t-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp314-abi3-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp310-cp310-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        ("a-1-cp311-cp311-macosx_14_0_arm64.whl", False),
        ("a-1-py3-none-win_amd64.whl", False),
        ("a-1-pp311-pypy311_pp73-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp311-cp311-manylinux_2_28_ppc64le.whl", False),
    ],
)
def test_which_wheels_are_locked(filename: str, answer: bool) -> None:
    assert fits(filename) is answer


def test_markers_that_say_nothing_on_linux_are_left_out() -> None:
    assert condition(None) == condition("python_full_version >= '3.11'") == (True, None)
    assert condition("sys_platform == 'win32'") == (False, "sys_platform == 'win32'")
    assert condition("sys_platform == 'linux'") == (True, None)
    for marker in ("python_full_version < '3.13'", "python_full_version >= '3.11.5'", "platform_machine == 'x86_64'"):
        assert condition(marker) == (True, marker)


def entry(*files: str, **more: object) -> dict[str, object]:
    wheels = [{"url": f"https://x/{name}", "hashes": {"sha256": f"{i:064x}"}} for i, name in enumerate(files)]
    return {"name": "A_b", "version": "1", "sdist": {"url": "x", "hashes": {"sha256": SHA}}, "wheels": wheels, **more}


def test_a_package_is_locked_by_its_wheels_and_by_its_source_if_none_fits() -> None:
    windows, linux = "a-1-py3-none-win_amd64.whl", "a-1-py3-none-any.whl"
    assert locked(entry(windows, linux)) == Locked("a-b", "1", None, (f"{1:064x}",))
    assert locked(entry(windows)) == Locked("a-b", "1", None, (SHA,))
    assert locked(entry(linux, linux)) == Locked("a-b", "1", None, (f"{0:064x}", f"{1:064x}"))
    assert locked(entry(linux, marker="sys_platform == 'win32'")) is None
    made = render("audit", [Locked("b", "2", "python_version < '3.12'", ("2", "3")), Locked("a", "1", None, ("1",))])
    assert made.endswith(
        "\na==1 \\\n    --hash=sha256:1\n"
        "b==2 ; python_version < '3.12' \\\n    --hash=sha256:2 \\\n    --hash=sha256:3\n"
    )


def test_versions_that_the_constraints_lack_are_named() -> None:
    packages = [Locked("a", "1", None, ()), Locked("b", "2+cpu", None, ()), Locked("c", "3", None, ())]
    assert missing(packages, {"a": "1", "b": "2", "c": "3"}) == []
    assert missing(packages, {"a": "2", "b": "2"}) == ["a==1", "c==3"]


def test_hashes_of_other_versions_are_no_hashes_of_this_one() -> None:
    text = f"{SHA}  torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl\n"
    text += f"{SHA}  torchvision-0.28.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl\n"
    versions = {"torch": "2.13.0", "torchvision": "0.28.0"}
    assert cpu_builds(text, versions) == {"torch": [SHA], "torchvision": [SHA]}
    with pytest.raises(ValueError, match=r"no CPU build of torch 2\.14\.0: run this again with --torch-index"):
        cpu_builds(text, {**versions, "torch": "2.14.0"})
    page = (
        f'<a href="/whl/cpu/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl#sha256={SHA}" x="y">a</a>'
        f'<a href="/whl/cpu/torch-2.13.0%2Bcpu-cp311-cp311-win_amd64.whl#sha256={SHA}">a</a>'
        f'<a href="/whl/cpu/torch-2.12.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl#sha256={SHA}">a</a>'
    )
    assert list(listed(page, "torch", "2.13.0")) == [text.splitlines(keepends=True)[0]]


def wheel(folder: Path, name: str, version: str, body: str = "") -> str:
    """Make a wheel; returns its sha256."""
    info, path = f"{name}-{version}.dist-info", folder / f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in {
            f"{name}.py": body,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }.items():
            # A ZipInfo has a constant date, so that the same content is the same file.
            archive.writestr(zipfile.ZipInfo(inner), text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Environment:
    """An empty environment with pip, an index that is a folder, and locks of three packages that lie there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, folder / "index"
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv/bin/python"
        (self.site,) = (folder / "venv/lib").glob("python*/site-packages")
        shutil.copytree(
            Path(str(distribution("pip").locate_file("pip"))),
            self.site / "pip",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (folder / "requirements").mkdir()
        shutil.copy(FOLDER / "install.sh", folder / "requirements")
        tool, cpu, pypi, library = (
            wheel(self.index, *names)
            for names in (("tool", "1"), ("torch", "2.13.0+cpu"), ("torch", "2.13.0"), ("nvidia_x", "1"))
        )
        vision = [wheel(self.index, "torchvision", version) for version in ("0.28.0", "0.28.0+cpu")]
        for name, packages in {
            "development": [Locked("tool", "1", None, (tool,))],
            "cpu": [
                Locked("torch", "2.13.0+cpu", None, (cpu,)),
                Locked("torchvision", "0.28.0", None, tuple(vision)),
            ],
            "cuda": [
                Locked("torch", "2.13.0", None, (pypi,)),
                Locked("torchvision", "0.28.0", None, (vision[0],)),
                Locked("nvidia-x", "1", None, (library,)),
            ],
        }.items():
            (folder / f"requirements/{name}.txt").write_text(render(name, packages))

    def install(self, **variables: str) -> subprocess.CompletedProcess[str]:
        # As a package index: a page a package, with the hashes of the files as they are now.
        for name in ("tool", "torch", "torchvision", "nvidia-x"):
            page = self.folder / "simple" / name / "index.html"
            page.parent.mkdir(parents=True, exist_ok=True)
            files = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.index.iterdir()}
            mine = [path for path in files if path.name.startswith(name.replace("-", "_") + "-")]
            links = [f'<a href="{path.as_uri()}#sha256={files[path]}">{path.name}</a>' for path in mine]
            page.write_text("<!DOCTYPE html>\n" + "\n".join(links))
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH"))}
        own |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": (self.folder / "simple").as_uri(), **variables}
        command = ["sh", self.folder / "requirements/install.sh", self.python, "development", "--no-compile"]
        return subprocess.run(command, env=own, capture_output=True, text=True, timeout=300)

    def installed(self) -> set[str]:
        return {path.name.removesuffix(".dist-info") for path in self.site.glob("*.dist-info")}

    def empty(self) -> None:
        for path in [*self.site.glob("*.dist-info"), *self.site.glob("t*.py"), *self.site.glob("nvidia_x.py")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.nightly
def test_what_is_installed_is_what_was_locked_and_the_right_torch(tmp_path: Path) -> None:
    made = Environment(tmp_path)
    own, cpu = {"tool-1"}, {"torch-2.13.0+cpu", "torchvision-0.28.0+cpu"}
    cuda = {"torch-2.13.0", "torchvision-0.28.0", "nvidia_x-1"}

    # An index with both builds: the one for machines without a GPU, until somebody says otherwise.
    assert made.install().returncode == 0 and made.installed() == own | cpu
    assert made.install(TORCH="cuda").returncode == 0 and made.installed() == own | cuda
    # Somebody's own build of the same version stays.
    made.empty()
    (made.site / "torch-2.13.0+cu126.dist-info").mkdir()
    (made.site / "torch-2.13.0+cu126.dist-info/METADATA").write_text("Name: torch\nVersion: 2.13.0+cu126\n")
    alone = made.install()
    assert alone.returncode == 1 and made.installed() == own | {"torch-2.13.0+cu126"}
    assert alone.stderr.endswith("torchvision is missing: install the one that belongs to torch 2.13.0+cu126\n")

    # Another file under a locked name is refused, and no other build is taken in its place.
    made.empty()
    wheel(made.index, "torch", "2.13.0+cpu", "import os")
    refused = made.install()
    assert refused.returncode != 0 and "DO NOT MATCH THE HASHES" in refused.stderr
    assert made.installed() == own
    made.empty()
    wheel(made.index, "tool", "1", "import os")
    refused = made.install()
    assert refused.returncode != 0 and "DO NOT MATCH THE HASHES" in refused.stderr and made.installed() == set()

    # An index with the CPU build of torch alone: said, because what imports torchvision does not work.
    wheel(made.index, "tool", "1")
    wheel(made.index, "torch", "2.13.0+cpu")
    (made.index / "torchvision-0.28.0+cpu-py3-none-any.whl").unlink()
    half = made.install()
    assert half.returncode == 0 and made.installed() == own | {"torch-2.13.0+cpu", "torchvision-0.28.0"}
    assert "it cannot be imported with this torch" in half.stderr

    # An index that has only PyPI's builds, as PyPI.
    made.empty()
    (made.index / "torch-2.13.0+cpu-py3-none-any.whl").unlink()
    assert made.install().returncode == 0 and made.installed() == own | cuda


@pytest.mark.slow
def test_a_forged_wheel_of_a_package_of_ours_is_refused(tmp_path: Path) -> None:
    version = VERSIONS["iniconfig"]
    wheel(tmp_path / "index", "iniconfig", version, "import os")
    (line,) = (entry for entry in entries("development") if entry.startswith("iniconfig=="))
    (tmp_path / "lock.txt").write_text(line)
    command = [sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--no-index"]
    command += ["--find-links", tmp_path / "index", "--target", tmp_path / "site", "-r", tmp_path / "lock.txt"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode != 0 and "DO NOT MATCH THE HASHES" in refused.stderr
    assert not (tmp_path / "site/iniconfig.py").exists()
