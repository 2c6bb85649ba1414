"""Purifiers, one file each, and their registry."""

from __future__ import annotations

from defense.purifiers.aaopt import AAOpt, AAOptConfig
from defense.purifiers.base import PURIFIERS, IterativePurifier, Purifier, PurifierConfig
from defense.purifiers.bit_depth import BitDepthConfig
from defense.purifiers.densepure import DensePureConfig
from defense.purifiers.diffpure import DiffPure, DiffPureConfig, LangevinPurifier
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.distribution_transfer import DistributionTransferConfig, TransferGuidance
from defense.purifiers.ebm import EBMConfig
from defense.purifiers.gaussian_noise import GaussianNoiseConfig
from defense.purifiers.gdmp import GDMPConfig, SimilarityGuidance
from defense.purifiers.gradual_noise import GradualNoiseConfig
from defense.purifiers.guided_from_noise import DistanceGuidance, GuidedFromNoiseConfig
from defense.purifiers.jpeg import JPEGConfig
from defense.purifiers.likelihood_maximization import LikelihoodMaximizationConfig
from defense.purifiers.median import MedianConfig
from defense.purifiers.none import Identity, NoPurifierConfig
from defense.purifiers.one_shot import OneShotConfig
from defense.purifiers.robust_reverse import RobustGuidance, RobustReverseConfig
from defense.purifiers.score_opt import ScoreOptConfig, ScoreOptN, ScoreOptO
from defense.purifiers.sequence import Sequence, SequenceConfig

__all__ = [
    "PURIFIERS",
    "AAOpt",
    "AAOptConfig",
    "BitDepthConfig",
    "DensePureConfig",
    "DiffPure",
    "DiffPureConfig",
    "Diffusion",
    "DistanceGuidance",
    "DistributionTransferConfig",
    "EBMConfig",
    "GDMPConfig",
    "GaussianNoiseConfig",
    "GradualNoiseConfig",
    "GuidedFromNoiseConfig",
    "Identity",
    "IterativePurifier",
    "JPEGConfig",
    "LangevinPurifier",
    "LikelihoodMaximizationConfig",
    "MedianConfig",
    "NoPurifierConfig",
    "OneShotConfig",
    "Purifier",
    "PurifierConfig",
    "RobustGuidance",
    "RobustReverseConfig",
    "ScoreOptConfig",
    "ScoreOptN",
    "ScoreOptO",
    "Sequence",
    "SequenceConfig",
    "SimilarityGuidance",
    "TransferGuidance",
]
