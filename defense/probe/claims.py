"""Are its outputs what they should be, and is what it says of its cost true?"""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from defense.models import Models
from defense.probe.record import Check, answer, not_applicable
from defense.probe.subject import Claims, Subject
from defense.purifiers.base import Purifier, PurifierConfig
from defense.randomness import Omega

__all__ = ["counter_of", "evaluations", "output", "value_range"]

_DRAWS = 8
_NEARER = 0.4


def output(subject: Subject) -> Check:
    """Look at shape, dtype and values of the outputs, and at the input afterwards."""
    x, what = subject.images, subject.part
    given = x.clone()
    with torch.no_grad():
        out: object = subject.given(given, subject.omega())  # of a module of others it may be anything
    defects = []
    if not torch.equal(given, x):
        defects.append(f"the {what} changed its input in place")
    if not isinstance(out, Tensor):
        return answer("output", what, 1, f"the {what} returned {type(out).__name__}, no tensor")
    if what == "purifier" and out.shape != x.shape:
        defects.append(f"images of shape {tuple(x.shape)} became {tuple(out.shape)}")
    if what == "classifier":
        defects += _of_logits(subject, out)
    if out.dtype != x.dtype:
        name = "became" if what == "purifier" else "have logits of"
        defects.append(f"images of {x.dtype} {name} {out.dtype}")
    if not bool(out.isfinite().all()):
        defects.append(f"{'the output holds' if what == 'purifier' else 'logits hold'} NaN or infinite values")
    elif not bool(subject.value(_flat(x), subject.omega(2)).isfinite().all()):
        defects.append("of a black and a grey image it makes NaN or infinite values")
    return answer("output", what, len(defects), "; ".join(defects) or "of the input's shape and dtype, and finite")


def _flat(x: Tensor) -> Tensor:
    """Return a black and a grey image."""
    return torch.stack([torch.zeros_like(x[0]), torch.full_like(x[0], 0.5)])


_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "as a negative": lambda x: 1 - x,
    "in units of (x + 1) / 2": lambda x: (x + 1) / 2,
    "in units of 2 x - 1, clipped": lambda x: (2 * x - 1).clamp(0, 1),
    "with channels reversed": lambda x: x.flip(1),
    "upside down": lambda x: x.flip(2),
    "mirrored": lambda x: x.flip(3),
    "with rows and columns exchanged": lambda x: x.transpose(2, 3) if x.shape[2] == x.shape[3] else x,
    **{f"moved by {n} along axis {d}": partial(torch.roll, shifts=n, dims=d) for n in (1, -1) for d in (2, 3)},
}
"""What conversions between libraries make of an image by mistake."""


def _exchanged(x: Tensor, mean: Tensor) -> list[str]:
    """Return the mistakes after which the input is much nearer to the mean output."""

    def apart(image: Tensor) -> float:
        return float((mean - image).abs().mean())

    far = min(apart(x), apart(mean.mean((1, 2, 3), keepdim=True)))
    return [how for how, change in _MAPS.items() if apart(change(x)) < _NEARER * far]


def _of_logits(subject: Subject, out: Tensor) -> list[str]:
    x, classes = subject.images, subject.claims.classes
    if out.dim() != 2 or len(out) != len(x) or (classes is not None and out.shape[1] != classes):
        expected = f"({len(x)}, {classes})" if classes else f"({len(x)}, classes)"
        many = f": {len(x)} images, {classes} classes" if classes else ""
        return [f"logits have shape {tuple(out.shape)}, not {expected}{many}"]
    if bool((out >= 0).all()) and torch.allclose(out.double().sum(1), torch.ones(len(x)).to(out).double(), atol=1e-3):
        return ["the outputs are probabilities; the classifier returns logits, without a softmax"]
    return []


def value_range(subject: Subject) -> Check:
    """Measure how far outputs lie outside of [0, 1], mean over draws first, so that noise is no change of units."""
    if subject.part == "classifier":
        return not_applicable("range", "classifier", "logits have no range")
    draws = _DRAWS if subject.claims.stochastic is not False else 1
    x = subject.images
    outs = [subject.value(x, subject.omega(draw=draw)).double() for draw in range(draws)]
    mean = torch.stack(outs).mean(0)
    if mean.shape == x.shape and (exchanged := _exchanged(x.double(), mean)):
        return answer("range", "purifier", 1.0, f"the output is the input {' or '.join(exchanged)}")
    outside = float((mean - mean.clamp(0, 1)).abs().mean())
    low, high = min(float(out.min()) for out in outs), max(float(out.max()) for out in outs)
    return answer(
        "range", "purifier", outside, f"pixels from {low:.3g} to {high:.3g}, {outside:.3g} outside on average"
    )


