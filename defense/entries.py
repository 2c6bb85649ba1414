"""Short spellings of values, names from a section, and entries inside values.

A type annotation says where: ``tuple[AttackConfig, ...]`` has an entry at each position,
``ClassifierConfig | None`` one or none. :class:`defense.spec.Spec` reads its fields by this.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from defense.errors import InvalidInput

__all__ = ["EntryOf", "Inside", "Reading", "Spelling", "structured"]


@dataclass(frozen=True)
class Spelling:
    """Another way to write a field.

    Arguments:
        field: The field that it stands for.
        unit: What the value means, for messages: ``eps in units of 1/255, like 8``.
        convert: From the number that is written to the field's value. None where the conversion takes other fields
            too: then the class makes it in a before-validator of its own.
        lost: What a class says that drops the spelling of its base class: why it means nothing there, what to write.
    """

    field: str
    unit: str
    convert: Callable[[float], float] | None = None
    lost: str = ""

    def value(self, name: str, written: Any) -> Any:
        """Return the field's value; of a list, that of each element.

        Raises:
            InvalidInput: Something that is no number.
        """
        if isinstance(written, list):
            return [self.value(name, element) for element in written]
        if isinstance(written, bool) or not isinstance(written, int | float):
            raise InvalidInput(f"{name} = {written!r} is no number: it is {self.unit}.", keys=(name,))
        assert self.convert is not None
        return self.convert(written)


@dataclass(frozen=True)
class Reading:
    """What entries are read with, where more is known than the entry itself.

    Arguments:
        base: Folder at which relative paths start; where it is given, the files of every spec inside an entry are
            found, hashed and checked as soon as the spec is read.
        names: Specs that an entry can name, by the section that gives them their names.
        beside: Further fields of the outermost entry, which are not the spec's, for messages.
        identity: It is no entry but what an id was made of: what it leaves out is the only choice that there was.
    """

    base: Path | None = None
    names: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    identity: bool = False


@dataclass(frozen=True)
class EntryOf:
    """Annotation of a field that holds an entry as it was written: checked, and left a mapping.

    Arguments:
        base: The config class that it is an entry of.
    """

    base: Any


@cache
def structured(annotation: Any, leaf: type) -> bool:
    """Return whether values of this annotation are, or hold, instances of ``leaf`` or tuples."""
    return (
        _is_leaf(annotation, leaf)
        or get_origin(annotation) is tuple
        or any(structured(member, leaf) for member in _members(annotation))
    )


@dataclass(frozen=True)
class Inside:
    """Reads the entries inside of a value, and makes its lists tuples, wherever the annotation says so.

    Arguments:
        leaf: The class that entries are read into a subclass of.
        read: From the annotated class and the entry to its config.
    """

    leaf: type
    read: Callable[[Any, Any], Any]

    def of(self, annotation: Any, value: Any) -> Any:
        """Return the value; what does not fit the annotation is left as it is, for the validation.

        Raises:
            InvalidInput: An entry has a mistake; with its path inside the value.
        """
        if value is None or not structured(annotation, self.leaf):
            return value
        if _is_leaf(annotation, self.leaf):
            return self.read(annotation, value)
        origin, members = get_origin(annotation), _members(annotation)
        if origin is Annotated:
            return self.of(members[0], value)
        if origin in (Union, types.UnionType):
            exact = type(value) if type(value) in members else None
            meant = exact or next((member for member in members if self._may_be(member, value)), None)
            return value if meant is None else self.of(meant, value)
        if origin is dict and isinstance(value, dict):
            return {key: self._at(key, members[1], item) for key, item in value.items()}
        if origin in (tuple, list) and isinstance(value, tuple | list):
            if len(members) != len(value) or Ellipsis in get_args(annotation):
                members = members[:1] * len(value)
            items = [self._at(place, member, value[place]) for place, member in enumerate(members)]
            return items if origin is list else tuple(items)
        return value

    def _at(self, key: str | int, annotation: Any, value: Any) -> Any:
        try:
            return self.of(annotation, value)
        except InvalidInput as error:
            raise error.within(key) from error

    def _may_be(self, annotation: Any, value: Any) -> bool:
        """Return whether a member of a union is meant by a value."""
        if get_origin(annotation) is Annotated:
            return self._may_be(get_args(annotation)[0], value)
        if _is_leaf(annotation, self.leaf):
            return isinstance(value, annotation if isinstance(value, self.leaf) else dict | str)
        if get_origin(annotation) in (tuple, list):
            return isinstance(value, tuple | list)
        return isinstance(annotation, type) and isinstance(value, annotation)


def _is_leaf(annotation: Any, leaf: type) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, leaf)


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the annotations inside of one; none of a ``Literal``, whose arguments are values."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[:1]
    if get_origin(annotation) in (Union, types.UnionType, tuple, list, dict):
        return tuple(member for member in get_args(annotation) if member is not Ellipsis)
    return ()
