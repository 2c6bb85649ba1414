"""Weights that processes hold once: equal ones alone, of equal bits, whoever wrote and whoever died."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import defense
from defense import DiffPureConfig, DiffusersConfig, Omega
from tasks import shared_weights
from tasks.compute import Compute, Context
from tasks.shared_weights import built, can_share, file_bytes

pytestmark = pytest.mark.skipif(not can_share(), reason="memory without a name is Linux's")
PATH = Path(defense.__file__).parent / "assets" / "digits-ddpm"
DIGITS = DiffusersConfig(schedule="linear-1000", path=str(PATH))


@pytest.fixture(autouse=True)
def register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A register of this test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"puregrid-{os.getuid()}-weights"


class Net(nn.Module):
    """A convolution in either order, a half, whole numbers, a number, a strided weight and a trained one."""

    brief: torch.Tensor
    whole: torch.Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        luck = torch.Generator().manual_seed(seed)
        self.conv = nn.Conv2d(16, 32, 3)
        self.trained = nn.Parameter(torch.zeros(64, 64))
        for name, tensor in {
            "brief": torch.randn(64, 64, generator=luck).bfloat16(),
            "whole": torch.randint(0, 9, (1024,), generator=luck),
            "one": torch.tensor(1.5),
            "strided": torch.randn(64, 64, generator=luck)[:, ::2],
        }.items():
            self.register_buffer(name, tensor)
        for weight in self.conv.parameters():
            nn.init.normal_(weight, generator=luck).requires_grad_(False)


def channels_last(seed: int = 0) -> Net:
    net = Net(seed)
    net.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def memories() -> set[int]:
    """The inodes of memory without a name that this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(entry).startswith("/memfd:puregrid-"):
                found.add(entry.stat().st_ino)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("make", [Net, channels_last])
def test_equal_networks_lie_in_one_memory_with_their_values_and_order(make: Callable[[], Net]) -> None:
    expected = make()
    (first, shared), (second, again) = built(make, "net"), built(make, "net")
    assert shared == again == 4 * 16 * 32 * 9 + 2 * 64 * 64 + 8 * 1024
    assert len(memories()) == 1
    for net in (first, second):
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, expected.state_dict()[name]), name
            assert tensor.stride() == expected.state_dict()[name].stride(), name
        assert all(tensor.data_ptr() % 64 == 0 for tensor in (net.conv.weight, net.brief, net.whole))
        assert net.trained.requires_grad
    x = torch.rand(1, 16, 8, 8)
    assert torch.equal(first.conv(x), expected.conv(x))
    first.brief.fill_(0)  # nobody does; if somebody did it would be his own
    assert torch.equal(second.brief, expected.brief)
    del first, second, net, tensor
    gc.collect()
    assert memories() == set()


def test_nothing_is_believed_of_a_name(register: Path) -> None:
    one, _ = built(lambda: Net(0), "net")
    two, _ = built(lambda: Net(1), "net")
    three, _ = built(lambda: Net(1), "net")
    assert len(memories()) == 2
    assert torch.equal(two.brief, Net(1).brief) and torch.equal(three.brief, Net(1).brief)
    assert not torch.equal(one.brief, two.brief)
    assert len(register.read_text().splitlines()) == 3
    assert len({built(lambda: Net(0), "another")[1], built(lambda: nn.Linear(2, 2), "small")[1]}) == 2


def test_memory_that_somebody_could_write_to_or_that_is_gone_is_not_taken(register: Path) -> None:
    kept, shared = built(Net, "net")
    (name, process, descriptor) = register.read_text().split()
    open_memory = os.memfd_create(name, os.MFD_ALLOW_SEALING)
    os.sendfile(open_memory, int(descriptor), 0, os.fstat(int(descriptor)).st_size)
    with pytest.raises(PermissionError):
        os.pwrite(int(descriptor), b"x", 0)
    register.write_text(
        f"{name} {process} {open_memory}\n{name} 999999999 3\n{name} {process} 0\n{name} {process}\nnonsense\n\xff\n"
    )
    other, _ = built(Net, "net")
    assert len(memories()) == 3, "it lies in memory of its own"
    assert torch.equal(other.brief, kept.brief) and shared > 0
    lines = register.read_text().splitlines()
    assert lines[0] == f"{name} {process} {open_memory}" and len(lines) == 2
    os.close(open_memory)


def test_without_a_register_networks_are_as_before(register: Path, caplog: pytest.LogCaptureFixture) -> None:
    register.symlink_to("/dev/null")
    net, shared = built(Net, "net")
    assert shared == 0 and memories() == set() and torch.equal(net.brief, Net().brief)
    assert "without sharing them" in caplog.text


def test_memory_that_cannot_be_had_leaves_the_network_whole(
    register: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, written = os.pwrite, []

    def refuse(file: int, data: memoryview, place: int) -> int:
        written.append(len(data))
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        return real(file, data, place)

    monkeypatch.setattr(os, "pwrite", refuse)
    net, shared = built(Net, "net")
    assert shared == 0 and register.read_text() == "" and "No space left" in caplog.text
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, Net().state_dict()[name]), name


