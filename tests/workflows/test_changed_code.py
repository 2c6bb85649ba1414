"""A part is edited between two runs: the plan says so, the new code is computed, and the old rows are found again."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers_small import compute
from loops import tiers
from naps import SharedRay
from typer.testing import CliRunner

import defense
from defense import code
from defense.classifiers import CLASSIFIERS
from defense.purifiers import PURIFIERS
from defense.spec import CODE
from tasks.attacks import ATTACKS
from tasks.datasets import DATASETS
from workflows.cli import app
from workflows.engine.worker import OtherCode, UnitWorker
from workflows.grid.load import load_sweep
from workflows.planning.plan import make_plan
from workflows.results.reader import Results
from workflows.results.records import record_sweep
from workflows.store import Store

ROOT = Path(defense.__file__).parents[1]

PURIFIER = """
from typing import Literal
from defense.purifiers.base import FilterConfig, Purifier

class Dim(Purifier):
    def forward(self, x, omega):
        return x * FACTOR

class TV(FilterConfig):
    purifier: Literal["tv:TV"] = "tv:TV"
    def label(self):
        return "dim"
    def build(self, models=None):
        return Dim().eval()
"""
CLASSIFIER = """
from pathlib import Path
import defense
from defense.classifiers import Architecture
from defense.classifiers.digits_cnn import DigitsCNN

class Net(DigitsCNN):
    def classify(self, latent):
        return super().classify(latent * FACTOR)

TV = Architecture(Net, (1, 8, 8), 10, (0.3,), (0.4,),
                  weights=Path(defense.__file__).parent / "assets/digits-cnn/model.safetensors")
"""
DATASET = """
from typing import Literal
from tasks.datasets import DigitsConfig, ImageSet

class TV(DigitsConfig):
    dataset: Literal["tv:TV"] = "tv:TV"
    def read(self):
        known = super().read()
        return ImageSet(known.images[:, :, ::FACTOR].copy(), known.labels)
"""
PARTS = {
    "purifier": (PURIFIER, "defences: [none, 'tv:TV']", 4, "0"),
    "classifier": (CLASSIFIER, "classifiers: ['tv:TV']", 2, "-1"),
    "dataset": (DATASET, "datasets: [{dataset: 'tv:TV', images: {first: 6}}]", 2, "-1"),
}
"""For each kind of part its module, its line of the sweep, the units of the sweep, and the factor of the edit."""

LINES = {
    "datasets": "datasets: [{dataset: digits, images: {first: 6}}]",
    "classifiers": "classifiers: [digits-cnn]",
    "defences": "defences: [none]",
    "attacks": "attacks: [none]",
    "chunk": "chunk: 3",
    "probe": "probe: false",
}


def text(line: str) -> str:
    return "\n".join(["sweep: edited", *{**LINES, line.partition(":")[0]: line}.values()]) + "\n"


@contextmanager
def started(folder: Path) -> Iterator[None]:
    """As in a process that starts now: modules of ``folder`` are read again, and nothing is known of their code."""
    caches = (code.code_of_class, code.code_of_modules)
    known = set(sys.modules)

    def forget() -> None:
        for cache in caches:
            cache.cache_clear()
        for registry in (ATTACKS, CLASSIFIERS, DATASETS, PURIFIERS):
            registry._codes.clear()  # type: ignore[attr-defined]

    forget()
    importlib.invalidate_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.syspath_prepend(str(folder))
        try:
            yield
        finally:
            for module in set(sys.modules) - known:
                del sys.modules[module]
            forget()


def planned(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What ``puregrid plan`` says: its figures, and its notes."""
    words = ["plan", str(folder / "edited.yaml"), "--store", str(folder / "store"), "--no-preflight"]
    with started(folder):
        shown, figures = (CliRunner().invoke(app, [*words, *more]) for more in ([], ["--json"]))
    assert (shown.exit_code, figures.exit_code) == (0, 0), shown.output + figures.output
    notes = [line for line in shown.stdout.splitlines() if line.startswith("note: ")]
    content = json.loads(figures.stdout)
    assert notes == [f"note: {notice}" for notice in content["notices"]]
    return content, notes


