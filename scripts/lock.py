"""Write the lock files in ``requirements/``: the versions of ``constraints.txt``, each with the sha256 of its files.

    python -m scripts.lock                        # write them; needs uv (`pipx install uv`) and the package index
    python -m scripts.lock --torch-index URL      # and read the hashes of PyTorch's CPU builds anew from their index

uv resolves what ``pyproject.toml`` asks for; a version that ``constraints.txt`` lacks is an error with the line that
is missing, so that versions stay in one file. Locked are the wheels that fit Linux on x86-64 and aarch64 and the
supported Pythons; a package without such a wheel is locked by its source archive.

torch and torchvision come in two builds, which belong together and have files of their own. ``cpu.txt`` has those of
PyTorch's own index, whose hashes are in ``requirements/pytorch-cpu.sha256``, in the form of sha256sum. ``cuda.txt``
has PyPI's, with CUDA's libraries.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin

from packaging.markers import Marker
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
CONSTRAINTS = ROOT / "constraints.txt"
CPU_BUILDS = FOLDER / "pytorch-cpu.sha256"
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")

EXTRAS = {"development": ["dev"], "cluster": ["cluster", "timm", "robustbench"]}
"""Lock files and the optional features of pyproject.toml that they hold."""
TOOLS = {"audit": ["pip-audit"], "docs": ["mkdocs-material", "mkdocstrings[python]"]}
"""Lock files of tools that run in an environment of their own."""
ALONE = {"development": ["torchattacks"]}
"""Packages without their dependencies: a peer in tests pins a requests of 2020 that it does not need."""
CUDA = re.compile(r"torch|torchvision|triton|(?:nvidia|cuda)-.+")
"""PyPI's builds of torch and torchvision, and what these need beside others."""

HEADER = """\
# {what}
# Made by scripts/lock.py from pyproject.toml and constraints.txt; run it again after a change of either.
# Complete, so that nothing is resolved when requirements/install.sh installs it.
"""
WHAT = {
    "development": "What `make` installs beside torch: all features, and the tools of tests, lint and benchmarks.",
    "cluster": "What the image installs beside torch: the features cluster, timm and robustbench.",
    "cpu": "torch and torchvision for machines without a GPU: the builds of PyTorch's own index.",
    "cuda": "torch and torchvision as PyPI has them, for GPUs, with CUDA's libraries and Triton.",
    "audit": "pip-audit, in an environment of its own.",
    "docs": "What `make docs` builds the site of the documentation with, in an environment of its own.",
}


@dataclass(frozen=True)
class Locked:
    """One package: its version, where it is needed (a marker, or none), and the sha256 of its files."""

    name: str
    version: str
    marker: str | None
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        where = f" ; {self.marker}" if self.marker else ""
        return " \\\n    ".join([f"{self.name}=={self.version}{where}", *(f"--hash=sha256:{h}" for h in self.hashes)])


def fits(filename: str) -> bool:
    """Whether a wheel can be installed on a supported Python and machine (glibc, not musl)."""
    minors = [int(python[2:]) for python in PYTHONS]
    for tag in parse_wheel_filename(filename)[3]:
        if tag.platform != "any" and not re.fullmatch(rf"(many)?linux.*_({'|'.join(MACHINES)})", tag.platform):
            continue
        minor = re.fullmatch(r"cp3(\d+)", tag.interpreter)
        if tag.interpreter == "py3" or (minor and tag.abi == "abi3" and int(minor[1]) <= max(minors)):
            return True
        if minor and int(minor[1]) in minors and tag.abi in (tag.interpreter, "none"):
            return True
    return False


def condition(marker: str | None) -> tuple[bool, str | None]:
    """Return whether a package is needed anywhere, and the marker if it is not needed everywhere."""
    if marker is None:
        return True, None
    linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    cpython = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    answers = [
        Marker(marker).evaluate(
            {
                **linux,
                **cpython,
                "python_version": python,
                "python_full_version": f"{python}.{patch}",
                "platform_machine": machine,
            }
        )
        for python in PYTHONS
        for patch in (0, 99)
        for machine in MACHINES
    ]
    return any(answers), None if all(answers) else marker


def locked(package: Mapping[str, Any]) -> Locked | None:
    """Return a package of a ``pylock.toml`` (PEP 751); None if no supported machine needs it."""
    needed, marker = condition(package.get("marker"))
    if not needed:
        return None
    wheels = [wheel for wheel in package.get("wheels", ()) if fits(unquote(wheel["url"].rpartition("/")[2]))]
    files = wheels or [package["sdist"]]
    hashes = sorted({file["hashes"]["sha256"] for file in files})
    return Locked(canonicalize_name(package["name"]), package["version"], marker, tuple(hashes))


