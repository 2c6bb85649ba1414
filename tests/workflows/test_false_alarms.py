"""A sound report has no error: rows drawn from honest models, in which many attacks are equally strong.

``benchmarks/false_alarms.py`` is the same with 200 sweeps of 512 images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.false_alarms import SoundResults, false_alarms, sound_sweep
from workflows.audit import findings
from workflows.store import Store


@pytest.mark.parametrize(
    "count", [pytest.param(3, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.nightly)]
)
def test_sound_sweeps_of_twenty_cells(count: int, tmp_path: Path) -> None:
    sweep = sound_sweep(tmp_path, 150)
    assert len(sweep.cells) >= 20
    reports = false_alarms(sweep, tmp_path, count, seed=7)
    # With one chance in four of an error, 16 reports would have none in one case of a hundred.
    assert [finding for report in reports for finding in report if finding.severity == "error"] == []


@pytest.mark.slow
def test_the_same_rows_with_a_fault_are_flagged(tmp_path: Path) -> None:
    """The simulation would see an error: the exact attack is handed the clean images."""

    class Faulty(SoundResults):
        def _p(self, source, cell):  # type: ignore[no-untyped-def]
            exact = source is not None and source.attack.gradient == "exact" and not source.attack.black_box
            return super()._p(None if exact else source, cell)

    results = Faulty(Store(str(tmp_path / "store")), sound_sweep(tmp_path, 150), np.random.default_rng(3))
    results._honest.small = dict.fromkeys(results._honest.small, 2.0)
    assert "error" in {finding.severity for finding in findings(results, images=False)}
