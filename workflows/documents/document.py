"""Read a sweep file, once, so that every value knows its line; or take the same values from Python.

What YAML is, and what is refused of it, is in :mod:`workflows.documents.parse`. Beyond that ``${NAME}`` in a string
is the environment variable NAME.
"""

import copy
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from defense.errors import InvalidInput
from defense.files import found
from defense.redaction import has_credentials, redacted, remember
from workflows.documents.parse import DEEPEST, LARGEST, MOST_VALUES, NotReadable, decode, forbidden, parse

__all__ = [
    "Document",
    "Keys",
    "document_of",
    "expanded",
    "parsed",
    "read_document",
    "recorded_overrides",
    "strings",
    "written",
]

Keys = tuple[str | int, ...]
_POSITION = re.compile("[0-9]{1,9}")


class _Dumper(yaml.SafeDumper):
    """The safe dumper; it quotes strings like 1e-3, and writes repeated values in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# What the reader takes for a number, or refuses unless it is in quotes.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?0[0-9xob_][0-9a-fA-F_]*$"), list("-+0"))

_SECRET_FIELD = re.compile(
    r"(?i)(?:\w*_)?(?:password|passwd|secret|token|secret_?key|access_?key(?:_id)?|account_?key|api_?key|sas_?token"
    r"|connection_?string|credentials?)"
)

_OVERRIDDEN = "# overridden by: --set "

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_LONGEST_VALUES = 10_000_000
"""Characters that environment variables may bring into a document."""


@dataclass
class Document:
    """Plain YAML values with their places.

    Arguments:
        path: The file; None for values that come from Python.
        data: The values: mappings, lists and scalars.
        text: The file's text, with a comment for each override.
        lines: Line (or ``--set`` option) of each value by its keys.
        original: The values before overrides.
    """

    path: Path | None
    data: dict[str, Any]
    text: str
    lines: dict[Keys, str] = field(default_factory=dict)
    original: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where relative paths start: the file's folder; the working directory, where there is no file."""
        return Path.cwd() if self.path is None else self.path.resolve().parent

    def place(self, keys: Iterable[str | int]) -> str:
        """Line of a value, or of the nearest value around it; the option of one that `--set` made."""
        keys = tuple(keys)
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, "1")

    def where(self, keys: Iterable[str | int]) -> str | None:
        """File and line of a value, see :meth:`place`; None for values that come from Python."""
        place = self.place(keys)
        if place.startswith("--set"):
            return place
        return None if self.path is None else f"{self.path}:{place}"

    def error(self, keys: Iterable[str | int], message: str) -> InvalidInput:
        """Return an error about one value: file, line, field, message."""
        keys = tuple(keys)
        name = ".".join(map(str, keys))
        return InvalidInput(f"{name}: {message}" if name else message, where=self.where(keys))

    def override(self, setting: str) -> None:
        """Apply ``KEY=VALUE``: KEY a dotted path (``datasets.0.images.first``), VALUE in YAML.

        Raises:
            InvalidInput: Not of that form, or no such place in the file.
        """
        name, equals, value = setting.partition("=")
        place = f"--set {setting}"
        if not _is_text(setting):
            raise InvalidInput("an override is UTF-8 text, and this one has other bytes.", where=place)
        if not equals or not name:
            raise InvalidInput("an override has the form KEY=VALUE, for example seeds=[0,1].", where=place)
        keys: Keys = tuple(int(part) if _POSITION.fullmatch(part) else part for part in name.split("."))
        if len(keys) > DEEPEST:
            raise InvalidInput(f"a key has at most {DEEPEST} parts, and this one {len(keys)}.", where=place)
        wrong = forbidden(name)
        if wrong is not None:
            raise InvalidInput(f"{wrong}.", where=place)
        try:
            parsed = parse(value).data
        except NotReadable as error:
            prefix = "the value is not YAML: " if error.syntax else ""
            inside = ".".join(map(str, (*keys, *error.keys)))
            raise InvalidInput(f"{prefix or f'{inside}: '}{error.problem}.", where=place) from error
        target: Any = self.data
        created: list[Keys] = [keys]
        try:
            for depth, key in enumerate(keys[:-1], 1):
                if isinstance(target, dict) and key not in target:
                    target[key] = {}
                    created.append(keys[:depth])
                target = target[key]
            target[keys[-1]] = parsed
        except (TypeError, IndexError, KeyError) as error:
            raise InvalidInput(
                f"there is no {name!r} in {self.path} to override; a key is a dotted path, with list positions "
                "counted from 0: defences.1.t_star=[50,100].",
                where=place,
            ) from error
        for old in [old for old in self.lines if old[: len(keys)] == keys]:
            del self.lines[old]
        self.lines.update(dict.fromkeys(created, place))
        # What is put on record must give this sweep again; a line break would end the comment.
        self.text = f"{self.text.rstrip()}\n{_OVERRIDDEN}{' '.join(setting.splitlines())}\n"

    def unset_variables(self) -> dict[str, Keys]:
        """Return the unset environment variables that the values name, each with a place that names it."""
        unset: dict[str, Keys] = {}
        for keys, text in strings(self.data):
            for name in _VARIABLE.findall(text):
                if name not in os.environ:
                    unset.setdefault(name, keys)
        return unset

    def expand_variables(self) -> None:
        """Replace the names of environment variables in strings by their values.

        Raises:
            InvalidInput: One is not set.
        """
        for name, keys in self.unset_variables().items():
            raise self.error(
                keys,
                f"environment variable {name} is not set; set it (`export {name}=...`) or write the value itself.",
            )
        brought = 0
        for keys, text in strings(self.data):
            brought += sum(len(os.environ[name]) for name in _VARIABLE.findall(text))
            if brought > _LONGEST_VALUES:
                raise self.error(keys, f"environment variables bring more than {_LONGEST_VALUES:,} characters.")
        self.data = expanded(self.data)
        self.check_credentials()

    def check_credentials(self) -> None:
        """Refuse values with credentials: a document is stored and logged with the results.

        Raises:
            InvalidInput: A URI has a password, key or token, or a field is called like one.
        """
        for keys, text in strings(self.data):
            remember(text)
            if has_credentials(text) or has_credentials(unquote(text)):
                raise self.error(
                    keys,
                    f"{redacted(text)!r} holds a password or key, which would be stored with the results. Write it "
                    "without: credentials come from the environment or the machine's role.",
                )
            named = next((str(key) for key in keys if _SECRET_FIELD.fullmatch(str(key))), None)
            if named is not None:
                raise self.error(
                    keys,
                    f"the value of {named!r} would be stored with the results. Leave it out: credentials come "
                    "from the environment or the machine's role.",
                )


