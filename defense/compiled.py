r"""Networks by ``torch.compile``, with the same bits whether or not somebody differentiates.

A compiler makes one program for ``f`` and another one for ``f`` with what its derivative needs, and they differ in
their last bits: fused operations are cut in other places. The exact gradient (:mod:`defense.gradients`) visits each
state once without gradients and once with them, and refuses states that differ. So a compiled network always runs the
program with derivatives, and lets go of what it kept where nobody asks.

Every shape has a program of its own (``dynamic=False``): a program for several would depend on which shapes came
first. Nothing is chosen by timing (``max-autotune``), which would choose differently on another worker. A network
that needs more programs than :data:`PROGRAMS` raises: the compiler would otherwise quietly go on without compiling.
"""

import os
import shutil
import sys
import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from defense.classifiers.base import Normalised
from defense.denoisers.network import NetworkDenoiser
from defense.errors import InvalidInput

__all__ = ["PROGRAMS", "Compiled", "compile_network", "missing_compiler"]

PROGRAMS = 256
"""Programs of one network: for each shape, precision and kind of gradient one."""


class Compiled(nn.Module):
    """A network by ``torch.compile``.

    Arguments:
        network: A frozen network: its first argument is what it is differentiated by.
        backend: What compiles; PyTorch's own by default.

    Raises:
        RuntimeError: When it is called: a second derivative is asked for, which compiled networks do not have.
    """

    def __init__(self, network: nn.Module, backend: str = "inductor") -> None:
        super().__init__()
        self.network = network
        self._program = torch.compile(network, backend=backend, dynamic=False)

    def __getattr__(self, name: str) -> Any:
        """What else a network offers, such as ``latent``, is computed without compiling."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, x: Tensor, *arguments: Any, **settings: Any) -> Any:
        """Return what the network returns."""
        follow = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad(), _limits():
            output = self._program(x if follow else x.detach().requires_grad_(), *arguments, **settings)
        return output if follow else tree_map_only(Tensor, Tensor.detach, output)


def _limits() -> Any:
    return torch._dynamo.config.patch(
        recompile_limit=PROGRAMS, accumulated_recompile_limit=16 * PROGRAMS, fail_on_recompile_limit_hit=True
    )


def compile_network(model: nn.Module, backend: str = "inductor") -> bool:
    """Have the network of a denoiser or classifier compiled when it is first called.

    Closed forms, energies and classes of others stay as they are.

    Arguments:
        model: What holds the network, changed in place.
        backend: What compiles; see :class:`Compiled`.

    Returns:
        Whether there is one.

    Raises:
        InvalidInput: Its weights are not frozen, or there is no compiler.
    """
    if not isinstance(model, NetworkDenoiser | Normalised):
        return False
    if isinstance(model.net, Compiled):
        return True
    if any(weight.requires_grad for weight in model.parameters()):
        raise InvalidInput("only frozen networks are compiled: their weights would be trained by another program.")
    device = next((weight.device.type for weight in model.parameters()), "cpu")
    missing = missing_compiler() if (device, backend) == ("cpu", "inductor") else None
    if missing:
        raise InvalidInput(missing)
    if backend == "inductor":
        _import_setuptools()
    model.net = Compiled(model.net, backend)
    return True


def _import_setuptools() -> None:
    """Import setuptools, which the compiler does while it compiles, when several threads may.

    After ``import pip`` (a notebook, a test), setuptools refuses to be imported on Python 3.11, unless it is told to
    leave the standard library's ``distutils`` alone.
    """
    if "pip" not in sys.modules or "setuptools" in sys.modules:
        import_module("setuptools")
        return
    before = os.environ.get("SETUPTOOLS_USE_DISTUTILS")
    os.environ["SETUPTOOLS_USE_DISTUTILS"] = "stdlib"
    try:
        with warnings.catch_warnings(action="ignore"):
            import_module("setuptools")
    finally:
        if before is None:
            del os.environ["SETUPTOOLS_USE_DISTUTILS"]
        else:
            os.environ["SETUPTOOLS_USE_DISTUTILS"] = before


def missing_compiler() -> str | None:
    """Return why networks cannot be compiled for processors of this machine, and what to do; None if they can."""
    from torch._inductor import config

    named = config.cpp.cxx
    names = [name for name in (named if isinstance(named, tuple | list) else (named,)) if name]
    if any(shutil.which(name) for name in (*names, "g++", "clang++")):
        return None
    return (
        "compute.compile needs a C++ compiler, and there is no g++ or clang++ here. Install one, name it in the "
        "environment variable CXX, or set compute.compile: false."
    )
