"""From a YAML file to a validated training config."""

from __future__ import annotations

from pathlib import Path

from defense.errors import InvalidInput
from workflows.documents.document import read_document
from workflows.documents.entries import located, validate
from workflows.training.config import Training
from workflows.training.kinds.registry import kind

__all__ = ["load_config"]


def load_config(path: Path) -> Training:
    """Read and validate a training config.

    Raises:
        InvalidInput: No such file, not YAML, or a field that is wrong, with its line.
    """
    document = read_document(path, what="training config", keys="train, out, dataset, ...")
    try:
        model, _ = kind(document.data.get("train"))
    except KeyError as error:
        raise document.error(("train",), str(error.args[0])) from None
    for name, find in model.nested.items():
        entry = document.data.get(name)
        if isinstance(entry, str) and name in model.shorthands:
            entry = {name: entry}
        if not isinstance(entry, dict):
            continue  # left out, or of a wrong type: the model itself says so
        inner = located(document, (name, name), lambda entry=entry, find=find: find(entry))  # type: ignore[misc]
        fields = {**entry, "split": "train"} if name == "dataset" else entry
        validate(document, (name,), inner, fields, set(getattr(inner, "spellings", ())))
    try:
        return validate(document, (), model, document.data, set())
    except InvalidInput as error:
        raise InvalidInput(error.message, where=error.where or str(path)) from error
