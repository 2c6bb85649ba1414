"""What workers of one machine hold of a large network: each its own weights, and all of them the same.

A denoiser of random weights (``--width`` channels) is written as a diffusers folder. Then ``--workers`` processes
load it as a worker does and ask it, first each with weights of its own, then shared. What is reported of each is its
proportional set size (``Pss`` of ``/proc/PID/smaps_rollup``: a page that n processes map counts 1/n for each of
them) while all of them are there, and the most that it held at once; the bits of the answers are compared.

With ``--precision bf16`` they keep the casts of the weights, too.

    python benchmarks/shared_weights.py [--workers 2] [--width 160] [--precision fp32]
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

MIB = 1 << 20


def pss(kind: str = "Pss:") -> float:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not say what processes share")


def work(folder: str, share: bool, precision: Any, barrier: Barrier, answers: Any) -> None:
    """One worker."""
    from defense import DiffPureConfig, DiffusersConfig, Omega
    from defense.torchvision_cpu import allow_torchvision_import
    from tasks import shared_weights
    from tasks.allocator import keep_freed_memory
    from tasks.compute import Compute, Context

    keep_freed_memory()
    torch.set_num_threads(1)
    if not share:
        shared_weights.LARGE = 1 << 60
    context, images = Context(), torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    denoiser = DiffusersConfig(schedule="linear-1000", path=folder)
    config = DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=10, steps=1).resolved(Path())
    compute, omega = Compute(precision=precision), Omega.of("benchmark", 0, "judge", [0])
    allow_torchvision_import()
    from diffusers import UNet2DModel  # noqa: F401  # once and not while the network is loaded

    idle, began = pss(), time.perf_counter()
    with context.settings(compute), torch.no_grad(), context.autocast(compute):
        purifier = context.purifier(config, None)
        seconds = time.perf_counter() - began
        answer = purifier(images, omega).float()  # which touches every weight
        barrier.wait()
        loaded = pss()
        barrier.wait()
        started = time.process_time()
        purifier(images, omega)
        forward = time.process_time() - started
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    barrier.wait()
    sha256 = hashlib.sha256(answer.numpy().tobytes()).hexdigest()
    answers.put((idle, loaded, int(peak.split()[1]) / 1024, seconds, forward, context.shared_bytes / MIB, sha256))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with TemporaryDirectory() as folder:
        make(folder, options.width)
        spawn = multiprocessing.get_context("spawn")
        bits = set()
        for share in (False, True):
            barrier, answers = spawn.Barrier(options.workers), spawn.Queue()
            processes = [
                spawn.Process(target=work, args=(folder, share, options.precision, barrier, answers))
                for _ in range(options.workers)
            ]
            for process in processes:
                process.start()
            for number in range(options.workers):
                idle, loaded, peak, seconds, forward, shared, sha256 = answers.get(timeout=600)
                bits.add(sha256)
                print(
                    f"{'shared' if share else 'own':<7} worker {number}: Pss {idle:5.0f} MiB, after an answer "
                    f"{loaded:5.0f} (+{loaded - idle:.0f}; {shared:.0f} of it shared); most resident {peak:5.0f}; "
                    f"loading {seconds:.1f} s, a forward {forward:.2f} s of processor"
                )
            for process in processes:
                process.join()
        print(f"equal bits: {len(bits) == 1}")


def make(folder: str, width: int) -> None:
    """Write a denoiser of random weights, about 8 channels' squares of float32."""
    from defense.torchvision_cpu import allow_torchvision_import

    allow_torchvision_import()
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    widths = (width, 2 * width, 2 * width, 2 * width)
    blocks = {"down_block_types": ("DownBlock2D",) * 4, "up_block_types": ("UpBlock2D",) * 4}
    network = UNet2DModel(sample_size=32, block_out_channels=widths, layers_per_block=2, **blocks)
    network.save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder)
    size = sum(weight.numel() for weight in network.parameters()) * 4 / MIB
    print(f"{size:.0f} MiB of weights, {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
