"""JSON Schema of sweep files, by which editors complete names and mark mistakes while one types.

It knows sections, names, fields, their types and ranges. What takes more than one look, such as files, digests and
whether an attack fits a purifier, ``puregrid plan`` says.
"""

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from defense.spec import Spec
from tasks.compute import Compute
from tasks.stages.quality import QualityConfig
from workflows.assets.fields import described, first_sentence
from workflows.documents.authors import authors_settings
from workflows.grid.build import BASES, GRID_AXES, SECTIONS, DefenceFields
from workflows.grid.converge import Converge
from workflows.grid.precision import Precision
from workflows.grid.requirements import Requirement
from workflows.grid.silence import RULE_NAMES

__all__ = ["COMMENT", "sweep_schema"]

COMMENT = "# yaml-language-server: $schema={}"
"""First line of a sweep file, with a path or URL of the schema: what makes editors use it."""

_Json = dict[str, Any]

_OWN_PART = {"type": "string", "pattern": "^[\\w.]+:\\S+$", "description": "module:attribute, a part of your own"}

_IMAGES = {
    "description": "Which images; all of them by default.",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "first": {"type": "integer", "minimum": 1},
        "every": {"type": "integer", "minimum": 1},
        "start": {"type": "integer", "minimum": 0},
        "stop": {"type": "integer", "minimum": 1},
        "ids": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    },
}


def sweep_schema() -> _Json:
    """Return the schema of sweep files, draft 7, with the parts that are registered here."""
    kinds = {base: _registered(base) for base in BASES.values()}
    definitions = {}
    for part, base in BASES.items():
        beside = _beside(part)
        for name, model in kinds[base].items():
            definitions[_key(part, name)] = _mapping(model, base.named_by or "", beside)
    sections = {
        **{f"{part}s": _list_of(_entry(part, base, kinds[base])) for part, base in BASES.items()},
        **_plain_sections(),
    }
    if wrong := SECTIONS ^ set(sections):
        raise AssertionError(f"the schema and the reader have different sections: {sorted(wrong)}")
    axes = {name: schema for name, schema in sections.items() if name in GRID_AXES}
    sections["include"] = _list_of({"type": "object", "additionalProperties": False, "properties": axes})
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "puregrid sweep",
        "type": "object",
        "additionalProperties": False,
        "properties": dict(sorted(sections.items())),
        "definitions": definitions,
    }


def _plain_sections() -> _Json:
    """The sections that are no axes of entries."""
    matchers: _Json = {part: {} for part in (*BASES, "seed")}
    match = {"type": "object", "additionalProperties": False, "properties": matchers}
    silence = {
        "rule": {"enum": sorted(RULE_NAMES)},
        "reason": {"type": "string", "minLength": 1},
        "cells": match,
    }
    quality = _mapping(QualityConfig, "", {})
    return {
        "sweep": {"type": "string", "maxLength": 120, "description": "Its name in tables and MLflow."},
        "requires": _list_of(_mapping(Requirement, "", {})),
        "denoisers": {
            "description": "Denoisers by names of yours.",
            "type": "object",
            "additionalProperties": {"type": "object"},
        },
        "seeds": _scalar_or_list({"type": "integer"}),
        "chunk": {"type": "integer", "minimum": 1, "description": "Images of a unit."},
        "compute": _mapping(Compute, "", {}, axes=False),
        "resubmissions": {"type": ["integer", "null"], "minimum": 1, "description": "M of worst-of-M accuracy."},
        "quality": {"anyOf": [{"type": ["boolean", "null"]}, quality]},
        "precision": _mapping(Precision, "", {}, axes=False),
        "probe": {"enum": [True, False, "foreign"], "description": "Which parts are probed."},
        "exclude": _list_of(match),
        "include": {},
        "silence": _list_of(
            {"type": "object", "additionalProperties": False, "required": ["rule", "reason"], "properties": silence}
        ),
    }


