r"""The prediction of a network, and the noise that it implies.

With :math:`z = \sqrt{\bar\alpha}\, z_0 + \sqrt{1-\bar\alpha}\,\epsilon`, a network output o gives the noise

* ``eps``, trained to be :math:`\epsilon` (Ho et al., arXiv 2006.11239): o itself;
* ``x0``, trained to be :math:`z_0`: :math:`(z - \sqrt{\bar\alpha}\,o)/\sqrt{1-\bar\alpha}`;
* ``v``, trained to be :math:`\sqrt{\bar\alpha}\,\epsilon - \sqrt{1-\bar\alpha}\,z_0` (Salimans and Ho, arXiv
  2202.00512, section 4): :math:`\sqrt{\bar\alpha}\,o + \sqrt{1-\bar\alpha}\,z`;
* ``edm``, trained to be :math:`(z_0 - c_{skip} x)/c_{out}` (Karras et al., arXiv 2206.00364, equation 7 and table 1):
  :math:`(x - D)/\sigma`;
* ``consistency``, trained to take every point of a trajectory to its end, :math:`D = c_{skip} x + c_{out} o` (Song et
  al., arXiv 2303.01469, appendix C): :math:`(x - D)/\sigma` as well;
* ``flow``, trained to be the velocity of the straight path :math:`x_\tau = (1-\tau)\, z_0 + \tau\epsilon`, which is
  :math:`\epsilon - z_0` (Liu et al., arXiv 2209.03003; Ma et al., "SiT", arXiv 2401.08740, with time from the image
  to the noise): :math:`x_\tau + (1-\tau)\,o`, where :math:`\tau = \sigma/(1+\sigma)` and
  :math:`x_\tau = (1-\tau)\, z/\sqrt{\bar\alpha}`;
* ``flow-reversed``, the same path with time from the noise to the image, trained to be :math:`z_0 - \epsilon`:
  :math:`x_\tau - (1-\tau)\,o`;
* ``ve``, trained to be sigma times the score of x (NCSN++ of Song et al., arXiv 2011.13456, with ``scale_by_sigma``):
  -o, the network seeing x and told :math:`\ln\sigma_{eq}`;
* ``sub-vp``, trained to be :math:`\epsilon` in :math:`x = \sqrt a\,z_0 + (1-a)\,\epsilon` (equation 14 there): o, the
  network seeing :math:`\sqrt{a + (1-a)^2}\,z`, where :math:`\bar\alpha = a/(a + (1-a)^2)`;
* ``flowpure``, the velocity of the path from a noised to the clean image (Gaussian FlowPure, arXiv 2505.13280): with
  :math:`x_u = x_1 + s\,(1-u)\,n` in [0, 1] pixels and s = 0.3 it is :math:`-s\,n`, so that
  :math:`\epsilon = -o/s`; the network sees :math:`x_u` at :math:`u = 1 - \sigma_{eq}/s`,

where for ``edm`` and ``consistency`` :math:`x = z/\sqrt{\bar\alpha} = z_0 + \sigma\epsilon` with
:math:`\sigma = \sqrt{(1-\bar\alpha)/\bar\alpha}`, the network sees :math:`c_{in} x` and :math:`c_{noise}`, and
:math:`D = c_{skip} x + c_{out} o` with, for :math:`\sigma_d = 0.5` and :math:`s = \sigma^2 + \sigma_d^2`,

.. math:: c_{skip} = \frac{\sigma_d^2}{s},\quad c_{out} = \frac{\sigma\sigma_d}{\sqrt s},\quad
          c_{in} = \frac{1}{\sqrt s},\quad c_{noise} = \tfrac14 \ln\sigma .

A consistency network has the boundary :math:`D(x, \sigma_{min}) = x` with :math:`\sigma_{min}` = 0.002 and another
label, 1000 times that of EDM:

.. math:: c_{skip} = \frac{\sigma_d^2}{(\sigma-\sigma_{min})^2 + \sigma_d^2},\quad
          c_{out} = \frac{\sigma_d\,(\sigma-\sigma_{min})}{\sqrt s},\quad
          c_{in} = \frac{1}{\sqrt s},\quad c_{noise} = 250 \ln\sigma .
"""

from typing import Any, Literal

from torch import Tensor

from defense.levels import factor, log, root

__all__ = [
    "FLOWPURE_SIGMA",
    "LABELLED",
    "SIGMA_DATA",
    "SIGMA_MIN",
    "Prediction",
    "consistency_scalings",
    "implied_eps",
    "network_input",
    "noise_label",
]

