r"""The prediction of a network, and the noise that it implies.

With :math:`z = \sqrt{\bar\alpha}\, z_0 + \sqrt{1-\bar\alpha}\,\epsilon`, a network output o gives the noise

* ``eps``, trained to be :math:`\epsilon` (Ho et al., arXiv 2006.11239): o itself;
* ``x0``, trained to be :math:`z_0`: :math:`(z - \sqrt{\bar\alpha}\,o)/\sqrt{1-\bar\alpha}`;
* ``v``, trained to be :math:`\sqrt{\bar\alpha}\,\epsilon - \sqrt{1-\bar\alpha}\,z_0` (Salimans and Ho, arXiv
  2202.00512, section 4): :math:`\sqrt{\bar\alpha}\,o + \sqrt{1-\bar\alpha}\,z`;
* ``edm``, trained to be :math:`(z_0 - c_{skip} x)/c_{out}` (Karras et al., arXiv 2206.00364, equation 7 and table 1):
  :math:`(x - D)/\sigma`,

where for ``edm`` :math:`x = z/\sqrt{\bar\alpha} = z_0 + \sigma\epsilon` with
:math:`\sigma = \sqrt{(1-\bar\alpha)/\bar\alpha}`, the network sees :math:`c_{in} x` and :math:`c_{noise}`, and
:math:`D = c_{skip} x + c_{out} o` with, for :math:`\sigma_d = 0.5` and :math:`s = \sigma^2 + \sigma_d^2`,

.. math:: c_{skip} = \frac{\sigma_d^2}{s},\quad c_{out} = \frac{\sigma\sigma_d}{\sqrt s},\quad
          c_{in} = \frac{1}{\sqrt s},\quad c_{noise} = \tfrac14 \ln\sigma .
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

__all__ = ["SIGMA_DATA", "Prediction", "edm_noise_label", "implied_eps", "network_input"]

Prediction = Literal["eps", "x0", "v", "edm"]

SIGMA_DATA = 0.5
"""Standard deviation of the data that EDM networks are preconditioned for, diffusion units."""


def _sigma(abar: float) -> float:
    return math.sqrt((1 - abar) / abar)


def edm_noise_label(abar: float) -> float:
    """c_noise, the noise level as an ``edm`` network takes it, 0 < abar < 1."""
    return math.log(_sigma(abar)) / 4


def network_input(prediction: Prediction, z: Tensor, abar: float) -> Tensor:
    """Return the image that the network sees: ``z``, or for ``edm`` c_in z / sqrt(abar).

    Arguments:
        prediction: What the network predicts.
        z: Noised images in diffusion units, any shape.
        abar: Noise level, 0 < abar < 1.
    """
    if prediction != "edm":
        return z
    return z / math.sqrt(abar * (_sigma(abar) ** 2 + SIGMA_DATA**2))


def implied_eps(prediction: Prediction, output: Tensor, z: Tensor, abar: float) -> Tensor:
    """Return the noise that the network's output implies.

    Arguments:
        prediction: What the network predicts.
        output: Its output, shape of ``z``.
        z: Noised images in diffusion units, any shape.
        abar: Noise level, 0 < abar < 1.

    Returns:
        Noise prediction, shape of ``z``.
    """
    if prediction == "eps":
        return output
    if prediction == "x0":
        return (z - math.sqrt(abar) * output) / math.sqrt(1 - abar)
    if prediction == "v":
        return math.sqrt(abar) * output + math.sqrt(1 - abar) * z
    # (x - D)/sigma with the difference worked out: x - c_skip x would lose its digits at small sigma.
    sigma = _sigma(abar)
    s = sigma**2 + SIGMA_DATA**2
    return sigma / s / math.sqrt(abar) * z - SIGMA_DATA / math.sqrt(s) * output
