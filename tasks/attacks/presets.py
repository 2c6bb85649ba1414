"""PGD through a purifier, with the settings under which it is reported in the field.

* ``bpda-eot`` (Athalye et al., arXiv 1802.00420; settings of DiffPure's code): 50 steps of 2/255, backward through
  the identity, 15 draws a step, loss of the mean logits;
* ``pgd-eot`` (Lee and Kim, ICCV 2023, settings of their code): 200 steps of 0.007 from the image itself, 20 draws a
  step. They differentiate a surrogate; here the gradient is exact unless ``gradient: surrogate(K)`` is set, and
  the image of highest loss is kept instead of the last.

Everything can be set otherwise; an l_2 budget wants a step size of its own.
"""

from typing import Literal

from pydantic import Field

from tasks.attacks.base import ATTACKS
from tasks.attacks.pgd import PGDConfig
from tasks.attacks.target import Attacked

__all__ = ["BPDAEOTConfig", "PGDEOTConfig"]


@ATTACKS.register("bpda-eot")
class BPDAEOTConfig(PGDConfig):
    """PGD with the identity as backward pass and EOT."""

    attack: Literal["bpda-eot"] = "bpda-eot"  # type: ignore[assignment]
    steps: int = Field(default=50, ge=1)
    step_size: float | None = Field(default=2 / 255, gt=0)
    gradient: str | None = "bpda"
    eot: int = Field(default=15, ge=1)
    attacked: Attacked = "mean-logits"


@ATTACKS.register("pgd-eot")
class PGDEOTConfig(PGDConfig):
    """PGD with the exact gradient and EOT."""

    attack: Literal["pgd-eot"] = "pgd-eot"  # type: ignore[assignment]
    steps: int = Field(default=200, ge=1)
    step_size: float | None = Field(default=0.007, gt=0)
    random_start: bool = False
    gradient: str | None = "exact"
    eot: int = Field(default=20, ge=1)
