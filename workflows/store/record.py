"""What is written as JSON for other processes, other versions and other people to read.

A record is a frozen dataclass. What an older version did not write has a default; fields that only a newer version
knows are ignored, since a store outlives the versions that write to it.
"""

from __future__ import annotations

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
        """Read what :meth:`to_json` of this version, an older or a newer one has given.

        Raises:
            ValueError: A field is missing or has a value of another type.
        """
        try:
            found: Self = _reader(cls).validate_python(content)
        except ValidationError as error:
            wrong = (f"{'.'.join(map(str, at['loc'])) or 'it'}: {at['msg'].lower()}" for at in error.errors())
            raise ValueError("; ".join(wrong)) from error
        return found


_READERS: dict[type, TypeAdapter[Any]] = {}


def _reader(kind: type) -> TypeAdapter[Any]:
    """What checks records of a class; made once, since that takes a millisecond."""
    if kind not in _READERS:
        _READERS[kind] = TypeAdapter(kind)
    return _READERS[kind]
