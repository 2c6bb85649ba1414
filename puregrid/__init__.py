"""Distributed, honest evaluation of diffusion-based adversarial purification.

Everything that a notebook needs is a name of this package; each is imported on first use::

    import puregrid

    sweep = puregrid.Sweep(
        datasets=[{"dataset": "digits", "images": {"first": 100}}],
        classifiers=["digits-cnn"],
        defences=["none", puregrid.DiffPureConfig(denoiser=puregrid.digits_denoiser(), sigma_eq=0.4, steps=5)],
        attacks=["none", puregrid.PGDConfig(norm="linf", eps=0.1)],
    )
    print(puregrid.plan(sweep))
    results = puregrid.run(sweep, store="results").results
    results.robustness          # a data frame
    results.report("report.html")

A sweep is a grid of data sets, classifiers, purifiers and threats. Its parts are configs (:class:`DiffPureConfig`,
:class:`PGDConfig`, ...) found by name in registries (:data:`PURIFIERS`, :data:`ATTACKS`, ...), which take your own.
:class:`Defended` is a purifier and a classifier as one torch module. ``docs/api.md`` has every name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from puregrid.installation import check_installation

check_installation()

from defense.lazy import lazy  # noqa: E402  not before it is known whose `defense` this is

if TYPE_CHECKING:
    from defense import (
        AGGREGATIONS,
        CLASSIFIERS,
        DENOISERS,
        GRADIENT_MODES,
        PURIFIERS,
        Aggregation,
        ClassifierConfig,
        Defended,
        Denoiser,
        DenoiserConfig,
        DiffPure,
        DiffPureConfig,
        DiffusersConfig,
        GaussianMixtureDenoiser,
        GradientMode,
        InvalidInput,
        IterativePurifier,
        Models,
        NoiseLevel,
        NoPurifierConfig,
        Omega,
        PuregridError,
        Purifier,
        PurifierConfig,
        Schedule,
        Spec,
        StoreError,
        aggregate,
        get_schedule,
        majority_vote,
        purify,
    )
    from defense.classifiers import Architecture, FeatureNet
    from defense.denoisers import GuidedDiffusionConfig, OracleConfig, ScoreSDEConfig, digits_denoiser
    from defense.entries import Reading, Spelling
    from defense.packages import MissingPackage
    from defense.probe import Probe
    from defense.purifiers import (
        BitDepthConfig,
        DensePureConfig,
        DistributionTransferConfig,
        EBMConfig,
        GaussianNoiseConfig,
        GDMPConfig,
        GradualNoiseConfig,
        GuidedFromNoiseConfig,
        JPEGConfig,
        MedianConfig,
        OneShotConfig,
        RobustReverseConfig,
        SequenceConfig,
    )
    from puregrid import testing
    from puregrid.evaluation import PlannedSweep, bundled_sweeps, load_sweep, open_results, plan, run
    from puregrid.results import SweepResults, SweepRun
    from tasks.attacks import (
        ATTACKS,
        APGDConfig,
        AttackConfig,
        AttackResult,
        AutoAttackConfig,
        BPDAEOTConfig,
        CarliniWagnerConfig,
        DerivedAttackConfig,
        DeviatedReconstructionConfig,
        DiffHammerConfig,
        FGSMConfig,
        HopSkipJumpConfig,
        LadderConfig,
        LagrangianPerceptualConfig,
        LowFrequencyConfig,
        PGDConfig,
        PGDEOTConfig,
        RandomNoiseConfig,
        SPSAConfig,
        SquareConfig,
        StAdvConfig,
        StrongestConfig,
        Target,
        TransferConfig,
    )
    from tasks.certificates import CertificateConfig
    from tasks.compute import Compute
    from tasks.corruptions import CORRUPTIONS, Corruption
    from tasks.corruptions.config import CorruptionConfig
    from tasks.datasets import (
        DATASETS,
        Cifar10Config,
        Cifar100Config,
        DatasetConfig,
        DigitsConfig,
        FolderConfig,
        ImageSet,
    )
    from tasks.probing import probe
    from tasks.stages.quality import QualityConfig
    from workflows.grid.load import Sweep

    __version__: str

__all__ = [
    "AGGREGATIONS",
    "ATTACKS",
    "CLASSIFIERS",
    "CORRUPTIONS",
    "DATASETS",
    "DENOISERS",
    "GRADIENT_MODES",
    "PURIFIERS",
    "APGDConfig",
    "Aggregation",
    "Architecture",
    "AttackConfig",
    "AttackResult",
    "AutoAttackConfig",
    "BPDAEOTConfig",
    "BitDepthConfig",
    "CarliniWagnerConfig",
    "CertificateConfig",
    "Cifar10Config",
    "Cifar100Config",
    "ClassifierConfig",
    "Compute",
    "Corruption",
    "CorruptionConfig",
    "DatasetConfig",
    "Defended",
    "Denoiser",
    "DenoiserConfig",
    "DensePureConfig",
    "DerivedAttackConfig",
    "DeviatedReconstructionConfig",
    "DiffHammerConfig",
    "DiffPure",
    "DiffPureConfig",
    "DiffusersConfig",
    "DigitsConfig",
    "DistributionTransferConfig",
    "EBMConfig",
    "FGSMConfig",
    "FeatureNet",
    "FolderConfig",
    "GDMPConfig",
    "GaussianMixtureDenoiser",
    "GaussianNoiseConfig",
    "GradientMode",
    "GradualNoiseConfig",
    "GuidedDiffusionConfig",
    "GuidedFromNoiseConfig",
    "HopSkipJumpConfig",
    "ImageSet",
    "InvalidInput",
    "IterativePurifier",
    "JPEGConfig",
    "LadderConfig",
    "LagrangianPerceptualConfig",
    "LowFrequencyConfig",
    "MedianConfig",
    "MissingPackage",
    "Models",
    "NoPurifierConfig",
    "NoiseLevel",
    "Omega",
    "OneShotConfig",
    "OracleConfig",
    "PGDConfig",
    "PGDEOTConfig",
    "PlannedSweep",
    "Probe",
    "PuregridError",
    "Purifier",
    "PurifierConfig",
    "QualityConfig",
    "RandomNoiseConfig",
    "Reading",
    "RobustReverseConfig",
    "SPSAConfig",
    "Schedule",
    "ScoreSDEConfig",
    "SequenceConfig",
    "Spec",
    "Spelling",
    "SquareConfig",
    "StAdvConfig",
    "StoreError",
    "StrongestConfig",
    "Sweep",
    "SweepResults",
    "SweepRun",
    "Target",
    "TransferConfig",
    "__version__",
    "aggregate",
    "bundled_sweeps",
    "digits_denoiser",
    "get_schedule",
    "load_sweep",
    "majority_vote",
    "open_results",
    "plan",
    "probe",
    "purify",
    "run",
    "testing",
]

_get, __dir__ = lazy(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    return _get(name)
