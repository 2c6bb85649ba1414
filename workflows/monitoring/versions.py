"""Which source computed a row: the commit of the tree that these modules are imported from.

From a git checkout it is the commit that is checked out, with the word *modified* where Python files of its
packages differ from it or are not in it; in an image, which has no ``.git``, the commit that it was built from (the
file ``COMMIT`` beside the packages); from an installed package the commit that the installer wrote down
(``direct_url.json``, PEP 610). It goes into the record beside the rows, never into the rows or their ids: equal rows
of different commits are equal.
"""

import contextlib
import json
import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

__all__ = [
    "built_commit",
    "driver_versions",
    "git_commit",
    "hardware",
    "installed_commit",
    "source_commit",
    "worker_versions",
]

_PACKAGES = ("defense", "puregrid", "tasks", "workflows")


@cache
def source_commit() -> str | None:
    """40 hexadecimal digits, followed by `` modified`` where that is so; None if nothing says which commit it is."""
    root = Path(__file__).parents[2]
    return git_commit(root) or built_commit(root) or installed_commit(root)


def git_commit(root: Path) -> str | None:
    """Return the commit of a checkout.

    Arguments:
        root: The folder that holds the packages, and ``.git``: one that lies somewhere inside another project's
            checkout, as an installed package may, is none.
    """
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changes = _git(root, "status", "--porcelain", "--", *(f":(glob){name}/**/*.py" for name in _PACKAGES))
    return commit + ("" if changes == "" else " modified" if changes else " maybe modified")


def _git(root: Path, *arguments: str) -> str | None:
    """Return the output of git; None if it is absent or fails."""
    # Containers mount checkouts of other users. No lock is taken, so that nobody else's git has to wait.
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    try:
        done = subprocess.run(  # noqa: S603  a fixed program and arguments
            command,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def built_commit(root: Path) -> str | None:
    """Return the commit that an image was built from: its Dockerfile writes the build argument COMMIT into this file.

    Arguments:
        root: The folder that holds the packages. Code that a Ray job brings along lies in another one.
    """
    try:
        stated = (root / "COMMIT").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return stated if re.fullmatch(r"[0-9a-f]{40}( modified)?", stated) else None


def installed_commit(root: Path) -> str | None:
    """Return the commit that a package was installed from, if it was from a repository and is what ``root`` holds."""
    try:
        installed = distribution("puregrid")
    except PackageNotFoundError:
        return None
    if Path(str(installed.locate_file(""))).resolve() != root.resolve():
        return None  # another copy than the one that is imported
    try:
        recorded = json.loads(installed.read_text("direct_url.json") or "{}")
    except ValueError:
        return None
    commit = recorded.get("vcs_info", {}).get("commit_id")
    return commit if isinstance(commit, str) else None


def driver_versions() -> dict[str, str]:
    """Return the versions of everything that matters for a result."""
    versions = {"python": platform.python_version()}
    for name in ("puregrid", "torch", "torchvision", "diffusers", "ray", "numpy", "pyarrow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = source_commit()
    return versions if commit is None else {**versions, "puregrid_commit": commit}


@cache
def hardware() -> dict[str, str]:
    """Return the processor's model as ``cpu``, and the version of NVIDIA's kernel module as ``driver``.

    What Linux does not say is left out.
    """
    found: dict[str, str] = {}
    for name, path, pattern in (
        ("cpu", "/proc/cpuinfo", r"^model name\s*:\s*(.+)$"),
        ("driver", "/proc/driver/nvidia/version", r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)"),
    ):
        with contextlib.suppress(OSError):
            match = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
            found |= {} if match is None else {name: match[1].strip()}
    return found


def worker_versions() -> dict[str, str]:
    """Return the versions, and the processor and driver, that the commit of every unit records."""
    names = ("puregrid", "torch", "numpy", "pyarrow")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}, **hardware()}
    commit = source_commit()
    return versions if commit is None else {**versions, "puregrid_commit": commit}
