"""Attacks, one file each, and their registry."""

from tasks.attacks.apgd import APGDConfig
from tasks.attacks.autoattack import AutoAttackConfig
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.cw import CarliniWagnerConfig
from tasks.attacks.derived import DerivedAttackConfig, Given
from tasks.attacks.deviated_reconstruction import DeviatedReconstructionConfig
from tasks.attacks.diffhammer import DiffHammerConfig
from tasks.attacks.guidance_target import GuidanceTargetConfig
from tasks.attacks.hop_skip_jump import HopSkipJumpConfig
from tasks.attacks.ladder import LadderConfig
from tasks.attacks.lagrangian_perceptual import LagrangianPerceptualConfig
from tasks.attacks.low_frequency import LowFrequencyConfig
from tasks.attacks.one_step_preview import OneStepPreviewConfig
from tasks.attacks.pgd import FGSMConfig, PGDConfig
from tasks.attacks.presets import BPDAEOTConfig, PGDEOTConfig
from tasks.attacks.random_noise import RandomNoiseConfig
from tasks.attacks.rays import RaySConfig
from tasks.attacks.region import Norm, perturbation_norms
from tasks.attacks.spsa import SPSAConfig
from tasks.attacks.square import SquareConfig
from tasks.attacks.stadv import StAdvConfig
from tasks.attacks.strongest import StrongestConfig
from tasks.attacks.target import Target
from tasks.attacks.transfer import TransferConfig

__all__ = [
    "ATTACKS",
    "APGDConfig",
    "AttackConfig",
    "AttackResult",
    "AutoAttackConfig",
    "BPDAEOTConfig",
    "CarliniWagnerConfig",
    "DerivedAttackConfig",
    "DeviatedReconstructionConfig",
    "DiffHammerConfig",
    "FGSMConfig",
    "Given",
    "GuidanceTargetConfig",
    "HopSkipJumpConfig",
    "LadderConfig",
    "LagrangianPerceptualConfig",
    "LowFrequencyConfig",
    "Norm",
    "OneStepPreviewConfig",
    "PGDConfig",
    "PGDEOTConfig",
    "RandomNoiseConfig",
    "RaySConfig",
    "SPSAConfig",
    "SquareConfig",
    "StAdvConfig",
    "StrongestConfig",
    "Target",
    "TransferConfig",
    "perturbation_norms",
]
