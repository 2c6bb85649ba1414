"""The context of a unit: loaded models, data sets, the device, and batches that fit its memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from defense.classifiers import ClassifierConfig
from defense.compiled import compile_network
from defense.errors import no_memory
from defense.held_graphs import HeldGraphs, holding
from defense.models import Loadable, Models
from defense.prepared import prepare
from defense.purifiers import Purifier, PurifierConfig
from defense.randomness import NoiseVersion
from defense.spec import Spec
from tasks import shared_weights
from tasks.datasets import DatasetConfig, ImageSet
from tasks.memory import machine_memory

__all__ = ["Compute", "Context"]

HELD_SHARE = 0.25
"""How much of a GPU's memory, or of the machine's for each of its processors, graphs of exact gradients may hold."""

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class Compute(Spec):
    """How a unit computes. It changes the last bits of floating-point results, so it is part of every id.

    Arguments:
        batch: Images that go through the networks together. Fixed here and not by the machine.
        precision: ``fp32``; ``tf32``, whose matrix products and convolutions round their factors to 10 bits on GPUs
            that can (elsewhere it is fp32); ``bf16``, autocast in the purifier, while the classifier stays in fp32;
            ``bf16-all``, in the judged or attacked classifier too, whose logits come back in fp32.
        threads: torch threads of one CPU worker.
        compile: Whether the networks of denoisers and classifiers run as ``torch.compile`` makes them: false, or
            ``default``. Guides and guided purifiers cannot, since compiled networks have no second derivative.
        layout: Order of values in memory, ``contiguous`` or ``channels-last``.
        noise: Version of the normal numbers (:mod:`defense.randomness`); 1 repeats rows of before there was the
            second. A stage that draws none has version 1, which is left out of ids.
    """

    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "compile": (False,),
        "layout": ("contiguous",),
        "noise": (1,),
    }

    batch: int = Field(default=100, ge=1)
    precision: Literal["fp32", "tf32", "bf16", "bf16-all"] = "fp32"
    threads: int = Field(default=1, ge=1)
    compile: Literal[False, "default"] = False
    layout: Literal["contiguous", "channels-last"] = "contiguous"
    noise: NoiseVersion = 2

    @property
    def casts(self) -> bool:
        """Whether networks run under autocast to bfloat16."""
        return self.precision in ("bf16", "bf16-all")

    @property
    def form(self) -> str:
        """Name of the form that networks have in memory: none where they are as they were built."""
        return "".join(f"-{part}" for part in (self.compile or "", self.layout.removeprefix("contiguous")) if part)

    def without_noise(self) -> Compute:
        """Return the settings of a stage that draws no normal numbers, whose rows are those of either version."""
        return self.model_copy(update={"noise": 1})


class _Autocast(nn.Module):
    """A network under autocast to bfloat16, with answers in fp32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            answer: Tensor = self.network(x)
        return answer.float()


