"""From a YAML file to a validated training config."""

from pathlib import Path

from workflows.documents.document import read_document
from workflows.documents.entries import validate
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
    return validate(document, (), model, document.data)
