"""Freed memory stays: measured in page faults, in a process of its own since malloc's settings are the process's."""

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
