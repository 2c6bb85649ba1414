"""Demands of several suites: on configs, networks, gradients and global random generators."""

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from defense.probe import DEMANDS, Check, purity
from defense.probe.purity import unfrozen
from defense.spec import CODE, Reading, Spec

__all__ = [
    "LabelledSpecContract",
    "SpecContract",
    "assert_frozen",
    "assert_gradient",
    "hold",
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
        again = type(config).model_validate({**fields, **places}, context=Reading(identity=True))
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


def hold(check: Check, threshold: float | None = None) -> None:
    """A check of the probe holds, or could not be asked.

    Arguments:
        check: Its answer.
        threshold: What its number is held against, if it is not the probe's own threshold.
    """
    held = False
    if threshold is not None and check.measured is not None:
        least = DEMANDS[check.name].at_least
        held = check.measured >= threshold if least else check.measured <= threshold
    assert held or not check.failed, check.text


def assert_frozen(module: nn.Module, what: str) -> None:
    """No parameter wants a gradient, and every module is in evaluation mode.

    Arguments:
        module: What ``build`` returned.
        what: What it is called in messages, e.g. ``"the purifier"``.
    """
    found = unfrozen(module, what)
    assert not found, "; ".join(found)


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
    results, moved = purity.under_global_seeds(compute)
    assert not moved, f"{what} drew from a global random generator, or seeded one"
    return results