def read_document(
    path: Path,
    overrides: Iterable[str] = (),
    *,
    expand: bool = True,
    what: str = "sweep file",
    keys: str = "sweep, datasets, classifiers, defences, ...",
) -> Document:
    """Read a YAML mapping with lines.

    Arguments:
        path: The file.
        overrides: ``KEY=VALUE`` settings applied on top.
        expand: Put in environment variables at once; else the caller does, with :meth:`Document.expand_variables`.
        what: What messages call the file.
        keys: The keys that messages name.

    Raises:
        InvalidInput: No such file, one that is no text of 16 MiB at most, not YAML, a key given twice, no mapping, or
            an unset environment variable.
    """
    found(path, f"the {what}", where=str(path))
    try:
        with path.open("rb") as file:
            text = decode(file.read(LARGEST + 1))
    except (OSError, ValueError) as error:  # ValueError: of a path with a NUL
        cause = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(
            f"the {what} cannot be read ({cause}). Give the path of an existing YAML file.", where=str(path)
        ) from error
    except NotReadable as error:
        raise _refusal(error, path, what) from error
    document = parsed(text, path, what=what, keys=keys)
    for setting in overrides:
        document.override(setting)
    if expand:
        document.expand_variables()
    return document


def parsed(
    text: str, path: Path, *, what: str = "sweep file", keys: str = "sweep, datasets, classifiers, defences, ..."
) -> Document:
    """Return the document of a text, as it is written: without overrides and variables.

    Arguments:
        text: YAML.
        path: The file for messages, in the folder where relative paths start.
        what: What messages call the file.
        keys: The keys that messages name.

    Raises:
        InvalidInput: Not YAML, a key given twice, or no mapping.
    """
    document = Document(path, {}, text)
    try:
        content = parse(text)
    except NotReadable as error:
        raise _refusal(error, path, what) from error
    data, document.lines = content.data, {place: str(line) for place, line in content.lines.items()}
    if not isinstance(data, dict):
        have = "this one is empty" if data is None else f"this one holds a {type(data).__name__}"
        raise InvalidInput(f"a {what} is a mapping with the keys {keys}; {have}.", where=f"{path}:1")
    for keys_of, value in strings(data):
        if not _is_text(value):
            raise document.error(keys_of, f"{value!r} is half a character (a lone surrogate), which is no text.")
    document.data, document.original = data, copy.deepcopy(data)
    return document


