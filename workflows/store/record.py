"""JSON records, which other processes and other versions read.

A record is a frozen dataclass. Fields that an older version did not write have defaults; fields that only a newer
version knows are ignored, because a store outlives the versions that write to it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

__all__ = ["Record"]


@dataclass(frozen=True)
class Record:
    """A frozen dataclass that is kept as a JSON object."""

    def to_json(self) -> dict[str, object]:
        """Return the fields as plain JSON values, in their order."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Read the result of :meth:`to_json` of this, an older or a newer version.

        Raises:
            ValueError: A field is missing or has a value of another type.
        """
        try:
            record: Self = _reader(cls).validate_python(content)
        except ValidationError as error:
            wrong = (f"{'.'.join(map(str, at['loc'])) or 'it'}: {at['msg'].lower()}" for at in error.errors())
            raise ValueError("; ".join(wrong)) from error
        return record

    @classmethod
    def from_text(cls, text: bytes) -> Self:
        """Read the text of a file that should hold such a record.

        Raises:
            ValueError: It is no JSON, or no such record.
        """
        try:
            content = json.loads(text)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        return cls.from_json(content)


_READERS: dict[type, TypeAdapter[Any]] = {}


def _reader(kind: type) -> TypeAdapter[Any]:
    """Return the validator of a class; cached, since making it takes a millisecond."""
    if kind not in _READERS:
        _READERS[kind] = TypeAdapter(kind)
    return _READERS[kind]
