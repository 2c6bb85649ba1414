"""What a denoiser is trained for, one file each."""

from __future__ import annotations

from workflows.training.objectives.adbm import AdversarialBridge, adbm_coefficients
from workflows.training.objectives.addt import AdversarialDenoising
from workflows.training.objectives.base import OBJECTIVES, DenoiserLoss, Denoising
from workflows.training.objectives.consistency import ConsistencyTuning
from workflows.training.objectives.flowpure import GaussianFlow

__all__ = [
    "OBJECTIVES",
    "AdversarialBridge",
    "AdversarialDenoising",
    "ConsistencyTuning",
    "DenoiserLoss",
    "Denoising",
    "GaussianFlow",
    "adbm_coefficients",
]
