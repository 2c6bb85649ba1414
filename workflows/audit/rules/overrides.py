"""A rule about bounds that the author of a sweep has lifted."""

from collections.abc import Iterator, Sequence

from defense.spec import Spec
from workflows.audit.finding import Finding
from workflows.audit.view import View

__all__ = ["bound_lifted"]


def bound_lifted(all_views: Sequence[View]) -> Iterator[Finding]:
    """A field is beyond the bound of :mod:`defense.bounds` because its entry says ``unbounded``.

    The bounds are those of what an image or a machine can be, so a number beyond one means something else than in the
    tables of others: a ball of l_inf radius 2 is the whole image range.
    """
    found: dict[str, list[str]] = {}
    for view in all_views:
        cell = view.cell
        for part in (cell.defence.purifier, *([] if cell.attack is None else [cell.attack])):
            for spec in (part, *(inner for _, inner in part.parts())):
                for text in _lifted(spec):
                    found.setdefault(text, []).extend(view.ids)
    for text, cells in found.items():
        yield Finding(
            "bound-lifted",
            "note",
            tuple(dict.fromkeys(cells)),
            f"The sweep lifts the bound of {text}.",
            {"cells": len(set(cells))},
            "Say so wherever the number is shown, or keep to the bound.",
        )


def _lifted(spec: Spec) -> list[str]:
    names = getattr(spec, "unbounded", ())
    return [f"{name} = {value}" for name in names if (value := spec.parameter(name)) is not None]
