"""``puregrid train CONFIG.yaml``: networks, reproducibly and resumably, with a card beside the weights."""

from workflows.training.config import Training
from workflows.training.load import load_config
from workflows.training.objective import Objective
from workflows.training.run import train

__all__ = ["Objective", "Training", "load_config", "train"]
