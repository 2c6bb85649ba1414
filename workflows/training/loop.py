"""The training loop: optimiser steps, averaging, checkpoints; the same for every kind of training.

The state after a step is a function of the state before it alone, and a checkpoint holds all of it: weights, average,
optimiser, the states of the loop's generator and of torch's global ones (dropout draws there), and what the objective
adds. A training that is killed and started again therefore ends with the same bits as an uninterrupted one. Curves,
checkpoints and tests draw no random numbers.
"""

import contextlib
import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tasks.datasets import ImageSet
from workflows.monitoring.progress import training_progress
from workflows.training.augment import augmented
from workflows.training.config import Training
from workflows.training.objective import Objective

__all__ = ["CHECKPOINT_SECONDS", "Fitted", "Observer", "fit"]

CHECKPOINT_SECONDS = 300.0
"""Time between two checkpoints where the config gives no number of steps."""

Observer = Callable[[int, dict[str, float]], None]
"""Takes the points of curves: steps done, and figures by name."""


@dataclass(frozen=True)
class Fitted:
    """The result of the loop.

    Arguments:
        net: The network to save: the average if the config has ``ema``; evaluation mode, no gradients.
        seconds: Time spent on its steps, those before an interruption included.
    """

    net: nn.Module
    seconds: float


class _State:
    """Everything that a step changes."""

    def __init__(self, config: Training, objective: Objective, device: torch.device) -> None:
        self.config = config
        self.objective = objective
        self.device = device
        self.net = objective.network().to(device)
        self.optimiser = objective.optimiser(self.net)
        warm_up = max(1, config.steps // 20)

        def rate(step: int) -> float:
            return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / config.steps)))

        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimiser, rate)
        self.average = copy.deepcopy(self.net)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.seconds = 0.0
        self.loss_sum = 0.0
        self.loss_count = 0

    def finished_net(self) -> nn.Module:
        return self.average if self.config.ema else self.net

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "objective": self.objective.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]
        self.loss_sum, self.loss_count = state["loss_sum"], state["loss_count"]
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.objective.load_state_dict(state["objective"])
        # Last: making the network and its optimiser drew from the global generator.
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global_generator"])
        if state["cuda_generator"] is not None:
            torch.cuda.set_rng_state(state["cuda_generator"])


def fit(
    config: Training,
    objective: Objective,
    data: ImageSet,
    test: ImageSet,
    device: torch.device,
    *,
    resume: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda state: None,
    observe: Observer | None = None,
) -> Fitted:
    """Train with warm-up and cosine.

    Arguments:
        config: What to train.
        objective: Its objective.
        data: The train split.
        test: The test split, for curves.
        device: Where the network lives.
        resume: State of a checkpoint.
        save: Stores a checkpoint's state.
        observe: Takes the points of curves; without it, none are computed.

    Raises:
        KeyboardInterrupt: Ctrl-C (or SIGTERM), after the step at hand is finished and stored.
    """
    state = _State(config, objective, device)
    if resume is not None:
        state.load_state_dict(resume)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    log_every = config.log_every or max(1, config.steps // 100)
    evaluate_every = config.evaluate_every or max(1, config.steps // 10)
    stored_step, stored_at = state.step, time.monotonic()
    state.net.train()
    with training_progress(config.steps) as report, _interruptible() as interrupted:
        while state.step < config.steps:
            started = time.monotonic()
            value = _step(state, images, labels)
            state.seconds += time.monotonic() - started
            state.loss_sum += value
            state.loss_count += 1
            report(state.step, value)
            _observe(state, observe, test, log_every, evaluate_every)
            due = (
                time.monotonic() - stored_at >= CHECKPOINT_SECONDS
                if config.checkpoint_every is None
                else state.step % config.checkpoint_every == 0
            )
            last = state.step == config.steps and state.step > stored_step
            if due or last or interrupted():
                save(state.state_dict())
                stored_step, stored_at = state.step, time.monotonic()
            if interrupted():
                raise KeyboardInterrupt
    return Fitted(state.finished_net().eval().requires_grad_(False), state.seconds)


def _step(state: _State, images: Tensor, labels: Tensor) -> float:
    config = state.config
    chosen = torch.randint(len(images), (config.batch,), generator=state.generator)
    x = augmented(images[chosen], state.generator, shift=config.shift, flip=config.flip).to(state.device)
    with torch.autocast(state.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        value = state.objective.loss(state.net, x, labels[chosen].to(state.device), state.generator, state.step)
    state.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(value)
    nn.utils.clip_grad_norm_(state.net.parameters(), 1.0)
    state.optimiser.step()
    state.scheduler.step()
    # A short memory at first: the average must not carry the random initial weights along.
    _average(state.average, state.net, min(config.ema, (state.step + 1) / (state.step + 10)))
    state.objective.after_step(state.net, state.step)
    state.step += 1
    return float(value.detach())


@torch.no_grad()
def _average(average: nn.Module, net: nn.Module, decay: float) -> None:
    for mean, new in zip(average.parameters(), net.parameters(), strict=True):
        mean.lerp_(new, 1 - decay)
    for averaged, now in zip(average.buffers(), net.buffers(), strict=True):
        averaged.copy_(now)


def _observe(state: _State, observe: Observer | None, test: ImageSet, log_every: int, evaluate_every: int) -> None:
    figures: dict[str, float] = {}
    if state.step % log_every == 0:
        figures["train/loss"] = state.loss_sum / state.loss_count
        figures["train/lr"] = float(state.optimiser.param_groups[0]["lr"])
        state.loss_sum, state.loss_count = 0.0, 0
    if observe is not None and state.step % evaluate_every == 0:
        net = state.finished_net()
        was = net.training
        figures |= state.objective.progress(net.eval(), test)
        net.train(was)
    if observe is not None and figures:
        observe(state.step, figures)


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yields whether Ctrl-C or SIGTERM came; the first lets the step finish, the second Ctrl-C stops at once."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        came.set()
        for again, handler in before.items():
            signal.signal(again, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
