"""Denoisers: networks that predict the noise in an image, behind one interface."""

from defense.denoisers.base import DENOISERS, Denoiser, DenoiserConfig
from defense.denoisers.diffusers_folder import DiffusersConfig, digits_denoiser
from defense.denoisers.guided_diffusion import GuidedDiffusionConfig
from defense.denoisers.network import NetworkDenoiser
from defense.denoisers.oracle import OracleConfig
from defense.denoisers.predictions import Prediction
from defense.denoisers.score_sde import ScoreSDEConfig

__all__ = [
    "DENOISERS",
    "Denoiser",
    "DenoiserConfig",
    "DiffusersConfig",
    "GuidedDiffusionConfig",
    "NetworkDenoiser",
    "OracleConfig",
    "Prediction",
    "ScoreSDEConfig",
    "digits_denoiser",
]
