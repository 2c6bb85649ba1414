r"""Randomness as an argument: every random number is a function of its key.

.. math:: n = N(\text{spec id}, \text{seed}, \text{role}, \text{purpose};\ \text{image id}, \text{draw}, \text{step})

The part before the semicolon is hashed to the 128-bit key of a Philox4x64 counter-based generator (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011); the part after it is written into the upper
three words of the 256-bit counter, so that streams of different images, draws and steps never overlap. The
position in a batch, the worker, the number of workers and whatever ran before have no influence.

Numbers are made in float32, with the same bits on every device: a GPU run and a CPU run see the same noise, and a
float64 check of a float32 computation replays the very same draws. Normal numbers have a version:

* 2: by :mod:`defense.normals`, for a whole batch at once, on a GPU by a kernel of :mod:`defense.device_noise`;
* 1: by NumPy's ziggurat on the CPU, one image at a time, as all were before there was the second.

Uniform numbers are the same in both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from defense.device_noise import normals_on
from defense.normals import fill_normals, fill_uniforms

__all__ = ["NoiseVersion", "Omega", "relabelled"]

NoiseVersion = Literal[1, 2]

_TOGETHER = 1 << 16
"""Numbers that are made of words together, if an element has fewer."""


@lru_cache(maxsize=4096)
def _hashed(spec_id: str, seed: int, role: str, purpose: str) -> tuple[int, int]:
    # Length-prefixed parts: ("ab", "c") and ("a", "bc") must not meet in one hash.
    text = "".join(f"{len(part)}:{part}" for part in (spec_id, str(seed), role, purpose))
    raw = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:16], "little")


class _Labels:
    """Labels that stand for others while :func:`relabelled` is active; the numbers are those of the others."""

    shown: tuple[Omega, Omega] | None = None
    offset: int = 0


def _key(spec_id: str, seed: int, role: str, purpose: str) -> tuple[int, int]:
    if _Labels.shown is not None:
        labels, numbers = _Labels.shown
        if (spec_id, seed) == (labels.spec_id, labels.seed) and f"{role}/".startswith(f"{labels.role}/"):
            rest = role.removeprefix(labels.role)
            spec_id, seed, role = numbers.spec_id, numbers.seed, numbers.role + rest
    return _hashed(spec_id, seed, role, purpose)


def _place(image: int, draw: int) -> tuple[int, int]:
    """Return image id and draw as they are in the counter."""
    if _Labels.shown is not None and _Labels.offset:
        return image % _Labels.offset, draw % _Labels.offset
    return image, draw


def _counter(step: int, draw: int, image: int) -> npt.NDArray[np.uint64]:
    image, draw = _place(image, draw)
    return np.array([0, step, draw, image], dtype=np.uint64)


@contextmanager
def relabelled(omega: Omega, *, offset: int = 0, **labels: str | int) -> Iterator[Omega]:
    """Yield randomness with other labels and the numbers of ``omega``, for tests in one thread.

    Within the block everything that is drawn with the new labels, by parts of the randomness and by randomness that
    is made anew from its labels too, is what the old labels would have drawn. So a function that depends on numbers
    alone has the same value, and one that looks at who draws (the judge, an attacker) may have another.

    Arguments:
        omega: Whose numbers are drawn.
        offset: Added to image ids and draws, all of which are below it.
        labels: ``spec_id``, ``seed`` or ``role`` to show instead.
    """
    shown: Omega = replace(
        omega,
        image_ids=tuple(image + offset for image in omega.image_ids),
        draws=tuple(draw + offset for draw in omega.draws),
        **labels,  # type: ignore[arg-type]
    )
    before = _Labels.shown, _Labels.offset
    _Labels.shown, _Labels.offset = (shown, omega), offset
    try:
        yield shown
    finally:
        _Labels.shown, _Labels.offset = before


@dataclass(frozen=True)
class Omega:
    """All the randomness of one batch of purifications, or of one batch under attack.

    Arguments:
        spec_id: Id of the spec that uses the randomness (the purifier's or the attack's), so that two cells
            with the same defence judge it on the same draws and their difference is paired.
        seed: The sweep's seed.
        role: Who draws: ``"judge"`` for the draws that rows report, another name for an attacker's own, so
            that judgement is on fresh draws unless a threat model says otherwise.
        image_ids: Image id of each batch element, shape (B,).
        draws: Draw index of each batch element, shape (B,).
        noise: Version of the normal numbers.
    """

    spec_id: str
    seed: int
    role: str
    image_ids: tuple[int, ...]
    draws: tuple[int, ...]
    noise: NoiseVersion = 2

    def __post_init__(self) -> None:
        if len(self.image_ids) != len(self.draws):
            raise ValueError(f"{len(self.image_ids)} image ids but {len(self.draws)} draws")
        if min((*self.image_ids, *self.draws), default=0) < 0:
            raise ValueError("image ids and draws count from 0")

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def of(
        cls,
        spec_id: str,
        seed: int,
        role: str,
        image_ids: Sequence[int],
        draws: Sequence[int] | int = 0,
        noise: NoiseVersion = 2,
    ) -> Omega:
        """Build from any sequences; one integer for ``draws`` stands for the whole batch."""
        many = [draws] * len(image_ids) if isinstance(draws, int) else draws
        return cls(spec_id, seed, role, tuple(map(int, image_ids)), tuple(map(int, many)), noise)

    def part(self, start: int, stop: int) -> Omega:
        """Return the randomness of batch elements ``start`` to ``stop``; the numbers do not change."""
        return replace(self, image_ids=self.image_ids[start:stop], draws=self.draws[start:stop])

    def generators(self, purpose: str, step: int) -> list[np.random.Generator]:
        """Return a NumPy generator for each batch element, for laws other than the normal.

        Arguments:
            purpose: What the numbers are for.
            step: Number of the step or level that draws them.
        """
        key = np.array(self._key(purpose), dtype=np.uint64)
        return [
            np.random.Generator(np.random.Philox(counter=_counter(step, draw, image), key=key))
            for image, draw in zip(self.image_ids, self.draws, strict=True)
        ]

    def select(self, positions: Sequence[int]) -> Omega:
        """Return the randomness of the batch elements at some positions; the numbers do not change."""
        ids, draws = self.image_ids, self.draws
        return replace(self, image_ids=tuple(ids[i] for i in positions), draws=tuple(draws[i] for i in positions))

    def within(self, part: str) -> Omega:
        """Randomness of its own for a part of the whole, of the same draws: the role with ``/part`` appended."""
        return replace(self, role=f"{self.role}/{part}")

    def shared(self) -> Omega:
        """Return the randomness of the first draw for every element: noise that all draws of an image share."""
        return replace(self, draws=(0,) * len(self))

    def _key(self, purpose: str) -> tuple[int, int]:
        return _key(self.spec_id, self.seed, self.role, purpose)

    def _from_words(
        self,
        purpose: str,
        steps: Sequence[int],
        shape: Sequence[int],
        law: Callable[[npt.NDArray[np.int32], npt.NDArray[np.float32]], None],
    ) -> npt.NDArray[np.float32]:
        """Return numbers of a law, each made of a word of 32 bits, shape (steps, B, *shape)."""
        bits = np.random.Philox(key=np.array(self._key(purpose), dtype=np.uint64))
        # One generator whose counter is set for each element: making a new one takes ten times as long. Lists of
        # Python's numbers, since setting a state reads one number after the other.
        state: Any = dict(bits.state)
        state |= {"buffer": [0] * 4, "state": {"key": list(self._key(purpose)), "counter": [0] * 4}}
        count = math.prod(shape)
        counters = [[0, step, draw, image] for step in steps for image, draw in self._places()]
        out = np.empty((len(counters), count), dtype=np.float32)
        # Some elements at a time, so that their words are still in the processor's caches when they are used.
        many = max(1, min(len(out), _TOGETHER // max(count, 1)))
        words = np.empty((many, (count + 1) // 2), dtype="<u8")
        for first in range(0, len(out), many):
            rows = out[first : first + many]
            for row, counter in zip(words, counters[first : first + many], strict=False):
                state["state"]["counter"] = counter
                bits.state = state
                row[:] = bits.random_raw(len(row))
            law(words.view(np.int32)[: len(rows), :count], rows)
        return out.reshape(len(steps), len(self), *shape)

    def _ziggurat(self, purpose: str, step: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
        """Normal numbers of version 1."""
        out = np.empty((len(self), *shape), dtype=np.float32)
        for row, generator in enumerate(self.generators(purpose, step)):
            generator.standard_normal(dtype=np.float32, out=out[row])
        return out

    def normal(self, purpose: str, step: int, like: torch.Tensor, shape: Sequence[int] | None = None) -> torch.Tensor:
        """Return standard normal numbers, one independent stream per batch element.

        Arguments:
            purpose: What the numbers are for: ``"forward"``, ``"reverse"``, ``"guidance"``, ...
            step: Step within the purpose, at least 0.
            like: Tensor of shape (B, ...) whose device and dtype the result takes.
            shape: Shape of one element; by default ``like.shape[1:]``.

        Returns:
            Tensor of shape (B, *shape).
        """
        element = self._element(step, like, shape)
        if self.noise == 1:
            return torch.from_numpy(self._ziggurat(purpose, step, element)).to(like)
        if like.device.type == "cuda":
            made = normals_on(like.device, self._key(purpose), step, self._places(), math.prod(element))
            if made is not None:
                return made.reshape(len(self), *element).to(like)
        return torch.from_numpy(self._from_words(purpose, [step], element, fill_normals)[0]).to(like)

    def normals(self, purpose: str, steps: Sequence[int], like: torch.Tensor) -> list[torch.Tensor]:
        """Return what :meth:`normal` returns for each of some steps; on a processor they are made together.

        A network between two steps takes the caches from what makes noise, which then takes twice as long.

        Arguments:
            purpose: See :meth:`normal`.
            steps: The steps.
            like: See :meth:`normal`.
        """
        if self.noise == 1 or like.device.type == "cuda" or len(steps) < 2:
            return [self.normal(purpose, step, like) for step in steps]
        element = self._element(min(steps), like, None)
        return list(torch.from_numpy(self._from_words(purpose, steps, element, fill_normals)).to(like))

    def normal_at(
        self, purpose: str, steps: Sequence[int], like: torch.Tensor, shape: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Like :meth:`normal`, where each batch element has a step of its own.

        Arguments:
            purpose: What the numbers are for.
            steps: Step of each element, shape (B,).
            like: See :meth:`normal`.
            shape: Likewise.
        """
        if len(steps) != len(self):
            raise ValueError(f"{len(steps)} steps with the randomness of {len(self)} elements")
        groups = sorted(set(steps))
        if len(groups) == 1:
            return self.normal(purpose, groups[0], like, shape)
        out = like.new_empty((len(like), *(like.shape[1:] if shape is None else shape)))
        for step in groups:
            where = [place for place, each in enumerate(steps) if each == step]
            out[where] = self.select(where).normal(purpose, step, like[where], shape)
        return out

    def uniform(
        self, purpose: str, step: int, like: torch.Tensor, shape: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Like :meth:`normal`, uniform on [0, 1)."""
        element = self._element(step, like, shape)
        return torch.from_numpy(self._from_words(purpose, [step], element, fill_uniforms)[0]).to(like)

    def _places(self) -> tuple[tuple[int, int], ...]:
        """Image id and draw of each element, as they are in the counter."""
        return tuple(_place(image, draw) for image, draw in zip(self.image_ids, self.draws, strict=True))

    def _element(self, step: int, like: torch.Tensor, shape: Sequence[int] | None) -> tuple[int, ...]:
        """Return the shape of one element."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        if like.shape[0] != len(self):
            raise ValueError(f"a batch of {like.shape[0]} with the randomness of {len(self)} elements")
        return tuple(like.shape[1:] if shape is None else shape)
