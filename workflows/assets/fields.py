"""What the fields of a config are: name, type, default, and the sentence of its class's docstring."""

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from defense.entries import Spelling
from defense.spec import Spec

__all__ = ["FieldText", "described", "first_sentence"]

_HIDDEN = {"digest", "config_sha256"}
"""Fields that puregrid fills in."""


@dataclass(frozen=True)
class FieldText:
    """A field as people read it.

    Arguments:
        name: As in a sweep file.
        type: ``int``, ``ce | margin | dlr``, ``list of attacks``.
        default: As in a sweep file; empty where there is none and it must be given.
        text: What it means.
        required: Whether it must be given.
    """

    name: str
    type: str
    default: str
    text: str
    required: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "name": self.name,
            "type": self.type,
            "default": self.default,
            "text": self.text,
            "required": self.required,
        }


def described(model: type[Spec], tag: str | None = None) -> list[FieldText]:
    """Return the fields of a config, spellings last.

    Arguments:
        model: The config's class.
        tag: The field that names it, which is left out.
    """
    texts, fields = _texts(model), list[FieldText]()
    for name, info in model.model_fields.items():
        if name == tag or name in _HIDDEN:
            continue
        text = texts.get(name, "")
        required = info.is_required() and "by default" not in text  # validators fill some in from others
        fields.append(FieldText(name, _type(model, name, info), _default(info), text, required))
    return [
        *fields,
        *(FieldText(spelt, "number", "", _spelt(spelling), False) for spelt, spelling in model.spellings.items()),
    ]


def first_sentence(model: type) -> str:
    """Return the first line of a class's docstring."""
    return (model.__doc__ or "").strip().partition("\n")[0]


def _texts(model: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of fields, the class's own first."""
    texts: dict[str, str] = {}
    for cls in model.__mro__:
        for name, text in _arguments(inspect.cleandoc(cls.__dict__.get("__doc__") or "")):
            texts.setdefault(name, text)
    return texts


def _arguments(doc: str) -> Iterator[tuple[str, str]]:
    _, found, section = doc.partition("\nArguments:\n")
    if not found:
        return
    section = re.split(r"\n\S", section, maxsplit=1)[0]
    for entry in re.split(r"\n {4}(?=\S)", "\n" + section):
        name, colon, text = entry.strip().partition(":")
        if colon and re.fullmatch(r"\w+", name):
            yield name, re.sub(r"(:\w+:)?`{1,2}", "", " ".join(text.split()))


def _spelt(spelling: Spelling) -> str:
    return f"{spelling.unit}; instead of {spelling.field}"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return ""
    value = info.get_default(call_default_factory=True) if info.default_factory is None else None
    return _written(value)


def _written(value: Any) -> str:
    """A value as in a sweep file."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    return str(value)


def _type(model: type[Spec], name: str, info: FieldInfo) -> str:
    if name == "norm" and hasattr(model, "norms"):
        return " | ".join(model.norms)
    bounds = {sign: value for m in info.metadata for sign in _SIGNS if (value := getattr(m, sign, None)) is not None}
    text = " ".join(f"{_SIGNS[sign]} {_written(value)}" for sign, value in bounds.items())
    first, *others = _name(info.annotation).split(" | ")
    return " | ".join([f"{first} {text}".strip(), *others])


_SIGNS = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}

_PLAIN: Mapping[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true | false",
    str: "text",
    type(None): "none",
}


def _name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is typing.Annotated:
        return _name(arguments[0])
    if origin is typing.Literal:
        return " | ".join(map(_written, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(_name, arguments)))
    if origin in (tuple, list):
        members = [argument for argument in arguments if argument is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments:
            return f"[{', '.join(map(_name, members))}]"
        return f"list of {_name(members[0])}" if members else "list"
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return str(annotation.named_by or "mapping")
    if origin is not None and typing.get_origin(origin) is None and origin is not dict:
        return _name(arguments[0]) if arguments else "value"
    return getattr(annotation, "__name__", "value").lower()
