"""LPIPS from local weights, against the package that it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defense import InvalidInput
from defense.checkpoints import load_state_dict
from defense.guidance import distance
from defense.lpips import LpipsConfig, LpipsDistance
from defense.torchvision_cpu import allow_torchvision_import


def backbone() -> nn.Module:
    allow_torchvision_import()
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: nn.Module = alexnet(weights=None)
    return net


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in torchvision's layout, with random weights and a classifier of a few rows."""
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    state = {key: value for key, value in backbone().state_dict().items() if key.startswith("features.")}
    torch.save({**state, "classifier.1.weight": torch.zeros(2, 2)}, path)
    return path


@pytest.fixture(scope="module")
def network(weights: Path) -> LpipsDistance:
    return LpipsConfig(weights=weights.name).resolved(weights.parent).build()


def pair(side: int = 32, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    a, b = (2 * torch.rand(2, channels, side, side, generator=generator) - 1 for _ in range(2))
    return a, b


def reference() -> Any:
    """The package's own network around the same backbone."""
    import lpips

    net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    features = backbone().features
    for name, slice_ in net.net.named_children():
        assert name.startswith("slice")
        for index, layer in slice_.named_children():
            layer.load_state_dict(features[int(index)].state_dict())
    return net


@pytest.mark.slow
def test_it_is_the_package_s_distance_with_these_weights(network: LpipsDistance) -> None:
    a, b = pair()
    with torch.no_grad():
        found, expected = network(a, b), reference()(a, b).flatten()
    assert found.shape == (2,) and found.min() > 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(distance("lpips", network)(a, b), expected, rtol=1e-6, atol=1e-8)


def test_identical_images_are_at_distance_zero_and_pairs_do_not_mix(network: LpipsDistance) -> None:
    a, b = pair()
    assert torch.equal(network(a, a), torch.zeros(2))
    torch.testing.assert_close(network(a[1:], b[1:]), network(a, b)[1:], rtol=1e-5, atol=0)


def test_grey_images_are_those_of_three_equal_channels(network: LpipsDistance) -> None:
    a, b = pair(channels=1)
    assert torch.equal(network(a, b), network(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)))


def test_it_is_frozen_in_evaluation_mode_and_differentiable_in_the_images(network: LpipsDistance) -> None:
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())
    a, b = pair()
    a.requires_grad_()
    (slope,) = torch.autograd.grad(network(a, b).sum(), a, create_graph=True)
    assert slope.norm() > 0
    (second,) = torch.autograd.grad(slope.square().sum(), a)
    assert second.isfinite().all() and second.norm() > 0


@pytest.mark.parametrize(("side", "fits"), [(31, True), (30, False), (8, False)])
def test_images_that_the_backbone_cannot_take_are_refused(network: LpipsDistance, side: int, fits: bool) -> None:
    a, b = pair(side)
    if fits:
        assert network(a, b).isfinite().all()
    else:
        with pytest.raises(InvalidInput, match=rf"at least 31 pixels a side, not \({side}, {side}\)"):
            network(a, b)


def test_the_weights_are_in_the_id_and_where_they_lie_is_not(weights: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.pth"
    moved.write_bytes(weights.read_bytes())
    here, there = (LpipsConfig(weights=str(path)).resolved(Path()) for path in (weights, moved))
    assert here.id == there.id and here.sha256 is not None and len(here.sha256) == 64
    torch.save({key: 2 * value for key, value in load_state_dict(weights).items()}, moved)
    assert LpipsConfig(weights=str(moved)).resolved(Path()).id != here.id


def test_no_weights_a_missing_file_and_another_hash_are_reported(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"alexnet-owt-7be5be79.pth of torchvision.*never fetched silently"):
        LpipsConfig().resolved(tmp_path)
    with pytest.raises(InvalidInput, match=r"nothing\.pth"):
        LpipsConfig(weights="nothing.pth").resolved(tmp_path)
    with pytest.raises(InvalidInput, match=r"sha256|hash"):
        LpipsConfig(weights=str(weights), sha256="0123456789").resolved(tmp_path)
    with pytest.raises(ValueError, match="resolve the config"):
        LpipsConfig(weights=str(weights)).build()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["missing", "shape", "other"])
def test_a_file_of_another_network_is_refused(weights: Path, tmp_path: Path, how: str) -> None:
    state = dict(load_state_dict(weights))
    if how == "missing":
        del state["features.3.weight"]
    elif how == "shape":
        state["features.3.weight"] = state["features.3.weight"][:5]
    else:
        state = {"conv1.weight": torch.zeros(3)}
    wrong = tmp_path / "wrong.pth"
    torch.save(state, wrong)
    with pytest.raises(
        InvalidInput, match=r"are not of the architecture torchvision's alex backbone: .* The file is alexnet-owt"
    ):
        LpipsConfig(weights=str(wrong)).resolved(tmp_path).build()
