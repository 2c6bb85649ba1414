"""Match the tensors of a file with those of a network, by their names, whatever they are wrapped in.

A network's weights lie at some place in the file (``state_dict``, ``model``, ``ema``), under some prefix of names
(``module.``, ``_orig_mod.``, ``model.``, ``1.``, ...), in any order. Both are found by looking for the names of the
network: the place and prefix under which all of them are. If there are two, as beside an average (EMA), the user must
say which; what is left over must be of no effect, or the file is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from defense.errors import InvalidInput
from defense.weight_files import NORMALISATION, Sets

__all__ = ["Normalisation", "WeightsFile", "WrongArchitecture", "fits", "load_tensors", "match"]

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, in units of [0, 1] pixels."""

TOP = "."
"""How ``weights_key`` calls tensors that lie at the top of a file, without a prefix."""

_COUNTERS = frozenset(
    {"n_averaged", "num_updates", "decay", "initted", "step", "steps", "epoch", "iteration", "num_steps"}
)
_CLOSE = 1e-5


class WrongArchitecture(InvalidInput):
    """The tensors of a file are not those of the network."""


class WeightsFile(str):
    """The path of a checkpoint, with what the user says of its content; everywhere else it is a plain string.

    Arguments:
        path: The file.
        key: Which of several sets of weights to take: its place, its prefix or both (``ema``, ``ema.module``).
        normalisation: What is applied before the network; a checkpoint that holds another is refused.
    """

    key: str | None
    normalisation: Normalisation | None
    used: bool
    """Whether :func:`match` has looked at the key: a loader that reads the file by itself does not."""

    def __new__(
        cls, path: str | Path, *, key: str | None = None, normalisation: Normalisation | None = None
    ) -> WeightsFile:
        """Return the path as a string that knows the rest."""
        self = super().__new__(cls, path)
        self.key, self.normalisation, self.used = key, normalisation, False
        return self


@dataclass(frozen=True)
class _Place:
    """The place of a network's tensors: the set, the prefix, and the name of each of them there."""

    where: str
    prefix: str
    names: Mapping[str, str]

    @property
    def key(self) -> str:
        return ".".join(part for part in (self.where, self.prefix.rstrip(".")) if part) or TOP

    def named(self, key: str) -> bool:
        return self.key == key or self.key.startswith(f"{key}.") or self.prefix.rstrip(".") == key


def _splits(name: str) -> Iterator[tuple[str, str]]:
    yield "", name
    at = name.find(".")
    while at != -1:
        yield name[: at + 1], name[at + 1 :]
        at = name.find(".", at + 1)


def _places(expected: Mapping[str, Tensor], sets: Sets, rename: Callable[[str], str]) -> list[_Place]:
    """Return every place and prefix with any of the network's names, those with most of them first."""
    names: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for where, tensors in sets.items():
        for name in tensors:
            for prefix, rest in _splits(name):
                if (current := rename(rest)) in expected:
                    names[where, prefix][current] = name
    places = [_Place(where, prefix, hits) for (where, prefix), hits in names.items()]
    return sorted(places, key=lambda place: -_shaped(expected, sets, place))


def _required(expected: Mapping[str, Tensor]) -> list[str]:
    # Buffers that older torch did not save say nothing about the architecture.
    return [name for name in expected if not name.endswith("num_batches_tracked")]


def _shaped(expected: Mapping[str, Tensor], sets: Sets, place: _Place) -> int:
    """Return the number of the network's tensors that are at a place, with their shapes."""
    tensors = sets[place.where]
    return sum(tensors[name].shape == expected[target].shape for target, name in place.names.items()) + len(
        place.names
    )


def _complete(expected: Mapping[str, Tensor], sets: Sets, rename: Callable[[str], str]) -> list[_Place]:
    """Return the places that have all of the network's names and shapes."""
    required = _required(expected)
    return [
        place
        for place in _places(expected, sets, rename)
        if all(
            target in place.names and sets[place.where][place.names[target]].shape == expected[target].shape
            for target in required
        )
    ]


def fits(expected: Mapping[str, Tensor], sets: Sets, *, rename: Callable[[str], str] = lambda name: name) -> bool:
    """Whether the tensors of a network, by name and shape, are in a file with nothing unexplained beside them."""
    places = _complete(expected, sets, rename)
    return any(not _unexplained(place, places, sets) for place in places)


