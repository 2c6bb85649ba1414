"""Say what this machine is good for, before a sweep is computed on it.

bfloat16 is fast where a processor multiplies it: on GPUs from Ampere on, and on processors with AVX-512. With AVX2
alone each product is emulated; :data:`SLOWER` is what was measured there, on a small U-Net and on the digits network.
Whether oneDNN, which computes PyTorch's convolutions, has kernels for bfloat16 here is what it says itself.

How much memory a batch takes is what committed units took, :attr:`~workflows.planning.costs.Cost.idle` and as many
times :attr:`~workflows.planning.costs.Cost.each` as the batch has elements. Weights are counted with the elements, so
that of a larger batch this is more than it will take.

Several workers may share a GPU, each with a process, a CUDA context and networks of its own. How many of them it has
room for is found from the same figures: with n of them each has 1/n of the memory, and what its batch and its context
take must leave a tenth of that free.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from defense.compiled import missing_compiler
from defense.errors import InvalidInput
from tasks.compute import Compute
from tasks.memory import machine_memory
from tasks.stages.kind import Kind
from workflows.planning.costs import Cost, in_a_batch, kinds_of
from workflows.planning.plan import Committed, Plan
from workflows.store import Record

__all__ = [
    "SLOWER",
    "Footprint",
    "footprint",
    "machine_notices",
    "per_gpu",
    "refuse_slow",
    "refuse_uncompiled",
    "workers_on",
]

SLOWER = "7 to 17 times"
"""How much slower bfloat16 is than fp32 on a processor with AVX2 alone."""
_SMALLEST = 0.0001
"""The smallest share of a GPU that Ray's books know."""

_CONTEXT = 600.0
"""MiB of a GPU that a process takes for CUDA itself, which no allocator counts: an allowance, not a measurement."""


def per_gpu(gpus_per_worker: float) -> int:
    """Return how many workers share a GPU: 1 where each takes whole ones, or none.

    Raises:
        InvalidInput: It is no share of a GPU: below 0, too small for Ray, or beyond 1 and not a whole number.
    """
    if 0 < gpus_per_worker <= 1 and gpus_per_worker >= _SMALLEST:
        return math.floor(1 / gpus_per_worker + 1e-9)
    if gpus_per_worker != 0 and not (gpus_per_worker > 1 and float(gpus_per_worker).is_integer()):
        whole = f" Did you mean {round(gpus_per_worker)}?" if 1 < gpus_per_worker < math.inf else ""
        raise InvalidInput(
            f"a worker cannot take {gpus_per_worker:g} GPUs: it takes none (0), a fraction of one GPU of at least "
            f"{_SMALLEST:g}, or a whole number.{whole}",
            where="--gpus-per-worker",
        )
    return 1


def workers_on(gpus: int, gpus_per_worker: float) -> int:
    """Return how many workers a machine's GPUs have room for.

    Raises:
        InvalidInput: See :func:`per_gpu`.
    """
    return int(gpus / gpus_per_worker) if gpus_per_worker > 1 else gpus * per_gpu(gpus_per_worker)


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


def machine_notices(plan: Plan, committed: Committed | None = None, *, gpus: float = 0.0) -> list[str]:
    """Return what to know of the precisions of a plan on processors like those of this machine, and of shared GPUs.

    Arguments:
        plan: The plan.
        committed: The units that need no work; None for none.
        gpus: GPUs of each worker, whose precisions are all of use; 0 for processors.
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
    sharing = per_gpu(gpus)
    if sharing > 1:
        rest = "" if sharing * gpus > 0.99 else f"; a share of {_share(sharing)} is as good"
        notices.append(
            f"{sharing} workers share a GPU (--gpus-per-worker {gpus:g}), each with networks of its own in its "
            f"memory, and nothing but Ray's books keeps them apart{rest}"
        )
    return notices


def _share(workers: int) -> str:
    """Return the share of a GPU with which so many workers fit it, as one writes it: not above, and 4 digits."""
    return f"{math.floor(1e4 / workers) / 1e4:g}"


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


@dataclass(frozen=True)
class Footprint(Record):
    """The memory of the batches that take most.

    Arguments:
        kind: Kind of their units.
        batch: Their elements.
        mib: MiB that a worker takes with one, at most.
        room: MiB that each worker has.
        fits: Elements that would fit, of two digits, with a tenth of the room to spare.
        workers: Workers that share this machine, or a GPU.
        gpus: GPUs of each worker.
        share: The GPUs of each with which as many workers as possible had room for such a batch, and a processor, as
            one writes it; empty on processors, and where not even one has.
    """

    kind: str
    batch: int
    mib: float
    room: float
    fits: int
    workers: int
    gpus: float = 0.0
    share: str = ""


def footprint(
    committed: Committed, costs: Mapping[Kind, Cost], workers: int, gpus_per_worker: float = 0.0
) -> Footprint | None:
    """Return what the largest batch of the missing units takes; None where no unit of such a kind has said so.

    Arguments:
        committed: The units that need no work.
        costs: What units of each kind were measured to take.
        workers: Workers that share this machine.
        gpus_per_worker: GPUs of each, whose memory is then meant.
    """
    room = _room(workers, gpus_per_worker)
    context = _CONTEXT if gpus_per_worker else 0.0
    sharing = per_gpu(gpus_per_worker) if gpus_per_worker else workers
    found = None
    for position, kind in enumerate(kinds_of(committed.plan)):
        cost = costs.get(kind)
        if room is None or cost is None or not cost.each or not committed.missing_of(position):
            continue
        stage = committed.plan.stages[position]
        batch = max(in_a_batch(stage, chunk) for chunk in range(len(stage.chunks)))
        mib = cost.idle + cost.each * batch
        if found is None or mib > found.mib:
            fits = max(int((0.9 * room - context - cost.idle) / cost.each), 0)
            found = Footprint(
                kind.name,
                batch,
                round(mib),
                round(room),
                int(float(f"{fits:.2g}")),
                sharing,
                gpus_per_worker,
                _proposed(mib + context, room * sharing) if gpus_per_worker else "",
            )
    return found


def _proposed(mib: float, gpu: float) -> str:
    """Return the smallest share of a GPU that leaves a worker room for ``mib``; nothing where all of it does not."""
    processors = len(os.sched_getaffinity(0)) // max(torch.cuda.device_count(), 1)
    workers = min(int(0.9 * gpu / mib), max(processors, 1))
    return _share(workers) if workers else ""


def _room(workers: int, gpus_per_worker: float) -> float | None:
    """Return the MiB that each worker has: a share of this machine's memory, or of a GPU's."""
    if gpus_per_worker:
        if not torch.cuda.is_available():
            return None
        total: int = torch.cuda.get_device_properties(0).total_memory
        return total / per_gpu(gpus_per_worker) / 2**20
    return machine_memory() / 2**20 / workers
