"""Ids of bundled sweeps never move by accident: an old store is found again by them.

Kept from the commit before the packages were laid out anew. Change an entry only together with a stage's ``version``,
or a sweep file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workflows
from defense.errors import InvalidInput
from tasks.datasets import Cifar10Config, ImageSet
from workflows.grid.load import load_sweep
from workflows.planning.plan import make_plan

SWEEPS = Path(workflows.__file__ or "").parent / "sweeps"
GOLDEN: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "golden_ids.json").read_text())


def _digest(ids: list[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """Images of each folder are read once for all sweeps; what is read decides ids as before."""
    read, known = Cifar10Config.read, {}

    def remembered(self: Cifar10Config) -> ImageSet:
        key = self.root, self.split
        if key not in known:
            known[key] = read(self)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cifar10Config, "read", remembered)
        yield


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_ids_are_those_that_old_stores_have(name: str) -> None:
    golden = GOLDEN[name]
    try:
        sweep = load_sweep(SWEEPS / name)
    except InvalidInput as error:
        if "environment variable" in str(error):
            pytest.skip(f"needs real data or weights: {error}")
        raise
    cells = [cell.id for cell in sweep.cells]
    stages = [stage.id for stage in make_plan(sweep).stages]
    assert (sweep.id, len(cells), _digest(cells)) == (golden["sweep"], golden["cells"], golden["cells_digest"])
    assert (len(stages), _digest(stages)) == (golden["stages"], golden["stages_digest"])
    if "cell_ids" in golden:
        assert cells == golden["cell_ids"]
        assert stages == golden["stage_ids"]
