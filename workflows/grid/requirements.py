"""What a sweep needs that is not part of puregrid, looked for before anything else and reported all at once.

The section ``requires`` of a sweep file lists files and folders with the place that each can be had from::

    requires:
      - path: ${PUREGRID_WEIGHTS}/resnet56-4bfd9763.th
        sha256: 4bfd9763
        source: "https://..."
      - path: ["${PUREGRID_DATA}/CIFAR-10-C.tar", "${PUREGRID_DATA}/CIFAR-10-C"]   # either
        source: puregrid data fetch cifar10-c

Without it the first missing file ends the sweep; with it one message has every unset variable, missing file and wrong
hash. A path that the file no longer names, because of ``--set``, is not asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from defense.checkpoints import sha256_file
from defense.errors import InvalidInput
from defense.spec import Spec
from workflows.documents.document import Document
from workflows.documents.entries import validate

__all__ = ["Requirement", "check_requirements"]

_VARIABLE = re.compile(r"\$\{(\w+)\}")


class Requirement(Spec):
    """A file or folder that the user must have.

    Arguments:
        path: Where it is looked for; of several, one suffices.
        source: Where it can be had, or the command that makes it.
        sha256: First hex digits of its sha256, at least 8, if it is a file with a known one.
    """

    path: str | tuple[str, ...] = Field(min_length=1)
    source: str = Field(min_length=1)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{8,64}$")

    @property
    def paths(self) -> tuple[str, ...]:
        """All places."""
        return (self.path,) if isinstance(self.path, str) else self.path


@dataclass(frozen=True)
class _Missing:
    line: int
    text: str


def check_requirements(path: Path, overrides: Sequence[str] = ()) -> None:
    """Look for everything that a sweep file says it requires.

    Says nothing of a file without that section, or that is no YAML: reading it does.

    Arguments:
        path: The sweep file.
        overrides: ``KEY=VALUE`` settings.

    Raises:
        InvalidInput: All that is missing, each with its line, place and source.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        node = yaml.compose(text, yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return
    if not isinstance(data, dict) or "requires" not in data:
        return
    lines = _lines(node)
    document = Document(path, data, text, {("requires", at): str(line) for at, line in enumerate(lines)})
    before = set(_strings({key: value for key, value in data.items() if key != "requires"}))
    for setting in overrides:
        _override(data, setting)
    after = set(_strings({key: value for key, value in data.items() if key != "requires"}))
    missing = [_Missing(_line(text, name), _unset(name)) for name in _variables(_strings(data))]
    for position, requirement in enumerate(_requirements(document, data["requires"])):
        replaced = all(_named(one, before) and not _named(one, after) for one in requirement.paths)
        problem = None if replaced else _problem(requirement, path.resolve().parent)
        if problem is not None:
            missing.append(_Missing(lines[position] if position < len(lines) else 1, problem))
    if missing:
        told = "\n".join(f"  line {one.line}: {one.text}" for one in sorted(missing, key=lambda one: one.line))
        count = "1 thing is" if len(missing) == 1 else f"{len(missing)} things are"
        raise InvalidInput(f"{count} missing, and nothing was run:\n{told}", where=str(path))


def _requirements(document: Document, section: Any) -> Iterator[Requirement]:
    if not isinstance(section, list) or not all(isinstance(entry, dict) for entry in section):
        raise document.error(("requires",), "requires is a list of mappings with path, source and maybe sha256.")
    for position, entry in enumerate(section):
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        yield validate(document, ("requires", position), Requirement, fields, set())


def _lines(node: yaml.Node | None) -> list[int]:
    """Line of each entry of ``requires``."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "requires" and isinstance(value, yaml.SequenceNode):
                return [entry.start_mark.line + 1 for entry in value.value]
    return []


def _line(text: str, variable: str) -> int:
    """First line that names a variable outside a comment."""
    for number, line in enumerate(text.splitlines(), 1):
        if f"${{{variable}}}" in line.partition(" #")[0] and not line.lstrip().startswith("#"):
            return number
    return 1


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _variables(strings: Iterable[str]) -> list[str]:
    """Unset environment variables, in order of appearance."""
    names = [name for text in strings for name in _VARIABLE.findall(text)]
    return [name for name in dict.fromkeys(names) if name not in os.environ]


def _unset(name: str) -> str:
    return f"environment variable {name} is not set (export {name}=FOLDER)"


def _named(path: str, strings: set[str]) -> bool:
    return any(text.startswith(path) for text in strings)


def _override(data: dict[str, Any], setting: str) -> None:
    """Apply ``KEY=VALUE`` as far as it can be; what is wrong with it, reading the file tells."""
    name, _, value = setting.partition("=")
    target: Any = data
    keys = [int(part) if part.isdigit() else part for part in name.split(".")]
    try:
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = yaml.safe_load(value)
    except (KeyError, IndexError, TypeError, yaml.YAMLError):
        return


def _problem(requirement: Requirement, base: Path) -> str | None:
    """What is wrong with a requirement; None if nothing is."""
    known = f", sha256 {requirement.sha256}" if requirement.sha256 else ""
    wanted = f"{' or '.join(requirement.paths)} is needed ({requirement.source}{known})"
    if _variables(requirement.paths):
        return wanted
    places = [base / _VARIABLE.sub(lambda match: os.environ[match[1]], one) for one in requirement.paths]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        return f"{' or '.join(map(str, places))} is not there ({requirement.source}{known})"
    if requirement.sha256 is not None and found.is_file():
        have = sha256_file(found)
        if not have.startswith(requirement.sha256.lower()):
            return f"{found} has sha256 {have}, not {requirement.sha256} ({requirement.source})"
    return None