def _registered(base: type[Spec]) -> dict[str, type[Spec]]:
    """The classes of the entries of one kind, by name."""
    from defense.classifiers import CLASSIFIERS
    from defense.classifiers.base import ENTRIES
    from defense.denoisers import DENOISERS
    from defense.purifiers import PURIFIERS
    from tasks.attacks import ATTACKS
    from tasks.corruptions import CORRUPTIONS
    from tasks.datasets import DATASETS

    names: dict[str, Iterable[str]] = {
        "attack": ATTACKS.names(),
        "classifier": [*CLASSIFIERS.names(), *ENTRIES],
        "corruption": [*CORRUPTIONS, "benchmark", "extra"],
        "dataset": DATASETS.names(),
        "format": DENOISERS.names(),
        "purifier": PURIFIERS.names(),
    }
    return {name: base.class_named(name) for name in names.get(base.named_by or "", ())}


def _entry(part: str, base: type[Spec], kinds: Mapping[str, type[Spec]]) -> _Json:
    """An entry of an axis: a name, or a mapping whose fields follow from its name."""
    tag = base.named_by
    if tag is None or not kinds:
        return _mapping(base, tag or "", {})
    listed = part == "corruption"  # several names in one entry
    published = {"defence": "published", "attack": "as-published"}.get(part)
    names: _Json = {"enum": [*kinds, *(["none"] if part == "attack" else [])]}
    return {
        "anyOf": [
            names,
            _OWN_PART,
            *([] if published is None else [_of_authors(published)]),
            {
                "type": "object",
                "required": [tag] if base.model_fields[tag].is_required() else [],
                "properties": {tag: {"anyOf": [names, {"type": "array", "items": names} if listed else _OWN_PART]}},
                "allOf": [
                    {
                        "if": {"properties": {tag: {"const": name}}, "required": [tag]},
                        "then": {"$ref": f"#/definitions/{_key(part, name)}"},
                    }
                    for name in kinds
                ],
            },
        ]
    }


def _of_authors(key: str) -> _Json:
    """An entry that names a published setting; the fields beside it are those of what that stands for."""
    return {"type": "object", "required": [key], "properties": {key: {"enum": authors_settings()}}}


def _key(part: str, name: str) -> str:
    return f"{part}.{name}"


def _beside(part: str) -> _Json:
    """What an entry of an axis has beside its config."""
    if part == "dataset":
        return {"images": _IMAGES}
    if part == "attack":
        return {"converge": {"anyOf": [{"type": "boolean"}, _mapping(Converge, "", {}, axes=False)]}}
    return _fields(DefenceFields) if part == "defence" else {}


def _mapping(model: type[Spec], tag: str, beside: _Json, *, axes: bool = True) -> _Json:
    """A config as a mapping. What is required depends on short spellings and on what is handed down: plan says."""
    return {
        "type": "object",
        "description": first_sentence(model),
        "additionalProperties": False,
        "properties": {**({tag: {}} if tag else {}), **_fields(model, tag, axes=axes), **beside},
    }


def _fields(model: type[Spec], tag: str = "", *, axes: bool = True) -> _Json:
    """Each field as its value or, in entries of axes, a list of values."""
    fields = {}
    for field in described(model, tag):
        info = model.model_fields.get(field.name)
        value = {"type": "number"} if info is None else _value(info)
        fields[field.name] = _scalar_or_list(value) if axes else dict(value)
        fields[field.name]["description"] = " ".join(filter(None, [field.text, f"({field.type})"]))
    return fields


def _value(info: FieldInfo) -> _Json:
    names = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    limits = {
        key: value
        for m in info.metadata
        for sign, key in names.items()
        if (value := getattr(m, sign, None)) is not None
    }
    return _of(info.annotation, limits)


def _of(annotation: Any, limits: _Json) -> _Json:
    """The schema of an annotation; ranges are those of its numbers, and what is not known may be anything."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is bool:
        return {"type": "boolean"}
    if annotation in (int, float):
        return {"type": "integer" if annotation is int else "number", **limits}
    if annotation is str:
        return {"type": "string"}
    if annotation is type(None):
        return {"type": "null"}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of(argument, limits) for argument in arguments]}
    if origin is tuple:
        members = [_of(argument, {}) for argument in arguments if argument is not Ellipsis]
        return {"type": "array", "items": members[0] if len(members) == 1 else {"anyOf": members}}
    return {}  # entries inside entries have short forms of their own


def _scalar_or_list(value: _Json) -> _Json:
    return {"anyOf": [value, {"type": "array", "items": value}]} if value else {}


def _list_of(items: _Json) -> _Json:
    return {"type": ["array", "null"], "items": items}
