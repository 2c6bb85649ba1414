"""Graphs that stay from the forward pass: fewer steps, the same bits, and no more memory than allowed."""

from __future__ import annotations

import gc

import pytest
import torch
from chains import Chain
from loops import every
from torch import Tensor
from toys import EVERY, gradient, images, omega

from defense import InvalidInput, purify
from defense.gradients import IrreproducibleState, purify_and_deviate
from defense.held_graphs import HeldGraphs, graph_bytes, held_graphs, holding

OMEGA = omega(4, 9, 2)
MUCH = 2.0**30


class Wide(Chain):
    """Ten steps, each of which saves two tensors as large as 100 images."""

    def step(self, i: int, z: Tensor, x: Tensor, omega: object, *, guidance_path: bool = True) -> Tensor:
        self.stepped.append(i)
        wide = torch.sin(z.repeat(1, 100, 1, 1))
        return torch.cos(wide).mean(1, keepdim=True) + 0 * z


def gradients(purifier: Chain, times: int = 1, limit: float = MUCH) -> tuple[list[Tensor], HeldGraphs]:
    graphs = HeldGraphs(limit)
    with holding(graphs):
        return [gradient(lambda x: purify(purifier, x, OMEGA), images()) for _ in range(times)], graphs


def test_the_bytes_of_a_graph_are_those_that_its_operations_save() -> None:
    x = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, 7, dtype=torch.float64)
    assert graph_bytes([x.sin()]) == 3 * 5 * 8
    assert graph_bytes([x.exp().mean()]) == 3 * 5 * 8  # saves its result
    assert graph_bytes([x @ weight]) == 5 * 7 * 8  # x has no use for the way back to x
    assert graph_bytes([x @ weight], {weight.untyped_storage().data_ptr()}) == 0
    # What two operations save, or what is a view of the same memory, is there once.
    assert graph_bytes([x.sin() + x.t().cos().t()]) == 3 * 5 * 8
    assert graph_bytes([x.detach().sin(), x + 1]) == 0


def test_a_step_runs_once_from_the_second_gradient_on() -> None:
    purifier = Chain()
    found, graphs = gradients(purifier, 3)
    assert purifier.stepped == [*range(10), *reversed(range(10)), *range(10), *range(10)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert graphs.held == 0


def test_nobody_holds_graphs_who_is_not_asked_to() -> None:
    purifier = Chain()
    with holding(HeldGraphs(MUCH)), holding(None):
        assert held_graphs() is None
        for _ in range(2):
            gradient(lambda x: purify(purifier, x, OMEGA), images())
    assert held_graphs() is None and len(purifier.stepped) == 40


def test_no_more_is_held_than_the_limit_and_the_rest_is_rebuilt() -> None:
    once, graphs = gradients(Wide(), 1)
    size = next(iter(graphs._sizes.values()))
    assert size >= 100 * images().numel() * images().element_size()
    for count in (0, 1, 3):
        purifier = Wide()
        found, graphs = gradients(purifier, 2, (count + 0.5) * size)
        assert purifier.stepped[20:] == [*range(10), *reversed(range(count, 10))]
        assert torch.equal(found[1], once[0]) and graphs.held == 0


def test_several_graphs_share_the_limit_until_they_are_gone() -> None:
    graphs, purifier = HeldGraphs(MUCH), Wide()
    with holding(graphs):
        gradient(lambda x: purify(purifier, x, OMEGA), images())
        size = next(iter(graphs._sizes.values()))
        graphs.limit = 15.5 * size
        outputs = [purify(purifier, images().requires_grad_(), OMEGA) for _ in range(2)]
        assert graphs.held == 15 * size
        del outputs[0]
        gc.collect()
        assert graphs.held == 5 * size
        outputs[0].sum().backward()
        assert graphs.held == 0


def test_going_back_twice_rebuilds_and_has_the_same_bits() -> None:
    purifier, x = Chain(), images().requires_grad_()
    with holding(HeldGraphs(MUCH)):
        gradient(lambda x: purify(purifier, x, OMEGA), images())
        purifier.stepped.clear()
        out = purify(purifier, x, OMEGA).sum()
        first, second = (torch.autograd.grad(out, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert purifier.stepped == [*range(10), *reversed(range(10))]


def test_each_purifier_and_mode_is_rebuilt_once_whatever_network_they_share() -> None:
    graphs, first, second = HeldGraphs(MUCH), Chain(), Chain()
    with holding(graphs):
        for purifier, mode, steps in (
            (first, "exact", 20),
            (first, "exact", 10),
            (second, "exact", 20),
            (first, "exact-no-guidance-path", 20),
            (second, "exact", 10),
        ):
            purifier.stepped.clear()
            gradient(lambda x, of=purifier, by=mode: purify(of, x, OMEGA, by), images())
            assert len(purifier.stepped) == steps


def test_a_surrogate_is_that_of_its_purifier_though_it_is_made_anew() -> None:
    purifier, graphs = EVERY["gdmp mse"], HeldGraphs(MUCH)
    with holding(graphs):
        gradient(lambda x: purify(purifier, x, OMEGA, "surrogate(2)"), images())
        out = purify(purifier, images().requires_grad_(), OMEGA, "surrogate(2)")
        assert graphs.held > 0
        del out


def test_what_gives_way_is_all_but_the_one_graph_that_is_needed_anyway() -> None:
    _, graphs = gradients(Wide(), 2)
    size = next(iter(graphs._sizes.values()))
    assert graphs.most == 10 * size and graphs.beyond_need == 9 * size
    graphs.begin()
    assert graphs.most == graphs.beyond_need == 0


def test_the_first_gradient_still_finds_a_step_that_is_not_a_function_of_its_arguments() -> None:
    class Spoilt(Chain):
        def step(self, i: int, z: Tensor, x: Tensor, omega: object, *, guidance_path: bool = True) -> Tensor:
            return torch.sin(z) + 1e-6 * torch.randn_like(z)

    with pytest.raises(IrreproducibleState, match="after step 9"):
        gradients(Spoilt())


@pytest.mark.slow
@every(
    ("name", "mode", "limit"),
    [
        (name, mode, limit)
        for name in EVERY
        for mode in ("exact", "surrogate(2)", "exact-no-guidance-path", "exact-no-second-moment", "soft")
        for limit in (2e4, MUCH)
    ],
)
def test_the_bits_are_those_without_for_every_purifier_and_mode(name: str, mode: str, limit: float) -> None:
    purifier, x = EVERY[name], images()
    expected = gradient(lambda x: purify(purifier, x, OMEGA, mode, segment=2), x)
    with holding(HeldGraphs(limit)):
        for _ in range(2):
            assert torch.equal(gradient(lambda x: purify(purifier, x, OMEGA, mode, segment=2), x), expected)


@pytest.mark.slow
@every(("name", "segment"), [(name, segment) for name in EVERY for segment in (1, 3)])
def test_the_same_with_deviations(name: str, segment: int) -> None:
    purifier = EVERY[name]

    def found() -> Tensor:
        x = images().requires_grad_()
        purified, deviation = purify_and_deviate(purifier, x, OMEGA, "exact", every=2, segment=segment)
        (value,) = torch.autograd.grad(purified.square().sum() + deviation.square().sum(), x)
        return value

    try:
        expected = found()
    except InvalidInput as error:
        assert "does not noise" in str(error)
        return
    with holding(HeldGraphs(MUCH)):
        for _ in range(2):
            assert torch.equal(found(), expected)
