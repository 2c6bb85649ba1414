"""Check the files that a sweep needs from elsewhere, before anything else, and report all problems at once.

The section ``requires`` of a sweep file lists files and folders with the place that each can be had from::

    requires:
      - path: ${PUREGRID_WEIGHTS}/resnet56-4bfd9763.th
        sha256: 4bfd9763
        source: "https://..."
      - path: ["${PUREGRID_DATA}/CIFAR-10-C.tar", "${PUREGRID_DATA}/CIFAR-10-C"]   # either
        source: puregrid data fetch cifar10-c

Without it the first missing file ends the sweep; with it one message has every unset variable, missing file and wrong
hash. A path that ``--set`` has removed from the file is not required.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from defense.checkpoints import SHA256, sha256_file
from defense.errors import InvalidInput
from defense.spec import Spec
from workflows.documents.document import Document, expanded, strings
from workflows.documents.entries import validate

__all__ = ["Requirement", "check_requirements"]

_SECTION = "requires"


class Requirement(Spec):
    """A file or folder that the user must have.

    Arguments:
        path: Where it is looked for; of several, one suffices.
        source: Where it can be had, or the command that makes it.
        sha256: First hex digits of its sha256, at least 8, if it is a file with a known one.
    """

    path: str | tuple[str, ...] = Field(min_length=1)
    source: str = Field(min_length=1)
    sha256: str | None = SHA256

    @property
    def paths(self) -> tuple[str, ...]:
        """All places."""
        return (self.path,) if isinstance(self.path, str) else self.path


def check_requirements(document: Document) -> None:
    """Check everything that a sweep file requires, including environment variables.

    Arguments:
        document: The file, its variables not yet put in; without that section nothing is looked for.

    Raises:
        InvalidInput: All that is missing, each with its line, place and source.
    """
    if _SECTION not in document.data:
        return
    before, after = _texts(document.original), _texts(document.data)
    missing = [
        (document.place(keys), f"environment variable {name} is not set (export {name}=FOLDER)")
        for name, keys in document.unset_variables().items()
    ]
    for position, requirement in enumerate(_requirements(document)):
        replaced = all(_named(path, before) and not _named(path, after) for path in requirement.paths)
        problem = None if replaced else _problem(requirement, document.folder)
        if problem is not None:
            missing.append((document.place((_SECTION, position)), problem))
    if missing:
        # In the order of the file; what `--set` brought in comes last.
        missing.sort(key=lambda entry: int(entry[0]) if entry[0].isdigit() else len(document.text))
        lines = "\n".join(f"  {'line ' if place.isdigit() else ''}{place}: {text}" for place, text in missing)
        count = "1 thing is" if len(missing) == 1 else f"{len(missing)} things are"
        raise InvalidInput(f"{count} missing, and nothing was run:\n{lines}", where=str(document.path))


def _requirements(document: Document) -> Iterator[Requirement]:
    section = document.data[_SECTION]
    if not isinstance(section, list) or not all(isinstance(entry, dict) for entry in section):
        raise document.error((_SECTION,), "requires is a list of mappings with path, source and maybe sha256.")
    for position, entry in enumerate(section):
        yield validate(document, (_SECTION, position), Requirement, entry)


def _texts(data: dict[str, object]) -> set[str]:
    """Yield every string of a file outside the section."""
    return {text for keys, text in strings(data) if keys[0] != _SECTION}


def _named(path: str, texts: set[str]) -> bool:
    return any(text.startswith(path) for text in texts)


def _problem(requirement: Requirement, base: Path) -> str | None:
    """Return what is wrong with a requirement, or None."""
    known = f", sha256 {requirement.sha256}" if requirement.sha256 else ""
    paths = [expanded(path) for path in requirement.paths]
    if any("${" in path for path in paths):
        return f"{' or '.join(requirement.paths)} is needed ({requirement.source}{known})"
    places = [base / path for path in paths]
    present = next((place for place in places if os.path.exists(place)), None)
    if present is None:
        return f"{' or '.join(map(str, places))} is not there ({requirement.source}{known})"
    if requirement.sha256 is not None and present.is_file():
        have = sha256_file(present)
        if not have.startswith(requirement.sha256.lower()):
            return f"{present} has sha256 {have}, not {requirement.sha256} ({requirement.source})"
    return None
