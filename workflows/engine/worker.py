"""The worker process: read a unit's inputs, compute, commit, and return a receipt.

Data never travels through Ray: a worker reads its inputs from the store and writes its rows there. One unit is
computed at a time, in the order in which they were given, and while it is, the inputs of the next are read. In a
bucket, where a commit is mostly waiting, the one before is meanwhile committed, too, and none is begun before the
last but one is committed: where the process dies, the first unit without a commit was running, or the next. On a disk
a commit takes milliseconds, and it is the first.
"""

import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import torch

from defense.errors import InvalidInput, PuregridError
from defense.redaction import redacted
from defense.spec import CODE
from tasks.allocator import give_back_freed_memory, keep_freed_memory
from tasks.compute import Context
from tasks.memory import HELD, IDLE, PEAK, crowded, peak_memory, resident
from tasks.shared_weights import SHARED
from tasks.stages import Chunk, Output, StageSpec
from workflows.monitoring.ledger import Place
from workflows.monitoring.versions import worker_versions
from workflows.store import Attempt, Store
from workflows.store.outage import StoreUnavailable

T = TypeVar("T")

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


def _trouble(error: Exception) -> Trouble:
    unavailable, other_code = isinstance(error, StoreUnavailable), isinstance(error, OtherCode)
    message = str(error) if unavailable or other_code else one_line(error)
    text = redacted("".join(traceback.format_exception(error)))
    return Trouble(message, text, unavailable, other_code, isinstance(error, InvalidInput))


