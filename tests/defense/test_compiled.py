"""Compiled networks have the same bits with and without gradients, and say what they cannot do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import defense
from defense import DiffPure, DiffusersConfig, InvalidInput, Omega, purify
from defense.classifiers.base import Normalised
from defense.compiled import Compiled, compile_network, missing_compiler
from defense.denoisers.network import NetworkDenoiser

PATH = str(Path(defense.__file__).parent / "assets" / "digits-ddpm")
IMAGES = torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
OMEGA = Omega.of("compiled", 0, "attack", range(3))


class Net(nn.Module):
    """Has another last bit without gradients, as compiled networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7), requires_grad=False)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        y = torch.tanh(self.weight * x + labels.view(-1, 1, 1, 1) / 1000)
        return y if torch.is_grad_enabled() and x.requires_grad else y * (1 + 1e-6)

    def latent(self, x: Tensor) -> Tensor:
        return 3 * x


def denoiser(net: nn.Module) -> NetworkDenoiser:
    return NetworkDenoiser(net, "linear-1000", (1, 8, 8))


def gradient(network: NetworkDenoiser) -> tuple[Tensor, Tensor]:
    x = IMAGES.clone().requires_grad_()
    made = purify(DiffPure(network, 100, steps=5), x, OMEGA, "exact")
    return made.detach(), torch.autograd.grad(made.square().sum(), x)[0]


@pytest.mark.slow
def test_the_exact_gradient_passes_its_bit_check_where_bits_depend_on_gradients() -> None:
    with pytest.raises(defense.gradients.IrreproducibleState):
        gradient(denoiser(Net()))
    wrapped = denoiser(Compiled(Net(), backend="eager"))
    made, found = gradient(wrapped)
    with torch.no_grad():
        assert torch.equal(made, DiffPure(wrapped, 100, steps=5)(IMAGES, OMEGA))
    assert found.abs().max() > 0


def test_nothing_is_kept_where_nobody_differentiates() -> None:
    net = Compiled(Net(), backend="eager")
    labels = torch.zeros(3)
    assert not net(IMAGES, labels).requires_grad
    x = IMAGES.clone().requires_grad_()
    with torch.no_grad():
        assert not net(x, labels).requires_grad
    assert net(x, labels).requires_grad
    assert torch.equal(net.latent(IMAGES), 3 * IMAGES)
    with pytest.raises(AttributeError):
        net.missing  # noqa: B018


@pytest.mark.slow
def test_networks_of_denoisers_and_classifiers_are_compiled_and_nothing_else() -> None:
    classifier, network = Normalised(Net(), (0.3,), (0.4,)), denoiser(Net())
    assert compile_network(classifier) and isinstance(classifier.net, Compiled)
    assert compile_network(network) and isinstance(network.net, Compiled)
    assert compile_network(network) and isinstance(network.net.network, Net)
    assert not compile_network(nn.Linear(1, 1))


def test_trained_networks_are_refused() -> None:
    network = denoiser(Net())
    network.net.weight.requires_grad_()
    with pytest.raises(InvalidInput, match="only frozen networks are compiled"):
        compile_network(network)


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "needs a C++ compiler" in str(missing_compiler())
    with pytest.raises(InvalidInput, match=r"compute\.compile: false"):
        compile_network(denoiser(Net()))


@pytest.mark.slow
def test_pip_imported_before_does_not_stop_the_compiler() -> None:
    code = (
        "import pip, torch; from torch import nn; from defense.classifiers.base import Normalised\n"
        "from defense.compiled import compile_network\n"
        "assert compile_network(Normalised(nn.Flatten(), (0.0,), (1.0,)))\n"
        "import torch.utils.cpp_extension"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@pytest.mark.nightly
@pytest.mark.skipif(missing_compiler() is not None, reason="there is no C++ compiler")
def test_the_compiled_digits_network_has_the_exact_gradient_of_the_eager_one() -> None:
    config = DiffusersConfig(schedule="linear-1000", path=PATH).resolved(Path())
    eager, compiled = config.build(), config.build()
    assert compile_network(compiled)
    (images, found), (expected_images, expected) = gradient(compiled), gradient(eager)
    torch.testing.assert_close(images, expected_images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    again = gradient(compiled)
    assert torch.equal(again[0], images) and torch.equal(again[1], found)
