"""Parse YAML into plain values that know their places, within fixed bounds of size, depth and number.

A text is read once, event by event (libyaml's parser where it is installed), so that a bound is noticed before it is
exceeded: nine lines of aliases of aliases stand for a billion values. The dialect is what YAML 1.1 and 1.2 agree on.
What they read differently is refused with what to write instead, because a file must not mean one thing to its
author and another to puregrid: ``no``, ``010``, ``0x1F``, ``1:30``, and any tag (``!!python/...``, ``!name``).
``1e-3`` is a number, a date is text, ``<<`` merges.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from workflows.documents.words import HALF_BOOLEAN, scalar

__all__ = ["DEEPEST", "LARGEST", "MOST_VALUES", "NotReadable", "Parsed", "decode", "forbidden", "parse"]

LARGEST = 1_000_000
"""Bytes of a file."""
DEEPEST = 50
"""Levels of lists and mappings inside each other; sweeps have about ten."""
MOST_VALUES = 100_000
"""Values of a document, those that aliases repeat counted as often as they stand for."""

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Keys = tuple[str | int, ...]


class NotReadable(Exception):
    """A text that is refused.

    Arguments:
        problem: What is wrong, and what to do.
        line: Where, counted from 1; None for the text as a whole.
        column: The column there, counted from 1.
        keys: The value that it is about, if there is one.
        syntax: Whether it breaks the rules of YAML, and not only puregrid's.
    """

    def __init__(
        self,
        problem: str,
        line: int | None = None,
        column: int | None = None,
        keys: Keys = (),
        *,
        syntax: bool = False,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line
        self.column = column
        self.keys = keys
        self.syntax = syntax


@dataclass
class Parsed:
    """The values of a text.

    Arguments:
        data: Mappings, lists, text, numbers, booleans and None.
        lines: The line of each value by its keys.
    """

    data: Any = None
    lines: dict[Keys, int] = field(default_factory=dict)


# Text.

_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
"""Characters that YAML forbids, and those that make an editor show other lines, or another order, than are read."""


def decode(data: bytes) -> str:
    """Return the text of a file; a byte order mark before UTF-8 is dropped.

    Raises:
        NotReadable: It is too large, or not UTF-8; with the line of the first byte that is not.
    """
    if len(data) > LARGEST:
        raise NotReadable(
            f"it is larger than {LARGEST // 1_000_000} MB, and what describes a grid takes some kilobytes: is this "
            "the right file? Long lists of image ids have a short form, `images: {start: 0, stop: 50000}`"
        )
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(data) > 3 and (data[0] == 0 or data[1] == 0)):
        raise NotReadable("it is not UTF-8 text but UTF-16 or UTF-32: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise NotReadable(f"it is not UTF-8 text (byte 0x{data[error.start]:02x})", line, column) from error


def forbidden(text: str) -> str | None:
    """Return what is wrong with the characters of a text, None if nothing is."""
    found = _FORBIDDEN.search(text)
    return None if found is None else f"the character U+{ord(found[0]):04X} is not allowed; remove it"


def parse(text: str) -> Parsed:
    """Return the values of a text.

    Raises:
        NotReadable: It is no YAML, is beyond a bound, or has something that is refused.
    """
    found = _FORBIDDEN.search(text)
    if found is not None:
        start = found.start()
        line, column = text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)
        raise NotReadable(str(forbidden(text)), line, column, syntax=True)
    node = _Composer(text).document()
    builder = _Builder()
    data = None if node is None else builder.build(node, ())
    return Parsed(data, builder.lines)


# Events to nodes.


@dataclass(eq=False)
class _Node:
    """A value with its place; ``value`` is text, a list of nodes, a list of pairs of nodes, or an alias's node.

    ``size`` is how many values it stands for with all aliases written out, ``depth`` how many levels are in it.
    """

    kind: str
    value: Any
    line: int
    column: int
    plain: bool = False
    size: int = 1
    depth: int = 0


_BEGAN = {"flow": "the bracket was opened", "quoted": "the quote was opened", "simple key": "the key stands"}
"""What the parser was reading, in words of its messages, and what that is for a reader."""


class _Composer:
    """Nodes of one document, from the events of the parser; anchors stand for whole nodes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._anchors: dict[str, _Node] = {}
        self._open: dict[str, int] = {}
        self._count = 0

    def document(self) -> _Node | None:
        """Return the only document; None where there is none."""
        root: _Node | None = None
        stack: list[tuple[_Node, str | None, list[_Node]]] = []
        documents = 0
        for event in self._events():
            mark: Any = event.start_mark  # which no event of a parser is without
            line, column = mark.line + 1, mark.column + 1
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise NotReadable(
                        "a second document begins here (`---`), and a file holds one. Write two files, or remove the "
                        "line", line, column, syntax=True,
                    )  # fmt: skip
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                node, anchor, items = stack.pop()
                node.value = list(zip(items[::2], items[1::2], strict=True)) if node.kind == "mapping" else items
                node.size = 1 + sum(item.size for item in items)
                node.depth = 1 + max((item.depth for item in items), default=0)
                self._bounded(node)
                if anchor is not None:
                    del self._open[anchor]
                    self._anchors[anchor] = node
            elif isinstance(event, yaml.AliasEvent):
                node = self._alias(str(event.anchor), line, column)
            elif isinstance(event, yaml.NodeEvent):
                self._check(event, line, column)
                if isinstance(event, yaml.ScalarEvent):
                    node = _Node("scalar", event.value, line, column, plain=event.implicit[0] and not event.style)
                    if event.anchor is not None:
                        self._anchors[event.anchor] = node
                else:
                    kind = "mapping" if isinstance(event, yaml.MappingStartEvent) else "sequence"
                    if len(stack) >= DEEPEST:
                        raise NotReadable(
                            f"lists and mappings are nested too deeply here, more than {DEEPEST} levels; a sweep "
                            "has about ten", line, column,
                        )  # fmt: skip
                    stack.append((_Node(kind, None, line, column), event.anchor, []))
                    if event.anchor is not None:
                        self._open[event.anchor] = line
                    continue
            else:
                continue
            if stack:
                stack[-1][2].append(node)
            else:
                root = node
        return root

    def _events(self) -> Iterator[yaml.Event]:
        loader = _PARSER(self._text)
        try:
            while loader.check_event():
                yield loader.get_event()
        except yaml.MarkedYAMLError as error:
            raise self._broken(error) from error
        except (yaml.YAMLError, ValueError) as error:
            raise NotReadable(str(error), syntax=True) from error
        finally:
            loader.dispose()

    def _broken(self, error: yaml.MarkedYAMLError) -> NotReadable:
        """Return the error at its place, or where that is far from it, where the bracket or quote was opened."""
        opened, mark = error.context_mark, error.problem_mark or error.context_mark
        if mark is None:
            return NotReadable(str(error.problem or error), syntax=True)
        # A file that ends too early is broken behind its last line.
        last = self._text.count("\n") + 1
        problem, line, column = str(error.problem), min(mark.line + 1, last), mark.column + 1
        text = self._text.splitlines()[mark.line : mark.line + 1]
        if text and "\t" in text[0][: len(text[0]) - len(text[0].lstrip())]:
            problem += " (the line begins with a tab: indent by spaces)"
        context = str(error.context or "")
        began = next((text for word, text in _BEGAN.items() if word in context), None)
        if opened is not None and began is not None and opened.line != mark.line:
            problem += f"; {began} in line {opened.line + 1}"
            if opened.line + 1 < mark.line:
                line, column = opened.line + 1, opened.column + 1
        return NotReadable(problem, line, column, syntax=True)

    def _alias(self, name: str, line: int, column: int) -> _Node:
        if name in self._open:
            raise NotReadable(
                f"`*{name}` would hold itself without end: an alias (`*name`) stands inside its own anchor (`&name`)",
                line, column,
            )  # fmt: skip
        if name not in self._anchors:
            raise NotReadable(f"there is no anchor `&{name}` before the alias `*{name}`", line, column, syntax=True)
        target = self._anchors[name]
        return _Node("alias", target, line, column, size=target.size, depth=target.depth)

    @staticmethod
    def _bounded(node: _Node) -> None:
        if node.size > MOST_VALUES or node.depth > DEEPEST:
            what = f"{MOST_VALUES:,} values" if node.depth <= DEEPEST else f"{DEEPEST} levels of lists and mappings"
            raise NotReadable(
                f"what begins here has more than {what}, with its aliases (`*name`) written out",
                node.line,
                node.column,
            )

    def _check(self, event: yaml.NodeEvent, line: int, column: int) -> None:
        """Refuse a tag, an anchor given twice, and more values than fit."""
        tag = getattr(event, "tag", None)
        if tag is not None:
            short = tag.replace("tag:yaml.org,2002:", "!!")
            raise NotReadable(
                f"the tag {short!r} is refused: values are plain text, numbers, lists and mappings, and no tag is "
                "needed for them. Remove it; text that looks like a number is put in quotes", line, column,
            )  # fmt: skip
        if event.anchor in self._anchors or event.anchor in self._open:
            raise NotReadable(f"the anchor `&{event.anchor}` is given twice", line, column, syntax=True)
        wrong = forbidden(event.value) if isinstance(event, yaml.ScalarEvent) else None
        if wrong is not None:
            raise NotReadable(wrong, line, column, syntax=True)
        self._count += 1
        if self._count > MOST_VALUES:
            raise NotReadable(f"it has more than {MOST_VALUES:,} values", line, column)


