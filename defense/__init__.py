"""Everything between an image and the classifier's answer: denoisers, purifiers, classifiers, randomness.

Usable alone, without Ray, MLflow or pandas. Every name is imported on first use: importing the package
loads nothing, not even torch.
"""

# This package is part of puregrid.

from __future__ import annotations

from typing import TYPE_CHECKING

# The function `aggregate` has its module's name, so it must be there before anybody imports the module.
from defense.aggregate import AGGREGATIONS, Aggregation, aggregate, majority_vote
from defense.lazy import lazy

if TYPE_CHECKING:
    from defense.classifiers import CLASSIFIERS, ClassifierConfig
    from defense.defended import Defended
    from defense.denoisers import DENOISERS, Denoiser, DenoiserConfig, DiffusersConfig
    from defense.errors import InvalidInput, PuregridError, StoreError
    from defense.gradients import GRADIENT_MODES, GradientMode, purify
    from defense.models import Models
    from defense.oracles import GaussianMixtureDenoiser
    from defense.purifiers import (
        PURIFIERS,
        DiffPure,
        DiffPureConfig,
        IterativePurifier,
        NoPurifierConfig,
        Purifier,
        PurifierConfig,
    )
    from defense.randomness import Omega
    from defense.schedules import NoiseLevel, Schedule, get_schedule
    from defense.spec import Spec

__all__ = [
    "AGGREGATIONS",
    "CLASSIFIERS",
    "DENOISERS",
    "GRADIENT_MODES",
    "PURIFIERS",
    "Aggregation",
    "ClassifierConfig",
    "Defended",
    "Denoiser",
    "DenoiserConfig",
    "DiffPure",
    "DiffPureConfig",
    "DiffusersConfig",
    "GaussianMixtureDenoiser",
    "GradientMode",
    "InvalidInput",
    "IterativePurifier",
    "Models",
    "NoPurifierConfig",
    "NoiseLevel",
    "Omega",
    "PuregridError",
    "Purifier",
    "PurifierConfig",
    "Schedule",
    "Spec",
    "StoreError",
    "aggregate",
    "get_schedule",
    "majority_vote",
    "purify",
]

__getattr__, __dir__ = lazy(__name__, __file__)
