"""What a GPU does with puregrid's numerical core, in one script that needs torch and ``defense`` alone.

It takes ten minutes at most. Networks have published sizes and random weights, so nothing is fetched. The order is
from the machine up: what it copies and multiplies; noise, its bits against kept ones and what it costs; a step of the
DDPM for CIFAR-10 (35.7 M parameters) as it was, with weights cast once, replayed, compiled; the exact gradient with
its bit check; packing; the guided-diffusion network for 256 x 256 images and its memory; the precisions' accuracy.
Every ratio is of one run.

    python benchmarks/gpu.py [--json gpu.json]           # a GPU
    python benchmarks/gpu.py --tiny                      # a processor: small networks, to see that all of it runs

On a processor nothing here says anything about a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from defense import DiffPure, Omega, purify
from defense.compiled import compile_network
from defense.denoisers.guided_unet import GuidedUNet
from defense.denoisers.network import NetworkDenoiser
from defense.graphs import Graphed, record_cuda
from defense.held_graphs import HeldGraphs, holding
from defense.prepared import prepare
from defense.randomness import NoiseVersion

KEPT = "ed48073456c97c31e9b70e31102f14f9"
"""First half of the sha256 of the noise that :func:`noise` makes first."""


class Machine:
    """A device, and the table of what was measured on it."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny, self.rows = torch.device(device), tiny, []
        self.cuda = device == "cuda"

    def seconds(self, work: Callable[[], object], rounds: int = 5) -> float:
        """Median seconds of some work, after one run that is not counted."""
        work()
        return statistics.median(self._once(work) for _ in range(1 if self.tiny else rounds))

    def _once(self, work: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def images(self, count: int) -> Tensor:
        """Random images of CIFAR-10's size; smaller ones on a processor."""
        size = 8 if self.tiny else 32
        return torch.rand(count, 3, size, size, device=self.device)

    def peak(self, work: Callable[[], object]) -> float | None:
        """Most MiB that tensors took during some work; None on a processor."""
        if not self.cuda:
            work()
            return None
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 2**20

    def autocast(self) -> torch.autocast:
        """Autocast to bfloat16; none on a processor, which may only emulate it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda)

    def say(self, part: str, name: str, **values: Any) -> None:
        """Add a row to the table, and print it."""
        self.rows.append({"part": part, "name": name, **values})
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"{part:<10}{name:<28}{shown}", flush=True)


def ceilings(machine: Machine) -> float:
    """Copy and matrix product; the bfloat16 rate in FLOP/s."""
    size = 256 if machine.tiny else 8192
    source = torch.empty((1 << 20) if machine.tiny else (1 << 30), dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    took = machine.seconds(lambda: target.copy_(source))
    machine.say("ceiling", "copy", tb_per_second=2 * source.numel() / took / 1e12)
    rate = 0.0
    for name, kind, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(size, size, device=machine.device).to(kind)
        took = machine.seconds(lambda a=a: a @ a)
        rate = 2 * size**3 / took
        machine.say("ceiling", f"matmul {name}", tflop_per_second=rate / 1e12)
    torch.backends.cuda.matmul.allow_tf32 = False
    return rate


def noise(machine: Machine) -> float:
    """Bits against kept ones, and seconds of one step's noise at batch 512; 20 on a processor."""
    omega = Omega.of("gpu", 0, "judge", [0, 1, 2**33], [0, 5, 1])
    made = omega.normal("reverse", 3, torch.empty(3, 3, 32, 32, device=machine.device)).cpu()
    digest = hashlib.sha256(made.numpy().tobytes()).hexdigest()[:32]
    machine.say("noise", "bits as kept", equal=digest == KEPT)
    batch = 20 if machine.tiny else 512
    like = torch.empty(batch, 3, 32, 32, device=machine.device)
    times = {}
    for version in (1, 2):
        many = Omega.of("gpu", 0, "judge", range(batch), noise=version)  # type: ignore[arg-type]
        times[version] = machine.seconds(lambda many=many: many.normal("reverse", 3, like))
        machine.say("noise", f"version {version}, batch {batch}", microseconds_an_image=1e6 * times[version] / batch)
    return times[2]


def ddpm(machine: Machine) -> NetworkDenoiser:
    """The DDPM for CIFAR-10 in size, with random weights."""
    torch.manual_seed(0)
    size, width, mult, blocks = (8, 32, (1, 2), 1) if machine.tiny else (32, 128, (1, 2, 2, 2), 2)
    net = GuidedUNet(size, width, blocks, mult, (size // 2,), num_heads=1, use_scale_shift_norm=False)
    for weights in net.parameters():  # the last layers begin at zero, which would hide differences
        weights.requires_grad_(False)
        if not weights.any():
            weights.normal_(std=0.02)
    return NetworkDenoiser(net.eval(), "linear-1000", (3, size, size)).to(machine.device).eval()


def flops(network: NetworkDenoiser, z: Tensor) -> float:
    """Floating-point operations of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(z, 50)
    return float(counter.get_total_flops())


def steps(machine: Machine, rate: float, noise_seconds: float) -> None:
    """A step of purification in four ways: as it was, and with one change after another."""
    ways: dict[str, NetworkDenoiser] = {"as it was": ddpm(machine), "weights cast once": ddpm(machine)}
    prepare(ways["weights cast once"])
    if machine.cuda:
        ways["graph"] = ddpm(machine)
        prepare(ways["graph"])
        ways["graph"].net = Graphed(ways["graph"].net, record_cuda)
    ways["compiled"] = ddpm(machine)
    compile_network(ways["compiled"], "eager" if machine.tiny else "inductor")
    for batch in (2,) if machine.tiny else (20, 100, 512):
        x, first = machine.images(batch), 0.0
        work = flops(ways["as it was"], x)
        for name, network in ways.items():
            version: NoiseVersion = 1 if name == "as it was" else 2
            omega, count = Omega.of("gpu", 0, "judge", range(batch), noise=version), 2 if machine.tiny else 10
            defence = DiffPure(network, 100, steps=count)

            def walk(defence: DiffPure = defence, omega: Omega = omega, x: Tensor = x) -> Tensor:
                with torch.no_grad(), machine.autocast():
                    made: Tensor = defence(x, omega)
                return made

            took = machine.seconds(walk) / count
            first = first or took
            machine.say(
                "step",
                f"batch {batch}, {name}",
                ms=1e3 * took,
                times_faster=first / took,
                share_of_matmul=work / took / rate,
            )
        if batch == 512:
            machine.say("noise", "share of a step", share=noise_seconds / took)


def gradients(machine: Machine) -> None:
    """The exact gradient, its bit check on, against the forward pass; and with its graphs held."""
    batch, count = (2, 2) if machine.tiny else (50, 10)
    defence = DiffPure(ddpm(machine), 100, steps=count)
    x, omega = machine.images(batch), Omega.of("gpu", 0, "attack", range(batch))

    def exact() -> Tensor:
        at = x.clone().requires_grad_()
        return torch.autograd.grad(purify(defence, at, omega, "exact").square().sum(), at)[0]

    with torch.no_grad():
        forward = machine.seconds(lambda: defence(x, omega))
    took = machine.seconds(exact)
    machine.say("gradient", f"exact, batch {batch}", ms=1e3 * took, forwards=took / forward)
    graphs = HeldGraphs(limit=float("inf"))
    with holding(graphs):
        exact()
        quicker = machine.seconds(exact)
    machine.say(
        "gradient",
        f"exact, held, batch {batch}",
        ms=1e3 * quicker,
        forwards=quicker / forward,
        ratio=quicker / took,
        held_mib=graphs.most / 2**20,
    )


def packing(machine: Machine) -> None:
    """Images x draws in one batch against one draw at a time."""
    images, draws, count = (2, 2, 1) if machine.tiny else (20, 20, 5)
    defence = DiffPure(ddpm(machine), 100, steps=count)
    x = machine.images(images)

    def judged(together: int) -> None:
        with torch.no_grad(), machine.autocast():
            for first in range(0, draws, together):
                numbers = [first + i for i in range(together) for _ in range(images)]
                defence(
                    x.repeat(together, 1, 1, 1), Omega.of("gpu", 0, "judge", [*range(images)] * together, numbers)
                )

    apart, packed = machine.seconds(lambda: judged(1)), machine.seconds(lambda: judged(draws))
    machine.say("packing", f"{images} images x {draws} draws", times_faster=apart / packed)


def guided(machine: Machine) -> None:
    """The network for 256 x 256 images: seconds of a forward pass, and memory of gradients over many draws."""
    torch.manual_seed(0)
    size, width, mult = (16, 32, (1, 2)) if machine.tiny else (256, 256, (1, 1, 2, 2, 4, 4))
    net = GuidedUNet(
        size, width, 1 if machine.tiny else 2, mult, (8,) if machine.tiny else (32, 16, 8), num_head_channels=32
        if machine.tiny else 64, resblock_updown=True, learn_sigma=True,
    )  # fmt: skip
    net.requires_grad_(False)
    network = NetworkDenoiser(net.eval(), "linear-1000", (3, size, size), learned_variance=True).to(machine.device)
    batch = 1 if machine.tiny else 8
    x = torch.rand(batch, 3, size, size, device=machine.device)
    with machine.autocast():
        with torch.no_grad():
            machine.say("guided", f"forward, batch {batch}", ms=1e3 * machine.seconds(lambda: network(x, 50), 3))
        defence, peaks = DiffPure(network, 100, steps=2), []
        for draws in (1, 2 if machine.tiny else 20):

            def differentiate(draws: int = draws, defence: DiffPure = defence) -> None:
                total = torch.zeros_like(x)
                for draw in range(draws):  # a batch goes back before the next one comes
                    at = x.clone().requires_grad_()
                    made = purify(defence, at, Omega.of("gpu", 0, "attack", range(batch), draw), "exact")
                    total += torch.autograd.grad(made.square().sum(), at)[0]

            peaks.append(machine.peak(differentiate))
            machine.say("guided", f"gradient, EOT {draws}", peak_mib=peaks[-1] or "not measured on a processor")
        if peaks[0] and peaks[1]:
            machine.say("guided", "peak memory, many / one", ratio=peaks[1] / peaks[0])


def accuracy(machine: Machine) -> None:
    """Purified images in other precisions against those in fp32."""
    batch = 2 if machine.tiny else 100
    defence = DiffPure(ddpm(machine), 100, steps=2 if machine.tiny else 20)
    x, omega = machine.images(batch), Omega.of("gpu", 0, "judge", range(batch))
    made = {}
    for name in ("fp32", "tf32", "bf16"):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        with torch.no_grad(), torch.autocast(machine.device.type, torch.bfloat16, enabled=name == "bf16"):
            made[name] = defence(x, omega).float()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in ("tf32", "bf16"):
        apart = (made[name] - made["fp32"]).abs()
        machine.say("accuracy", f"{name} - fp32, pixels", mean=float(apart.mean()), largest=float(apart.max()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small networks and one round, for a processor")
    parser.add_argument("--json", help="also write the table to this file")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; --tiny runs all of it on a processor, and measures nothing")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.backends.cudnn.allow_tf32 = False
    machine = Machine("cpu" if options.tiny else "cuda", options.tiny)
    name = platform.processor() or platform.machine() if options.tiny else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}" + (": tiny sizes, not a measurement" if options.tiny else ""))
    began = time.perf_counter()
    rate = ceilings(machine)
    steps(machine, rate, noise(machine))
    for part in (gradients, packing, guided, accuracy):
        part(machine)
    print(f"{time.perf_counter() - began:.0f} s")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(
                {"device": name, "torch": torch.__version__, "tiny": options.tiny, "rows": machine.rows},
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
