"""Ray without Ray: workers that take simulated time, for a driver of thousands of them in one process.

A unit takes ``seconds`` of a clock that only :func:`FakeRay.wait` moves; whatever a worker is asked it answers in
order, as an actor does. Workers commit nothing: the driver is what is looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from ray.exceptions import RayActorError

from workflows.engine import pool
from workflows.engine.pool import Pool
from workflows.engine.worker import Receipt
from workflows.monitoring.ledger import Place


class Reference:
    """What a call will return, and when."""

    __slots__ = ("due", "value")

    def __init__(self, due: float, value: Any) -> None:
        self.due = due
        self.value = value


class FakeActor:
    """A worker on a machine of eight."""

    def __init__(self, ray: FakeRay) -> None:
        self._ray = ray
        self._number = next(ray.numbers)
        self._until = 0.0
        self.running: list[Reference] = []
        self.ready, self.run_batch = _Method(self._ready), _Method(self._run_batch)
        self.drop = _Method(lambda turn: None)

    def _ready(self) -> Reference:
        node = f"node-{self._number // 8}"
        return Reference(0.0, Place(node, node, self._number))

    def _run_batch(
        self, spec: Any, stage_id: str, chunks: Sequence[Any], inputs: Any, seconds: float, turn: int
    ) -> Reference:
        self._until = max(self._until, self._ray.clock) + len(chunks) * self._ray.seconds
        receipts = [Receipt(len(chunk.ids), self._ray.seconds, computed=True) for chunk in chunks]
        self.running.append(Reference(self._until, receipts))
        return self.running[-1]


class _Method:
    def __init__(self, call: Any) -> None:
        self.remote = call


class FakeRay:
    """What :mod:`workflows.engine.pool` asks of the module ``ray``.

    Arguments:
        seconds: Of a unit, on the simulated clock.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self.clock = 0.0
        self.numbers = itertools.count()

    def remote(self, worker: type) -> Any:
        return self

    def options(self, **resources: Any) -> Any:
        return _Method(lambda uri, device, sharing: FakeActor(self))

    def wait(self, references: Sequence[Reference], num_returns: int, timeout: float) -> tuple[list[Reference], list]:
        if timeout:
            self.clock = max(self.clock, min(reference.due for reference in references))
        done = [reference for reference in references if reference.due <= self.clock]
        return done[:num_returns], []

    def get(self, reference: Reference) -> Any:
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def kill(self, actor: FakeActor, no_restart: bool) -> None:
        """Nothing is left to kill."""

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": f"node-{number}", "Alive": True} for number in range(10_000)]

    def die(self, actor: FakeActor) -> None:
        """Have a worker's process die: whatever it was asked and has not answered fails."""
        for reference in actor.running:
            if reference.due > self.clock:
                reference.due, reference.value = self.clock, RayActorError()


class _Head:
    lost = False

    def need(self) -> None:
        """It is always there."""


@contextmanager
def fake_pool(store: str, workers: int, seconds: float = 10.0) -> Iterator[tuple[Pool, FakeRay]]:
    """A pool of fake workers, all of them started."""
    ray = FakeRay(seconds)
    with patch.object(pool, "ray", ray), patch.object(pool, "Head", _Head):
        made = Pool(store, workers)
        while made.workers < workers:
            made.wait(1.0)
        yield made, ray
