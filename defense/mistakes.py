"""What is wrong with the fields of an entry, in the names that the entry uses."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from defense.entries import Spelling
from defense.errors import InvalidInput, nearest

__all__ = ["as_written", "explained", "unknown_field"]


def _written(entry: Mapping[str, Any], spellings: Mapping[str, Spelling]) -> dict[str, str]:
    """Return by field the spelling that an entry has for it."""
    return {spellings[name].field: name for name in entry if name in spellings}


def as_written(error: InvalidInput, entry: Mapping[str, Any], spellings: Mapping[str, Spelling]) -> InvalidInput:
    """Return the error at the name that a field was written by."""
    written = _written(entry, spellings)
    if error.keys and error.keys[0] in written and error.keys[0] not in entry:
        return type(error)(error.message, where=error.where, keys=(written[str(error.keys[0])], *error.keys[1:]))
    return error


def explained(
    error: ValidationError,
    entry: Mapping[str, Any],
    fields: Mapping[str, FieldInfo],
    spellings: Mapping[str, Spelling],
    beside: tuple[str, ...] = (),
) -> InvalidInput:
    """Return the first mistake of pydantic's list, in our words.

    Arguments:
        error: What pydantic says.
        entry: The entry as it was written.
        fields: Fields of its class.
        spellings: Short spellings of its class.
        beside: Further names that the entry may have.
    """
    mistakes = error.errors()
    # A spelling that no validator has taken in is no mistake: another field kept them from it.
    others = [mistake for mistake in mistakes if str((*mistake["loc"], "")[0]) not in spellings] or mistakes
    first = next((mistake for mistake in others if mistake["type"] == "extra_forbidden"), others[0])
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return InvalidInput(message)
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return unknown_field(name, {*fields, *spellings, *beside})
    description = fields[name].description if name in fields else None
    if first["type"] == "missing":
        return InvalidInput(f"field {name!r} is missing. {description or ''}".strip())
    value = first["input"]
    written = _written(entry, spellings)
    if name in written:
        name, value = written[name], entry[written[name]]
        description = f"It is {spellings[name].unit}."
    return InvalidInput(
        f"{name} = {value!r} ({type(value).__name__}): {message}. {description or ''}".strip(), keys=(name,)
    )


def unknown_field(name: str, known: set[str]) -> InvalidInput:
    """Return the error of a field that is none of ``known``."""
    return InvalidInput(f"unknown field {name!r}; {nearest(name, known)}", keys=(name,))
