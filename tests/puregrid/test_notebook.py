"""The example notebook runs from an empty folder in a real kernel, and what is committed is what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

import puregrid

ROOT = Path(puregrid.__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "first_evaluation.ipynb"


def printed(book: Any) -> list[str]:
    """What each code cell shows."""
    texts = []
    for cell in book.cells:
        if cell.cell_type == "code":
            outputs = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
            texts.append("\n".join(outputs))
    return texts


def test_it_imports_puregrid_and_neither_of_the_packages_behind() -> None:
    source = "\n".join(cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code")
    assert "import puregrid" in source
    for package in ("workflows", "tasks", "defense"):
        assert f"import {package}" not in source and f"from {package}" not in source


def test_every_cell_was_executed_in_order_and_names_no_machine() -> None:
    book = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(book)
    counts = [cell.execution_count for cell in book.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not re.findall(r"(?:^|[\s'\"])/\w+/\S*", "\n".join(printed(book))), "paths of the machine that ran it"


def test_it_builds_its_sweep_in_python_and_shows_what_wrong_input_says() -> None:
    book = nbformat.read(NOTEBOOK, 4)
    source = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    assert "puregrid.Sweep(" in source and "load_sweep" not in source
    assert any(
        text.startswith("attacks.0: unknown field 'stepz'") or text.startswith("attacks.0.stepz: ")
        for text in printed(book)
    )
    assert NOTEBOOK.stat().st_size < 60_000


@pytest.mark.nightly
def test_it_runs_and_prints_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from nbclient import NotebookClient  # with Jupyter's own client, which no other test needs

    book = nbformat.read(NOTEBOOK, 4)
    committed = printed(book)
    NotebookClient(
        book, timeout=600, coalesce_streams=True, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    made = printed(book)
    (run,) = (i for i, text in enumerate(committed) if "<SweepRun" in text)
    # How long it took and how fast differs; so may last digits, on another processor.
    assert "<SweepRun of 'first-evaluation': complete, 16 units computed>" in made[run]
    assert "16 of 16 units" in made[run], "progress is shown"
    assert made[1:run] == committed[1:run]
    assert [text.split()[0] for text in made[-1].splitlines() if text] == ["clean", "blind", "exact"]
    clean, blind, exact = (float(text.split()[1].rstrip("%")) for text in made[-1].splitlines() if text)
    assert clean > 90 and exact < blind < clean