# Nodes to values.


def _target(node: _Node) -> _Node:
    """Return the node that an alias stands for; another as it is."""
    target: _Node = node.value if node.kind == "alias" else node
    return target


class _Builder:
    """Values of nodes, with the line of each; what an alias repeats is a value of its own."""

    def __init__(self) -> None:
        self.lines: dict[Keys, int] = {}

    def build(self, node: _Node, keys: Keys) -> Any:
        """Return the value of a node."""
        if node.kind == "alias":
            # Of a word or number the alias is the place; fields of a mapping keep those where they are written.
            node = replace(node.value, line=node.line) if node.value.kind == "scalar" else node.value
        self.lines[keys] = node.line
        if node.kind == "scalar":
            return self._value(node, keys)
        if node.kind == "sequence":
            return [self.build(item, (*keys, place)) for place, item in enumerate(node.value)]
        result: dict[str, Any] = {}
        for key, (key_node, value) in self._pairs(node, keys).items():
            result[key] = self.build(value, (*keys, key))
            self.lines[(*keys, key)] = key_node.line
        return result

    @staticmethod
    def _value(node: _Node, keys: Keys) -> Any:
        try:
            return scalar(node.value) if node.plain else node.value
        except ValueError as error:
            raise NotReadable(str(error), node.line, node.column, keys) from error

    def _pairs(self, node: _Node, keys: Keys) -> dict[str, tuple[_Node, _Node]]:
        """Return key and value of each field of a mapping, those that ``<<`` brings in before its own."""
        own: dict[str, tuple[_Node, _Node]] = {}
        merged: dict[str, tuple[_Node, _Node]] = {}
        for key_node, value in node.value:
            key = self._key(key_node, keys)
            if key in own:
                first = own[key][0].line
                raise NotReadable(
                    f"this key is given twice (first in line {first}); one value would be lost. Keep one; several "
                    "values of one field are a list", key_node.line, key_node.column, (*keys, key),
                )  # fmt: skip
            own[key] = key_node, value
        if "<<" in own and own["<<"][0].plain:
            key_node, value = own.pop("<<")
            value = _target(value)
            for source in map(_target, reversed(value.value if value.kind == "sequence" else [value])):
                if source.kind != "mapping":
                    raise NotReadable(
                        "`<<` takes an alias of a mapping, `<<: *name`, or a list of those",
                        key_node.line, key_node.column, (*keys, "<<"),
                    )  # fmt: skip
                merged |= self._pairs(source, keys)
        return merged | own

    @staticmethod
    def _key(node: _Node, keys: Keys) -> str:
        node = _target(node)
        if node.kind != "scalar":
            raise NotReadable("a key is a plain word here, not a list or mapping", node.line, node.column, keys)
        key: str = node.value
        try:
            # What is a word to some YAML readers is a fine key: all keys are words here.
            value = key if HALF_BOOLEAN.fullmatch(key) or not node.plain else scalar(key)
        except ValueError:
            value = None
        if isinstance(value, str):
            return key
        if not key:
            raise NotReadable("a key is missing before the colon", node.line, node.column, keys)
        short = key if len(key) <= 40 else f"{key[:40]}..."
        raise NotReadable(
            f'a key is a name, and {short!r} is none; put it in quotes, "{short}", if it is the name of something',
            node.line, node.column, keys,
        )  # fmt: skip
