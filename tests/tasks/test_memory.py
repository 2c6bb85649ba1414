"""The memory of a unit is that of its own time, in its commit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tasks.memory
from tasks.memory import peak_memory

CPU = torch.device("cpu")


def test_the_peak_is_that_of_the_block_alone() -> None:
    with peak_memory(CPU) as small:
        before = small()
    if before is None:
        pytest.skip("this system does not say it")
    with peak_memory(CPU) as large:
        held = torch.ones(100, 2**18)  # 100 MiB
        del held
        grown = large()
    with peak_memory(CPU) as after:
        later = after()
    assert grown is not None and later is not None
    assert grown - before > 80 and later < grown - 50


def test_where_nobody_counts_there_is_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tasks.memory, "_REFERENCES", tmp_path / "missing" / "clear_refs")
    with peak_memory(CPU) as peak:
        assert peak() is None
