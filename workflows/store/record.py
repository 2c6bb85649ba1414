"""JSON records, which other processes and other versions read.

A record is a frozen dataclass. Fields that an older version did not write have defaults; fields that only a newer
version knows are ignored, because a store outlives the versions that write to it. A record whose loss would matter
carries a checksum of the fields that every version has (those without a default), so that damage to it is told apart
from what a newer version has written.
"""

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError

__all__ = ["CHECKSUM", "Count", "Record", "Seconds", "Share", "read_json"]

CHECKSUM = "checksum"

Count = Annotated[int, Field(ge=0, le=10**15)]
"""How many there are of something."""

Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
"""A duration, at most 30,000 years."""

Share = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
"""A rate or a ratio."""


@dataclass(frozen=True)
class Record:
    """A frozen dataclass that is kept as a JSON object."""

    def to_json(self) -> dict[str, object]:
        """Return the fields as plain JSON values, in their order."""
        return asdict(self)

    def checked(self) -> dict[str, object]:
        """Return :meth:`to_json` with a checksum, which :meth:`from_json` compares."""
        content = self.to_json()
        return {**content, CHECKSUM: self._checksum(content)}

    @classmethod
    def _checksum(cls, content: dict[str, Any]) -> str:
        """Hash of the fields that every version has; the order of keys, and all other fields, do not matter."""
        try:
            text = json.dumps({name: content.get(name) for name in _always(cls)}, sort_keys=True)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Read the result of :meth:`to_json` or :meth:`checked` of this, an older or a newer version.

        Raises:
            ValueError: A field is missing or has a value of another type, or the checksum is another one.
        """
        try:
            record: Self = _reader(cls).validate_python(content)
        except ValidationError as error:
            wrong = (f"{'.'.join(map(str, at['loc'])) or 'it'}: {at['msg'].lower()}" for at in error.errors())
            raise ValueError("; ".join(wrong)[:400]) from error
        if isinstance(content, dict) and CHECKSUM in content and content[CHECKSUM] != cls._checksum(content):
            raise ValueError("its fields do not fit its checksum")
        return record

    @classmethod
    def from_text(cls, text: bytes) -> Self:
        """Read the text of a file that should hold such a record.

        Raises:
            ValueError: It is no JSON, or no such record.
        """
        return cls.from_json(read_json(text))


def read_json(text: bytes) -> Any:
    """Read JSON.

    Raises:
        ValueError: It is none.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


_ALWAYS: dict[type, tuple[str, ...]] = {}


def _always(kind: type[Record]) -> tuple[str, ...]:
    """Return the fields that every version has: those without a default."""
    if kind not in _ALWAYS:
        without = [part for part in fields(kind) if part.default is MISSING and part.default_factory is MISSING]
        _ALWAYS[kind] = tuple(part.name for part in without)
    return _ALWAYS[kind]


_READERS: dict[type, TypeAdapter[Any]] = {}


def _reader(kind: type) -> TypeAdapter[Any]:
    """Return the validator of a class; cached, since making it takes a millisecond."""
    if kind not in _READERS:
        _READERS[kind] = TypeAdapter(kind)
    return _READERS[kind]
