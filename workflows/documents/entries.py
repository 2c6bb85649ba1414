"""From the entries of a sweep file to typed configs: lists become axes, mistakes become messages."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from defense.errors import InvalidInput, nearest
from workflows.documents.document import Document, Keys

__all__ = ["expand", "image_ids", "items", "known_keys", "located", "validate"]

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

_HINTS = {
    "eps": "eps is a number in units of [0, 1] pixels, like 0.031; to write 8/255 use `eps_255: 8`.",
    "eps_255": "eps_255 is a number in units of 1/255, like 8.",
    "norm": "norm is linf or l2: eps means nothing without it.",
    "denoiser": "It is a name from the section `denoisers`.",
    "schedule": "It is the noise schedule that the network was trained on: see `puregrid list schedules`.",
    "sha256": "It takes the first 8 to 64 hex digits, in quotes if all are decimal.",
    "t_star": "t_star is a whole number of noising steps, like 100.",
}


def items(document: Document, keys: Keys, tag: str, *, optional: bool = False) -> list[tuple[Keys, Any]]:
    """The entries of a list section; a bare name ``pgd`` stands for ``{attack: pgd}``."""
    section: Any = document.data
    for key in keys:
        section = section.get(key) if isinstance(section, dict) else section[key]
        if section is None:
            break
    if section is None and optional:
        return []
    if not isinstance(section, list) or not section:
        raise document.error(
            keys, f"a sweep needs a list of {keys[-1]} with at least one entry, like `- {tag}: NAME`."
        )
    entries: list[tuple[Keys, Any]] = []
    for position, entry in enumerate(section):
        place = (*keys, position)
        if isinstance(entry, str):
            entry = {tag: entry}
        if tag == "certificate" and isinstance(entry, dict):  # there is one kind
            entry = {tag: "smoothing", **entry}
        named = entry.get(tag) if isinstance(entry, dict) else None
        several = tag == "corruption" and isinstance(named, list) and all(isinstance(one, str) for one in named)
        if not isinstance(entry, dict) or not (isinstance(named, str) or several):
            raise document.error(place, f"an entry of {keys[-1]} is a name or a mapping with the key `{tag}`.")
        entries.append((place, entry))
    return entries


def known_keys(document: Document, keys: Keys, value: Any, known: set[str]) -> dict[str, Any]:
    """``value`` as a mapping that has no other keys.

    Raises:
        InvalidInput: It is no mapping, or has an unknown key, with the nearest valid one.
    """
    if not isinstance(value, dict):
        raise document.error(keys, f"a mapping was expected (keys: {', '.join(sorted(known))}), not {value!r}.")
    for key in value:
        if key not in known:
            raise document.error((*keys, key), f"unknown field {key!r}; {nearest(str(key), known)}")
    return value


def expand(document: Document, keys: Keys, entry: dict[str, Any], model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """The product of an entry's list-valued fields, except those that are lists by nature."""
    axes: list[list[tuple[str, Any]]] = []
    for name, value in entry.items():
        if isinstance(value, list) and not _is_sequence(model, name):
            if not value:
                raise document.error((*keys, name), "an empty list makes no cell; remove the field or give values.")
            axes.append([(name, item) for item in value])
        else:
            axes.append([(name, tuple(value) if isinstance(value, list) else value)])
    for combination in itertools.product(*axes):
        yield dict(combination)


def _is_sequence(model: type[BaseModel], name: str) -> bool:
    info = model.model_fields.get(name)
    if info is None:
        return False
    kinds = (info.annotation, *get_args(info.annotation))
    return any(get_origin(kind) in (tuple, list) for kind in kinds)


def validate(document: Document, keys: Keys, model: type[M], fields: dict[str, Any], extra: set[str]) -> M:
    """Validate one combination; ``extra`` names further fields that the entry may have, for messages."""
    known = {*model.model_fields, *extra}
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        # A misspelled field goes first: the right one is missing because of it.
        found = error.errors()
        first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            message = f"unknown field {name!r}; {nearest(name, known)}"
        elif first["type"] == "missing":
            message = f"field {name!r} is missing. {_HINTS.get(name, '')}".strip()
        else:
            given = first["input"]
            message = f"{name} = {given!r} ({type(given).__name__}): {first['msg']}. {_HINTS.get(name, '')}".strip()
        place = (*keys, name) if first["type"] != "missing" else keys
        raise document.error(place, message) from error
    except InvalidInput as error:
        for name in fields.keys() - known:
            if difflib.get_close_matches(name, known - fields.keys(), n=1):
                raise document.error((*keys, name), f"unknown field {name!r}; {nearest(name, known)}") from error
        raise _placed(document, keys, error, fields) from error


def located(document: Document, keys: Keys, action: Callable[[], T]) -> T:
    """Run ``action`` and give an :class:`InvalidInput` from inside it the place ``keys``."""
    try:
        return action()
    except InvalidInput as error:
        raise _placed(document, keys, error) from error


def _placed(document: Document, keys: Keys, error: InvalidInput, fields: Iterable[str] = ()) -> InvalidInput:
    """The error at its place: that of the field whose name the message begins with, else ``keys``."""
    if error.where:
        return error
    name = error.message.split(" ", 1)[0]
    return document.error((*keys, name) if name in fields else keys, error.message)


def image_ids(document: Document, keys: Keys, wanted: Any, count: int) -> list[int]:
    """Image ids of ``first: N``, ``start/stop/every``, or ``ids: [...]``; all without any.

    Raises:
        InvalidInput: It selects no image, one twice, or one that the data set does not have.
    """
    error = document.error
    if wanted is None:
        return list(range(count))
    known_keys(document, keys, wanted, {"first", "start", "stop", "every", "ids"})
    for name, value in wanted.items():
        numbers = value if name == "ids" and isinstance(value, list) else [value]
        if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            raise error((*keys, name), f"{name} takes whole numbers, not {value!r}.")
    if "ids" in wanted:
        ids: Sequence[int] = wanted["ids"] if isinstance(wanted["ids"], list) else [wanted["ids"]]
        if len(wanted) > 1 or len(set(ids)) != len(ids):
            raise error(keys, "`ids` stands alone and names no image twice.")
    else:
        if "first" in wanted and "stop" in wanted:
            raise error(keys, "give either `first` or `stop`.")
        start, every = wanted.get("start", 0), wanted.get("every", 1)
        stop = wanted.get("stop", start + wanted["first"] * every if "first" in wanted else count)
        if every < 1 or start < 0 or stop <= start:
            raise error(keys, f"{wanted} selects no image.")
        ids = range(start, stop, every)
    outside = next((i for i in ids if not 0 <= i < count), None)
    if outside is not None:
        raise error(keys, f"image id {outside} is out of range: the data set has images 0 to {count - 1}.")
    return list(ids)
