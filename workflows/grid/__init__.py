"""From a sweep file, or from Python, to typed cells.

A cell is one point of the product of axes. Everything that can be wrong with a sweep is found here, before any
compute.
"""

from workflows.grid.load import load_sweep
from workflows.grid.sweep import Sweep

__all__ = ["Sweep", "load_sweep"]
