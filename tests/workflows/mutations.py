"""Seeded mistakes in sweep files, each of which knows where it is.

A mistake says at which lines a message about it is right: its own, and for one that breaks the structure (a line that
is gone, moved or indented, a bracket or quote too many or too few) the line before and after it, or the beginning of
the entry that it was in. A message at another line is right only if it sets a value there against the changed field,
by its name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Mistake", "mistake", "originals"]

_KEY = re.compile(r"(?<![\w.$/-])([A-Za-z_]\w*)(?=:( |$))")
_FIELD = re.compile(r"(?<![\w.$/-])([A-Za-z_]\w*): ([^\s,{}\[\]#][^,{}\[\]#]*|\[[^\[\]{}]*\]|\{[^\[\]{}]*\})")
_NUMBER = re.compile(r"(?<![\w.*-])-?\d+(\.\d+)?(?![\w.*-])")

_OTHER = (
    *("null", "~", "true", "no", "on", "x", "''", "-1", "0", "1.5", "[]", "{}", "[[]]", "[null, 1]", "{a: 1}"),
    *('{"": 1}', "{a: {b: []}}", "2001-13-45", "2026-11-29", "${NO_SUCH_VARIABLE}", "../../etc", "nothing:at_all"),
)
_EXTREME = (
    *("1000000000", "1000000000000", "1" + "0" * 30, "9" * 5000, "-1", "0", "1e308", "1e-320", "1e999", "300"),
    *(".nan", "-.inf", "010", "0o17", "0x1F", "1:30", "1_0", "1_000_000", "100001", "0.5", "1e-3", "255.0001"),
)
_LOADED = (
    *("*nowhere", "&a [*a]", "!!python/object/apply:os.getcwd []", "!foo x", "!!binary aGk=", "!!set {a}", "! x"),
    *("!!timestamp 2001-01-01", "!!float 1", "@x", "`x`", "%x", "| x", "&a &b 1", "{<<: 1}", "{<<: *none}", "? x"),
    *('"\\x00"', '"\\ud800"', '"\\u202e"', '"a', "'a", "[" * 60 + "]" * 60, "{a: " * 60 + "1" + "}" * 60, "x: y: z"),
)
_OPEN = ('"a', "'a", "| x", "? x")
"""Values of these that break the structure."""
_SIGNS = (
    *("\u00a0", "\u200b", "\u2028", "\u0085", "\u202e", "\u0301"),
    *("\U0001f600", "\x00", "\x07", "\x7f", "\t", "\ufeff"),
)


@dataclass(frozen=True)
class Mistake:
    """A sweep file with a mistake.

    Arguments:
        kind: What was done.
        data: The file.
        lines: Lines at which a message about it is right.
        changed: Names of the fields that were changed: a message that names one is right at the line of another.
    """

    kind: str
    data: bytes
    lines: frozenset[int]
    changed: frozenset[str] = field(default=frozenset())

    def told_right(self, message: str, line: int | None) -> bool:
        """Return whether a message is at the right line."""
        said = message.partition("Valid names")[0]
        return line in self.lines or any(re.search(rf"\b{re.escape(name)}\b", said) for name in self.changed)


def originals(sweeps: Path) -> list[str]:
    """Return the texts of shipped sweeps that need no data, with absolute paths."""
    files = [sweeps / "quickstart.yaml", *sorted(sweeps.glob("digits-*.yaml"))]
    # Its 284 cells would be most of the time; another has corruptions too.
    files.remove(sweeps / "digits-corruptions.yaml")
    files += sorted((sweeps / "papers" / "smoke").glob("*-digits.yaml"))
    texts = [file.read_text() for file in files]
    assets = str(sweeps.parents[1] / "defense" / "assets")
    return [re.sub(r"(\.\./)+defense/assets", assets, text) for text in texts]


def mistake(text: str, chance: random.Random) -> Mistake:
    """Return the text with one mistake."""
    lines = text.splitlines()
    while True:
        place = chance.randrange(len(lines))
        kind = chance.choice(list(_KINDS))
        if not lines[place].strip() or lines[place].lstrip().startswith("#"):
            continue
        made = _KINDS[kind](list(lines), place, chance)
        if made is not None and made.data != text.encode():
            return Mistake(kind, made.data, made.lines, made.changed)


def _made(lines: Sequence[str], right: set[int], changed: set[str] | None = None, *, ended: bool = True) -> Mistake:
    text = "\n".join(lines) + "\n" * ended
    return Mistake("", text.encode("utf-8", "surrogatepass"), frozenset(right), frozenset(changed or ()))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _around(lines: Sequence[str], place: int) -> set[int]:
    """Return the numbers of the lines where the entries begin that a line is in."""
    found, indent = set(), _indent(lines[place])
    for above in range(place - 1, -1, -1):
        line = lines[above]
        if line.strip() and not line.lstrip().startswith("#"):
            content = _indent(line) + (2 if line.lstrip().startswith("- ") else 0)
            if _indent(line) < indent or content == indent != _indent(line):
                found.add(above + 1)
                indent = min(indent, _indent(line))
    return found


def _keys(line: str) -> set[str]:
    return {match[1] for match in _KEY.finditer(line)}


def _misspelt(lines: list[str], place: int, chance: random.Random) -> Mistake | None:
    keys = list(_KEY.finditer(lines[place]))
    if not keys:
        return None
    key = chance.choice(keys)
    word = key[1]
    at = chance.randrange(len(word))
    letter = chance.choice("abcdefghijklmnopqrstuvwxyz_")
    ways = [word[:at] + word[at + 1 :], word[:at] + letter + word[at:], word[:at] + letter + word[at + 1 :], word * 2]
    lines[place] = lines[place][: key.start(1)] + (chance.choice(ways) or "q") + lines[place][key.end(1) :]
    return _made(lines, {place + 1}, {word} if word in ("small", "ddpm", "digits") or "-" in word else None)


def _replaced(values: Sequence[str], kind: re.Pattern[str]) -> Callable[..., Mistake | None]:
    def replace(lines: list[str], place: int, chance: random.Random) -> Mistake | None:
        found = list(kind.finditer(lines[place].partition("#")[0]))
        if not found:
            return None
        match = chance.choice(found)
        group = 2 if kind is _FIELD else 0
        before, value = lines[place][: match.start(group)], chance.choice(values)
        lines[place] = before + value + lines[place][match.end(group) :]
        keys = [key[1] for key in _KEY.finditer(before)]
        right = {place + 1, place + 2} if value in _OPEN else {place + 1}
        return _made(lines, right, set(keys[-1:]))

    return replace


def _doubled(lines: list[str], place: int, chance: random.Random) -> Mistake:
    return _made([*lines[: place + 1], *lines[place:]], {place + 1, place + 2}, _keys(lines[place]))


def _deleted(lines: list[str], place: int, chance: random.Random) -> Mistake:
    right = {place, place + 1} | _around(lines, place)
    return _made([*lines[:place], *lines[place + 1 :]], right, _keys(lines[place]))


def _indented(lines: list[str], place: int, chance: random.Random) -> Mistake | None:
    right = {place, place + 1, place + 2} | _around(lines, place)
    by = chance.choice((-4, -2, -1, 1, 2, 4))
    if by < 0 and not lines[place].startswith(" " * -by):
        return None
    changed = _keys(lines[place])
    lines[place] = " " * by + lines[place] if by > 0 else lines[place][-by:]
    return _made(lines, right, changed)


def _swapped(lines: list[str], place: int, chance: random.Random) -> Mistake | None:
    if place + 1 >= len(lines):
        return None
    right = {place, place + 1, place + 2, place + 3} | _around(lines, place)
    changed = _keys(lines[place]) | _keys(lines[place + 1])
    lines[place], lines[place + 1] = lines[place + 1], lines[place]
    return _made(lines, right, changed)


def _unbalanced(lines: list[str], place: int, chance: random.Random) -> Mistake:
    line = lines[place]
    signs = [at for at, sign in enumerate(line) if sign in "[]{}'\"" and "#" not in line[:at]]
    right, changed = {place + 1, place + 2}, _keys(line)
    if signs and chance.random() < 0.6:
        at = chance.choice(signs)
        lines[place] = line[:at] + line[at + 1 :]
    else:
        at = chance.randrange(_indent(line), len(line) + 1)
        lines[place] = line[:at] + chance.choice("[]{}'\":,&*!|>?-#") + line[at:]
    return _made(lines, right | _around(lines, place), changed)


def _strange_sign(lines: list[str], place: int, chance: random.Random) -> Mistake:
    line = lines[place]
    at = chance.randrange(len(line) + 1)
    lines[place] = line[:at] + chance.choice(_SIGNS) + line[at:]
    return _made(lines, {place + 1, place + 2}, _keys(line))


def _truncated(lines: list[str], place: int, chance: random.Random) -> Mistake:
    kept = [*lines[:place], lines[place][: chance.randrange(len(lines[place]) + 1)]]
    # What is missing altogether is missed at the first line that has any value.
    first = next(number for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#"))
    right = {first, place, place + 1, place + 2} | _around(lines, place)
    return _made(kept, right, _keys(lines[place]), ended=False)


def _flipped(lines: list[str], place: int, chance: random.Random) -> Mistake:
    before = "".join(f"{line}\n" for line in lines[:place]).encode()
    line = bytearray(lines[place].encode())
    at = chance.randrange(len(line))
    line[at] ^= 1 << chance.randrange(8)
    after = "".join(f"\n{line}" for line in lines[place + 1 :]).encode() + b"\n"
    right = {place, place + 1, place + 2} | _around(lines, place)
    return Mistake("", before + bytes(line) + after, frozenset(right), frozenset(_keys(lines[place])))


_KINDS: dict[str, Callable[[list[str], int, random.Random], Mistake | None]] = {
    "misspelt": _misspelt,
    "other type": _replaced(_OTHER, _FIELD),
    "out of range": _replaced(_EXTREME, _NUMBER),
    "alias or tag": _replaced(_LOADED, _FIELD),
    "doubled": _doubled,
    "deleted": _deleted,
    "indented": _indented,
    "swapped": _swapped,
    "unbalanced": _unbalanced,
    "strange sign": _strange_sign,
    "truncated": _truncated,
    "flipped": _flipped,
}
