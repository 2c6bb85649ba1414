"""Is it a function of the image and its randomness, and of nothing else?"""

import contextlib
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

import defense
from defense.errors import no_memory
from defense.gradients import purify
from defense.probe.record import Check, answer, not_applicable
from defense.probe.subject import LARGE, Subject, largest_difference, seeded, settings
from defense.purifiers.base import Purifier
from defense.randomness import Omega, relabelled

__all__ = [
    "batch",
    "first_slope",
    "frozen",
    "global_randomness",
    "gradient_recording",
    "passed_over",
    "role",
    "same_randomness",
    "state",
    "stochastic",
    "under_global_seeds",
    "unfrozen",
]

T = TypeVar("T")

_ROLES = ("judge", "attack", "select", "estimate", "preflight", "contract")
"""First parts of the roles under which puregrid draws."""

_OFFSET = 417 * 2520 + 1
"""How far image ids and draws are moved: into the range of later images, and of an attack's thousandth step; by one
more than a multiple of all numbers to ten, so that they choose another member of an ensemble."""

_PLACES = (
    ("judge", "tasks/stages/evaluate.py", "tasks.stages.evaluate"),
    ("differentiate", "tasks/attacks/target.py", "tasks.attacks.target"),
    ("forward", "autoattack/autopgd_base.py", "autoattack.autopgd_base"),
)
"""Functions, files and modules from which a defence is called; the last one stands for libraries of others."""


def same_randomness(subject: Subject) -> Check:
    """Compare two calls, and one of a part that was built anew."""
    x, omega, what = subject.images, subject.omega(), subject.part
    with torch.no_grad():  # without a seed: what hides in a global generator must not be hidden from here
        first, again = _plain(subject, x, omega), _plain(subject, x, omega)
    found = largest_difference(again, first, what)
    if found:
        return answer("same-randomness", what, found, "a second call with the same omega gave another output")
    if subject.build is not None:
        with torch.no_grad():
            anew = subject.build()
            found = largest_difference(anew(x, omega) if what == "purifier" else anew(x), first, what)
        if found:
            return answer("same-randomness", what, found, f"a {what} built anew gave another output")
    return answer("same-randomness", what, 0.0, "a second call gives the same bits")


def _plain(subject: Subject, x: Tensor, omega: Omega) -> Tensor:
    subject.calls += 1
    out: Tensor = subject.module(x, omega) if subject.part == "purifier" else subject.module(x)
    return out


def under_global_seeds(compute: Callable[[], T]) -> tuple[list[T], bool]:
    """Return the results under two global seeds, and whether the second call moved a generator; imports may draw."""
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()
    results: list[T] = []
    moved = False
    try:
        for seed in (0, 1):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            before = _global_states()
            results.append(compute())
            moved = seed > 0 and _global_states() != before
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])
        random.setstate(saved[2])
    return results, moved


def _global_states() -> tuple[bytes, str, str]:
    numpy_state = np.random.get_state(legacy=False)
    return torch.get_rng_state().numpy().tobytes(), repr(numpy_state["state"]), repr(random.getstate())


def global_randomness(subject: Subject) -> Check:
    """Compute outputs and gradients under different global seeds."""
    x, omega, what = subject.images, subject.omega(), subject.part

    def compute() -> tuple[Tensor, Tensor | None]:
        subject.calls += 1
        leaf = x.clone().requires_grad_()
        module = subject.module
        out = purify(module, leaf, omega) if isinstance(module, Purifier) else module(leaf)
        gradient = torch.autograd.grad(out.sum(), leaf, allow_unused=True)[0] if out.requires_grad else None
        return out.detach(), gradient

    (first, second), moved = under_global_seeds(compute)
    texts = []
    if moved:
        texts.append(f"the {what} drew from a global random generator, or seeded one")
    gradients = first[1] is None or second[1] is None or not largest_difference(first[1], second[1])
    values = not largest_difference(first[0], second[0])
    changed = not (values and gradients)
    if changed:
        name = "logits" if what == "classifier" else "output"
        texts.append(f"a global seed changed the {name if not values else 'gradient'}")
    text = "; ".join(texts) or "global seeds have no influence, and are left alone"
    return answer("global-randomness", what, moved + changed, text)


