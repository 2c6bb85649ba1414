"""What a denoiser is trained for, one file each."""

from workflows.training.objectives.aaopt import PerturbationDiffusion
from workflows.training.objectives.adbm import AdversarialBridge, adbm_coefficients
from workflows.training.objectives.addt import AdversarialDenoising
from workflows.training.objectives.base import DenoiserLoss, Denoising
from workflows.training.objectives.consistency import ConsistencyTuning
from workflows.training.objectives.flowpure import GaussianFlow
from workflows.training.objectives.flowpure_attacked import AttackedFlow

__all__ = [
    "AdversarialBridge",
    "AdversarialDenoising",
    "AttackedFlow",
    "ConsistencyTuning",
    "DenoiserLoss",
    "Denoising",
    "GaussianFlow",
    "PerturbationDiffusion",
    "adbm_coefficients",
]
