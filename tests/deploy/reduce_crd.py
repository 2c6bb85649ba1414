"""Reduce a Kubernetes CRD to the names and types of its fields, and expand them to a JSON schema again.

A CRD of KubeRay is a megabyte of descriptions and repeated pod templates. What a manifest is checked for here is that
every field exists, has the right type, and that none is missing that must be there. A type is written as

* a string: ``string``, ``integer``, ``number``, ``boolean``, ``quantity`` (a number or a string), ``any``;
* ``["=", a, b]``: one of these values;
* ``[T]``: a list; ``{"*": T}``: a mapping with free keys;
* ``{"name": T, "other!": T}``: a mapping of these fields, the ones with ``!`` required;
* ``@n``: number n of the types that are used more than once.

    python tests/deploy/reduce_crd.py CRD.yaml ... > tests/deploy/data/kuberay-1.7.0.json

The CRDs are in ``ray-operator/config/crd/bases`` of KubeRay's repository.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml


def reduced(schema: dict[str, Any]) -> Any:
    """The type that an ``openAPIV3Schema`` says."""
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "enum" in schema:
        return ["=", *schema["enum"]]
    kind = schema.get("type", "any")
    if kind == "array":
        return [reduced(schema["items"])]
    if kind != "object":
        return kind
    required = schema.get("required", [])
    if "properties" in schema:
        return {
            name + "!" * (name in required): reduced(field) for name, field in sorted(schema["properties"].items())
        }
    free = schema.get("additionalProperties")
    return {"*": reduced(free)} if isinstance(free, dict) else "any"


def shared(kinds: dict[str, Any]) -> dict[str, Any]:
    """The same types, those that repeat written once."""
    counts: Counter[str] = Counter()

    def count(kind: Any) -> None:
        if isinstance(kind, (dict, list)):
            counts[json.dumps(kind)] += 1
            if counts[json.dumps(kind)] == 1:
                for part in kind.values() if isinstance(kind, dict) else kind:
                    count(part)

    count(list(kinds.values()))
    types: list[Any] = []
    places: dict[str, str] = {}

    def written(kind: Any) -> Any:
        text = json.dumps(kind)
        if text in places:
            return places[text]
        if isinstance(kind, dict):
            result: Any = {name: written(part) for name, part in kind.items()}
        elif isinstance(kind, list):
            result = [written(part) for part in kind]
        else:
            return kind
        if counts[text] > 1 and len(text) > 30:
            types.append(result)
            result = places[text] = f"@{len(types) - 1}"
        return result

    return {"kinds": {name: written(kind) for name, kind in kinds.items()}, "types": types}


def expanded(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type; unknown fields are errors, as for ``kubectl --validate=strict``."""
    if isinstance(kind, str):
        if kind.startswith("@"):
            return {"$ref": f"#/$defs/{kind[1:]}"}
        return {"any": {}, "quantity": {"type": ["integer", "string"]}}.get(kind, {"type": kind})
    if isinstance(kind, list):
        return {"enum": kind[1:]} if kind[0] == "=" else {"type": "array", "items": expanded(kind[0])}
    if "*" in kind:
        return {"type": "object", "additionalProperties": expanded(kind["*"])}
    return {
        "type": "object",
        "properties": {name.rstrip("!"): expanded(field) for name, field in kind.items()},
        "required": [name[:-1] for name in kind if name.endswith("!")],
        "additionalProperties": False,
    }


def schema_of(content: dict[str, Any], kind: str) -> dict[str, Any]:
    """The JSON schema of one kind of a file that this script wrote."""
    types = {str(i): expanded(each) for i, each in enumerate(content["types"])}
    return {**expanded(content["kinds"][kind]), "$defs": types}


def main(paths: list[str]) -> None:
    """Print the reduced CRDs."""
    kinds = {}
    for path in paths:
        definition = yaml.safe_load(Path(path).read_text())["spec"]
        (schema,) = (each["schema"]["openAPIV3Schema"] for each in definition["versions"] if each["name"] == "v1")
        fields = {name: field for name, field in schema["properties"].items() if name != "status"}
        kind = reduced({**schema, "properties": fields})
        # The API server checks these three by rules of its own, not by the CRD.
        kinds[definition["names"]["kind"]] = {
            **kind,
            "metadata": {"*": "any"},
            "apiVersion!": "string",
            "kind!": "string",
        }
        for name in ("apiVersion", "kind"):
            kinds[definition["names"]["kind"]].pop(name, None)
    json.dump(shared(kinds), sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main(sys.argv[1:])