def batch(subject: Subject) -> Check:
    """Compare an image in a batch with itself alone, in another order, and among few and many copies."""
    x, omega, last = subject.images, subject.omega(), len(subject.images) - 1
    whole = subject.value(x, omega)
    turned = subject.value(x.flip(0), omega.select(range(last, -1, -1))).flip(0)
    copies = Omega.of(omega.spec_id, omega.seed, omega.role, [omega.image_ids[last]] * 5, [0, 1, 2, 3, 4])
    many = subject.value(x[last:].expand(5, *x.shape[1:]).clone(), copies)
    chosen, crowd, theirs = subject.crowd(x, omega)
    ways = {
        "alone": (subject.value(x[last:], omega.part(last, last + 1)), whole[last:]),
        "in another order": (turned, whole),
        "beside copies of itself": (many[:1], whole[last:]),
        f"in a batch of {LARGE}": (subject.value(crowd, theirs), whole[chosen]),
    }
    with passed_over():  # `view` says so itself
        ways["in another memory layout"] = (subject.value(x.mT.contiguous().mT, omega), whole)
    apart = {way: largest_difference(a, b, subject.part) for way, (a, b) in ways.items()}
    way = max(apart, key=lambda name: apart[name])
    name = "an image" if subject.part == "purifier" else "a logit of an image"
    return answer("batch", subject.part, apart[way], f"{way} {name} differs by {apart[way]:.3g}")


def gradient_recording(subject: Subject) -> Check:
    """Compare the value without gradients with those of the ways in which they are recorded."""
    x, omega = subject.images, subject.omega()
    plain = subject.value(x, omega)
    ways: dict[str, Tensor] = {}
    # Who is guided by a gradient cannot run in inference mode, and need not: nothing of puregrid uses it.
    with passed_over(), torch.inference_mode():
        ways["inference mode"] = subject(x.clone(), omega).clone()
    ways["gradients enabled and none wanted"] = subject(x.clone(), omega)
    ways["plain autograd"] = subject(x.clone().requires_grad_(), omega)
    ways["images that were computed"] = subject(x.clone().requires_grad_() * 1, omega)
    if subject.part == "purifier":
        ways["the soft mode"] = subject.in_mode(x.clone().requires_grad_(), omega, "soft")
        ways["the exact mode"] = subject.in_mode(x.clone().requires_grad_(), omega, "exact")
        ways["bpda"] = subject.in_mode(x.clone().requires_grad_(), omega, "bpda")
    apart = {way: largest_difference(out.detach(), plain, subject.part) for way, out in ways.items()}
    way = max(apart, key=lambda name: apart[name])
    name = "the output" if subject.part == "purifier" else "a logit"
    text = f"with {way} {name} differs by {apart[way]:.3g}" if apart[way] else "the same bits in every way"
    return answer("gradient-recording", subject.part, apart[way], text)


def state(subject: Subject, first: Tensor, slope: Tensor | None, before: dict[str, Tensor]) -> Check:
    """Compare the first answer, gradient and state with those after all other calls, and of a part built anew."""
    calls = subject.calls
    found = largest_difference(subject.value(subject.images, subject.omega()), first, subject.part)
    if found:
        text = f"after {calls} calls the first image and randomness give another output"
        return answer("state", subject.part, found, text)
    now, again = first_slope(subject), first_slope(subject)
    if (now is None) != (slope is None):
        had = "raises, as it did not before" if now is None else "exists, and raised before"
        return answer("state", subject.part, math.inf, f"after {calls} calls the gradient {had}")
    if now is not None and again is not None and slope is not None:
        drift, floor = largest_difference(now, slope), largest_difference(now, again)
        if drift > floor:  # gradients that are never the same have a check of their own
            text = f"after {calls} calls the first image and randomness have another gradient"
            return answer("state", subject.part, drift, text)
    after = subject.module.state_dict()
    changed = [name for name, value in before.items() if name not in after or not torch.equal(after[name], value)]
    changed += _left(subject)
    if changed:
        return answer("state", subject.part, len(changed), f"a call changed {', '.join(changed[:3])}")
    if subject.build is not None and (found := _first_image(subject, first, subject.build)):
        text = f"a {subject.part} whose first image was another has other answers"
        return answer("state", subject.part, found, text)
    return answer("state", subject.part, 0.0, f"after {calls} calls the first answer is the same")


