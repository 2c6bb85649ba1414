"""Purifiers, one file each, and their registry."""

from __future__ import annotations

from defense.purifiers.base import PURIFIERS, IterativePurifier, Purifier, PurifierConfig
from defense.purifiers.bit_depth import BitDepthConfig
from defense.purifiers.consistency import ConsistencyConfig
from defense.purifiers.densepure import DensePureConfig
from defense.purifiers.diff_smooth import DiffSmooth, DiffSmoothConfig
from defense.purifiers.diffcap import DiffCAP, DiffCAPConfig
from defense.purifiers.diffpure import DiffPure, DiffPureConfig, LangevinPurifier
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.distribution_transfer import DistributionTransferConfig, TransferGuidance
from defense.purifiers.ebm import EBMConfig
from defense.purifiers.flowpure import FlowPureConfig
from defense.purifiers.gaussian_noise import GaussianNoiseConfig
from defense.purifiers.gdmp import GDMPConfig, SimilarityGuidance
from defense.purifiers.gradual_noise import GradualNoiseConfig
from defense.purifiers.guided_from_noise import DistanceGuidance, GuidedFromNoiseConfig
from defense.purifiers.jpeg import JPEGConfig
from defense.purifiers.median import MedianConfig
from defense.purifiers.none import Identity, NoPurifierConfig
from defense.purifiers.one_shot import OneShotConfig
from defense.purifiers.robust_reverse import RobustGuidance, RobustReverseConfig
from defense.purifiers.sequence import Sequence, SequenceConfig
from defense.purifiers.solvers import Solved
from defense.purifiers.ssni import SSNI, ScoreReference, SSNIConfig

__all__ = [
    "PURIFIERS",
    "SSNI",
    "BitDepthConfig",
    "ConsistencyConfig",
    "DensePureConfig",
    "DiffCAP",
    "DiffCAPConfig",
    "DiffPure",
    "DiffPureConfig",
    "DiffSmooth",
    "DiffSmoothConfig",
    "Diffusion",
    "DistanceGuidance",
    "DistributionTransferConfig",
    "EBMConfig",
    "FlowPureConfig",
    "GDMPConfig",
    "GaussianNoiseConfig",
    "GradualNoiseConfig",
    "GuidedFromNoiseConfig",
    "Identity",
    "IterativePurifier",
    "JPEGConfig",
    "LangevinPurifier",
    "MedianConfig",
    "NoPurifierConfig",
    "OneShotConfig",
    "Purifier",
    "PurifierConfig",
    "RobustGuidance",
    "RobustReverseConfig",
    "SSNIConfig",
    "ScoreReference",
    "Sequence",
    "SequenceConfig",
    "SimilarityGuidance",
    "Solved",
    "TransferGuidance",
]