def match(
    expected: Mapping[str, Tensor],
    sets: Sets,
    path: str | Path,
    what: str,
    *,
    rename: Callable[[str], str] = lambda name: name,
    advice: str = "Name the architecture that the file was made for.",
) -> dict[str, Tensor]:
    """Return the tensors of a network in a file, by their names in the network.

    Arguments:
        expected: The network's tensors, for their names and shapes.
        sets: What is in the file.
        path: The file; a :class:`WeightsFile` says more.
        what: The architecture in words.
        rename: Gives the network's name for a name in the file, for formats that changed.
        advice: What to do if the file is of another architecture.

    Raises:
        WrongArchitecture: Tensors are missing, of another shape, or not of this network.
        InvalidInput: Two sets of weights fit, or none is called as the user says; the file normalises otherwise.
    """
    key = path.key if isinstance(path, WeightsFile) else None
    normalisation = path.normalisation if isinstance(path, WeightsFile) else None
    if isinstance(path, WeightsFile):
        path.used = True
    places = _complete(expected, sets, rename)
    if not places:
        raise _wrong(expected, sets, path, what, rename, advice)
    place = _chosen(places, sets, path, key)
    extra = _unexplained(place, places, sets)
    if key is not None:  # the user has chosen the weights: what lies elsewhere does not
        extra = [name for name in extra if name.startswith(place.prefix)]
    if extra:
        shown = _some([f"{name} {list(sets[place.where][name].shape)}" for name in extra])
        raise WrongArchitecture(
            f"weights {str(path)!r} are not of the architecture {what}: not in the network: {shown}. {advice}"
        )
    _compare_normalisation(place, places, sets, path, normalisation, named=key is not None)
    return {target: sets[place.where][name] for target, name in place.names.items()}


def _chosen(places: list[_Place], sets: Sets, path: str | Path, key: str | None) -> _Place:
    names = ", ".join(repr(place.key) for place in places)
    if key is not None:
        exact = [place for place in places if place.key == key]
        named = exact or [place for place in places if place.named(key)]
        if len(named) != 1:
            raise InvalidInput(
                f"weights_key {key!r} names {'none' if not named else 'more than one'} of the sets of weights in "
                f"{str(path)!r} that fit the network: {names}. Give one of them."
            )
        return named[0]
    first = places[0]
    for other in places[1:]:
        if any(
            not torch.equal(sets[first.where][first.names[target]], sets[other.where][other.names[target]])
            for target in first.names.keys() & other.names.keys()
        ):
            raise InvalidInput(
                f"weights {str(path)!r} hold {len(places)} sets of weights that fit the network, and they differ: "
                f"{names}. Write which one with `weights_key`; an average (EMA) gives other figures than the weights "
                "that it was made of."
            )
    return first


def _unexplained(place: _Place, places: list[_Place], sets: Sets) -> list[str]:
    """Tensors beside the network's that may be of effect."""
    known = {name for other in places if other.where == place.where for name in other.names.values()}
    return [
        name
        for name in sets[place.where]
        if name not in known
        and not name.endswith("num_batches_tracked")
        and name.rpartition(".")[2] not in _COUNTERS
        and not (_is_normalisation(name, sets[place.where][name]) and not _within(name, place))
    ]


def _within(name: str, place: _Place) -> bool:
    """Return whether a name lies inside the network itself, not in front of it."""
    rest = name.removeprefix(place.prefix)
    return bool(place.prefix) and name.startswith(place.prefix) and "." in rest


def _is_normalisation(name: str, tensor: Tensor) -> bool:
    return name.rpartition(".")[2] in NORMALISATION and 1 <= tensor.numel() <= 4


