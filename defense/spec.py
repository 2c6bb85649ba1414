"""Typed, frozen specs and their content ids.

``id(spec) = hex(sha256(canonical JSON))[:16]``: keys sorted, no white space, floats in their shortest
round-trip form. A field declared with ``Field(exclude=True)`` (a path, say) says where something lies, not
what it is, and stays out of the id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Spec", "digest"]

ID_LENGTH = 16
"""Hex digits of an id: 64 bits, so a million specs collide with probability below 1e-7."""


def digest(text: str | bytes) -> str:
    """The id of a text: the leading hex digits of its sha256."""
    data = text.encode() if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()[:ID_LENGTH]


class Spec(BaseModel):
    """A frozen description of something that determines a row.

    Strict: a string is never read as a number, nor a number as a flag, and unknown fields are refused, since
    a misspelled field that is silently ignored is a wrong number later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)

    def identity(self) -> dict[str, Any]:
        """What the id is made of, as plain JSON values."""
        return self.model_dump(mode="json")

    def canonical(self) -> str:
        """Canonical JSON of :meth:`identity`."""
        return json.dumps(self.identity(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def parameter(self, name: str) -> Any:
        """The value of a field, or None where this kind of spec has no such field."""
        return getattr(self, name) if name in type(self).model_fields else None

    def parts(self) -> Iterator[tuple[str, Spec]]:
        """The specs inside this one, however deep, with the field that holds each (``denoiser``, ``auxiliary``)."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Spec):
                    yield name, item
                    yield from item.parts()

    @property
    def id(self) -> str:
        """Content id of this spec."""
        return digest(self.canonical())