class Context:
    """One worker's long-lived state: device, caches, and how large a microbatch its memory takes.

    Arguments:
        device: ``"cpu"`` or ``"cuda"``.
        capacity: How many loaded networks are kept, least recently used first to go.
        sharing: Processes that share the GPU.

    Attributes:
        memory_retries: How often a batch was halved for want of memory.
        loading_seconds: Time spent on loading models and data.
        shared_bytes: Bytes of loaded weights that lie in memory that other workers of the machine map, too.
        graphs: Those that exact gradients hold.
    """

    def __init__(self, device: str = "cpu", capacity: int = 8, sharing: int = 1) -> None:
        self.device = torch.device(device)
        self._capacity = capacity
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._purifiers: dict[tuple[str, str], Purifier] = {}
        self._data: dict[str, ImageSet] = {}
        self._microbatch: dict[str, int] = {}
        self._uncast: set[str] = set()
        self.memory_retries = 0
        self.loading_seconds = 0.0
        self.shared_bytes = 0
        self._compute = Compute()
        self.graphs = HeldGraphs(_room(self.device, sharing))

    @contextlib.contextmanager
    def settings(self, compute: Compute) -> Iterator[None]:
        """Deterministic settings for one unit; the caller's thread count comes back afterwards."""
        threads, before = torch.get_num_threads(), self._compute
        torch.set_num_threads(compute.threads)
        self._compute = compute
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cuda.matmul.allow_tf32 = compute.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = compute.precision == "tf32"
        try:
            with holding(self.graphs):
                yield
        finally:
            torch.set_num_threads(threads)
            self._compute = before

    def autocast(self, compute: Compute) -> contextlib.AbstractContextManager[Any]:
        """Autocast of the purifier, if the spec asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=compute.casts)

    def classifier(self, config: ClassifierConfig) -> nn.Module:
        """Return the loaded classifier, in the precision of the unit."""
        network = self.load(config)
        if self._compute.precision != "bf16-all":
            return network
        if not self._compute.compile:
            self._prepare(network)
        return _Autocast(network)

    def purifier(self, config: PurifierConfig, protecting: ClassifierConfig | None) -> Purifier:
        """Return the loaded purifier in front of a classifier; purifiers of one denoiser share it.

        Arguments:
            config: The purifier.
            protecting: The classifier; None where the purifier is not guided by it.
        """
        guide = protecting if config.uses_classifier else None
        key = (config.id + self._compute.form, "" if guide is None else guide.id)
        if key not in self._purifiers:
            with self._loading():
                # Guides are asked in full precision, whatever the unit's is.
                models = Models(None if guide is None else self._load(guide, Compute()), self.load)
                self._purifiers[key] = config.build(models).to(self.device)
        if self._compute.casts and not self._compute.compile:
            self._prepare(self._purifiers[key])
        return self._purifiers[key]

    def load(self, config: Loadable[M]) -> M:
        """Return the loaded network of a config, in the form that the unit's settings ask for."""
        return self._load(config, self._compute)

    def _load(self, config: Loadable[M], compute: Compute) -> M:
        key = f"{type(config).__name__}-{config.id}{compute.form}"
        if key not in self._models:
            with self._loading():
                network = self._built(config, compute, key)
                if compute.compile:
                    compile_network(network)
                self._models[key] = network
            while len(self._models) > self._capacity:
                self._models.popitem(last=False)
                # They may hold what has just been let go; they are cheap to make from the networks that stay.
                self._purifiers.clear()
        self._models.move_to_end(key)
        return self._models[key]  # type: ignore[return-value]

    def _built(self, config: Loadable[M], compute: Compute, key: str) -> M:
        """Build a network on the device; on a processor large ones share their weights with other workers."""

        def build() -> M:
            network = config.build().to(self.device)
            if compute.layout == "channels-last":
                network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return network

        large = shared_weights.file_bytes(config) >= shared_weights.LARGE
        if self.device.type != "cpu" or not large or not shared_weights.can_share():
            return build()
        network, shared = shared_weights.built(build, key)
        self.shared_bytes += shared
        if shared:
            self._uncast.add(key)
        return network

    def _prepare(self, module: nn.Module) -> None:
        """Have weights cast once; workers share the casts of what they share the weights of."""
        parts = set(module.modules())
        for key in [key for key in self._uncast if self._models.get(key) in parts]:
            self._uncast.remove(key)
            with self._loading():
                network = partial(self._models.__getitem__, key)
                self.shared_bytes += shared_weights.built(network, f"{key}-bf16", prepare)[1]
        prepare(module)

    def images(self, config: DatasetConfig) -> ImageSet:
        """Return the loaded data set, its digest checked once per worker."""
        if config.id not in self._data:
            with self._loading():
                self._data[config.id] = config.load()
        return self._data[config.id]

    @contextlib.contextmanager
    def _loading(self) -> Iterator[None]:
        """Count the time inside as loading, once where calls nest."""
        before, started = self.loading_seconds, time.perf_counter()
        try:
            yield
        finally:
            self.loading_seconds = before + time.perf_counter() - started

    def tensor(self, array: Any) -> Tensor:
        """Return an array on the device."""
        return torch.as_tensor(array).to(self.device)

    def fitting(self, key: str, batch: int) -> int:
        """Return how many elements go through networks at once where ``work`` of this key divides further.

        ``batch``, unless slices of the key were halved: then no more than a slice has images, whose draws would fill
        networks as much as before.
        """
        return min(self._microbatch.get(key, batch), batch)

    def in_batches(self, key: str, count: int, batch: int, work: Callable[[int, int], T]) -> list[T]:
        """Call ``work(start, stop)`` for slices of at most ``batch`` elements.

        When the device runs out of memory, exact gradients hold no graphs any more, from then on; where they held
        none, the slices of this key are halved, before giving up at one element. What was computed before is kept.
        Random numbers are keyed by image, so a smaller slice changes results by rounding only.
        """
        done: list[T] = []
        start = 0
        while start < count:
            size = min(self._microbatch.get(key, batch), batch)
            # Slices never straddle the spec's batches, so that without memory trouble the shapes are the spec's.
            stop = min(start + size, count, (start // batch + 1) * batch)
            try:
                done.append(work(start, stop))
            except (RuntimeError, MemoryError) as error:
                held = self.graphs.held > 0
                if (stop - start <= 1 and not held) or not no_memory(error):
                    raise
            else:
                start = stop
                continue
            # Out here the error is gone, and with it the frames that held what did not fit.
            if held:
                self.graphs.limit = 0
            else:
                self._microbatch[key] = (stop - start) // 2
            self.memory_retries += 1
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return done


def _room(device: torch.device, sharing: int) -> float:
    """Return how many bytes of graphs each of the processes that share a device may hold."""
    if device.type == "cuda":
        return HELD_SHARE * torch.cuda.get_device_properties(device).total_memory / sharing
    return HELD_SHARE * machine_memory() / (os.cpu_count() or 1)
