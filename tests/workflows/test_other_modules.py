"""Purifiers, attacks and classifiers of other packages, named by module and attribute, are axes like any."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from grids_small import SMALL, budgets, kinds, swept

from defense.classifiers import ClassifierConfig
from defense.errors import InvalidInput
from workflows.engine.worker import UnitWorker
from workflows.grid.load import Sweep
from workflows.planning.plan import make_plan

THIRD_PARTY = '''
"""A purifier, an attack and an architecture that puregrid knows nothing of."""
import torch
from torch import nn

from defense.classifiers import Architecture
from defense.purifiers import Purifier, PurifierConfig
from tasks.attacks.base import AttackConfig, AttackResult


class _Shift(Purifier):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x, omega):
        return (x + self.by).clamp(0, 1)


class Shift(PurifierConfig):
    """Brighten by a constant."""

    purifier: str
    by: float

    @property
    def stochastic(self):
        return False

    def label(self):
        return f"shift {self.by:g}"

    def build(self, models=None):
        return _Shift(self.by)


class Darken(AttackConfig):
    """Take eps from every pixel."""

    power: int = 1

    @property
    def evaluations(self):
        return 0

    def run(self, target, x, omega):
        return AttackResult((x - self.eps).clamp(0, 1), torch.zeros(len(x)))


class _Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        total = (x.mean((1, 2, 3)) * 10).round() * self.weight
        return -(total[:, None] - torch.arange(10.0)) ** 2


sums = Architecture(build=_Sum, image_shape=(1, 8, 8), classes=10, mean=(0.0,), std=(1.0,))
'''


class TestThirdParty:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        (tmp_path / "pg_third_party.py").write_text(THIRD_PARTY)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "pg_third_party", raising=False)
        return "pg_third_party"

    def sweep(self, folder: Path, module: str) -> Sweep:
        return swept(
            folder,
            SMALL + f"attacks: [none, {{attack: '{module}:Darken', norm: linf, eps_255: [51, 255], power: 2}}]\n",
            f"defences=[none, {{purifier: '{module}:Shift', by: [0.0, 1.0]}}]",
        )

    def test_purifier_and_attack_by_module_and_attribute_are_axes_like_any(self, tmp_path: Path, module: str) -> None:
        sweep = self.sweep(tmp_path, module)
        assert [(cell.defence.label(), eps) for cell, eps in zip(sweep.cells, budgets(sweep), strict=True)] == list(
            itertools.product(("none", "shift 0", "shift 1"), (0.0, 0.2, 1.0))
        )
        assert kinds(make_plan(sweep)) == {"attack": 2, "evaluate": 9, "probe": 2}

    def test_their_units_compute_what_they_say(self, tmp_path: Path, module: str) -> None:
        plan = make_plan(self.sweep(tmp_path, module))
        worker = UnitWorker(str(tmp_path / "store"), "cpu")
        for stage in plan.stages:
            inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
            for chunk in stage.chunks:
                worker.run(stage.spec, stage.id, chunk, inputs)
        predictions: dict[tuple[str, float], list[int]] = {}
        for cell in self.sweep(tmp_path, module).cells:
            rows = [worker.store.read_rows("evaluate", cell.evaluate.id, c.name) for c in cell.images.chunks]
            eps = 0.0 if cell.attack is None else cell.attack.eps
            predictions[cell.defence.label(), eps] = [p[0] for table in rows for p in table["prediction"].to_pylist()]
        assert predictions["shift 0", 0.2] == predictions["none", 0.2]
        # All black, all white: one answer whatever the image was.
        assert len(set(predictions["none", 1.0])) == 1
        assert len(set(predictions["shift 1", 0.0])) == 1
        assert predictions["shift 1", 0.0] == predictions["shift 1", 1.0]
        assert len(set(predictions["none", 0.0])) > 1

    def test_their_fields_are_validated_like_any(self, tmp_path: Path, module: str) -> None:
        with pytest.raises(InvalidInput, match=r"unknown field 'bye'; did you mean 'by'\?"):
            swept(tmp_path, SMALL, f"defences=[{{purifier: '{module}:Shift', bye: 1.0}}]")
        with pytest.raises(InvalidInput, match=r"deterministic"):
            swept(tmp_path, SMALL, f"defences=[{{purifier: '{module}:Shift', by: 1.0, draws: 2}}]")

    def test_an_architecture_by_module_and_attribute(self, tmp_path: Path, module: str) -> None:
        import torch
        from safetensors.torch import save_file

        save_file({"weight": torch.ones(1)}, tmp_path / "sum.safetensors")
        sweep = swept(tmp_path, SMALL, f"classifiers=[{{classifier: '{module}:sums', weights: sum.safetensors}}]")
        config: ClassifierConfig = sweep.cells[0].classifier
        images = torch.full((2, 1, 8, 8), 0.3)
        images[1] = 0.7
        assert config.build()(images).argmax(1).tolist() == [3, 7]
