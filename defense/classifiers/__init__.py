"""Classifiers: from images in [0, 1] to logits, with their normalisation inside."""

from defense.classifiers import robustbench, zoos
from defense.classifiers.base import CLASSIFIERS, Architecture, ClassifierConfig, FeatureNet, Normalised
from defense.classifiers.clip_purified import CLIPPurifiedConfig
from defense.classifiers.deep_resnet import ResNet18, ResNet50
from defense.classifiers.diffusion import DiffusionClassifierConfig, NoisedDiffusionClassifierConfig
from defense.classifiers.digits_cnn import DigitsCNN
from defense.classifiers.mobile import MobileNetV2, ShuffleNetV2
from defense.classifiers.resnet_cifar import ResNetCIFAR
from defense.classifiers.small_robust import CNNA, ResNet4b
from defense.classifiers.wide_resnet import WideResNet

__all__ = [
    "CLASSIFIERS",
    "CNNA",
    "Architecture",
    "CLIPPurifiedConfig",
    "ClassifierConfig",
    "DiffusionClassifierConfig",
    "DigitsCNN",
    "FeatureNet",
    "MobileNetV2",
    "NoisedDiffusionClassifierConfig",
    "Normalised",
    "ResNet4b",
    "ResNet18",
    "ResNet50",
    "ResNetCIFAR",
    "ShuffleNetV2",
    "WideResNet",
    "robustbench",
    "zoos",
]
