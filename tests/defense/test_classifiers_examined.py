"""A classifier is believed only where it is a function of an image; what it returns is taken where that is plain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from defense.classifiers import Architecture, ClassifierConfig
from defense.classifiers.base import CLASSIFIERS
from defense.classifiers.examine import examine, logits_of
from defense.errors import InvalidInput

SHAPE, CLASSES = (1, 8, 8), 10


class Net(nn.Module):
    """A linear network, with something between its layers and something done with its logits."""

    def __init__(
        self, between: nn.Module | None = None, out: Callable[[Tensor], Any] = lambda logits: logits
    ) -> None:
        super().__init__()
        self.first = nn.Linear(64, 16)
        self.between = between or nn.ReLU()
        self.last = nn.Linear(16, CLASSES)
        self.out = out

    def forward(self, x: Tensor) -> Any:
        return self.out(self.last(self.between(self.first(x.flatten(1)))))


class StaysInTraining(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def train(self, mode: bool = True) -> StaysInTraining:
        return super().train(True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


class AlwaysDrops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.3, training=True)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class BatchStatistics(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0, unbiased=False) + 1e-3)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.01 * self.calls)


class RunningMean(nn.Module):
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = 0.9 * self.seen + 0.1 * x.detach().mean(0)
        return x


class GradientDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1.0 if torch.is_grad_enabled() else x


class ExplodingGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 0).sqrt() + x.detach()


def asked(net: nn.Module) -> None:
    torch.manual_seed(0)
    examine(net.eval(), name="mine", image_shape=SHAPE, classes=CLASSES)


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (StaysInTraining(nn.Dropout(0.5)), ["training mode", "between"]),
        (StaysInTraining(nn.BatchNorm1d(16)), ["training mode"]),
        (AlwaysDrops(), ["called again"]),
        (Noisy(), ["called again", "purifier"]),
        (Remembers(), ["called again"]),
        (BatchStatistics(), ["alone and in a batch"]),
        (GradientDependent(), ["with and without gradients"]),
        (RunningMean(), ["changes when it is called", "between.seen"]),
        (ExplodingGradient(), ["gradient of NaN"]),
    ],
)
def test_what_is_no_function_of_an_image_is_refused(between: nn.Module, words: list[str]) -> None:
    with pytest.raises(InvalidInput) as error:
        asked(Net(between))
    assert "'mine'" in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (lambda logits: logits[:, :3], ["(2, 3)", "10 classes"]),
        (lambda logits: logits.mean(1), ["(2,)"]),
        (lambda logits: logits * float("nan"), ["NaN"]),
        (lambda logits: logits.log() * 1e30 * 1e30, ["NaN"]),
        (lambda logits: "cat", ["str"]),
    ],
)
def test_what_are_no_logits_is_refused(out: Callable[[Tensor], Any], words: list[str]) -> None:
    with pytest.raises(InvalidInput) as error:
        asked(Net(out=out))
    for word in words:
        assert word in str(error.value)


def test_images_of_another_size_are_reported() -> None:
    with pytest.raises(InvalidInput, match=r"fails on images of shape \(2, 3, 32, 32\)"):
        examine(Net().eval(), name="mine", image_shape=(3, 32, 32), classes=CLASSES)


@pytest.mark.parametrize("between", [nn.Dropout(0.5), nn.BatchNorm1d(16), nn.GELU(), nn.Identity()])
def test_sound_networks_pass_and_stay_as_they_are(between: nn.Module) -> None:
    net = Net(between).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    examine(net, name="mine", image_shape=SHAPE, classes=CLASSES)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


LOGITS = torch.arange(20.0).view(2, 10)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "hidden": torch.zeros(2, 5)},
        SimpleNamespace(logits=LOGITS, loss=None),
        (LOGITS, torch.zeros(2, 7)),
        [torch.zeros(2, 4, 4), LOGITS],
        (LOGITS,),
    ],
)
def test_logits_are_taken_where_it_is_plain_which_they_are(output: Any) -> None:
    assert torch.equal(logits_of(output, 10), LOGITS)


@pytest.mark.parametrize(
    "output", [(LOGITS, LOGITS), {"a": LOGITS}, None, (1, 2), SimpleNamespace(scores=LOGITS), ()]
)
def test_logits_are_not_guessed(output: Any) -> None:
    with pytest.raises(InvalidInput, match="unclear which part holds the logits"):
        logits_of(output, 10)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_width_are_read_as_float32(
    kind: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = Net().to(kind)
    save_file(net.state_dict(), tmp_path / "net.safetensors")

    def load(path: str | Path) -> nn.Module:
        from safetensors.torch import load_file

        other = Net().to(kind)
        other.load_state_dict(load_file(path))
        return other

    entry = Architecture(Net, SHAPE, CLASSES, (0.0,), (1.0,), load=load)
    monkeypatch.setitem(CLASSIFIERS._entries, "mine", entry)
    classifier = (
        ClassifierConfig(classifier="mine", weights=str(tmp_path / "net.safetensors")).resolved(tmp_path).build()
    )
    x = torch.rand(4, *SHAPE)
    with torch.no_grad():
        expected = net.float()(x)
        assert torch.equal(classifier(x), expected)
    assert classifier(x).dtype == torch.float32


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_memory_that_ends_is_not_the_classifiers_fault(error: Exception) -> None:
    def refused(_: Tensor) -> NoReturn:
        raise error

    with pytest.raises(type(error)):
        examine(Net(out=refused).eval(), name="mine", image_shape=SHAPE, classes=CLASSES)
