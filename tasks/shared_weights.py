r"""Large frozen weights that the processes of a machine hold once, however many workers it has.

Each worker loads its networks by itself. Of a large one the weights are then moved into memory that has no name in
any file system (``memfd_create(2)``), sealed so that nobody can write to it again, and mapped back privately. The
next worker loads the network too, compares it byte by byte with what lies there, and where it is equal maps that and
drops its own. So no worker believes anything of another, whatever kind of file the weights came from and whatever
code built the network, and a stage computes with the same numbers, at addresses that are aligned as PyTorch's own. A
write to a weight, which nothing here does, would go to a private copy of its page. Casts (:mod:`defense.prepared`)
go the same way.

Loading is done one process after the other, so that a machine holds at most one network twice. What is there is
written down in a file of the user's in the folder for temporary files, one line a process: the memory's name, the
process, its descriptor. The kernel frees memory with the last process that maps it, however that ends; a line about a
process that is gone is dropped by the next reader.
"""

import contextlib
import fcntl
import hashlib
import logging
import mmap
import os
import stat
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from defense.spec import Spec
from tasks.allocator import give_back_freed_memory

__all__ = ["LARGE", "SHARED", "built", "can_share", "file_bytes"]

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

LARGE = 64 << 20
"""Bytes of weight files from which on a network is shared; smaller ones are not worth waiting for each other."""

SHARED = "shared_mib"
"""Note of a unit: the MiB of weights that it loaded into memory that workers share."""

_SMALLEST = 4096
"""Bytes of a tensor that is moved: smaller ones fill no page."""

_ALIGNED = 64
"""Bytes to which PyTorch aligns tensors on processors; kernels may round differently at other addresses."""

_TRIM = 128 << 20
"""Bytes that are moved before malloc is told to give back what they left."""

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK if sys.platform == "linux" else 0


def can_share() -> bool:
    """Return whether this system has memory without a name: Linux has."""
    return sys.platform == "linux"


def file_bytes(config: object) -> int:
    """Return the bytes of the files and folders that a config, or one inside of it, names by absolute paths."""
    if isinstance(config, Spec):
        return sum(file_bytes(getattr(config, name)) for name in type(config).model_fields)
    if isinstance(config, tuple | list):
        return sum(map(file_bytes, config))
    if isinstance(config, dict):
        return sum(map(file_bytes, config.values()))
    if not isinstance(config, str) or not os.path.isabs(config):
        return 0
    path = Path(config)
    try:
        files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
        return sum(file.stat().st_size for file in files)
    except OSError:  # no file, or none that can be read: who loads it says so
        return 0


def built(
    build: Callable[[], M],
    name: str,
    tensors: Callable[[M], Iterable[Tensor]] = lambda network: (*network.parameters(), *network.buffers()),
) -> tuple[M, int]:
    """Build a network whose frozen weights are those that another process of this user holds, where they are equal.

    Arguments:
        build: Returns the network, on the processor.
        name: What it is: the same network in the same form has the same name on all workers.
        tensors: Those of the network that are shared; by default all.

    Returns:
        The network, and the bytes of its weights that lie in shared memory.
    """
    name = f"puregrid-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    with contextlib.ExitStack() as stack:
        try:
            register = stack.enter_context(_register())
        except OSError as error:
            log.warning("networks are loaded without sharing them: %s", error)
            return build(), 0
        network = build()
        weights = _weights(tensors(network))
        if not weights:
            return network, 0
        size = weights[-1].end
        try:
            candidates = register.named(name, size)
            memory = next((candidate for candidate in candidates if _adopt(weights, candidate, size)), None)
            if memory is None:
                memory = _make(name, weights, size)
        except OSError as error:  # what was moved by then stays where it is mapped
            log.warning("a network is not shared: %s", error)
            return network, 0
        weakref.finalize(network, os.close, memory)
        try:
            register.add(name, memory)
        except OSError as error:
            log.warning("later workers will not share a network: %s", error)
    give_back_freed_memory()
    return network, sum(weight.bytes for weight in weights)