Prediction = Literal["eps", "x0", "v", "edm", "consistency", "flow", "flow-reversed", "flowpure", "ve", "sub-vp"]

SIGMA_DATA = 0.5
"""Standard deviation of the data that EDM networks are preconditioned for, diffusion units."""

SIGMA_MIN = 0.002
"""Noise level at which a consistency network is the identity, diffusion units."""

FLOWPURE_SIGMA = 0.3
"""Largest noise of Gaussian FlowPure, units of [0, 1] pixels."""

LABELLED = ("edm", "consistency", "flow", "flow-reversed", "flowpure", "ve")
"""Predictions of networks that are told their noise level by number, not by the place on a schedule."""


def _sigma(abar: Any) -> Any:
    return root((1 - abar) / abar)


def noise_label(prediction: Prediction, abar: Any) -> Any:
    """Return the noise level as networks of :data:`LABELLED` take it, 0 < abar < 1; of a tensor, of each element."""
    sigma = _sigma(abar)
    if prediction == "edm":
        return log(sigma) / 4
    if prediction == "consistency":
        return 250 * log(sigma)
    if prediction == "ve":
        return log(sigma / 2)
    if prediction == "flowpure":
        return 1 - sigma / 2 / FLOWPURE_SIGMA
    tau = sigma / (1 + sigma)
    return tau if prediction == "flow" else 1 - tau


def consistency_scalings(sigma: Any) -> tuple[Any, Any, Any, Any]:
    """Return c_skip, c_out, c_in and the label of a consistency network at noise ``sigma``, diffusion units.

    Of a tensor, those of each element.
    """
    s, over = sigma**2 + SIGMA_DATA**2, sigma - SIGMA_MIN
    return (
        SIGMA_DATA**2 / (over**2 + SIGMA_DATA**2),
        SIGMA_DATA * over / root(s),
        1 / root(s),
        250 * log(sigma),
    )


def network_input(prediction: Prediction, z: Tensor, abar: Any) -> Any:
    """Return the image that the network sees: ``z``, or ``z`` in the units of its training.

    Arguments:
        prediction: What the network predicts.
        z: Noised images in diffusion units, shape (B, ...).
        abar: Noise level, 0 < abar < 1; or that of each image, float64 of shape (B, 1, 1, 1).
    """
    if prediction in ("edm", "consistency"):
        return z / factor(root(abar * (_sigma(abar) ** 2 + SIGMA_DATA**2)), z)
    if prediction in ("flow", "flow-reversed"):
        return z / factor(root(abar) * (1 + _sigma(abar)), z)
    if prediction == "ve":
        return z / factor(root(abar), z)
    if prediction == "sub-vp":
        # a solves abar (a + (1 - a)^2) = a.
        a = (abar + 1 - root((abar + 1) ** 2 - 4 * abar**2)) / (2 * abar)
        return factor(root(a + (1 - a) ** 2), z) * z
    if prediction == "flowpure":
        return (z / factor(root(abar), z) + 1) / 2
    return z


def implied_eps(prediction: Prediction, output: Tensor, z: Tensor, abar: Any) -> Any:
    """Return the noise that the network's output implies.

    Arguments:
        prediction: What the network predicts.
        output: Its output, shape of ``z``.
        z: Noised images in diffusion units, shape (B, ...).
        abar: See :func:`network_input`.

    Returns:
        Noise prediction, shape of ``z``.
    """
    if prediction in ("eps", "sub-vp"):
        return output
    if prediction == "ve":
        return -output
    if prediction == "x0":
        return (z - factor(root(abar), z) * output) / factor(root(1 - abar), z)
    if prediction == "v":
        return factor(root(abar), z) * output + factor(root(1 - abar), z) * z
    if prediction == "flowpure":
        return output / -FLOWPURE_SIGMA
    sigma = _sigma(abar)
    if prediction in ("flow", "flow-reversed"):
        share = 1 / (1 + sigma)  # 1 - tau
        sign = 1 if prediction == "flow" else -1
        return factor(share / root(abar), z) * z + factor(sign * share, z) * output
    # (x - D)/sigma with the difference worked out: x - c_skip x would lose its digits at small sigma.
    if prediction == "consistency":
        _, out, _, _ = consistency_scalings(sigma)
        over = sigma - SIGMA_MIN
        kept = over**2 / (over**2 + SIGMA_DATA**2) / sigma / root(abar)
        return factor(kept, z) * z - factor(out / sigma, z) * output
    s = sigma**2 + SIGMA_DATA**2
    return factor(sigma / s / root(abar), z) * z - factor(SIGMA_DATA / root(s), z) * output