def recorded_overrides(text: str) -> list[str]:
    """Return the ``KEY=VALUE`` settings that the text of a document records, in order."""
    return re.findall(rf"^{re.escape(_OVERRIDDEN)}(.*)$", text, re.MULTILINE)


def _refusal(error: NotReadable, path: Path, what: str) -> InvalidInput:
    """Return the message of a text that is refused, at its file and line."""
    where = str(path) if error.line is None else f"{path}:{error.line}"
    if error.keys:
        return InvalidInput(f"{'.'.join(map(str, error.keys))}: {error.problem}.", where=where)
    column = "" if error.column is None else f" (column {error.column})"
    if error.syntax:
        return InvalidInput(
            f"not valid YAML: {error.problem}{column}. Look at this line and the one before for a bracket or quote "
            "that is not closed, or other indentation than around it.",
            where=where,
        )
    if error.line is None:
        return InvalidInput(f"the {what} cannot be read: {error.problem}.", where=where)
    return InvalidInput(f"column {error.column}: {error.problem}.", where=where)


def document_of(data: Mapping[str, Any], takes: type | tuple[type, ...] = ()) -> Document:
    """Return a document of values that come from Python.

    Arguments:
        data: Mappings, sequences, paths and scalars.
        takes: Classes whose instances are values too, beside the plain ones.

    Raises:
        InvalidInput: A value that no file could have, with its path.
    """
    document = Document(None, {}, "")
    values = _FromPython(document, takes)
    document.data = {name: values.read(value, (name,)) for name, value in data.items()}
    document.expand_variables()
    return document


class _FromPython:
    """Values of Python as a file would have them, within the same bounds."""

    def __init__(self, document: Document, takes: type | tuple[type, ...]) -> None:
        self._document = document
        self._takes = takes
        self._count = 0

    def read(self, value: Any, keys: Keys) -> Any:
        """Return a value."""
        error = self._document.error
        self._count += len(value) if isinstance(value, list | tuple | range | Mapping) else 1
        if self._count > MOST_VALUES:
            raise error(keys, f"with this there are more than {MOST_VALUES:,} values in one sweep.")
        if len(keys) > DEEPEST:
            raise error(keys[:3], f"it is nested too deeply, more than {DEEPEST} levels, or holds itself.")
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise error(keys, f"a key is a name, and {key!r} is none.")
            return {key: self.read(item, (*keys, key)) for key, item in value.items()}
        if isinstance(value, list | tuple | range):
            return [self.read(item, (*keys, place)) for place, item in enumerate(value)]
        if isinstance(value, Path):
            value = str(value)
        if isinstance(value, str) and (wrong := forbidden(value)) is not None:
            raise error(keys, f"{wrong}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise error(keys, f"{value} is no number that a field could have: give a finite one.")
        if isinstance(value, int) and abs(value) >= 10**18:
            raise error(keys, "the number has more than 18 digits, and none here can be so large.")
        if value is None or isinstance(value, str | int | float | self._takes):
            return value
        raise error(
            keys,
            f"{value!r} ({type(value).__name__}) is no plain value: give a number, text, list, mapping or config.",
        )


def written(data: Mapping[str, Any]) -> str:
    """Return the YAML text from which :func:`read_document` reads the same plain values."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _is_text(value: str) -> bool:
    """Return whether a string can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def strings(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Yield every string in a value, in order, with its keys."""
    if isinstance(value, str):
        yield keys, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(item, (*keys, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from strings(item, (*keys, place))


def expanded(value: Any) -> Any:
    """Return a value with environment variables replaced; unset ones stay as written."""
    if isinstance(value, dict):
        return {key: expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expanded(item) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), value)
    return value
