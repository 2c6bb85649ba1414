"""``puregrid train CONFIG.yaml``: networks, reproducibly and resumably, with a card beside the weights."""

from workflows.training.load import load_config
from workflows.training.run import train

__all__ = ["load_config", "train"]
