"""Freed memory stays, until it is given back: in processes of their own, since malloc's settings are a process's."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource

import torch
from torch import nn

from tasks.allocator import keep_freed_memory

torch.set_num_threads(1)
layers = [layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
net = nn.Sequential(*layers).eval().requires_grad_(False)
x = torch.rand(50, 8, 32, 32)

def gradients(times):
    for _ in range(times):
        at = x.clone().requires_grad_()
        torch.autograd.grad(net(at).sum(), at)

def faults():
    gradients(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    gradients(20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

as_it_is = faults()
assert keep_freed_memory()
print(as_it_is, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_layers_that_come_again_cost_a_tenth_of_the_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    as_it_is, kept = map(int, done.stdout.split())
    assert 10 * kept < as_it_is


HOLES = """
import torch

from tasks.allocator import give_back_freed_memory, keep_freed_memory
from tasks.memory import resident

assert keep_freed_memory()
blocks = [torch.ones(4 * 2**20 // 4) for _ in range(64)]  # 4 MiB each
blocks = blocks[::16]
before = resident()
assert give_back_freed_memory()
print(before, resident(), sum(float(block.sum()) for block in blocks))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_holes_of_the_heap_go_back_and_what_is_in_use_stays() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    before, after, total = map(float, done.stdout.split())
    assert before - after > 0.9 * 60 * 4 and total == 4 * 2**20
