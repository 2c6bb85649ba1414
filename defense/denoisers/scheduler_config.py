r"""Read noise schedule and prediction type of a network's training from a diffusers ``scheduler_config.json``.

The variance of step i = 0..T-1, with a = ``beta_start``, b = ``beta_end`` and u = i/(T-1), is

* ``linear``: :math:`a + u (b - a)`;
* ``scaled_linear``: :math:`(\sqrt a + u (\sqrt b - \sqrt a))^2`;
* ``squaredcos_cap_v2``: that of :func:`~defense.schedules.cosine_betas`;
* ``sigmoid``: :math:`a + (b - a) / (1 + e^{6 - 12 u})`;
* ``trained_betas``: as listed.

``rescale_betas_zero_snr`` (Lin et al., arXiv 2305.08891, algorithm 1) moves :math:`\sqrt{\bar\alpha}` linearly such
that it keeps its first value and ends at 0. A purifier cannot start at that last level, where nothing is left of the
image: the schedule here has T - 1 steps.

Every field of the file is used, or is one that the purifier states instead (``form``, ``steps``, ``variance``,
``clip_denoised``), or is refused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from defense.denoisers.predictions import Prediction
from defense.errors import InvalidInput, nearest
from defense.reading import read_object
from defense.schedules import Schedule, abar_of_betas, cosine_betas, stated_schedule

__all__ = ["StatedNoise", "read_scheduler_config"]

Array = npt.NDArray[np.float64]

PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}

_COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
}

_LIKE_DDIM = (
    *("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "PNDMScheduler", "LMSDiscreteScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler"),
    *("DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
)
_LIKE_HEUN = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")

SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {**_COMMON, "variance_type": "fixed_small"},
    "DDPMParallelScheduler": {**_COMMON, "variance_type": "fixed_small"},
    **dict.fromkeys(_LIKE_DDIM, _COMMON),
    **{name: _COMMON | {"beta_start": 0.00085, "beta_end": 0.012} for name in _LIKE_HEUN},
}
"""Schedulers of diffusers for networks trained on sqrt(abar) z_0 + sqrt(1 - abar) eps at T discrete levels, each with
what it takes where its file says nothing."""

SAMPLING = frozenset(
    {
        *(
            "timestep_spacing",
            "steps_offset",
            "set_alpha_to_one",
            "skip_prk_steps",
            "timestep_values",
            "tensor_format",
        ),
        *("solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final", "predict_x0"),
        *("disable_corrector", "solver_p", "predictor_order", "corrector_order", "tau_func", "interpolation_type"),
        *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "final_sigmas_type"),
        *("sigma_min", "sigma_max", "lambda_min_clipped", "flow_shift", "use_dynamic_shifting", "time_shift_type"),
        *("shift_terminal", "dynamic_thresholding_ratio", "sample_max_value"),
    }
)
"""Fields that say how diffusers would sample, and nothing of the network: a purifier says by itself how it does."""

READ = frozenset(
    {
        *_COMMON,
        *("variance_type", "clip_sample", "clip_sample_range", "thresholding", "use_flow_sigmas", "timestep_type"),
        "predict_epsilon",
    }
)
"""Fields that are used, or refused by their value."""

_OTHER_PROCESSES = {
    "ScoreSdeVe": "its noise is added without shrinking the image (variance exploding)",
    "KarrasVe": "its noise is added without shrinking the image (variance exploding)",
    "ScoreSdeVp": "its time is continuous; such networks are read by `format: score-sde`",
    "FlowM": "the network predicts the velocity of a straight path between image and noise (flow matching)",
    "EDM": "its networks are preconditioned and told ln(sigma)/4; EDM networks are read by `format: score-sde`",
    "CMStochastic": "it samples consistency models, which are no denoisers at every level",
    "LCM": "it samples consistency models, which are no denoisers at every level",
    "TCD": "it samples consistency models, which are no denoisers at every level",
    "VQDiffusion": "its noise is on discrete tokens",
}

_LONGEST = 100_000


@dataclass(frozen=True)
class StatedNoise:
    """The noise schedule and prediction type in a scheduler config.

    Arguments:
        file: The file.
        schedule: The noise schedule; None if it says nothing of it.
        words: The schedule in words.
        prediction: What the network predicts; None if it says nothing of it.
        learned_variance: Whether the network has a variance output; None if it says nothing of it.
    """

    file: Path
    schedule: Schedule | None
    words: str
    prediction: Prediction | None
    learned_variance: bool | None


def read_scheduler_config(file: Path) -> StatedNoise:
    """Read a ``scheduler_config.json``.

    Raises:
        InvalidInput: It cannot be read, is of another kind of process, or has a field that is not understood.
    """
    return _Reader(file, read_object(file, "denoiser scheduler")).noise()


class _Reader:
    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file = file
        self.content = content
        name = content.get("_class_name")
        if name is not None and (not isinstance(name, str) or name not in SCHEDULERS):
            reason = next((why for start, why in _OTHER_PROCESSES.items() if str(name).startswith(start)), None)
            raise self.refused(
                "_class_name",
                f"{reason or 'its noise is not known here'}; read are {', '.join(sorted(SCHEDULERS))}",
            )
        self.defaults: Mapping[str, Any] = {} if name is None else SCHEDULERS[name]
        self.sigmoid = name is None or name.startswith("DDPM")

    def refused(self, key: str, why: str, advice: str = "") -> InvalidInput:
        advice = advice or (
            "If you know how the network was trained, correct the file in a copy of the folder, or leave it out "
            "there and write `schedule` and `prediction`."
        )
        return InvalidInput(
            f"denoiser scheduler {str(self.file)!r} has `{key}` = {self.content.get(key)!r:.200}: {why}. {advice}"
        )

    def get(self, key: str) -> Any:
        return self.content.get(key, self.defaults.get(key))

    def noise(self) -> StatedNoise:
        for key in self.content:
            if not key.startswith("_") and key not in READ | SAMPLING:
                raise self.refused(key, f"there is no such field; {nearest(key, READ | SAMPLING)}".rstrip("."))
        for key, harmless, why in (
            ("thresholding", False, "puregrid has no dynamic thresholding"),
            ("use_flow_sigmas", False, "the network predicts the velocity of a straight path (flow matching)"),
            ("timestep_type", "discrete", "the network is told a continuous noise level"),
        ):
            if self.content.get(key) not in (None, harmless):
                raise self.refused(key, why)
        if self.content.get("clip_sample") not in (None, True, False):
            raise self.refused("clip_sample", "it is true or false")
        if self.content.get("clip_sample") and self.content.get("clip_sample_range", 1.0) != 1:
            raise self.refused("clip_sample_range", "images are in [-1, 1] here, and clamped to that")
        abar, form, words = self.table()
        schedule = None if abar is None else stated_schedule(form, abar)
        return StatedNoise(self.file, schedule, words, self.prediction(), self.learned_variance())

    def prediction(self) -> Prediction | None:
        kind = self.content.get("prediction_type")
        legacy = self.content.get("predict_epsilon")
        if legacy not in (None, True, False):
            raise self.refused("predict_epsilon", "it is true or false")
        if kind is None:
            return None if legacy is None else "eps" if legacy else "x0"
        if not isinstance(kind, str) or kind not in PREDICTIONS:
            raise InvalidInput(
                f"denoiser scheduler {str(self.file)!r} says that the network predicts {kind!r} (`prediction_type`); "
                f"known are {', '.join(PREDICTIONS)}."
            )
        if legacy is not None and (PREDICTIONS[kind] == "eps") != legacy:
            raise self.refused("predict_epsilon", f"`prediction_type` = {kind!r} says otherwise")
        return PREDICTIONS[kind]

    def learned_variance(self) -> bool | None:
        kind = self.get("variance_type")
        if kind is None:
            return None
        if kind == "learned_range":
            return True
        if isinstance(kind, str) and kind.startswith("fixed_"):
            return False
        raise self.refused(
            "variance_type",
            "a variance output is read as a place between two bounds (`learned_range`), or there is none",
        )

    def number(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise self.refused(key, "it is a number between 0 and 1")
        return float(value)

    def table(self) -> tuple[Array | None, str, str]:
        """Abar of every level, the name of its form, and the schedule in words."""
        betas, form, words = self.betas()
        if betas is None:
            return None, "", ""
        abar = abar_of_betas(betas)
        rescale = self.get("rescale_betas_zero_snr")
        if rescale not in (None, True, False):
            raise self.refused("rescale_betas_zero_snr", "it is true or false")
        if rescale:
            if len(betas) < 3:
                raise self.refused("rescale_betas_zero_snr", f"a schedule of {len(betas)} steps has no other levels")
            root = np.sqrt(abar[1:])
            root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
            abar = np.concatenate([[1.0], root[:-1] ** 2])
            form, words = f"{form}_zero_snr", f"{words}, rescaled to zero terminal SNR"
        if not (abar[-1] > 1e-300 and np.all(np.diff(abar) < 0)):
            raise self.refused("num_train_timesteps", f"abar does not fall from 1 to above 0 ({words})")
        return abar, form, words

    def betas(self) -> tuple[Array | None, str, str]:
        kind, steps, trained = (self.get(key) for key in ("beta_schedule", "num_train_timesteps", "trained_betas"))
        if trained is not None:
            return self.listed(trained, steps)
        if kind is None:
            partly = [key for key in ("num_train_timesteps", "beta_start", "beta_end") if key in self.content]
            if partly or self.content.get("rescale_betas_zero_snr"):
                raise self.refused("beta_schedule", f"it is missing beside {', '.join(partly)}")
            return None, "", ""
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= _LONGEST:
            raise self.refused("num_train_timesteps", f"it is a whole number from 1 to {_LONGEST}")
        if kind == "squaredcos_cap_v2":
            return cosine_betas(steps), "squaredcos_cap_v2", f"squaredcos_cap_v2 in {steps} steps"
        forms = ("linear", "scaled_linear", "squaredcos_cap_v2", *(("sigmoid",) if self.sigmoid else ()))
        if kind not in forms:
            raise self.refused("beta_schedule", f"known are {', '.join(forms)} and trained_betas")
        start, end = self.number("beta_start"), self.number("beta_end")
        words = f"{kind} from {start:g} to {end:g} in {steps} steps"
        if kind == "linear":
            return np.linspace(start, end, steps), kind, words
        if kind == "scaled_linear":
            return np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2, kind, words
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))), kind, words

    def listed(self, trained: Any, steps: Any) -> tuple[Array, str, str]:
        numbers = isinstance(trained, list) and all(
            isinstance(beta, int | float) and not isinstance(beta, bool) and 0 < beta < 1 for beta in trained
        )
        if not numbers or not 1 <= len(trained) <= _LONGEST:
            raise self.refused("trained_betas", "it is a list of numbers between 0 and 1")
        if "num_train_timesteps" in self.content and steps != len(trained):
            raise self.refused("num_train_timesteps", f"`trained_betas` lists {len(trained)}")
        return np.array(trained, dtype=np.float64), "trained_betas", f"{len(trained)} trained betas"
