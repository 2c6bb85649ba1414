"""How large a number of a spec may be: beyond that it is a slip, or no machine could compute it.

Lower bounds are those of the fields (``ge``, ``gt``). An upper one belongs to the name of a field, since a name means
the same in every class: ``steps``, ``eot``, ``sigma``. A class may have its own in ``bounds``; a name without any is
bounded by :data:`LARGEST_INTEGER` or :data:`LARGEST_FLOAT`, fields that other projects declare by nothing. A class
with a field ``unbounded`` lets a user go beyond the bounds of names::

    {attack: pgd, norm: linf, eps: 8, unbounded: [eps]}

``unbounded`` is not in any id: with or without it, the same numbers are the same rows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import Field

from defense.errors import InvalidInput

__all__ = [
    "BOUNDS",
    "FOREIGN",
    "LARGEST_INTEGER",
    "MOST_WORKERS",
    "UNBOUNDED",
    "Bound",
    "beyond",
    "check_bounds",
    "diameter",
]

MOST_WORKERS = 100_000
"""Workers of a run; attempts at a unit and GPUs of a worker are no more either."""
LARGEST_INTEGER = 1_000_000_000
LARGEST_FLOAT = 1e12

UNBOUNDED: Any = Field(
    default=(),
    exclude=True,
    description="unbounded lists the fields that may be beyond their bounds, like `unbounded: [eps]`.",
)
"""The field ``unbounded`` of a class whose bounds can be overridden."""


@dataclass(frozen=True)
class Bound:
    """The largest value of a field that can be meant.

    Arguments:
        most: That value.
        why: What it is, after "beyond ...,".
        meant: From a larger value to what was probably meant, or "".
    """

    most: float
    why: str
    meant: Callable[[float], str] = lambda value: ""


def _in_255(name: str) -> Callable[[float], str]:
    return lambda value: f"did you mean `{name}: {value / 255:.3g}`, that is {value:g}/255? " if value <= 255 else ""


def _error(value: float) -> str:
    return f"did you mean `alpha: {1 - value:.4g}`? " if 0.5 < value < 1 else ""


_COUNT = "more than any computation here could need"
_NOISE = "noise of which no image in [0, 1] is left"

FOREIGN = Bound(math.inf, "")
"""Of fields that other projects declare, whose names may mean anything."""

BOUNDS: Mapping[str, Bound] = MappingProxyType(
    {
        "seed": Bound(10**18, "and has more than 18 digits"),
        "steps": Bound(100_000, _COUNT),
        "binary_search_steps": Bound(1_000, _COUNT),
        "queries": Bound(10_000_000, _COUNT),
        "samples": Bound(1_000_000, _COUNT),
        "restarts": Bound(10_000, _COUNT),
        "targets": Bound(100_000, _COUNT),
        "eot": Bound(10_000, _COUNT),
        "select": Bound(10_000, _COUNT),
        "reselect": Bound(10_000, _COUNT),
        "draws": Bound(10_000, _COUNT),
        "votes": Bound(10_000, _COUNT),
        "rounds": Bound(10_000, _COUNT),
        "b_ref": Bound(100_000, _COUNT),
        "n": Bound(100_000_000, _COUNT),
        "n0": Bound(10_000_000, _COUNT),
        "shard": Bound(10_000_000, _COUNT),
        "batch": Bound(100_000, "more images than fit into the memory of any device"),
        "threads": Bound(1_024, "more than any processor has"),
        "alpha": Bound(0.5, "the probability of a wrong certificate; 0.001 is usual", _error),
        "sigma": Bound(10, _NOISE, _in_255("sigma")),
        "sigma_eq": Bound(10, _NOISE, _in_255("sigma_eq")),
        "noise": Bound(20, _NOISE, _in_255("noise")),
        "delta": Bound(1, "the distance from black to white", _in_255("delta")),
        "learning_rate": Bound(1_000, "a step of an optimiser that ends in infinities"),
        "filter_learning_rate": Bound(1_000, "a step of an optimiser that ends in infinities"),
        "lr": Bound(1_000, "a step of an optimiser that ends in infinities"),
        "momentum": Bound(100, "with which the steps grow without end"),
        "size": Bound(1_000, "more pixels than images here have"),
        "kernels": Bound(1_000, "more pixels than images here have"),
        "image_size": Bound(16_384, "more pixels than images here have"),
        "shape": Bound(16_384, "more pixels than images here have"),
        "channels": Bound(16_384, "wider than any network"),
        "num_channels": Bound(16_384, "wider than any network"),
        "nf": Bound(16_384, "wider than any network"),
        "num_res_blocks": Bound(1_024, "deeper than any network"),
        "channel_mult": Bound(1_024, "wider than any network"),
        "ch_mult": Bound(1_024, "wider than any network"),
    }
)
"""Upper bounds by the name of a field."""


def check_bounds(fields: Mapping[str, Any], own: Mapping[str, Bound]) -> None:
    """Refuse numbers beyond their bounds.

    Arguments:
        fields: Values by name; under ``unbounded``, if there is that, the names that are not looked at.
        own: Bounds of the class, which go before :data:`BOUNDS`.

    Raises:
        InvalidInput: A number is beyond; with the field's path.
    """
    lifted_names = fields.get("unbounded", ())
    for name, value in fields.items():
        lifted = isinstance(lifted_names, tuple) and name in lifted_names
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            largest = LARGEST_INTEGER if isinstance(number, int) else LARGEST_FLOAT
            bound = (None if lifted else own.get(name) or BOUNDS.get(name)) or Bound(largest, "which is hardly meant")
            if abs(number) > bound.most:
                raise beyond(name, number, bound, can_lift="unbounded" in fields and abs(number) <= largest)


def beyond(name: str, value: float, bound: Bound, *, can_lift: bool, also: str = "") -> InvalidInput:
    """Return the error of a number that is beyond its bound.

    Arguments:
        name: The field.
        value: Its value.
        bound: The bound.
        can_lift: Whether ``unbounded`` is a field beside it.
        also: The value in another unit.
    """
    hint = bound.meant(abs(value))
    hint = hint[:1].upper() + hint[1:]
    anyway = f"To go beyond, write `unbounded: [{name}]` in the same entry." if can_lift else ""
    return InvalidInput(
        f"{name} = {_short(value)}{also} is beyond {_short(bound.most)}, {bound.why}. {hint}{anyway}".rstrip(),
        keys=(name,),
    )


def _short(number: float) -> str:
    return str(number) if isinstance(number, int) and abs(number) < 10**18 else f"{number:.10g}"


def diameter(norm: str, shape: tuple[int, int, int] | None) -> float | None:
    """Return the largest distance between two images with pixels in [0, 1].

    It is 1 in l_inf, sqrt(C H W) in l_2 and C H W in l_1.

    Arguments:
        norm: ``linf``, ``l2`` or ``l1``.
        shape: (C, H, W); None where it is not known.

    Returns:
        The distance, None if it is unknown or the norm is of another kind.
    """
    if norm == "linf":
        return 1.0
    if shape is None or norm not in ("l2", "l1"):
        return None
    return math.sqrt(math.prod(shape)) if norm == "l2" else float(math.prod(shape))