def test_errors_leave_no_descriptor_open_and_what_was_moved_counts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    kept, shared = built(Net, "net")
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr("mmap.mmap", refuse)
        assert [built(Net, name)[1] for name in ("net", "another")] == [0, 0]  # would be taken, would be made
    assert len(os.listdir("/proc/self/fd")) == before and caplog.text.count("a network is not shared") == 2
    monkeypatch.setattr(shared_weights._Register, "add", refuse)
    other, moved = built(Net, "another")
    assert moved == shared > 0 and len(memories()) == 2 and "later workers" in caplog.text
    assert torch.equal(other.brief, kept.brief)


def test_the_files_of_a_config_are_counted(tmp_path: Path) -> None:
    config = DIGITS.resolved(Path())
    expected = sum(path.stat().st_size for path in PATH.iterdir())
    assert file_bytes(config) == expected > 1e6
    assert file_bytes({"several": [config, (config, "linear-1000")], "none": 3}) == 2 * expected
    assert file_bytes(str(tmp_path / "missing")) == 0


@pytest.mark.slow
def test_a_worker_shares_large_networks_and_computes_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DIGITS.resolved(Path())
    z = torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    for compute in (Compute(), Compute(layout="channels-last")):
        own = Context()
        with own.settings(compute), torch.no_grad():
            expected = own.load(config)(z, 10)
        assert own.shared_bytes == 0, "it is small"
        with monkeypatch.context() as patch:
            patch.setattr(shared_weights, "LARGE", 1)
            for _ in range(2):
                context = Context()
                with context.settings(compute), torch.no_grad():
                    assert torch.equal(context.load(config)(z, 10), expected)
                assert context.shared_bytes > 1e6


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_workers_share_the_casts_of_what_they_share_and_compute_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, layout: Any
) -> None:
    """Once each, whichever of two purifiers of a denoiser comes first, and with the weights' own end."""
    one, two = (DiffPureConfig(denoiser=DIGITS, schedule="linear-1000", t_star=t, steps=1) for t in (10, 20))
    one, two = (config.resolved(Path()) for config in (one, two))
    x, omega = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0)), Omega.of("p", 0, "judge", (0, 1))

    def asked(context: Context, precision: Any, configs: Sequence[DiffPureConfig]) -> dict[int, bytes]:
        compute, found = Compute(precision=precision, layout=layout), {}
        with context.settings(compute), torch.no_grad():
            for config in configs:
                purifier = context.purifier(config, None)
                with context.autocast(compute):
                    found[config.t_star] = purifier(x, omega).float().numpy().tobytes()
        return found

    expected = {precision: asked(Context(), precision, (one, two)) for precision in ("fp32", "bf16")}
    monkeypatch.setattr(shared_weights, "LARGE", 1)
    first, second = Context(), Context()
    assert asked(first, "fp32", (one,)).items() <= expected["fp32"].items()
    (weights,), whole = memories(), first.shared_bytes
    assert asked(first, "bf16", (one, two)) == asked(second, "bf16", (two, one)) == expected["bf16"]
    assert len(memories()) == 2 and memories() >= {weights}
    assert first.shared_bytes == second.shared_bytes and 0.4 < first.shared_bytes / whole - 1 < 0.55
    assert asked(second, "fp32", (one, two)) == expected["fp32"]
    with first.settings(Compute(layout=layout)):
        written = next(layer for layer in first.purifier(one, None).modules() if type(layer).__name__ == "_Conv2d")
    written.weight.zero_()  # type: ignore[operator]  # nobody does; if somebody did, its cast would be his own
    assert asked(first, "bf16", (one,)) != expected["bf16"] and asked(second, "bf16", (one, two)) == expected["bf16"]
    del first, second, written
    gc.collect()
    assert memories() == set()


OTHER = """
import sys, tempfile, torch
from torch import nn
from tasks.shared_weights import built
tempfile.tempdir = sys.argv[1]
def make():
    net = nn.Linear(4096, 1024, bias=False).requires_grad_(False)
    nn.init.normal_(net.weight, generator=torch.Generator().manual_seed(0))
    return net
net, shared = built(make, "net")
print(shared, float(net.weight.double().sum()), flush=True)
sys.stdin.readline()
lines = open("/proc/self/smaps").read().split("/memfd:puregrid-")[1].splitlines()
print(*(next(line.split()[1] for line in lines if line.startswith(kind)) for kind in ("Rss:", "Pss:")), flush=True)
sys.stdin.readline()
"""


@pytest.mark.slow
def test_two_processes_hold_the_weights_once_and_one_of_them_survives_the_other(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", OTHER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(process: subprocess.Popen[str]) -> list[int]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return [int(value) for value in process.stdout.readline().split()]

    workers = [start(), start()]
    said = [worker.stdout.readline() for worker in workers if worker.stdout is not None]
    assert said[0] == said[1] and said[0].startswith(f"{4 * 4096 * 1024} ")
    kib = 4 * 4096 * 1024 // 1024
    assert [ask(worker) for worker in workers] == [[kib, kib // 2]] * 2
    workers[0].kill()
    workers[0].wait()
    third = start()
    assert third.stdout is not None and third.stdout.readline() == said[0]
    assert ask(third) == [kib, kib // 2], "it shares with the one that is left"
    for worker in (*workers, third):
        worker.kill()
        worker.communicate()
