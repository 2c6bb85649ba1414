"""The worker process: read a unit's inputs, compute, commit, and return a receipt.

Data never travels through Ray: a worker reads its inputs from the store and writes its rows there.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch

from defense.errors import InvalidInput, PuregridError
from defense.redaction import redacted
from defense.spec import CODE
from tasks.allocator import keep_freed_memory
from tasks.compute import Context
from tasks.memory import IDLE, PEAK, peak_memory, resident
from tasks.stages import Chunk, StageSpec
from workflows.monitoring.ledger import Place
from workflows.monitoring.versions import worker_versions
from workflows.store import Attempt, Store
from workflows.store.outage import StoreUnavailable

__all__ = ["OtherCode", "Receipt", "Trouble", "UnitWorker", "one_line"]


class OtherCode(PuregridError):
    """A part has other code on a worker's machine than where the sweep was planned."""


@dataclass(frozen=True)
class Receipt:
    """The report on a finished unit.

    Arguments:
        images: Images of the chunk.
        seconds: Compute time.
        computed: False if another attempt had committed the unit before.
        memory_retries: How often a batch was halved because the device was out of memory.
        loading: Seconds spent on loading models and data, which are not in ``seconds``.
    """

    images: int
    seconds: float
    computed: bool
    memory_retries: int = 0
    loading: float = 0.0


@dataclass(frozen=True)
class Trouble:
    """The report on a unit that raised.

    Arguments:
        error: The cause, one line.
        traceback: Where.
        unavailable: Whether the store is to blame, so that no other unit would fare better.
        other_code: Whether a part has other code there than where the sweep was planned, which no attempt changes.
        final: Whether the input is to blame, so that another attempt would end alike.
    """

    error: str
    traceback: str
    unavailable: bool = False
    other_code: bool = False
    final: bool = False


def one_line(error: BaseException) -> str:
    """Return type and first line of an error."""
    text = str(error).strip().splitlines()
    return redacted(f"{type(error).__name__}: {text[0] if text else ''}")[:300]


class UnitWorker:
    """Computes units one after the other; lives as long as the sweep and keeps its models loaded.

    Arguments:
        store_uri: Where to read and commit.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, store_uri: str, device: str) -> None:
        if device == "cpu":
            keep_freed_memory()
        self.store = Store(store_uri)
        self.context = Context(device)
        self._idle = resident() if device == "cpu" else 0.0
        self._versions = worker_versions()
        self._checked: set[str] = set()
        if self.context.device.type == "cuda":
            self._versions["device"] = torch.cuda.get_device_name()

    def _input(self, spec: StageSpec, kind: str, source: str, chunk: str) -> pa.Table:
        """Read the images, the rows, or both, that a stage needs from one of its inputs."""
        if spec.reads == "rows":
            return self.store.read_rows(kind, source, chunk)
        table = self.store.read_images(kind, source, chunk)
        if spec.reads == "images and rows":
            rows = self.store.read_rows(kind, source, chunk)
            for name in [name for name in rows.column_names if name not in table.column_names]:
                table = table.append_column(rows.schema.field(name), rows[name])
        return table

    def ready(self) -> Place:
        """Return where this worker runs, once its constructor has ended."""
        import ray

        return Place(ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid())

    def run_batch(
        self,
        spec: StageSpec,
        stage_id: str,
        chunks: Sequence[Chunk],
        inputs: dict[str, tuple[str, str]],
        seconds: float,
    ) -> list[Receipt | Trouble]:
        """Run units of one stage in order until one fails or the time is up.

        Short units travel together, since a message costs as much as they do. As a batch ends at its first failure,
        the unit that was running when a process died is the first one without a commit.

        Arguments:
            spec: The stage.
            stage_id: Its id.
            chunks: The chunks.
            inputs: As in :meth:`run`.
            seconds: When to stop; the first unit always runs.

        Returns:
            One receipt per unit that was run; the last entry may be a trouble. Units that were not begun have none.
        """
        results: list[Receipt | Trouble] = []
        end = time.perf_counter() + seconds
        for chunk in chunks:
            try:
                results.append(self.run(spec, stage_id, chunk, inputs))
            except Exception as error:  # whatever a unit raises is the driver's to judge
                unavailable, other_code = isinstance(error, StoreUnavailable), isinstance(error, OtherCode)
                message = str(error) if unavailable or other_code else one_line(error)
                final = isinstance(error, InvalidInput)
                results.append(Trouble(message, redacted(traceback.format_exc()), unavailable, other_code, final))
                break
            if time.perf_counter() > end:
                break
        return results

    def _check_code(self, spec: StageSpec, stage_id: str) -> None:
        """Refuse a stage whose parts have other code here than where the sweep was planned.

        Raises:
            OtherCode: They have; what this worker computed would be filed under code that did not compute it.
        """
        if stage_id in self._checked:
            return
        if CODE in spec.canonical() and spec.id != stage_id:
            raise OtherCode(
                f"the code of a part of {spec.label()!r} is another one on {socket.gethostname()} than where the "
                "sweep was planned. Install the same version there; if it was edited meanwhile, run the same command "
                "again."
            )
        self._checked.add(stage_id)

    def run(self, spec: StageSpec, stage_id: str, chunk: Chunk, inputs: dict[str, tuple[str, str]]) -> Receipt:
        """Compute and commit one unit.

        Arguments:
            spec: The stage.
            stage_id: Its id.
            chunk: The chunk.
            inputs: Kind and id of each stage whose images are read, by role.
        """
        self._check_code(spec, stage_id)
        if self.store.settled(spec.stage, stage_id, chunk.name) is not None:
            return Receipt(len(chunk.ids), 0.0, computed=False)
        tables: dict[str, pa.Table] = {}
        read: dict[str, str] = {}
        for role, (kind, source) in inputs.items():
            tables[role] = self._input(spec, kind, source, chunk.name)
            read |= {
                path: sha256
                for path, sha256 in self.store.data_sha256(kind, source, chunk.name).items()
                if path.startswith("rows/" if spec.reads == "rows" else "adversarial/")
            }
        retries, loading = self.context.memory_retries, self.context.loading_seconds
        started = time.perf_counter()
        with self.context.settings(spec.settings()), peak_memory(self.context.device) as peak:
            output = spec.run(chunk, tables, self.context)
            peak_mib = peak()
        loading = self.context.loading_seconds - loading
        seconds = max(time.perf_counter() - started - loading, 0.0)
        retries = self.context.memory_retries - retries
        attempt = Attempt(
            uuid.uuid4().hex, round(seconds, 4), socket.gethostname(), self._versions, read, round(time.time(), 3)
        )
        if loading:
            output.notes["loading_seconds"] = round(loading, 4)
        if peak_mib is not None:
            output.notes[PEAK] = round(peak_mib)
            output.notes[IDLE] = round(self._idle or 0.0)
        if retries:
            output.notes["memory_retries"] = retries
        won = self.store.commit(spec, stage_id, chunk, output, attempt).attempt == attempt.id
        return Receipt(len(chunk.ids), seconds, computed=won, memory_retries=retries, loading=loading)
