"""Write a grid as plain values, for the record of a sweep without a file.

Every config is written in full and resolved, every axis spelled out, so that the text gives the same ids wherever it
is read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from defense.spec import Spec
from workflows.documents.authors import NAMES
from workflows.grid.cells import Defence, Images

__all__ = ["record"]


def record(
    name: str,
    axes: Mapping[str, list[Any]],
    included: Sequence[Mapping[str, list[Any]]],
    settings: Mapping[str, Any],
    names: Mapping[str, set[str]],
) -> dict[str, Any]:
    """Return the values of a sweep file.

    Arguments:
        name: The sweep's name.
        axes: What the grid is the product of.
        included: The axes of each further grid that it names.
        settings: The other sections; those that are None or empty are left out.
        names: Published settings of purifiers and attacks, by id.
    """
    values = {"sweep": name, **_written(axes, names)}
    values |= {section: _value(value, {}) for section, value in settings.items() if value not in (None, [])}
    if included:
        values["include"] = [_written(axes_of_entry, names) for axes_of_entry in included]
    return values


def _written(axes: Mapping[str, list[Any]], names: Mapping[str, set[str]]) -> dict[str, Any]:
    return {axis: [_value(value, names) for value in values] for axis, values in axes.items() if values}


def _value(value: Any, names: Mapping[str, set[str]]) -> Any:
    if isinstance(value, Spec):
        name = {NAMES[value.named_by or ""]: min(names[value.id])} if names.get(value.id) else {}
        return {**name, **value.as_entry()}
    if isinstance(value, Images):
        return {**value.dataset.as_entry(), "images": _selection([i for chunk in value.chunks for i in chunk.ids])}
    if isinstance(value, Defence):
        return {**_value(value.purifier, names), **value.answers}
    return "none" if value is None else value


def _selection(ids: list[int]) -> dict[str, Any]:
    """Return image ids; evenly spaced ones by their ends."""
    every = ids[1] - ids[0] if len(ids) > 1 else 1
    if every > 0 and ids == list(range(ids[0], ids[-1] + 1, every)):
        return {"start": ids[0], "stop": ids[-1] + 1, "every": every}
    return {"ids": ids}