def _left(subject: Subject) -> list[str]:
    """Return what a call does not leave as it was."""
    left = ["settings of torch"] if settings() != subject.settings else []
    given, leaf = subject.images.clone(), subject.images.clone().requires_grad_()
    with torch.no_grad():
        subject.given(given, subject.omega())
        left += ["the grad mode"] if torch.is_grad_enabled() else []
    left += ["what its input wants"] if given.requires_grad else []
    subject(leaf, subject.omega())
    return left + (["the gradient of its input"] if leaf.grad is not None else [])


def _first_image(subject: Subject, first: Tensor, build: Callable[[], nn.Module]) -> float:
    """Return how far answers differ where a dim image came first."""
    anew = replace(subject, module=build())
    x, dim, omega, part = subject.images, subject.images[:1] / 2, subject.omega(), subject.part
    before = anew.value(dim, omega.part(0, 1))
    apart = largest_difference(anew.value(x, omega), first, part)
    if apart and largest_difference(replace(subject, module=build()).value(x, omega), first, part):
        apart = 0.0  # what is another whenever it is built has a check of its own
    return max(apart, largest_difference(anew.value(dim, omega.part(0, 1)), before, part))


def role(subject: Subject) -> Check:
    """Compare answers and gradients under other labels of the same numbers, from other places, in other modes."""
    module, x, omega = subject.module, subject.images[:2], subject.omega(2)
    weight = subject.weight(subject.value(x, omega))
    plain = subject.value(x, omega)
    expected = subject.gradient(x, omega, weight)
    asked: list[tuple[str, float, float | None]] = []

    def compare(way: str, compute: Callable[[], tuple[Tensor, Tensor | None]]) -> None:
        out, gradient = compute()
        if gradient is None:
            asked.append((way, largest_difference(out, plain), None))
        else:
            asked.append((way, largest_difference(out, expected[0]), largest_difference(gradient, expected[1])))

    def labelled(offset: int = 0, gradients: bool = False, **labels: Any) -> tuple[Tensor, Tensor | None]:
        with relabelled(omega, offset=offset, **labels) as shown:
            return subject.gradient(x, shown, weight) if gradients else (subject.value(x, shown), None)

    if subject.part == "purifier":
        for name in _ROLES:
            compare(f"role {name!r}", lambda name=name: labelled(role=name))  # type: ignore[misc]
        compare("role 'attack', differentiated", lambda: labelled(gradients=True, role="attack"))
        compare("role 'probe', differentiated", lambda: labelled(gradients=True, role="probe"))
        compare("another spec id", lambda: labelled(spec_id="0" * 16))
        compare("another seed", lambda: labelled(seed=99))
        compare("other image ids and numbers of draws", lambda: labelled(offset=_OFFSET))
    for function, file, where in _PLACES:
        call = _as_if_in(function, file, where)
        compare(f"called by {where}", lambda call=call: call(lambda: (subject.value(x, omega), None)))  # type: ignore[misc]
        compare(
            f"differentiated by {where}",
            lambda call=call: call(lambda: subject.gradient(x, omega, weight)),  # type: ignore[misc]
        )
    with ThreadPoolExecutor(1) as other:  # the grad mode is a thread's own, and `value` sets it there
        compare("another thread", lambda: (other.submit(subject.value, x, omega).result(), None))
    # Workers compute in another thread than the main one, where a probe is in another as well.
    with patch("threading._main_thread", threading.current_thread()):
        compare("the main thread", lambda: (subject.value(x, omega), None))
    now = time.time
    with (
        patch("os.getpid", lambda: 1),
        patch("os.environ", {**os.environ, "RANK": "7", "LOCAL_RANK": "7"}),
        patch("socket.gethostname", lambda: "another"),
        patch("time.time", lambda: now() + 100),
    ):
        compare("another process, host and minute", lambda: (subject.value(x, omega), None))
    if isinstance(module, Purifier):
        with seeded(), torch.no_grad():
            compare("the judge of levels", lambda: (module.with_levels(x, omega)[0], None))
        training = module.training
        module.training = not training  # its own flag: layers inside may have every right to look at theirs
        try:
            compare("the training flag of the purifier", lambda: (subject.value(x, omega), None))
        finally:
            module.training = training
    # What differs between two equal questions, on some devices or by a fault that has a check of its own, is no role.
    again = subject.gradient(x, omega, weight)
    floors = (
        largest_difference(subject.value(x, omega), plain),
        largest_difference(again[0], expected[0]),
        largest_difference(again[1], expected[1]),
    )
    different = []
    for way, value, slope in asked:
        if value > floors[0 if slope is None else 1]:
            different.append(way)
        elif slope is not None and slope > floors[2]:
            different.append(f"{way} (its gradient)")
    text = f"the same answer in {len(asked)} ways of asking"
    if different:
        text = f"another answer: {', '.join(different)}"
    return answer("role", subject.part, len(different), text)