class _Turns:
    """Has batches compute one after the other, by their numbers from 0 on, in whatever order their threads come."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._given = 0
        self._begun = -1
        self._closed = False
        self._over: set[int] = set()

    def number(self, turn: int | None) -> int:
        """Return the number of a batch; the next one for a caller that counts none."""
        with self._changed:
            turn = self._given if turn is None else turn
            self._given = max(self._given, turn + 1)
        return turn

    def begin(self, turn: int) -> bool:
        """Wait for a batch's turn; False if it was taken back, or nothing may begin any more."""
        with self._changed:
            self._changed.wait_for(lambda: turn <= self._next or turn in self._over)
            if self._closed or turn in self._over or turn < self._next:
                return False
            self._begun = turn
            return True

    def end(self, turn: int) -> None:
        """Let the next one begin."""
        with self._changed:
            self._over.add(turn)
            while self._next in self._over:
                self._over.remove(self._next)
                self._next += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let no other batch begin."""
        with self._changed:
            self._closed = True

    def drop(self, turn: int) -> None:
        """Take a batch back, unless it has begun; it need not have come."""
        with self._changed:
            begun = turn <= self._begun
        if not begun:
            self.end(turn)


@dataclass(frozen=True)
class _Inputs:
    """What a unit reads, and the hashes of that."""

    tables: dict[str, pa.Table]
    read: dict[str, str]


@dataclass(frozen=True)
class _Made:
    """What a unit computed, until it is committed."""

    output: Output
    attempt: Attempt
    seconds: float
    retries: int
    loading: float


class UnitWorker:
    """Computes units one after the other; lives as long as the sweep and keeps its models loaded.

    Arguments:
        store_uri: Where to read and commit.
        device: ``"cpu"`` or ``"cuda"``.
        sharing: Workers that share its GPU.
    """

    def __init__(self, store_uri: str, device: str, sharing: int = 1) -> None:
        if device == "cpu":
            keep_freed_memory()
        self.store = Store(store_uri)
        self.context = Context(device, sharing=sharing)
        self._idle = resident() if device == "cpu" else 0.0
        self._versions = worker_versions()
        self._checked: set[str] = set()
        self._turns = _Turns()
        self._reader, self._committer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._committing: Future[Receipt] | None = None
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
        turn: int | None = None,
    ) -> list[Receipt | Trouble]:
        """Run units of one stage in order until one fails or the time is up.

        Short units travel together, since a message costs as much as they do. Two batches may be here at once, each
        in a thread of its own: the later one reads while the earlier one computes, and computes while that commits.

        Arguments:
            spec: The stage.
            stage_id: Its id.
            chunks: The chunks.
            inputs: As in :meth:`run`.
            seconds: When to stop; the first unit always runs.
            turn: The number of this batch on this worker, from 0 on; by default that after the last one.

        Returns:
            One receipt per unit that was run; the last entry may be a trouble. Units that were not begun have none.
        """
        turn = self._turns.number(turn)
        ahead = _called(self._read, spec, stage_id, chunks[0], inputs)
        if not self._turns.begin(turn):
            return []
        try:
            handed = self._computed(spec, stage_id, chunks, inputs, seconds, ahead)
            if not self.store.is_remote and handed and isinstance(handed[-1].exception(), StoreUnavailable):
                self._turns.close()  # the run stops, and would end this process while the next batch writes
        finally:
            self._turns.end(turn)
        results: list[Receipt | Trouble] = []
        for commit in handed:
            try:
                results.append(commit.result())
            except Exception as error:  # whatever a unit raises is the driver's to judge
                results.append(_trouble(error))
                break
        return results

    def drop(self, turn: int) -> None:
        """Take back a batch that has not begun; it is answered without receipts."""
        self._turns.drop(turn)

    def _computed(
        self,
        spec: StageSpec,
        stage_id: str,
        chunks: Sequence[Chunk],
        inputs: dict[str, tuple[str, str]],
        seconds: float,
        ahead: Future[_Inputs | Receipt],
    ) -> list[Future[Receipt]]:
        """Compute units, each of which is then committed, to a bucket beside the next; the last may be an error."""
        handed: list[Future[Receipt]] = []
        end = time.perf_counter() + seconds
        for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
            try:
                ready = ahead.result()
                if following is not None:
                    ahead = self._reader.submit(self._read, spec, stage_id, following, inputs)
                if isinstance(ready, Receipt):
                    handed.append(_called(_same, ready))
                    continue
                made = self._compute(spec, chunk, ready)
            except Exception as error:
                handed.append(_called(_raised, error))
                break
            if self.store.is_remote:
                if self._committing is not None:
                    wait([self._committing])
                if handed and handed[-1].exception() is not None:
                    break  # a batch ends at its first failure
                self._committing = self._committer.submit(self._commit, spec, stage_id, chunk, made)
                handed.append(self._committing)
            else:
                handed.append(_called(self._commit, spec, stage_id, chunk, made))
                if handed[-1].exception() is not None:
                    break
            if time.perf_counter() > end:
                break
        return handed

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
        ready = self._read(spec, stage_id, chunk, inputs)
        if isinstance(ready, Receipt):
            return ready
        return self._commit(spec, stage_id, chunk, self._compute(spec, chunk, ready))

    def _read(
        self, spec: StageSpec, stage_id: str, chunk: Chunk, inputs: dict[str, tuple[str, str]]
    ) -> _Inputs | Receipt:
        """Read what a unit needs; a receipt if it is committed already."""
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
        return _Inputs(tables, read)

    def _compute(self, spec: StageSpec, chunk: Chunk, inputs: _Inputs) -> _Made:
        retries, loading = self.context.memory_retries, self.context.loading_seconds
        shared = self.context.shared_bytes
        started = time.perf_counter()
        self.context.graphs.begin()
        with self.context.settings(spec.settings()), peak_memory(self.context.device) as peak:
            output = spec.run(chunk, inputs.tables, self.context)
            peak_mib = peak()
        loading = self.context.loading_seconds - loading
        seconds = max(time.perf_counter() - started - loading, 0.0)
        retries = self.context.memory_retries - retries
        attempt = Attempt(
            uuid.uuid4().hex,
            round(seconds, 4),
            socket.gethostname(),
            self._versions,
            inputs.read,
            round(time.time(), 3),
        )
        if crowded():
            give_back_freed_memory()
        if loading:
            output.notes["loading_seconds"] = round(loading, 4)
        if self.context.shared_bytes > shared:
            output.notes[SHARED] = round((self.context.shared_bytes - shared) / 2**20)
        if peak_mib is not None:
            output.notes[PEAK] = round(peak_mib)
            output.notes[IDLE] = round(self._idle or 0.0)
            output.notes[HELD] = round(self.context.graphs.beyond_need / 2**20)
        if retries:
            output.notes["memory_retries"] = retries
        return _Made(output, attempt, seconds, retries, loading)

    def _commit(self, spec: StageSpec, stage_id: str, chunk: Chunk, made: _Made) -> Receipt:
        commit = self.store.commit(spec, stage_id, chunk, made.output, made.attempt)
        won = commit.attempt == made.attempt.id
        return Receipt(len(chunk.ids), made.seconds, won, made.retries, made.loading)


def _same(receipt: Receipt) -> Receipt:
    return receipt


def _raised(error: Exception) -> Receipt:
    raise error


def _called(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Call a function here and now; returns what a thread would have returned."""
    future: Future[T] = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future
