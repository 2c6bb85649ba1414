"""From the entries of a document to typed configs: lists become axes, mistakes get their file and line.

Each config class knows its fields (:class:`defense.spec.Spec`); here its mistakes are given their place in the
document.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import isabstract
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel

from defense.errors import InvalidInput, nearest
from defense.spec import Reading, Spec
from workflows.documents.authors import expanded
from workflows.documents.document import Document, Keys

__all__ = ["Combination", "combinations", "expand", "image_ids", "items", "known_keys", "located", "validate"]

S = TypeVar("S", bound=Spec)
T = TypeVar("T")


@dataclass(frozen=True)
class Combination:
    """One point of the axes inside an entry.

    Arguments:
        fields: Its fields, one value each.
        places: For each field whose value is one of a list, the position in it.
    """

    fields: dict[str, Any]
    places: Mapping[str, int] = field(default_factory=dict)

    def without(self, names: frozenset[str]) -> Combination:
        """Return the same combination without some fields."""
        return Combination({k: v for k, v in self.fields.items() if k not in names}, self.places)


def items(document: Document, keys: Keys, base: type[Spec], *, optional: bool = False) -> list[tuple[Keys, Any]]:
    """Return the entries of a list section as mappings with places; a bare name ``pgd`` stands for ``{attack: pgd}``.

    Entries that name a published setting are written out (:mod:`workflows.documents.authors`).

    Where the document was built in Python, a config stands for ``{attack: CONFIG}``.
    """
    tag = base.named_by or ""
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
    default = base.model_fields[tag].default
    entries: list[tuple[Keys, Any]] = []
    for position, entry in enumerate(section):
        place = (*keys, position)
        if isinstance(entry, str | base):
            entry = {tag: entry}
        if isinstance(entry, dict):
            entry = located(document, place, partial(expanded, entry, tag))
        if isinstance(default, str) and isinstance(entry, dict):  # there is one kind, which goes without saying
            entry = {tag: default, **entry}
        named = entry.get(tag) if isinstance(entry, dict) else None
        # A class that stands for all its names takes several of them, like one of any other field.
        several = isinstance(named, list) and not isabstract(base) and all(isinstance(name, str) for name in named)
        if not isinstance(entry, dict) or not (isinstance(named, str | base) or several):
            given = {tag: entry} if entry is None else entry if isinstance(entry, dict) else {}
            empty = tag in ("attack", "purifier") and tag in given and named is None
            hint = f" There is nothing in this one: where no {tag} is meant, write `none`." if empty else ""
            raise document.error(place, f"an entry of {keys[-1]} is a name or a mapping with the key `{tag}`.{hint}")
        entries.append((place, entry))
    return entries


def known_keys(document: Document, keys: Keys, value: Any, known: set[str]) -> dict[str, Any]:
    """Return ``value`` as a mapping that has no other keys.

    Raises:
        InvalidInput: It is no mapping, or has an unknown key, with the nearest valid one.
    """
    if not isinstance(value, dict):
        raise document.error(keys, f"a mapping was expected (keys: {', '.join(sorted(known))}), not {value!r}.")
    for key in value:
        if key not in known:
            raise document.error((*keys, key), f"unknown field {key!r}; {nearest(str(key), known)}")
    return value


def expand(document: Document, keys: Keys, entry: dict[str, Any], model: type[BaseModel]) -> Iterator[Combination]:
    """Yield the product of an entry's list-valued fields, except those whose values are lists."""
    axes: list[list[tuple[str, Any, int | None]]] = []
    for name, value in entry.items():
        if isinstance(value, list) and not _is_sequence(model, name):
            if not value:
                raise document.error((*keys, name), "an empty list makes no cell; remove the field or give values.")
            axes.append([(name, item, place) for place, item in enumerate(value)])
        else:
            axes.append([(name, value, None)])
    for combination in itertools.product(*axes):
        places = {name: place for name, _, place in combination if place is not None}
        yield Combination({name: value for name, value, _ in combination}, places)


def combinations(entry: Mapping[str, Any], model: type[BaseModel]) -> int:
    """Return how many combinations :func:`expand` would yield, without making them."""
    lists = (value for name, value in entry.items() if isinstance(value, list) and not _is_sequence(model, name))
    return math.prod(map(len, lists))


def _is_sequence(model: type[BaseModel], name: str) -> bool:
    info = model.model_fields.get(name)
    if info is None:
        return False
    kinds = (info.annotation, *get_args(info.annotation))
    return any(get_origin(kind) in (tuple, list) for kind in kinds)


def validate(
    document: Document,
    keys: Keys,
    model: type[S],
    fields: dict[str, Any],
    *,
    reading: Reading | None = None,
    places: Mapping[str, int] | None = None,
) -> S:
    """Return a config of the fields at ``keys``; a mistake inside is reported at its own path and line.

    Arguments:
        document: Where the fields are from.
        keys: Their place there.
        model: The config's class.
        fields: Its fields, entries among them.
        reading: What entries are read with.
        places: See :class:`Combination`.

    Raises:
        InvalidInput: A mistake.
    """
    return located(document, keys, lambda: model.from_fields(fields, reading), places)


def located(document: Document, keys: Keys, action: Callable[[], T], places: Mapping[str, int] | None = None) -> T:
    """Run ``action`` and give its :class:`InvalidInput` the path behind ``keys`` and the line."""
    try:
        return action()
    except InvalidInput as error:
        if error.where:
            raise
        path: list[str | int] = [*keys, *error.keys]
        if error.keys and error.keys[0] in (places or {}):
            path.insert(len(keys) + 1, (places or {})[str(error.keys[0])])
        raise document.error(path, error.message) from error


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
            raise error(keys, f"{wanted} selects no image; the data set has images 0 to {count - 1}.")
        ids = range(start, stop, every)
    outside = next((i for i in ids if not 0 <= i < count), None)
    if outside is not None:
        written = next((name for name in ("first", "stop") if name in wanted), None)
        given = "" if written is None else f"{written} = {wanted[written]} is too large: "
        raise error(keys, f"{given}image id {outside} is out of range: the data set has images 0 to {count - 1}.")
    return list(ids)
