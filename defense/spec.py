"""Typed, frozen specs: how they are written, what they hold, and their content ids.

``id(spec) = hex(sha256(canonical JSON))[:16]``: keys sorted, no white space, floats in their shortest
round-trip form. A field declared with ``Field(exclude=True)`` (such as a path) says where something lies, not
what it is, and stays out of the id. What a part that is not puregrid's does is in its code: its identity holds a
digest of that, under ``_code`` (:mod:`defense.code`).

A spec is written as an **entry**: a name (``pgd``), a mapping (``{attack: pgd, steps: 20}``), or the config itself.
Each class knows its own entries: the field that names it (``named_by``), its short spellings (``eps_255``), and
what it hands down to the specs inside it. A mistake at any depth is an :class:`InvalidInput` with the
path of the value, ``rungs.1.steps``, and the valid names of the class that it is a mistake of, whether the entry came
from a file, an option or Python.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from inspect import isabstract
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from defense.bounds import FOREIGN, Bound, check_bounds
from defense.code import Code, code_of_class, is_foreign_field
from defense.entries import EntryOf, Inside, Reading, Spelling, structured
from defense.errors import InvalidInput
from defense.mistakes import as_written, explained, unknown_field

__all__ = ["EntryOf", "Reading", "Spec", "Spelling", "digest"]

ID_LENGTH = 16
"""Hex digits of an id: 64 bits, so a million specs collide with probability below 1e-7."""

CODE = "_code"
"""Key of the code in an identity; no field can have that name."""


def digest(text: str | bytes) -> str:
    """Return the id of a text: the leading hex digits of its sha256."""
    data = text.encode() if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()[:ID_LENGTH]


class _HandedDown(Exception):
    """A mistake in a field that a spec has from the one around it."""

    def __init__(self, error: InvalidInput) -> None:
        super().__init__(str(error))
        self.error = error


class Spec(BaseModel):
    """A frozen description of something that determines a row.

    Strict: a string is never read as a number, nor a number as a flag, and unknown fields are refused, since
    a misspelled field that is silently ignored is a wrong number later. Lists stand for tuples, entries for the specs
    inside. A field's ``description`` is what messages add where its value is missing or wrong.

    Raises:
        InvalidInput: A field is wrong, missing or unknown, here or in a spec inside; with its path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)

    named_by: ClassVar[str | None] = None
    """The field that names an entry: a bare NAME stands for ``{named_by: NAME}``. None: there are no bare names."""

    spellings: ClassVar[Mapping[str, Spelling]] = {}
    """Names that an entry may write instead of fields."""

    hands_down: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """For a field that holds specs, the fields of this one that they take over unless they have their own."""

    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """By field the values that are left out of the id: what was the only choice before there was the field.

    An identity without the field is one of before: it means the first of them, whatever the default is now."""

    bounds: ClassVar[Mapping[str, Bound] | None] = {}
    """By field the largest value that can be meant, where that is not the one of :data:`defense.bounds.BOUNDS`.

    None for specs that no user writes: what they are made of has been looked at."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a serializer that would replace the one that puts code into ids."""
        super().__pydantic_init_subclass__(**kwargs)
        others = set(cls.__pydantic_decorators__.model_serializers) - {"_with_code"}
        if others:
            raise TypeError(
                f"{cls.__module__}.{cls.__qualname__} has the model_serializer {min(others)!r}, which would take its "
                "code out of its id; declare values that are not in the id in `unsaid`."
            )

    # How entries are read.

    @classmethod
    def class_named(cls, name: str) -> type[Spec]:
        """Return the class of the entries of this name; this one, unless there is a registry of classes.

        Raises:
            InvalidInput: There is none.
        """
        return cls

    @classmethod
    def from_name(cls, name: str, reading: Reading) -> Any:
        """Return what a bare name stands for: an entry, or a config.

        Raises:
            InvalidInput: Nothing.
        """
        if cls.named_by is None:
            raise InvalidInput(f"a mapping is expected (keys: {', '.join(sorted(cls.model_fields))}), not {name!r}.")
        return {cls.named_by: name}

    @classmethod
    def inner_entry(cls, field: str, entry: Any, fields: Mapping[str, Any]) -> Any:
        """Return what an entry in ``field`` stands for: a class may have its own short forms (a ladder's rungs)."""
        return entry

    @classmethod
    def entry_class(cls, entry: Mapping[str, Any]) -> type[Spec]:
        """Return the class of an entry.

        Raises:
            InvalidInput: It names none, or none of this kind.
        """
        if cls.named_by is None:
            return cls
        if cls.named_by not in entry:
            if not isabstract(cls):
                return cls
            if cls.model_fields[cls.named_by].is_required():
                raise InvalidInput(f"an entry here is a name or a mapping with the key `{cls.named_by}`.")
        name = str(entry.get(cls.named_by, cls.model_fields[cls.named_by].default))
        try:
            kind = cls.class_named(name)
        except InvalidInput as error:
            raise error.within(cls.named_by) from error
        if not issubclass(kind, cls):
            raise InvalidInput(f"{name!r} is no {cls.__name__}, which alone is taken here.", keys=(cls.named_by,))
        return kind

    @classmethod
    def from_entry(
        cls, entry: Any, reading: Reading | None = None, *, handed: Mapping[str, Any] | None = None
    ) -> Self:
        """Return the config of an entry.

        Arguments:
            entry: A name, a mapping or a config.
            reading: What it is read with.
            handed: Fields that it has unless it states them.

        Raises:
            InvalidInput: It is none, or has a mistake; with the path inside the entry.
        """
        reading = reading or Reading()
        if isinstance(entry, str):
            entry = cls.from_name(entry, reading)
        if isinstance(entry, dict):
            kind = cls.entry_class(entry)
            stated = {*entry, *(kind.spellings[name].field for name in entry if name in kind.spellings)}
            taken = {k: v for k, v in (handed or {}).items() if k in kind.model_fields and k not in stated}
            try:
                entry = kind.from_fields({**taken, **entry}, reading)
            except InvalidInput as error:
                if error.keys and error.keys[0] in taken:
                    raise _HandedDown(error) from error
                raise
        if not isinstance(entry, cls):
            forms = "a mapping" if cls.named_by is None else "a name, a mapping"
            raise InvalidInput(f"{forms} or a {cls.__name__} is expected, not {entry!r}.")
        return entry if reading.base is None else entry.resolved(reading.base)

    @classmethod
    def from_fields(cls, fields: dict[str, Any], reading: Reading | None = None) -> Self:
        """Validate the fields of an entry of this very class; a mistake is an InvalidInput with its path."""
        try:
            return cls.model_validate(fields, context=reading)
        except ValidationError as error:  # of an after-validator
            raise explained(error, fields, cls.model_fields, cls.spellings) from error
        except InvalidInput as error:
            raise as_written(error.at_field(fields), fields, cls.spellings) from error

    @classmethod
    def spelled(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields with their proper names and values; a spelling without meaning here, or a second one, is refused."""
        result = dict(fields)
        for base in cls.__mro__:
            for name, spelling in getattr(base, "spellings", {}).items():
                if name not in result or name in cls.model_fields:
                    continue
                if name not in cls.spellings and spelling.lost:
                    raise InvalidInput(spelling.lost.format(cls._called(fields)), keys=(name,))
                if name not in cls.spellings or spelling.convert is None:
                    continue
                if spelling.field in result:
                    raise InvalidInput(f"give either `{spelling.field}` or `{name}`, not both.", keys=(name,))
                result[spelling.field] = spelling.value(name, result.pop(name))
        return result

    @classmethod
    def _called(cls, fields: Mapping[str, Any]) -> str:
        """Return what messages call an entry of this class."""
        name = fields.get(cls.named_by or "", cls.model_fields[cls.named_by].default if cls.named_by else None)
        return repr(name if isinstance(name, str) else cls.__name__)

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Spellings, then the specs inside, then the class's own validators; with mistakes at their places."""
        if not isinstance(data, dict):
            return handler(data)
        if CODE in data:  # an identity that is read back: the code is what it is now
            data = {name: value for name, value in data.items() if name != CODE}
        reading = info.context if isinstance(info.context, Reading) else Reading()
        if reading.identity:
            data = {**{name: values[0] for name, values in cls.unsaid.items()}, **data}
        known = {*cls.model_fields, *cls.spellings, *reading.beside}
        try:
            fields = cls.spelled(data)
            return handler(cls._with_inner_specs(fields, replace(reading, beside=())))
        except ValidationError as error:
            # Without its cause: pydantic's own words say less.
            raise explained(error, data, cls.model_fields, cls.spellings, reading.beside) from None
        except InvalidInput as error:
            # A misspelled field goes first: what is missed here is missing because of it.
            for name in data.keys() - known - set(error.keys[:1]):
                if difflib.get_close_matches(name, known - data.keys(), n=1):
                    raise unknown_field(name, known) from error
            raise as_written(error.at_field(data), data, cls.spellings) from None

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        """Runs before the validators of subclasses, which may compute something as large as a number says."""
        own = type(self).bounds
        if own is not None:
            names = type(self).model_fields
            foreign = {name: FOREIGN for name in names if is_foreign_field(type(self), name)}
            check_bounds({name: getattr(self, name) for name in names}, {**foreign, **own})
        return self

    @classmethod
    def _with_inner_specs(cls, fields: dict[str, Any], reading: Reading) -> dict[str, Any]:
        """Fields in which entries are configs and lists are tuples, wherever the annotations say so."""
        result = dict(fields)
        for name, info in cls.model_fields.items():
            entry_of = next((mark.base for mark in info.metadata if isinstance(mark, EntryOf)), None)
            if entry_of is None and not structured(cast(Any, info.annotation), Spec):
                continue
            if name not in fields and (info.is_required() or info.default_factory is not None):
                continue
            value = fields.get(name, info.default)

            def read(base: type[Spec], entry: Any, name: str = name) -> Spec:
                handed = {} if isinstance(entry, Spec) else cls._handed_down(name, fields)
                return base.from_entry(cls.inner_entry(name, entry, fields), reading, handed=handed)

            try:
                if entry_of is None:
                    inside = Inside(Spec, read).of(info.annotation, value)
                    if name in fields or inside != value:  # a default that is no entry stays unset
                        result[name] = inside
                elif isinstance(value, str | dict):
                    result[name] = entry_of.from_name(value, reading) if isinstance(value, str) else value
                    read(entry_of, result[name])
            except _HandedDown as wrong:
                raise wrong.error from wrong
            except InvalidInput as error:
                raise error.within(name) from error
        return result

    @classmethod
    def _handed_down(cls, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that specs inside ``name`` take over."""
        names = cls.hands_down.get(name, ())
        for missing in names:
            if missing not in fields and cls.model_fields[missing].is_required():
                hint = cls.model_fields[missing].description or ""
                raise _HandedDown(InvalidInput(f"field {missing!r} is missing. {hint}".strip()))
        return {taken: fields.get(taken, cls.model_fields[taken].default) for taken in names}

    # What a spec says of itself.

    def resolved(self, base: Path) -> Self:
        """This config with the files that it names found, hashed and checked: here those of the specs inside it.

        Arguments:
            base: Folder at which relative paths start.

        Raises:
            InvalidInput: A file is missing, or is another one; with the path of the spec that names it.
        """
        update: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Spec):
                update[name] = _resolved(value, base, name)
            elif isinstance(value, tuple) and any(isinstance(item, Spec) for item in value):
                update[name] = tuple(
                    _resolved(item, base, name, place) if isinstance(item, Spec) else item
                    for place, item in enumerate(value)
                )
        return self.model_copy(update=update) if update else self

    def as_entry(self) -> dict[str, Any]:
        """All fields as plain values, those that are not in the id too: an entry that this config is read from."""
        fields = type(self).model_fields
        values = {name: getattr(self, name) for name in fields}
        return {
            name: _plain(value)
            for name, value in values.items()
            if (value is not None or fields[name].get_default(call_default_factory=False) is not None)
            and not (fields[name].exclude and value == ())
        }

    def code(self) -> Code | None:
        """Return the code of this spec where it is not puregrid's; None otherwise.

        Raises:
            InvalidInput: Its source cannot be read.
        """
        return code_of_class(type(self))

    @model_serializer(mode="wrap")
    def _with_code(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return all fields but those left unsaid, and the code of a spec that is not puregrid's."""
        fields: dict[str, Any] = handler(self)
        for name, values in self.unsaid.items():
            if name in fields and fields[name] in values:
                del fields[name]
        code = self.code()
        return fields if code is None else {**fields, CODE: code.identity()}

    def identity(self) -> dict[str, Any]:
        """Return what the id is made of, as plain JSON values."""
        return self.model_dump(mode="json")

    def canonical(self) -> str:
        """Canonical JSON of :meth:`identity`."""
        return json.dumps(self.identity(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def parameter(self, name: str) -> Any:
        """Return the value of a field, or None where this kind of spec has no such field."""
        return getattr(self, name) if name in type(self).model_fields else None

    def parts(self) -> Iterator[tuple[str, Spec]]:
        """The specs inside this one, however deep, with the field that holds each (``denoiser``, ``auxiliary``)."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Spec):
                    yield name, item
                    yield from item.parts()

    @cached_property
    def foreign(self) -> bool:
        """Whether its code, or that of a spec inside it, is not puregrid's."""
        return self.code() is not None or any(part.code() is not None for _, part in self.parts())

    @property
    def id(self) -> str:
        """Content id of this spec."""
        return digest(self.canonical())


def _resolved(spec: Spec, base: Path, *keys: str | int) -> Spec:
    try:
        return spec.resolved(base)
    except InvalidInput as error:
        raise error.within(*keys) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.as_entry()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