def first_slope(subject: Subject) -> Tensor | None:
    """Return the gradient on the first two images; None where its computation raises, which has checks of its own."""
    x, omega = subject.images[:2], subject.omega(2)
    slope = None
    with passed_over(Exception):
        slope = subject.gradient(x, omega, subject.weight(subject.value(x, omega)))[1]
    return slope


@contextlib.contextmanager
def passed_over(kind: type[Exception] = RuntimeError) -> Iterator[None]:
    """Pass over what a part raises where it is asked in a way that it need not bear; not that memory has ended."""
    try:
        yield
    except kind as error:
        if no_memory(error):
            raise


def _template(call: Callable[[], Any]) -> Any:
    return call()


def _as_if_in(function: str, file: str, module: str) -> Callable[[Callable[[], Any]], Any]:
    """Return a function that calls another and has, for who inspects the stack, a name and place of ours."""
    path = str(Path(defense.__file__).parents[1] / file)
    code = _template.__code__.replace(co_name=function, co_qualname=function, co_filename=path)
    return FunctionType(code, {"__name__": module, "__file__": path}, function)


def stochastic(subject: Subject) -> Check:
    """Compare two draws with what the part says."""
    claimed = subject.claims.stochastic
    if claimed is None:
        return not_applicable("stochastic", subject.part, "it does not say whether it is stochastic")
    first = subject.value(subject.images, subject.omega())
    found = largest_difference(subject.value(subject.images, subject.omega(draw=1)), first, subject.part)
    text = f"config.stochastic is {claimed}, but another draw gives {'another' if found else 'the same'} output"
    if bool(found) == claimed:
        text = f"another draw differs by {found:.3g}" if found else "another draw is the same, as it says"
    return answer("stochastic", subject.part, float(bool(found) != claimed), text)


def frozen(subject: Subject) -> Check:
    """Look for parameters that want gradients and modules in training mode."""
    found = unfrozen(subject.module, f"the {subject.part}")
    return answer("frozen", subject.part, len(found), "; ".join(found) or "frozen, in evaluation mode")


def unfrozen(module: nn.Module, what: str) -> list[str]:
    """Return what is not frozen in a network: parameters that want gradients, parts in training mode."""
    wanted = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    training = [name or what for name, part in module.named_modules() if getattr(part, "training", False)]
    texts = []
    if wanted:
        texts.append(f"parameters want gradients: {', '.join(wanted[:3])}; build() freezes them")
    if training:
        texts.append(f"in training mode: {', '.join(training[:3])}; build() ends with .eval()")
    return texts
