r"""Randomness as an argument: every random number is a function of its key.

.. math:: n = N(\text{spec id}, \text{seed}, \text{role}, \text{purpose};\ \text{image id}, \text{draw}, \text{step})

The part before the semicolon is hashed to the 128-bit key of a Philox4x64 counter-based generator (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011); the part after it is written into the upper
three words of the 256-bit counter, so that streams of different images, draws and steps never overlap. The
position in a batch, the worker, the number of workers and whatever ran before have no influence.

Numbers are made in float32 on the CPU and then moved: a GPU run and a CPU run see the same noise, and a
float64 check of a float32 computation replays the very same draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Omega", "relabelled"]


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


def _counter(step: int, draw: int, image: int) -> npt.NDArray[np.uint64]:
    if _Labels.shown is not None and _Labels.offset:
        draw, image = draw % _Labels.offset, image % _Labels.offset
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
    """

    spec_id: str
    seed: int
    role: str
    image_ids: tuple[int, ...]
    draws: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.image_ids) != len(self.draws):
            raise ValueError(f"{len(self.image_ids)} image ids but {len(self.draws)} draws")
        if min((*self.image_ids, *self.draws), default=0) < 0:
            raise ValueError("image ids and draws count from 0")

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def of(
        cls, spec_id: str, seed: int, role: str, image_ids: Sequence[int], draws: Sequence[int] | int = 0
    ) -> Omega:
        """Build from any sequences; one integer for ``draws`` stands for the whole batch."""
        many = [draws] * len(image_ids) if isinstance(draws, int) else draws
        return cls(spec_id, seed, role, tuple(map(int, image_ids)), tuple(map(int, many)))

    def part(self, start: int, stop: int) -> Omega:
        """Return the randomness of batch elements ``start`` to ``stop``; the numbers do not change."""
        return replace(self, image_ids=self.image_ids[start:stop], draws=self.draws[start:stop])

    def generators(self, purpose: str, step: int) -> list[np.random.Generator]:
        """Return a NumPy generator for each batch element, for laws other than the normal.

        Arguments:
            purpose: What the numbers are for.
            step: Number of the step or level that draws them.
        """
        key = np.array(_key(self.spec_id, self.seed, self.role, purpose), dtype=np.uint64)
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

    def _fill(
        self, purpose: str, step: int | Sequence[int], shape: Sequence[int], uniform: bool
    ) -> npt.NDArray[np.float32]:
        steps = [step] * len(self) if isinstance(step, int) else [int(each) for each in step]
        if len(steps) != len(self):
            raise ValueError(f"{len(steps)} steps with the randomness of {len(self)} elements")
        if min(steps, default=0) < 0:
            raise ValueError(f"step {min(steps)} is negative")
        bits = np.random.Philox(key=np.array(_key(self.spec_id, self.seed, self.role, purpose), dtype=np.uint64))
        generator = np.random.Generator(bits)
        # One generator whose counter is set for each element: making a new one takes three times as long.
        state = bits.state
        out = np.empty((len(self), *shape), dtype=np.float32)
        for row, (image, draw) in enumerate(zip(self.image_ids, self.draws, strict=True)):
            state["state"]["counter"] = _counter(steps[row], draw, image)
            bits.state = state
            if uniform:
                generator.random(dtype=np.float32, out=out[row])
            else:
                generator.standard_normal(dtype=np.float32, out=out[row])
        return out

    def normal(
        self, purpose: str, step: int | Sequence[int], like: torch.Tensor, shape: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Return standard normal numbers, one independent stream per batch element.

        Arguments:
            purpose: What the numbers are for: ``"forward"``, ``"reverse"``, ``"guidance"``, ...
            step: Step within the purpose, at least 0; or that of each batch element.
            like: Tensor of shape (B, ...) whose device and dtype the result takes.
            shape: Shape of one element; by default ``like.shape[1:]``.

        Returns:
            Tensor of shape (B, *shape).
        """
        return self._tensor(purpose, step, like, shape, uniform=False)

    def uniform(
        self, purpose: str, step: int | Sequence[int], like: torch.Tensor, shape: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Like :meth:`normal`, uniform on [0, 1)."""
        return self._tensor(purpose, step, like, shape, uniform=True)

    def _tensor(
        self, purpose: str, step: int | Sequence[int], like: torch.Tensor, shape: Sequence[int] | None, uniform: bool
    ) -> torch.Tensor:
        if like.shape[0] != len(self):
            raise ValueError(f"a batch of {like.shape[0]} with the randomness of {len(self)} elements")
        element = like.shape[1:] if shape is None else shape
        return torch.from_numpy(self._fill(purpose, step, element, uniform)).to(like)