def accuracies(folder: Path) -> list[float]:
    """Compute the sweep and read what its cells say."""
    with started(folder):
        sweep, store = load_sweep(folder / "edited.yaml"), Store(str(folder / "store"))
        record_sweep(sweep, make_plan(sweep), store)  # as a run does before it computes
        compute(sweep, store.uri)
        frame = Results(store, sweep).robustness()
        return [float(value) for value in frame["accuracy"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiers(PARTS, daily=("purifier",)))
def test_an_edited_part_is_computed_anew_and_found_again_when_it_is_edited_back(kind: str, tmp_path: Path) -> None:
    module, line, units, factor = PARTS[kind]
    first, second = module.replace("FACTOR", "1"), module.replace("FACTOR", factor)
    (tmp_path / "edited.yaml").write_text(text(line))

    (tmp_path / "tv.py").write_text(first)
    plan, notes = planned(tmp_path)
    assert (plan["distinct"], plan["missing"], notes) == (units, units, [])
    old = {stage["id"] for stage in plan["stages"]}
    before = accuracies(tmp_path)
    assert before[-1] == 1.0

    (tmp_path / "tv.py").write_text(second)
    plan, notes = planned(tmp_path)
    (changed,) = old - {stage["id"] for stage in plan["stages"]}
    assert (plan["distinct"], plan["missing"]) == (units, 2)
    assert notes == [
        f"note: the code of tv:TV has changed since 2 units were computed; they stay in the store under "
        f"the old id {changed}"
    ]
    after = accuracies(tmp_path)
    # Black images, logits of the other sign, digits upside down.
    assert after[-1] <= 0.5 and after[:-1] == before[:-1]
    assert planned(tmp_path)[0]["missing"] == 0

    (tmp_path / "tv.py").write_text(first)
    plan, notes = planned(tmp_path)
    assert plan["missing"] == 0 and {stage["id"] for stage in plan["stages"]} == old
    assert accuracies(tmp_path) == before


@pytest.mark.slow
def test_units_of_a_version_that_recorded_no_code_are_told_apart(tmp_path: Path) -> None:
    module, line, _, _ = PARTS["purifier"]
    (tmp_path / "edited.yaml").write_text(text(line))
    (tmp_path / "tv.py").write_text(module.replace("FACTOR", "1"))
    accuracies(tmp_path)
    # What an earlier version left: the same stage without the code, under another id.
    store = tmp_path / "store"
    (spec,) = (path for path in (store / "specs").glob("*.json") if CODE in path.read_text())
    identity = json.loads(spec.read_text())
    del identity["purifier"][CODE]
    (store / "specs" / "0123456789abcdef.json").write_text(json.dumps(identity))
    spec.unlink()
    for folder in ("commits", "rows"):
        (store / folder / "evaluate" / spec.stem).rename(store / folder / "evaluate" / "0123456789abcdef")
    plan, notes = planned(tmp_path)
    assert plan["missing"] == 2
    assert notes == [
        "note: the code of tv:TV was not recorded when 2 units were computed (by an earlier version of puregrid); "
        "they stay in the store under the old id 0123456789abcdef"
    ]


def test_a_worker_with_other_code_refuses_before_it_computes(tmp_path: Path) -> None:
    module, line, *_ = PARTS["purifier"]
    (tmp_path / "edited.yaml").write_text(text(line))
    (tmp_path / "tv.py").write_text(module.replace("FACTOR", "1"))
    with started(tmp_path):
        driver = make_plan(load_sweep(tmp_path / "edited.yaml"))
    (tmp_path / "tv.py").write_text(module.replace("FACTOR", "0"))
    with started(tmp_path):
        worker = UnitWorker(str(tmp_path / "store"), "cpu")
        here = make_plan(load_sweep(tmp_path / "edited.yaml"))
        for there, stage in zip(driver.stages, here.stages, strict=True):
            if there.id == stage.id:  # nothing of the module is in it
                worker.run(stage.spec, there.id, stage.chunks[0], {})
            else:
                (trouble,) = worker.run_batch(stage.spec, there.id, stage.chunks, {}, 10.0)
                assert trouble.other_code  # type: ignore[union-attr]
                with pytest.raises(OtherCode, match=r"dim.* is another one on .* than where the sweep was planned"):
                    worker.run(stage.spec, there.id, stage.chunks[0], {})
                assert not worker.store.committed_chunks(stage.spec.stage, there.id)


SCRIPT = """
import sys
import puregrid
sweep = puregrid.load_sweep("edited.yaml")
module = open("tv.py").read()
open("tv.py", "w").write(module.replace("x * 1", "x * 0"))
try:
    puregrid.run(sweep, "store", workers=1, address=sys.argv[1])
except puregrid.PuregridError as error:
    print(error)
open("tv.py", "w").write(module)
print(puregrid.run(sweep, "store", workers=1, address=sys.argv[1]))
open("tv.py", "w").write(module.replace("x * 1", "x * 0"))
"""


@pytest.mark.nightly
def test_a_run_stops_at_other_code_and_says_what_has_changed(two_slots: SharedRay, tmp_path: Path) -> None:
    module, line, *_ = PARTS["purifier"]
    (tmp_path / "edited.yaml").write_text(text(line))
    (tmp_path / "tv.py").write_text(module.replace("FACTOR", "1"))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    python = call("-c", SCRIPT, two_slots.address)
    stopped, ended = python.stdout.splitlines()
    assert stopped.startswith("stopped: the code of a part of ") and "than where the sweep was planned" in stopped
    assert "is tried again" not in python.stderr
    assert ended.startswith("<SweepRun of 'edited': complete, ")

    words = ["edited.yaml", "--store", "store", "--workers", "1", "--mlflow", "off", "--json"]
    words += ["--address", two_slots.address]
    again = call("-m", "puregrid", "run", *words)
    notes = [line for line in again.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and notes[0].startswith("note: the code of tv:TV has changed since 2 units were computed;")
    assert json.loads(again.stdout)["run"]["computed_units"] == 2
