"""Read a sweep file, once, so that every value knows its line; or take the same values from Python.

YAML is composed with the safe loader into nodes, whose marks give the lines. Beyond YAML 1.1: ``1e-3`` is a
number (not a string), a key that is given twice is an error, and ``${NAME}`` in a string is the environment
variable NAME.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from defense.errors import InvalidInput
from defense.redaction import has_credentials, redacted, remember

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


class _Loader(yaml.SafeLoader):
    """The safe loader, with numbers like 1e-3."""


class _Dumper(yaml.SafeDumper):
    """The safe dumper; it quotes strings like 1e-3, and writes repeated values in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )

_SECRET_FIELD = re.compile(
    r"(?i)(?:\w*_)?(?:password|passwd|secret|token|secret_?key|access_?key(?:_id)?|account_?key|api_?key|sas_?token"
    r"|connection_?string|credentials?)"
)

_OVERRIDDEN = "# overridden by: --set "

_VARIABLE = re.compile(r"\$\{(\w+)\}")


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
        if not equals or not name:
            raise InvalidInput("an override has the form KEY=VALUE, for example seeds=[0,1].", where=place)
        keys: Keys = tuple(int(part) if part.isdigit() else part for part in name.split("."))
        try:
            parsed = yaml.load(value, _Loader)  # noqa: S506 - _Loader is a SafeLoader
        except yaml.YAMLError as error:
            raise InvalidInput(f"the value is not YAML: {error}", where=place) from error
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
        # What is put on record must give this sweep again.
        self.text = f"{self.text.rstrip()}\n{_OVERRIDDEN}{setting}\n"

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
        InvalidInput: No such file, not YAML, a key given twice, no mapping, or an unset environment variable.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidInput(
            f"the {what} cannot be read ({cause}). Give the path of an existing YAML file.", where=str(path)
        ) from error
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
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            data = _plain(loader, node, (), document) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidInput(
            f"not valid YAML: {error.problem}. Look at this line and the one before for a bracket or quote that is "
            "not closed, or other indentation than around it.",
            where=f"{path}:{line}",
        ) from error
    except yaml.YAMLError as error:
        raise InvalidInput(f"not valid YAML: {error}.", where=str(path)) from error
    except RecursionError as error:
        raise InvalidInput(
            "it is nested too deeply, or an alias (`*name`) stands inside its own anchor (`&name`).", where=str(path)
        ) from error
    except (ValueError, TypeError, OverflowError) as error:  # of values such as the date 2001-13-45
        raise InvalidInput(f"a value in it means nothing in YAML: {error}.", where=str(path)) from error
    if not isinstance(data, dict):
        have = "this one is empty" if data is None else f"this one holds a {type(data).__name__}"
        raise InvalidInput(f"a {what} is a mapping with the keys {keys}; {have}.", where=f"{path}:1")
    document.data, document.original = data, copy.deepcopy(data)
    return document


def recorded_overrides(text: str) -> list[str]:
    """Return the ``KEY=VALUE`` settings that the text of a document records, in order."""
    return re.findall(rf"^{re.escape(_OVERRIDDEN)}(.*)$", text, re.MULTILINE)


def document_of(data: Mapping[str, Any], takes: type | tuple[type, ...] = ()) -> Document:
    """Return a document of values that come from Python.

    Arguments:
        data: Mappings, sequences, paths and scalars.
        takes: Classes whose instances are values too, beside the plain ones.

    Raises:
        InvalidInput: A value that no file could have, with its path.
    """
    document = Document(None, {}, "")
    document.data = {name: _from_python(value, (name,), document, takes) for name, value in data.items()}
    document.expand_variables()
    return document


def _from_python(value: Any, keys: Keys, document: Document, takes: type | tuple[type, ...]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _from_python(item, (*keys, str(key)), document, takes) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_from_python(item, (*keys, place), document, takes) for place, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | takes):
        return value
    raise document.error(
        keys, f"{value!r} ({type(value).__name__}) is no plain value: give a number, text, list, mapping or config."
    )


def written(data: Mapping[str, Any]) -> str:
    """Return the YAML text from which :func:`read_document` reads the same plain values."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _plain(loader: _Loader, node: yaml.Node, keys: Keys, document: Document) -> Any:
    document.lines[keys] = str(node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        # Looked for before `<<` is resolved: a key may override one that came in by it.
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                document.lines[keys] = str(line)
                raise document.error(keys, "a key is a plain word here, not a list or mapping.")
            if key_node.value in seen:
                document.lines[(*keys, key_node.value)] = str(line)
                raise document.error(
                    (*keys, key_node.value),
                    f"this key is given twice (first in line {seen[key_node.value]}); one value would be lost. "
                    "Keep one; several values of one field are a list.",
                )
            seen[key_node.value] = line
        loader.flatten_mapping(node)
        # The last of equal keys counts, and the node may come again by an alias: then `<<` is resolved already.
        node.value = list({key_node.value: (key_node, value) for key_node, value in node.value}.values())
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            result[key] = _plain(loader, value_node, (*keys, key), document)
            document.lines[(*keys, key)] = str(key_node.start_mark.line + 1)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*keys, i), document) for i, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


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
