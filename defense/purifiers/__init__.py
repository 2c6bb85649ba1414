"""Purifiers, one file each, and their registry."""

from defense.purifiers.aaopt import AAOpt, AAOptConfig
from defense.purifiers.base import PURIFIERS, IterativePurifier, Purifier, PurifierConfig
from defense.purifiers.bit_depth import BitDepthConfig
from defense.purifiers.consistency import ConsistencyConfig
from defense.purifiers.contrastive_stateless import ContrastiveGuidance, ContrastiveStatelessConfig
from defense.purifiers.coup import ConfidenceGuidance, CoupConfig
from defense.purifiers.densepure import DensePureConfig
from defense.purifiers.diff_ap import DiffAPConfig, FreshNoise, MediatorPull
from defense.purifiers.diff_smooth import DiffSmooth, DiffSmoothConfig
from defense.purifiers.diffcap import DiffCAP, DiffCAPConfig
from defense.purifiers.diffpure import DiffPure, DiffPureConfig, LangevinPurifier
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.distribution_transfer import DistributionTransferConfig, TransferGuidance
from defense.purifiers.ebm import EBMConfig
from defense.purifiers.flowpure import FlowPureConfig
from defense.purifiers.freqpure import FreqPureConfig, FrequencyExchange
from defense.purifiers.gaussian_noise import GaussianNoiseConfig
from defense.purifiers.gdmp import GDMPConfig, SimilarityGuidance
from defense.purifiers.gradual_noise import GradualNoiseConfig
from defense.purifiers.guided_from_noise import DistanceGuidance, GuidedFromNoiseConfig
from defense.purifiers.heterogeneous import Heterogeneous, HeterogeneousConfig
from defense.purifiers.jpeg import JPEGConfig
from defense.purifiers.likelihood_maximization import LikelihoodMaximizationConfig
from defense.purifiers.median import MedianConfig
from defense.purifiers.mimic_diffusion import MimicDiffusionConfig, SignPull
from defense.purifiers.none import Identity, NoPurifierConfig
from defense.purifiers.one_shot import OneShotConfig
from defense.purifiers.osgd import OSGD, OSGDConfig
from defense.purifiers.robust_reverse import RobustGuidance, RobustReverseConfig
from defense.purifiers.score_opt import ScoreOptConfig, ScoreOptN, ScoreOptO
from defense.purifiers.sequence import Sequence, SequenceConfig
from defense.purifiers.solvers import Solved
from defense.purifiers.ssni import SSNI, ScoreReference, SSNIConfig

__all__ = [
    "OSGD",
    "PURIFIERS",
    "SSNI",
    "AAOpt",
    "AAOptConfig",
    "BitDepthConfig",
    "ConfidenceGuidance",
    "ConsistencyConfig",
    "ContrastiveGuidance",
    "ContrastiveStatelessConfig",
    "CoupConfig",
    "DensePureConfig",
    "DiffAPConfig",
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
    "FreqPureConfig",
    "FrequencyExchange",
    "FreshNoise",
    "GDMPConfig",
    "GaussianNoiseConfig",
    "GradualNoiseConfig",
    "GuidedFromNoiseConfig",
    "Heterogeneous",
    "HeterogeneousConfig",
    "Identity",
    "IterativePurifier",
    "JPEGConfig",
    "LangevinPurifier",
    "LikelihoodMaximizationConfig",
    "MedianConfig",
    "MediatorPull",
    "MimicDiffusionConfig",
    "NoPurifierConfig",
    "OSGDConfig",
    "OneShotConfig",
    "Purifier",
    "PurifierConfig",
    "RobustGuidance",
    "RobustReverseConfig",
    "SSNIConfig",
    "ScoreOptConfig",
    "ScoreOptN",
    "ScoreOptO",
    "ScoreReference",
    "Sequence",
    "SequenceConfig",
    "SignPull",
    "SimilarityGuidance",
    "Solved",
    "TransferGuidance",
]
