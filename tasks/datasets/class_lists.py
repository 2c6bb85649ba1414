"""Lists of class names: a class a line, with further names after the first; ``#`` begins a comment."""

from pathlib import Path

from defense.files import read_text

__all__ = ["LISTS", "listed"]

LISTS = Path(__file__).parent / "classes"
"""Those that ship."""


def listed(path: Path) -> list[list[str]]:
    """Return the names on each line of a class list, without comments and empty lines."""
    lines = read_text(path, "the list of classes").splitlines()
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]
