"""Text from elsewhere on its way to a person: names of classes, of files, messages of other libraries.

A control character in a name may move the cursor, recolour a terminal or hide what stands before it; here it becomes
what Python would write for it.
"""

import unicodedata

__all__ = ["in_one_line", "visible"]

_KEPT = "\n\t"
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the order of what is shown round."""


def visible(text: str, keep: str = _KEPT) -> str:
    r"""Return a text with its control characters written out: ``\x1b``, ``\u202e``.

    Arguments:
        text: Any text, lone surrogates among it.
        keep: Control characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(_written(character) if _hidden(character, keep) else character for character in text)


def in_one_line(text: str) -> str:
    """Return a text with all its control characters written out, line ends among them."""
    return visible(text, keep="")


def _hidden(character: str, keep: str) -> bool:
    if character in keep:
        return False
    return character in _DIRECTIONS or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _written(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
