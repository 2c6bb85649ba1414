"""Methods to train a classifier, one file each."""

from workflows.training.methods.alp import LogitPairing
from workflows.training.methods.at import AdversarialTraining
from workflows.training.methods.awp import TradesAWP
from workflows.training.methods.base import METHODS, Method
from workflows.training.methods.gaussian import Gaussian, Standard
from workflows.training.methods.macer import Macer
from workflows.training.methods.trades import Trades

__all__ = [
    "METHODS",
    "AdversarialTraining",
    "Gaussian",
    "LogitPairing",
    "Macer",
    "Method",
    "Standard",
    "Trades",
    "TradesAWP",
]
