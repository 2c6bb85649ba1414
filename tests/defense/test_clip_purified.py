"""CLIPure-Cos: its corrections written out with autograd, its two switches, and what is missing without CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loops import every
from safetensors.torch import save_file
from torch import Tensor, nn

from defense.classifiers import ClassifierConfig
from defense.classifiers.clip_purified import CLIPPurified, CLIPPurifiedConfig
from defense.errors import InvalidInput
from workflows.grid.load import load_sweep


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = 0.5 + 0.1 * random(3, 1, 4, 4)
TEXT, NULL = random(5, 7, seed=1), random(2, 7, seed=2)


class Encoder(nn.Module):
    """16 pixels to 7 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = random(16, 7, seed=3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.weight)


def made(**fields: Any) -> CLIPPurified:
    return CLIPPurified(Encoder(), (4, 4), TEXT, NULL, **fields)


def written_out(x: Tensor, step: float, steps: int, *, batch: bool = False, constant: bool = False) -> Tensor:
    """The formula, with the gradient of the cosine by autograd; ``batch`` as the authors' code norms it."""
    e = Encoder()(x)
    null = F.normalize(NULL, dim=1).mean(0)
    u = e / e.norm(dim=1, keepdim=True)
    for _ in range(steps):
        at = u if u.requires_grad else u.clone().requires_grad_()
        cosine = F.cosine_similarity(at, null.expand_as(at), dim=1).sum()
        (g,) = torch.autograd.grad(cosine, at, create_graph=not constant, retain_graph=True)
        u = u + step * g / (g.norm() if batch else g.norm(dim=1, keepdim=True))
        u = u / u.norm(dim=1, keepdim=True)
    return 100 * u @ F.normalize(TEXT, dim=1).T


@every(("step", "steps"), [(30.0, 10), (0.1, 3), (1.0, 0)])
def test_the_corrections_are_those_of_the_cosine(step: float, steps: int) -> None:
    torch.testing.assert_close(made(step_size=step, steps=steps)(X), written_out(X, step, steps))


@every("constant", [False, True])
def test_the_gradient_follows_the_corrections_or_takes_them_for_constant(constant: bool) -> None:
    net = made(step_size=0.3, steps=3, follow=not constant)
    x, same = (X.clone().requires_grad_() for _ in range(2))
    (found,) = torch.autograd.grad(net(x)[:, 2].sum(), x)
    (expected,) = torch.autograd.grad(written_out(same, 0.3, 3, constant=constant)[:, 2].sum(), same)
    torch.testing.assert_close(found, expected)
    (other,) = torch.autograd.grad(made(step_size=0.3, steps=3, follow=constant)(x)[:, 2].sum(), x)
    assert not torch.allclose(found, other, rtol=1e-2)


def test_a_batch_of_equal_images_is_what_b_ref_stands_for() -> None:
    """The authors' norm of a whole batch makes an image's answer one of how many there are."""
    equal = X[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(made(step_size=2.0, b_ref=3)(X[:1]), written_out(equal, 2.0, 10, batch=True)[:1])
    alone, together = (written_out(x, 2.0, 10, batch=True)[:1] for x in (X[:1], X))
    assert not torch.allclose(alone, together)
    torch.testing.assert_close(made(step_size=2.0)(X)[:1], made(step_size=2.0)(X[:1]))


class TestConfig:
    """The encoder is the digits' CNN, whose ten logits are the embedding."""

    def file(self, folder: Path, width: int = 10, **more: Tensor) -> str:
        tensors = {"classes": torch.eye(10)[:, :width].contiguous(), "null": torch.ones(width), **more}
        save_file(tensors, folder / "text.safetensors")
        return "text.safetensors"

    def test_it_is_a_classifier_whose_files_are_in_its_id(self, tmp_path: Path) -> None:
        entry = {"classifier": "clipure-cos", "encoder": "digits-cnn", "text": self.file(tmp_path), "step_size": 0.2}
        config = ClassifierConfig.from_entry(entry).resolved(tmp_path)
        assert isinstance(config, CLIPPurifiedConfig)
        assert (config.architecture.classes, config.architecture.image_shape) == (10, (1, 8, 8))
        net, x = config.build(), torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        encoder = ClassifierConfig(classifier="digits-cnn").resolved(tmp_path).build()
        plain = CLIPPurified(encoder, (8, 8), torch.eye(10), torch.ones(10), step_size=0.2)
        torch.testing.assert_close(net(x), plain(x))
        large = ClassifierConfig.from_entry({**entry, "image_size": 16}).resolved(tmp_path)
        assert large.architecture.image_shape == (1, 16, 16) and large.id != config.id
        assert large.build()(torch.rand(2, 1, 16, 16)).shape == (2, 10)
        self.file(tmp_path, scale=torch.tensor(20.0))
        again = ClassifierConfig.from_entry(entry).resolved(tmp_path)
        assert again.id != config.id
        torch.testing.assert_close(again.build()(x), net(x) / 5)

    @every(
        ("fields", "message"),
        [
            ({"encoder": "digits-cnn"}, "clipure-cos needs `text`"),
            (
                {"encoder": "digits-cnn", "text": "nothing.safetensors"},
                "text.*nothing.safetensors.*are not there: open_clip makes them",
            ),
            ({"encoder": "resnet20", "text": "text.safetensors"}, "encoder.*needs `weights`"),
            ({"encoder": "digits-cnn", "text": "narrow.safetensors"}, "have 4 and 4 numbers.*have 10"),
            ({"encoder": "digits-cnn", "text": "text.safetensors", "weights": "a"}, "belongs to the `encoder`"),
            ({"encoder": "digits-cnn", "text": "empty.safetensors"}, "hold no `classes`"),
        ],
    )
    def test_what_is_missing_is_said_before_anything_runs(
        self, tmp_path: Path, fields: dict[str, Any], message: str
    ) -> None:
        self.file(tmp_path)
        save_file({"classes": torch.eye(4), "null": torch.ones(4)}, tmp_path / "narrow.safetensors")
        save_file({"other": torch.ones(2)}, tmp_path / "empty.safetensors")
        inner = ", ".join(f"{key}: {value}" for key, value in fields.items())
        (tmp_path / "s.yaml").write_text(
            "datasets: [{dataset: digits, images: {first: 4}}]\n"
            f"classifiers: [{{classifier: clipure-cos, {inner}}}]\n"
            "defences: [none]\nattacks: [none]\n"
        )
        with pytest.raises(InvalidInput, match=rf"s\.yaml:2: classifiers\.0.*{message}"):
            load_sweep(tmp_path / "s.yaml")
