"""Demands of several suites: on configs, networks, gradients and global random generators."""

from __future__ import annotations

import pickle
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from defense.spec import CODE, Spec

__all__ = [
    "LabelledSpecContract",
    "SpecContract",
    "assert_frozen",
    "assert_gradient",
    "under_global_seeds",
]

T = TypeVar("T")


class SpecContract(ABC):
    """Demands on every config: what its id is made of says all that it says, and it travels to workers."""

    @abstractmethod
    def config(self) -> Any:
        """Return the config under test, resolved."""

    def test_spec_survives_reading_its_own_identity(self) -> None:
        """What the id is made of says all that a sweep file needs to say; where files lie is apart."""
        config = self.config()
        # Where files lie is not in the identity, but without it nothing could be read back.
        places = {
            name: getattr(config, name)
            for name, field in type(config).model_fields.items()
            if field.exclude and getattr(config, name) is not None
        }
        # The code of a part that is not puregrid's is no field: it is what it is when the spec is read.
        identity = {name: value for name, value in config.identity().items() if name != CODE}
        fields = {name: _as_given(getattr(config, name), value) for name, value in identity.items()}
        again = type(config).model_validate({**fields, **places})
        assert again.id == config.id, f"{config.canonical()} was read back as {again.canonical()}"
        assert config.model_copy().id == config.id, "a copy of the config has another id"

    def test_config_can_be_pickled(self) -> None:
        """It travels to workers."""
        config = self.config()
        again = pickle.loads(pickle.dumps(config))  # noqa: S301
        assert again == config and again.id == config.id, "the config changed on its way through pickle"


class LabelledSpecContract(SpecContract):
    """Demands on a config that tables name."""

    def test_label_says_something(self) -> None:
        """Tables show it."""
        label = self.config().label()
        assert label and label == label.strip() and "\n" not in label, f"{label!r} is no label for a table"


def _as_given(value: Any, in_json: Any) -> Any:
    """A field for reading back: specs as they are, since their files are not in the identity; the rest from JSON."""
    if isinstance(value, Spec):
        return value
    if isinstance(value, list | tuple) and any(isinstance(element, Spec) for element in value):
        return value
    # JSON knows lists alone, and specs are strict.
    return tuple(in_json) if isinstance(value, tuple) else in_json


def assert_frozen(module: nn.Module, what: str) -> None:
    """No parameter wants a gradient, and every module is in evaluation mode.

    Arguments:
        module: What ``build`` returned.
        what: What it is called in messages, e.g. ``"the purifier"``.
    """
    wanted = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert not wanted, f"parameters want gradients: {', '.join(wanted[:3])}; build() freezes them"
    training = [name or what for name, part in module.named_modules() if part.training]
    assert not training, f"in training mode: {', '.join(training[:3])}; build() ends with .eval()"


def assert_gradient(function: Callable[[Tensor], Tensor], at: Tensor, tolerance: float) -> None:
    r"""Autograd's gradient g of a scalar f is its slope along g by central differences.

    .. math:: \left|\frac{f(x + h u) - f(x - h u)}{2h} - \|g\|\right| \le \text{tolerance}\,\|g\|,
              \qquad u = g / \|g\|,\; h = 10^{-6}.

    Arguments:
        function: Tensor to scalar.
        at: Where, float64.
        tolerance: Relative error allowed.
    """
    leaf = at.detach().clone().requires_grad_()
    value = function(leaf)
    assert value.requires_grad, "the output does not depend on the images by plain autograd"
    (gradient,) = torch.autograd.grad(value, leaf)
    assert gradient.isfinite().all(), "the gradient holds NaN or infinite values"
    size = float(gradient.norm())
    assert size > 0, "the gradient is zero in every pixel: no gradient attack can say anything"
    with torch.no_grad():
        step = 1e-6 * gradient / size
        slope = float(function(at + step) - function(at - step)) / 2e-6
    assert abs(slope - size) <= tolerance * size, (
        f"along its gradient the output has slope {slope:.6g} by central differences, {size:.6g} by autograd"
    )


def under_global_seeds(compute: Callable[[], T], what: str) -> list[T]:
    """Compute under two global seeds, and leave the global generators as they were found.

    Arguments:
        compute: What must neither read nor move a global generator.
        what: Who would have moved one, for the message, e.g. ``"the purifier"``.

    Returns:
        The two results, for comparison.
    """
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()
    results: list[T] = []
    try:
        for seed in (0, 1):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            before = _global_states()
            results.append(compute())
            # A first call may import what draws while it is imported.
            assert seed == 0 or _global_states() == before, (
                f"{what} drew from a global random generator, or seeded one"
            )
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])
        random.setstate(saved[2])
    return results


def _global_states() -> tuple[bytes, str, str]:
    numpy_state = np.random.get_state(legacy=False)
    return torch.get_rng_state().numpy().tobytes(), repr(numpy_state["state"]), repr(random.getstate())