def pins(text: str) -> dict[str, str]:
    """Return the versions of a constraints or lock file by canonical name."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def missing(packages: Iterable[Locked], versions: Mapping[str, str]) -> list[str]:
    """Return the lines that ``constraints.txt`` lacks, or has with another version."""
    public = {(package.name, package.version.partition("+")[0]) for package in packages}
    return sorted(f"{name}=={version}" for name, version in public if versions.get(name) != version)


def cpu_builds(text: str, versions: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the hashes of PyTorch's CPU builds by package.

    Raises:
        ValueError: A package has no builds of the version that ``constraints.txt`` states.
    """
    found: dict[str, list[str]] = {"torch": [], "torchvision": []}
    for sha256, filename in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE):
        name, version, _, _ = parse_wheel_filename(filename)
        if fits(filename) and version.public == versions[name] and version.local == "cpu":
            found[name].append(sha256)
    for name, hashes in found.items():
        if not hashes:
            raise ValueError(
                f"{CPU_BUILDS.name} has no CPU build of {name} {versions[name]}: run this again with --torch-index."
            )
    return found


def listed(page: str, name: str, version: str) -> Iterator[str]:
    """Yield ``SHA256  FILENAME`` of the CPU builds of a version on a page of PyTorch's index (PEP 503)."""
    for filename, sha256 in re.findall(r"([^/\"']+\.whl)#sha256=([0-9a-f]{64})", page):
        if unquote(filename).startswith(f"{name}-{version}+cpu-") and fits(unquote(filename)):
            yield f"{sha256}  {unquote(filename)}\n"


def compiled(*arguments: str, requirements: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return the packages that uv resolves, for all platforms at once."""
    uv = shutil.which("uv")
    if uv is None:
        raise ValueError("uv is not installed: pipx install uv")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pylock.toml"
        command = [uv, "pip", "compile", "--universal", "--python-version", PYTHONS[0], "--quiet"]
        command += ["--constraints", str(CONSTRAINTS), "--format", "pylock.toml", "--output-file", str(target)]
        done = subprocess.run(  # noqa: S603  a fixed program and arguments
            [*command, *arguments],
            input="\n".join(requirements),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ValueError(f"uv could not resolve {' '.join(arguments)}:\n{done.stderr}")
        packages: list[dict[str, Any]] = tomllib.loads(target.read_text(encoding="utf-8"))["packages"]
        return packages


def render(name: str, packages: Iterable[Locked]) -> str:
    """Return the text of a lock file."""
    lines = "".join(f"{package}\n" for package in sorted(packages, key=lambda p: (p.name, p.version)))
    return HEADER.format(what=WHAT[name]) + lines


def locks(versions: Mapping[str, str]) -> dict[str, list[Locked]]:
    """Resolve everything: the packages of each lock file, given the versions of ``constraints.txt``."""
    builds = cpu_builds(CPU_BUILDS.read_text(encoding="utf-8"), versions)
    found = {
        name: compiled("pyproject.toml", *(word for extra in extras for word in ("--extra", extra)))
        for name, extras in EXTRAS.items()
    }
    found |= {name: compiled("-", requirements=tools) for name, tools in TOOLS.items()}
    for name, alone in ALONE.items():
        found[name] += compiled("--no-deps", "-", requirements=alone)
    made = {name: [one for package in packages if (one := locked(package))] for name, packages in found.items()}
    made["cuda"] = [package for package in made["development"] if CUDA.fullmatch(package.name)]
    made["cpu"] = [Locked("torch", f"{versions['torch']}+cpu", None, tuple(sorted(builds["torch"])))]
    # An index may have the CPU build of torch alone. PyPI's torchvision cannot be imported with it, which costs timm,
    # robustbench and torchvision's networks, but nothing else.
    (vision,) = (package for package in made["cuda"] if package.name == "torchvision")
    made["cpu"] += [replace(vision, hashes=tuple(sorted({*vision.hashes, *builds["torchvision"]})))]
    for name in EXTRAS:
        made[name] = [package for package in made[name] if not CUDA.fullmatch(package.name)]
    return made


def main(arguments: list[str]) -> int:
    """Write the lock files; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.lock", description="Write requirements/*.txt.")
    parser.add_argument("--torch-index", metavar="URL", help="PyTorch's index of CPU builds")
    options = parser.parse_args(arguments)
    versions = pins(CONSTRAINTS.read_text(encoding="utf-8"))
    try:
        if options.torch_index:
            lines: list[str] = []
            for name in ("torch", "torchvision"):
                url = urljoin(options.torch_index.rstrip("/") + "/", f"{name}/")
                with urllib.request.urlopen(url, timeout=60) as page:  # noqa: S310  the maintainer's own argument
                    lines += listed(page.read().decode(), name, versions[name])
            cpu_builds("".join(lines), versions)
            CPU_BUILDS.write_text("".join(lines), encoding="utf-8")
        made = locks(versions)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    lacking = missing((package for packages in made.values() for package in packages), versions)
    if lacking:
        print(f"{CONSTRAINTS.name} lacks these versions; add them and run this again:", *lacking, sep="\n")
        return 1
    for name, packages in made.items():
        (FOLDER / f"{name}.txt").write_text(render(name, packages), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
