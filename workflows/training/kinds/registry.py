"""The kinds of training, each imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from defense.errors import nearest

if TYPE_CHECKING:
    from workflows.training.config import Training
    from workflows.training.objective import Objective

__all__ = ["KINDS", "kind", "objective_of"]


KINDS: dict[str, tuple[str, str, str]] = {
    "classifier": ("workflows.training.kinds.classifier", "ClassifierTraining", "ClassifierObjective"),
    "denoiser": ("workflows.training.kinds.denoiser", "DenoiserTraining", "DenoiserObjective"),
    "energy": ("workflows.training.kinds.energy", "EnergyTraining", "EnergyObjective"),
}
"""``train:`` in the YAML, to module, config class, objective class; imported on first use."""


def kind(name: object) -> tuple[type[Training], type[Objective]]:
    """Return config class and objective class of a kind.

    Raises:
        KeyError: No such kind; the message leads to the valid names.
    """
    if not isinstance(name, str) or name not in KINDS:
        raise KeyError(f"{name!r} cannot be trained; {nearest(str(name), KINDS)}")
    module, config, objective = KINDS[name]
    loaded = importlib.import_module(module)
    return getattr(loaded, config), getattr(loaded, objective)


def objective_of(config: Training) -> type[Objective]:
    """Return the objective class of a config."""
    return kind(config.train)[1]
