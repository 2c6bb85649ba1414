"""Write ``constraints-oldest.txt``: every runtime dependency at the lower bound that ``pyproject.toml`` states.

    python -m scripts.oldest_constraints            # write it
    python -m scripts.oldest_constraints --check    # exit 1 if it is not what pyproject.toml says

Dependencies and optional features count; the tools of ``dev`` do not, nor does what has no lower bound.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "constraints-oldest.txt"
TOOLS = "dev"
HEADER = """\
# The lower bounds of pyproject.toml as exact versions: what the oldest supported set-up installs.
# Made by scripts/oldest_constraints.py; edit pyproject.toml and run it again.
"""


def lowest(requirement: Requirement) -> str | None:
    """Return the version of a requirement's ``>=``; None if it has no lower bound.

    Raises:
        ValueError: The requirement has two lower bounds.
    """
    bounds = [clause.version for clause in requirement.specifier if clause.operator == ">="]
    if len(bounds) > 1:
        raise ValueError(f"{requirement} has several lower bounds; keep the highest one in pyproject.toml.")
    return bounds[0] if bounds else None


def constraints(project: dict[str, Any]) -> str:
    """Return the text of the constraints file for a parsed ``pyproject.toml``.

    Raises:
        ValueError: Two features state different lower bounds for one package: there is no single oldest set-up.
    """
    own = canonicalize_name(project["project"]["name"])
    features = project["project"].get("optional-dependencies", {})
    lines = [*project["project"]["dependencies"]]
    lines += [line for name, needed in features.items() if name != TOOLS for line in needed]
    versions: dict[str, str] = {}
    for requirement in map(Requirement, lines):
        name, version = canonicalize_name(requirement.name), lowest(requirement)
        if name == own or version is None:
            continue
        if versions.setdefault(name, version) != version:
            raise ValueError(
                f"{name} has the lower bounds {versions[name]} and {version}; state one in pyproject.toml."
            )
    return HEADER + "".join(f"{name}=={versions[name]}\n" for name in sorted(versions))


def main(arguments: list[str]) -> int:
    """Write the file, or with ``--check`` compare it; returns the exit status."""
    text = constraints(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    if "--check" not in arguments:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TARGET.name} is not what pyproject.toml says: run python -m scripts.oldest_constraints", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