def _compare_normalisation(
    place: _Place,
    places: list[_Place],
    sets: Sets,
    path: str | Path,
    normalisation: Normalisation | None,
    *,
    named: bool,
) -> None:
    """Refuse a file that says another normalisation than the one that is applied."""
    networks = {(other.where, name) for other in places for name in other.names.values()}
    stated = [
        (NORMALISATION[name.rpartition(".")[2]], f"{where}.{name}".strip("."), tensor.flatten().double().tolist())
        for where, tensors in sets.items()
        for name, tensor in tensors.items()
        if (where, name) not in networks and _is_normalisation(name, tensor)
    ]
    if not stated:
        last = place.prefix.rstrip(".").rpartition(".")[2]
        if last.isdigit() and int(last) > 0 and not named and normalisation is not None:
            mean, std = normalisation
            raise InvalidInput(
                f"weights {str(path)!r} are those of a sequence with the network at {place.key!r}; what is before it "
                f"has no tensors in the file, and is probably a normalisation. If its mean is {list(mean)} and its "
                f"std {list(std)}, confirm that with `weights_key: {place.key!r}`; otherwise give `mean` and `std` "
                "too."
            )
        return
    applied = dict(zip(("mean", "std"), normalisation, strict=True)) if normalisation is not None else {}
    for kind, name, values in stated:
        expected = applied.get(kind, (0.0,) if kind == "mean" else (1.0,))
        wide = values * len(expected) if len(values) == 1 else values
        if len(wide) == len(expected) and all(abs(a - b) <= _CLOSE for a, b in zip(wide, expected, strict=True)):
            continue
        unit = 255.0 if max(wide) > 2 else 1.0
        shown = [float(f"{value / unit:.6g}") for value in wide]
        held = [float(f"{value:.6g}") for value in values]
        advice = (
            f"Write `{kind}: {shown}`, or have the weights saved without it."
            if normalisation is not None
            else "Have the weights saved without it."
        )
        raise InvalidInput(
            f"weights {str(path)!r} hold a normalisation of their own, {name} = {held}, and what would be applied is "
            f"{kind} = {list(expected)}: the network would see other images than in training. {advice}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", and {len(names) - 3} more" if len(names) > 3 else "")


def _wrong(
    expected: Mapping[str, Tensor],
    sets: Sets,
    path: str | Path,
    what: str,
    rename: Callable[[str], str],
    advice: str,
) -> WrongArchitecture:
    """Return the error that lists how the network differs from the most similar place in the file."""
    places = _places(expected, sets, rename)
    if places:
        place = places[0]
        tensors, names = sets[place.where], place.names
        extra = _unexplained(place, places[:1], sets)
    else:
        place, names = _Place("", "", {}), {}
        tensors = max(sets.values(), key=len)
        extra = list(tensors)
    absent = [f"{name} {list(expected[name].shape)}" for name in _required(expected) if name not in names]
    unknown = [f"{name} {list(tensors[name].shape)}" for name in extra]
    shapes = [
        f"{target} is {list(tensors[name].shape)} in the file and {list(expected[target].shape)} in the network"
        for target, name in names.items()
        if tensors[name].shape != expected[target].shape
    ]
    parts = [
        f"{title}: {_some(entries)}"
        for title, entries in (
            ("missing in the file", absent),
            ("not in the network", unknown),
            ("of another shape", shapes),
        )
        if entries
    ]
    return WrongArchitecture(
        f"weights {str(path)!r} are not of the architecture {what}: {'; '.join(parts)}. {advice}"
    )


def load_tensors(net: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """Copy tensors into a network, all or none, and set it to evaluation without gradients.

    Arguments:
        net: The network.
        state: Its tensors, as :func:`match` returns them.
        path: The file, for messages.

    Raises:
        InvalidInput: A tensor holds NaN or infinite values, or whole numbers instead of real ones.
    """
    expected = net.state_dict()
    cast = {}
    for name, tensor in state.items():
        if not expected[name].is_floating_point():
            cast[name] = tensor
            continue
        if not tensor.is_floating_point() or tensor.is_meta or tensor.layout is not torch.strided:
            raise InvalidInput(
                f"weights {str(path)!r} hold {name} as {str(tensor.dtype).removeprefix('torch.')}, and the network "
                "calculates with real numbers: a quantised network gives other figures. Give the weights as float32."
            )
        cast[name] = tensor.to(expected[name].dtype)
        if not torch.isfinite(cast[name]).all():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InvalidInput(
                f"weights {str(path)!r} hold NaN or infinite values ({name}, {kind} in the file): the training "
                "diverged, values did not fit the type that they were saved in, or the file is damaged. Give another "
                "checkpoint."
            )
    net.load_state_dict(cast, strict=False)
    return net.eval().requires_grad_(False)
