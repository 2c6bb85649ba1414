"""Say what this machine is good for, before a sweep is computed on it.

bfloat16 is fast where a processor multiplies it: on GPUs from Ampere on, and on processors with AVX-512. With AVX2
alone each product is emulated; :data:`SLOWER` is what was measured there, on a small U-Net and on the digits network.
Whether oneDNN, which computes PyTorch's convolutions, has kernels for bfloat16 here is what it says itself.
"""

from __future__ import annotations

import torch

from defense.compiled import missing_compiler
from defense.errors import InvalidInput
from tasks.compute import Compute
from workflows.planning.plan import Committed, Plan

__all__ = ["SLOWER", "machine_notices", "refuse_slow", "refuse_uncompiled"]

SLOWER = "7 to 17 times"
"""How much slower bfloat16 is than fp32 on a processor with AVX2 alone."""


def _multiplies_bf16() -> bool:
    """Whether the processor of this machine has kernels for bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _precisions(plan: Plan, committed: Committed | None) -> set[str]:
    """Return the precisions of the stages that have units to compute."""
    return {compute.precision for compute in _settings(plan, committed)}


def _settings(plan: Plan, committed: Committed | None) -> set[Compute]:
    """Return how the stages that have units to compute are computed."""
    return {
        stage.spec.settings()
        for position, stage in enumerate(plan.stages)
        if stage.spec.work_per_image() and (committed is None or committed.missing_of(position))
    }


def machine_notices(plan: Plan, committed: Committed | None = None, *, gpus: bool = False) -> list[str]:
    """Return what to know of the precisions of a plan on processors like those of this machine.

    Arguments:
        plan: The plan.
        committed: The units that need no work; None for none.
        gpus: Whether units will run on GPUs, whose precisions are all of use.
    """
    asked = set() if gpus else _precisions(plan, committed)
    notices = []
    if asked & {"bf16", "bf16-all"} and not _multiplies_bf16():
        notices.append(
            f"compute.precision is {' and '.join(sorted(asked & {'bf16', 'bf16-all'}))}, and this processor has no "
            f"bfloat16: it takes {SLOWER} as long as fp32 does. Set compute.precision: fp32, or run on a GPU "
            "(--gpus-per-worker)"
        )
    if "tf32" in asked:
        notices.append("compute.precision is tf32, which on processors is fp32 under another id")
    if not gpus and any(compute.compile for compute in _settings(plan, committed)):
        missing = missing_compiler()
        if missing:
            notices.append(missing.removesuffix("."))
    return notices


def refuse_uncompiled(committed: Committed) -> None:
    """Refuse to compile networks where no compiler is.

    Raises:
        InvalidInput: There is none, and units with compiled networks are missing.
    """
    missing = [notice for notice in machine_notices(committed.plan, committed) if "C++ compiler" in notice]
    if missing:
        raise InvalidInput(f"{missing[0]}.", where="compute.compile")


def refuse_slow(committed: Committed) -> None:
    """Refuse to compute bfloat16 on processors of this machine that have none.

    Raises:
        InvalidInput: They have none, and units of that precision are missing.
    """
    slow = [notice for notice in machine_notices(committed.plan, committed) if "no bfloat16" in notice]
    if slow:
        raise InvalidInput(f"{slow[0]}; --slow computes it all the same.", where="compute.precision")
