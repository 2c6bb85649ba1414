"""From a sweep file to a sweep: one YAML file, read once and validated before anything runs."""

from collections.abc import Sequence
from pathlib import Path

from workflows.documents.document import Document, parsed, read_document, recorded_overrides
from workflows.grid.build import Builder
from workflows.grid.cells import Cell
from workflows.grid.requirements import check_requirements
from workflows.grid.sweep import Sweep

__all__ = ["Cell", "Sweep", "load_sweep", "recorded_sweep"]


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read, expand and validate a sweep file; find, hash and check every file that it names.

    Arguments:
        path: The YAML file.
        overrides: ``KEY=VALUE`` settings.

    Raises:
        InvalidInput: Anything that would make the sweep fail or mean something else than was meant.
    """
    return _sweep_of(read_document(path, overrides, expand=False))


def recorded_sweep(text: str, folder: Path) -> Sweep:
    """Return the sweep of a text that a store has on record, with the overrides that are recorded in it.

    Arguments:
        text: As in ``sweeps/<sweep id>/sweep.yaml``.
        folder: Where its relative paths start.

    Raises:
        InvalidInput: As of :func:`load_sweep`; a file may be gone since.
    """
    document = parsed(text, folder / "sweep.yaml")
    for setting in recorded_overrides(text):
        document.override(setting)
    document.text = text
    return _sweep_of(document)


def _sweep_of(document: Document) -> Sweep:
    check_requirements(document)
    document.expand_variables()
    return Sweep.of_grid(Builder(document).grid(), document.text, document)
