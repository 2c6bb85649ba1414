"""The memory of a unit is that of its own time, in its commit."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from loops import every

import tasks.memory
from defense.errors import no_memory
from tasks.compute import Context
from tasks.memory import peak_memory, resident

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


@every(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_errors_for_want_of_memory_are_told_from_others(error: Exception, expected: bool) -> None:
    assert no_memory(error) is expected


def test_where_the_system_refuses_memory_parts_get_smaller_and_what_was_computed_stays() -> None:
    """PyTorch's own allocator for processors, under a limit of the system: its error is a plain RuntimeError."""
    status = Path("/proc/self/status")
    if resident() is None:
        pytest.skip("this system does not say what a process has")
    size = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmSize:"))
    context, tried, computed = Context(), [], []

    def work(start: int, stop: int) -> float:
        tried.append(stop - start)
        # The first slice is small, so that something is computed before one is refused: 64 MiB an element.
        held = torch.zeros(stop - start if start else 1, 2**24)
        computed.append((start, stop))
        return float(held.sum()) + stop - start

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + 600 * 2**20, before[1]))
    try:
        parts = context.in_batches("unit", 64, 32, work)
        with pytest.raises(RuntimeError, match="allocate"):
            context.in_batches("other", 1, 1, lambda start, stop: torch.empty(2**40))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert sum(parts) == 64
    assert tried == [32, 32, 16, 8, 8, 8, 8, 8][: len(tried)] and context.memory_retries >= 2
    assert [start for start, _ in computed] == sorted({start for start, _ in computed})
    assert computed[0] == (0, 32) and computed[-1][1] == 64


def test_other_errors_are_not_tried_again_in_smaller_parts() -> None:
    context, tried = Context(), []

    def work(start: int, stop: int) -> None:
        tried.append((start, stop))
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        context.in_batches("unit", 8, 8, work)
    assert tried == [(0, 8)] and context.memory_retries == 0


def test_a_process_is_crowded_from_a_quarter_of_a_processor_s_share_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.memory, "machine_memory", lambda: 8 * 2**30)
    monkeypatch.setattr(tasks.memory.os, "cpu_count", lambda: 4)
    for held, expected in ((None, False), (511.0, False), (513.0, True)):
        monkeypatch.setattr(tasks.memory, "resident", lambda held=held: held)
        assert tasks.memory.crowded() is expected
