"""Rows of workers that share their weights are those of workers that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_small import compute, small_sweep
from stored import data

from tasks import shared_weights
from tasks.shared_weights import SHARED, can_share
from workflows.store import Store


@pytest.mark.slow
@pytest.mark.skipif(not can_share(), reason="memory without a name is Linux's")
def test_shared_weights_change_no_byte_and_units_say_what_they_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sweep, own, shared = small_sweep(tmp_path), tmp_path / "own", tmp_path / "shared"
    compute(sweep, str(own))
    monkeypatch.setattr(shared_weights, "LARGE", 1)
    compute(sweep, str(shared))
    assert data(Store(str(shared))) == data(Store(str(own)))
    notes = [json.loads(path.read_text())["notes"] for path in (shared / "commits").rglob("*.json")]
    # One unit loaded the classifier, which is small, and one the denoiser of 2.7 MB.
    assert sorted(note[SHARED] for note in notes if SHARED in note) == [0, 3]