@dataclass(frozen=True)
class _Weight:
    """A tensor of a network and its place.

    Arguments:
        tensor: The parameter or buffer.
        order: The order of its dimensions in memory.
        start: Where it begins.
    """

    tensor: Tensor
    order: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    @property
    def end(self) -> int:
        return self.start + self.bytes

    def content(self) -> Tensor:
        """Return its bytes as they lie in memory."""
        return self.tensor.detach().permute(self.order).reshape(-1).view(torch.uint8)

    def move(self, memory: mmap.mmap) -> None:
        """Have the tensor lie in mapped memory, in the same order."""
        flat = torch.frombuffer(memory, dtype=self.tensor.dtype, count=self.tensor.numel(), offset=self.start)
        self.tensor.data = flat.as_strided(self.tensor.shape, self.tensor.stride())


def _weights(tensors: Iterable[Tensor]) -> list[_Weight]:
    """Return the frozen tensors that lie densely in memory, each with a place of its own."""
    weights: list[_Weight] = []
    end = 0
    for tensor in tensors:
        if tensor.requires_grad or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            continue
        order = tuple(sorted(range(tensor.dim()), key=lambda i: (-tensor.stride()[i], i)))
        if not tensor.permute(order).is_contiguous() or tensor.numel() * tensor.element_size() < _SMALLEST:
            continue
        weights.append(_Weight(tensor, order, -(-end // _ALIGNED) * _ALIGNED))
        end = weights[-1].end
    return weights


def _make(name: str, weights: list[_Weight], size: int) -> int:
    """Move weights into new memory, one after the other; returns its descriptor."""
    memory = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, memory)
        os.ftruncate(memory, size)
        mapped = mmap.mmap(memory, size, access=mmap.ACCESS_COPY)
        moved = 0
        for weight in weights:
            left, place = weight.content().numpy().data, weight.start
            while left:
                written = os.pwrite(memory, left, place)
                left, place = left[written:], place + written
            weight.move(mapped)
            moved += weight.bytes
            if moved >= _TRIM:
                moved = 0
                give_back_freed_memory()
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
        stack.pop_all()  # it stays open
    return memory


def _adopt(weights: list[_Weight], memory: int, size: int) -> bool:
    """Move weights to where another process has the same ones; closes the memory where it holds others."""
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, memory)
        mapped = mmap.mmap(memory, size, access=mmap.ACCESS_COPY)
        there = torch.frombuffer(mapped, dtype=torch.uint8)
        if not all(torch.equal(there[weight.start : weight.end], weight.content()) for weight in weights):
            return False
        for weight in weights:
            weight.move(mapped)
        stack.pop_all()  # it stays open
    return True


@dataclass
class _Register:
    """Who holds which memory.

    Arguments:
        file: The descriptor of the file that says so, which this process alone may read and write now.
        lines: What it says of processes that live.
    """

    file: int
    lines: list[tuple[str, int, int]] = field(default_factory=list)

    def read(self) -> None:
        """Read the file; lines that are not true are left out."""
        text = os.pread(self.file, os.fstat(self.file).st_size, 0).decode(errors="replace")
        for line in text.splitlines():
            name, *numbers = line.split(" ")
            if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
                entry = name, int(numbers[0]), int(numbers[1])
                if _holds(*entry):
                    self.lines.append(entry)

    def named(self, name: str, size: int) -> Iterator[int]:
        """Yield descriptors of memory of this name and size that nobody can write to."""
        for known, process, descriptor in list(self.lines):
            if known != name:
                continue
            try:
                memory = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # it has ended since
                continue
            sealed = fcntl.fcntl(memory, fcntl.F_GET_SEALS) & _SEALS == _SEALS
            if sealed and os.fstat(memory).st_size == size:
                yield memory
            else:
                os.close(memory)

    def add(self, name: str, memory: int) -> None:
        """Write down that this process holds it."""
        self.lines.append((name, os.getpid(), memory))
        text = "".join(f"{known} {process} {descriptor}\n" for known, process, descriptor in self.lines).encode()
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, text, 0)


def _holds(name: str, process: int, descriptor: int) -> bool:
    """Return whether a descriptor of a process of this user is memory of that name."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{process}/fd/{descriptor}") == f"/memfd:{name} (deleted)"
    return False


@contextlib.contextmanager
def _register() -> Iterator[_Register]:
    """Have the register for this process alone; a process that dies lets go of it.

    Raises:
        OSError: It cannot be had, or is another user's.
    """
    path = Path(tempfile.gettempdir(), f"puregrid-{os.getuid()}-weights")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
            raise PermissionError(f"{path} is not a file of this user: remove it, or set TMPDIR to another folder.")
        fcntl.flock(file, fcntl.LOCK_EX)
        register = _Register(file)
        register.read()
        yield register
    finally:
        os.close(file)