def evaluations(subject: Subject) -> Check:
    """Count the evaluations of networks in one purification, and compare with what it says."""
    claimed = subject.claims.evaluations
    if claimed is None:
        return not_applicable("evaluations", subject.part, "it does not say how many evaluations it costs")
    counted = None if subject.count is None else subject.count(subject.images.clone(), subject.omega())
    counts = _calls_of_own_networks(subject) if counted is None else [counted]
    if not counts:
        text = f"no network is evaluated, but config.evaluations is {claimed}" if claimed else "no network, none said"
        return answer("evaluations", subject.part, claimed, text)
    # A network of several modules may count its calls by any of them, or all calls of all of them.
    options = {*counts, sum(counts)}
    nearest = min(options, key=lambda count: abs(count - claimed))
    if subject.claims.at_most and 0 < nearest <= claimed:
        text = f"config.evaluations is {claimed}, at most; {nearest} were made for these images"
        return answer("evaluations", subject.part, 0, text)
    text = f"config.evaluations is {claimed}, "
    text += "as counted" if nearest == claimed else f"but the network was evaluated {nearest} times"
    return answer("evaluations", subject.part, abs(nearest - claimed), text)


def claims_of(config: PurifierConfig) -> Claims:
    """Return what a config says of its purifier."""
    return Claims(
        config.stochastic,
        config.differentiable,
        config.evaluations,
        at_most=config.schedule_of_levels is not None,
        guided=config.uses_classifier,
    )


def counter_of(config: PurifierConfig, models: Models) -> Callable[[Tensor, Omega], int | None]:
    """Return what builds a purifier of copied networks, and counts their evaluations for one image."""

    def count(x: Tensor, omega: Omega) -> int | None:
        counts: list[int] = []
        purifier = _counting(config, models, counts)
        if purifier is None:
            return None
        with torch.no_grad():
            purifier(x, omega)
        # Of one image: a network that is asked about the images one level at a time is called more often.
        return math.ceil(sum(counts) / len(x))

    return count


def _counting(config: PurifierConfig, models: Models, counts: list[int]) -> Purifier | None:
    """Return the purifier, each call of whose networks adds its batch; None if it loads none through ``models``."""
    from defense.denoisers import Denoiser
    from defense.energy import EnergyConfig

    loaded: list[nn.Module] = []

    def load(network: Any) -> nn.Module:
        module: nn.Module = models.load(network)
        if isinstance(module, Denoiser) or isinstance(network, EnergyConfig):
            module = copy.deepcopy(module)
            loaded.append(module)
            _count_calls(module, counts)
        return module

    try:
        protected: nn.Module | None = models.protected
    except ValueError:
        protected = None
    purifier = config.build(Models(protected, load))
    return purifier.to(_device(purifier)) if loaded else None


def _device(purifier: Purifier) -> torch.device:
    return next((parameter.device for parameter in purifier.parameters()), torch.device("cpu"))


def _count_calls(
    module: nn.Module, counts: list[int], ways: tuple[str, ...] = ("forward", "with_variance", "at_levels")
) -> None:
    """Count evaluations by any way of calling; one that calls the other is one evaluation."""
    inside: list[int] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def outermost(*args: Any, **kwargs: Any) -> Any:
            if not inside:
                counts.append(len(args[0]) if args else 1)
            inside.append(1)
            try:
                return call(*args, **kwargs)
            finally:
                inside.pop()

        return outermost

    for name in ways:
        if hasattr(module, name):
            setattr(module, name, counted(getattr(module, name)))


def _calls_of_own_networks(subject: Subject) -> list[int]:
    """Return how often each outermost module with parameters is called in one purification."""
    networks = list({id(network): network for network in _networks(subject.module)}.values())
    counts: list[list[int]] = [[] for _ in networks]
    own = [vars(network).get("forward") for network in networks]  # of an object alone: compiled, patched
    for network, calls in zip(networks, counts, strict=True):
        _count_calls(network, calls, ("forward",))  # by `forward` itself, which some call, and no hook sees
    try:
        subject.value(subject.images, subject.omega())
    finally:
        for network, before in zip(networks, own, strict=True):
            del network.forward
            if before is not None:
                network.forward = before
    return [len(calls) for calls in counts]


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.children():
        if isinstance(part, Purifier | nn.ModuleList):
            yield from _networks(part)
        elif any(True for _ in part.parameters()):
            yield part
