"""Rows of workers that share their weights are those of workers that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_small import ASSETS, compute, small_sweep
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


COMBINED = f"""
sweep: combined
datasets: [{{dataset: digits, images: {{first: 4}}}}]
classifiers: [digits-cnn]
denoisers:
  d: {{format: diffusers, path: {ASSETS / "digits-ddpm"}, schedule: linear-1000}}
defences:
  - purifier: ssni
    denoiser: d
    schedule: linear-1000
    t_star: 100
    steps: 2
    draws: 3
    aggregation: majority-vote
    until: vote
    reference: {{minimum: 130.50508, maximum: 268.79019, mean: 183.98929, images: 1198, levels: 3,
      denoiser: 501436c4ac03ea0b, data: b8ed99bd0654d9b9}}
attacks:
  - none
  - {{attack: pgd, norm: linf, eps: 0.1, steps: 2, gradient: exact, eot: 3, attacked: vote}}
certificates:
  - {{sigma: 0.25, n0: 5, n: 12, base: purified}}
quality: {{}}
chunk: 3
probe: false
compute: {{batch: 5, precision: bf16-all, layout: channels-last}}
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_share(), reason="memory without a name is Linux's")
def test_rows_of_shared_casts_by_several_workers_in_any_order_are_those_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Levels of each image, votes until they are certain, attacked votes, casts and a batch that divides nothing."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sweep, own, shared = small_sweep(tmp_path, COMBINED), tmp_path / "own", tmp_path / "shared"
    compute(sweep, str(own))
    monkeypatch.setattr(shared_weights, "LARGE", 1)
    for chunks in ({1}, {0, 1}):  # each by a worker of its own; the second does again what the first did
        compute(sweep, str(shared), chunks=chunks)
    assert data(Store(str(shared))) == data(Store(str(own)))
