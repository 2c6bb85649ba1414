"""Losses against closed forms, on networks whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm as normal
from torch import Tensor, nn

from defense import InvalidInput
from defense.classifiers import DigitsCNN, Normalised
from tasks.attacks import Norm, perturbation_norms
from tasks.attacks.region import Region
from workflows.training.methods import (
    METHODS,
    AdversarialTraining,
    Gaussian,
    LogitPairing,
    Macer,
    Method,
    Standard,
    Trades,
    TradesAWP,
)
from workflows.training.methods import awp as awp_module
from workflows.training.methods import trades as trades_module
from workflows.training.methods.alp import pairing
from workflows.training.methods.at import adversarial
from workflows.training.methods.awp import perturbation
from workflows.training.methods.inner import evaluation_mode, gaussian_start, maximise, uniform_start
from workflows.training.methods.macer import macer_loss, margin
from workflows.training.methods.trades import divergent, trades_loss

EXAMPLES: dict[str, Method] = {
    "standard": Standard(),
    "gaussian": Gaussian(noise=0.2),
    "at": AdversarialTraining(norm="linf", eps=0.1, steps=2),
    "at-alp": LogitPairing(norm="l2", eps=0.5, steps=2),
    "trades": Trades(norm="linf", eps=0.1, steps=2),
    "trades-awp": TradesAWP(norm="linf", eps=0.1, steps=2),
    "macer": Macer(noise=0.2, samples=3),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 8, 8, generator=generator(7)), torch.arange(count) % 10


def digits_net() -> Normalised:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Normalised(DigitsCNN(), (0.3,), (0.4,)).train()


class Linear(nn.Module):
    """``f(x) = W x`` of flattened images."""

    def __init__(self, classes: int = 3, pixels: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(classes, pixels, generator=generator(1)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    result: np.ndarray = e / e.sum(1, keepdims=True)
    return result


class TestEveryMethod:
    def test_all_are_tried_here(self) -> None:
        assert set(METHODS.names()) == set(EXAMPLES)

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_the_loss_is_a_function_of_its_arguments_and_has_gradients_for_all_weights(self, name: str) -> None:
        method, (x, y) = EXAMPLES[name], batch()
        losses = []
        for _ in range(2):
            net = digits_net()
            with torch.random.fork_rng():
                torch.manual_seed(5)  # dropout
                loss = method.loss(net, x, y, generator(), 0)
            torch.autograd.backward(loss)
            assert net.training
            assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
            losses.append(float(loss.detach()))
        assert loss.shape == ()
        assert losses[0] == losses[1]

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_weights_stay_as_they_are(self, name: str) -> None:
        net, (x, y) = digits_net(), batch()
        before = {key: value.clone() for key, value in net.named_parameters()}
        EXAMPLES[name].loss(net, x, y, generator(), 0)
        assert all(torch.equal(value, before[key]) for key, value in net.named_parameters())
        assert all(p.grad is None for p in net.parameters())  # the inner attack leaves nothing behind

    @pytest.mark.parametrize(("name", "passes"), [(n, 2 if n.startswith("trades") else 1) for n in EXAMPLES])
    def test_batch_norm_sees_the_batch_of_the_loss_only(self, name: str, passes: int) -> None:
        # The attacks run in evaluation mode, and the search for the worst weights on copies.
        net, (x, y) = digits_net(), batch()
        EXAMPLES[name].loss(net, x, y, generator(), 0)
        counters = [int(value) for key, value in net.named_buffers() if key.endswith("num_batches_tracked")]
        assert counters == [passes] * 3

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_without_dropout_the_generator_is_the_only_source_of_randomness(self, name: str) -> None:
        (x, y), net = batch(), digits_net().eval()
        before = torch.get_rng_state()
        first = EXAMPLES[name].loss(net, x, y, generator(3), 0).detach()
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(5)
        assert torch.equal(EXAMPLES[name].loss(net, x, y, generator(3), 0), first)


class TestParameters:
    def test_eps_may_be_given_in_255ths(self) -> None:
        assert Trades.model_validate({"norm": "linf", "eps_255": 8}).eps == 8 / 255
        with pytest.raises(InvalidInput, match="give either"):
            Trades.model_validate({"norm": "linf", "eps_255": 8, "eps": 0.1})

    def test_the_step_size_rule(self) -> None:
        assert Trades(norm="linf", eps=0.2, steps=10).size == pytest.approx(0.05)
        assert Trades(norm="linf", eps=0.2, steps=10, step_size=0.01).size == 0.01

    @pytest.mark.parametrize(
        "wrong", [{"eps": 0.0}, {"steps": 0}, {"step_size": 0.0}, {"norm": "l1"}, {"beta": -1.0}]
    )
    def test_wrong_parameters_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InvalidInput, match="Input should be"):
            Trades.model_validate({"norm": "linf", "eps": 0.1, **wrong})


class TestInner:
    @settings(max_examples=25)
    @given(
        norm=st.sampled_from(["linf", "l2"]),
        eps=st.floats(0.01, 0.8),
        steps=st.integers(1, 4),
        seed=st.integers(0, 99),
        kind=st.sampled_from(["ce", "kl"]),
    )
    def test_the_result_is_inside_ball_and_range(
        self, norm: Norm, eps: float, steps: int, seed: int, kind: str
    ) -> None:
        x = torch.rand(5, 1, 2, 2, generator=generator(seed))
        method, net, y = Trades(norm=norm, eps=eps, steps=steps), Linear(), torch.arange(5) % 3
        if kind == "ce":
            found = adversarial(method, net, x, y, generator(seed))
        else:
            found = divergent(method, net, x, generator(seed))
        assert perturbation_norms(found, x)[norm].max() <= eps
        assert found.min() >= 0 and found.max() <= 1
        assert not found.requires_grad

    def test_the_maximum_of_a_linear_loss_in_a_cube_is_its_corner(self) -> None:
        x = torch.full((2, 1, 2, 2), 0.5)
        slope = torch.tensor([[[[1.0, -2.0], [0.5, -0.1]]]])
        region = Region(x, "linf", 0.1)
        found = maximise(lambda images: (slope * images).sum(), region, x, 4, 0.05)
        torch.testing.assert_close(found, x + 0.1 * slope.sign())
        region = Region(x, "l2", 0.1)
        found = maximise(lambda images: (slope * images).sum(), region, x, 4, 0.05)
        torch.testing.assert_close(found, x + 0.1 * slope / slope.norm())

    def test_starts(self) -> None:
        x = torch.full((4000, 1, 2, 2), 0.5)
        cube = uniform_start(Region(x, "linf", 0.3), generator()) - x
        assert float(cube.std()) == pytest.approx(0.3 / 3**0.5, rel=0.02)
        ball = (uniform_start(Region(x, "l2", 0.3), generator()) - x).flatten(1).norm(dim=1)
        assert float(ball.mean()) == pytest.approx(0.3 * 4 / 5, rel=0.02)  # E r = D / (D + 1) for D pixels
        small = gaussian_start(Region(x, "linf", 0.3), generator()) - x
        assert float(small.std()) == pytest.approx(1e-3, rel=0.03)

    def test_evaluation_mode_ends_even_with_an_error(self) -> None:
        net = digits_net()
        with pytest.raises(RuntimeError), evaluation_mode(net):
            assert not any(module.training for module in net.modules())
            raise RuntimeError
        assert all(module.training for module in net.modules())


class TestGaussian:
    @given(noise=st.floats(0.05, 2.0))
    @settings(max_examples=10)
    def test_the_noise_has_its_standard_deviation_and_is_not_clipped(self, noise: float) -> None:
        seen: list[Tensor] = []

        def net(x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(len(x), 10)

        x = torch.full((300, 1, 8, 8), 0.5)
        loss = Gaussian(noise=noise).loss(net, x, torch.zeros(300, dtype=torch.long), generator(), 0)  # type: ignore[arg-type]
        assert float(loss) == pytest.approx(np.log(10), rel=1e-5)
        assert float((seen[0] - x).std()) == pytest.approx(noise, rel=0.03)
        assert float((seen[0] - x).mean()) == pytest.approx(0, abs=0.03 * noise)
        assert noise < 0.3 or float(seen[0].min()) < 0

    def test_standard_training_sees_the_images(self) -> None:
        seen: list[Tensor] = []
        net: Any = lambda x: (seen.append(x), torch.zeros(len(x), 10))[1]  # noqa: E731
        x, y = batch()
        Standard().loss(net, x, y, generator(), 0)
        assert torch.equal(seen[0], x)


class TestTrades:
    def test_the_loss_is_cross_entropy_plus_beta_kl_by_hand(self) -> None:
        net = Linear()
        x, attacked = torch.rand(2, 5, 1, 2, 2, generator=generator()).unbind()
        y = torch.tensor([0, 1, 2, 0, 1])
        weight = net.weight.detach().double().numpy()
        p, q = (softmax(images.double().flatten(1).numpy() @ weight.T) for images in (x, attacked))
        by_hand = np.mean(-np.log(p[np.arange(5), y])) + 6 * np.mean((p * np.log(p / q)).sum(1))
        assert float(trades_loss(net, x, attacked, y, 6.0).detach()) == pytest.approx(by_hand, rel=1e-5)

    def test_the_method_takes_this_loss_at_its_own_attack(self) -> None:
        net, x, y = Linear(), torch.rand(5, 1, 2, 2, generator=generator()), torch.tensor([0, 1, 2, 0, 1])
        method = Trades(norm="linf", eps=0.2, steps=5, beta=3.0)
        attacked = divergent(method, net, x, generator(4))
        expected = trades_loss(net, x, attacked, y, 3.0)
        assert float(method.loss(net, x, y, generator(4), 0)) == float(expected)

    def test_the_attack_raises_the_divergence_from_the_small_start(self) -> None:
        net, x = Linear(scale=5.0), torch.rand(20, 1, 2, 2, generator=generator())
        method = Trades(norm="linf", eps=0.1, steps=10)
        found = divergent(method, net, x, generator())
        start = gaussian_start(Region(x, "linf", 0.1), generator())
        far, near = (float(trades_module._divergence(net(images), net(x))) for images in (found, start))
        assert far > 100 * near
        assert perturbation_norms(found, x)["linf"].max() == pytest.approx(0.1, abs=1e-6)

    def test_gradients_flow_through_the_clean_image_too(self) -> None:
        net, (x, attacked) = Linear(), torch.rand(2, 5, 1, 2, 2, generator=generator()).unbind()
        y = torch.zeros(5, dtype=torch.long)
        (gradient,) = torch.autograd.grad(trades_loss(net, x, attacked, y, 6.0), net.weight)
        weight, step = net.weight.detach().double(), 1e-5
        x, attacked = x.double(), attacked.double()

        def at(change: Tensor) -> float:
            f: Callable[[Tensor], Tensor] = lambda images: images.flatten(1) @ (weight + change).T  # noqa: E731
            p, q = F.log_softmax(f(x), 1), F.log_softmax(f(attacked), 1)
            return float(F.nll_loss(p, y) + 6 * (p.exp() * (p - q)).sum(1).mean())

        for place in ((0, 0), (1, 2), (2, 3)):
            change = torch.zeros_like(weight)
            change[place] = step
            assert float(gradient[place]) == pytest.approx(
                (at(change) - at(-change)) / (2 * step), rel=1e-3, abs=1e-5
            )


class TestLogitPairing:
    def test_the_pairing_term_is_the_mean_squared_distance(self) -> None:
        clean, attacked = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [3.0, 4.0]])
        assert float(pairing(clean, attacked)) == (4 + 25) / 2

    def test_the_loss_is_the_mixed_batch_plus_the_weighted_pairing(self) -> None:
        net, x, y = Linear(), torch.rand(4, 1, 2, 2, generator=generator()), torch.tensor([0, 1, 2, 0])
        method = LogitPairing(norm="linf", eps=0.2, steps=3, weight=0.7)
        attacked = adversarial(method, net, x, y, generator(2))
        expected = (F.cross_entropy(net(x), y) + F.cross_entropy(net(attacked), y)) / 2
        expected = expected + 0.7 * (net(x) - net(attacked)).square().sum(1).mean()
        assert float(method.loss(net, x, y, generator(2), 0)) == pytest.approx(float(expected), rel=1e-5)


class TestAdversarialTraining:
    def test_the_loss_is_the_cross_entropy_of_the_attacked_images(self) -> None:
        net, x, y = Linear(), torch.rand(4, 1, 2, 2, generator=generator()), torch.tensor([0, 1, 2, 0])
        method = AdversarialTraining(norm="l2", eps=0.3, steps=3)
        expected = F.cross_entropy(net(adversarial(method, net, x, y, generator(2))), y)
        assert float(method.loss(net, x, y, generator(2), 0)) == float(expected)
        assert float(expected) > float(F.cross_entropy(net(x), y))


class TestWeightPerturbation:
    @given(gamma=st.floats(1e-4, 0.5), scale=st.floats(1e-3, 1e3))
    @settings(max_examples=20)
    def test_it_has_the_stated_norm_relative_to_each_layer(self, gamma: float, scale: float) -> None:
        net = digits_net()
        weights: dict[str, Tensor] = dict(net.named_parameters())
        gradients = {name: scale * torch.randn(w.shape, generator=generator()) for name, w in weights.items()}
        moved = perturbation(weights, gradients, gamma)
        assert set(moved) == {name for name, weight in weights.items() if weight.dim() > 1}
        assert len(moved) == 5  # three convolutions and two linear layers
        for name, change in moved.items():
            assert float(change.norm() / weights[name].norm()) == pytest.approx(gamma, rel=1e-4)
            cosine = F.cosine_similarity(change.double().flatten(), gradients[name].double().flatten(), 0)
            assert float(cosine) == pytest.approx(1)

    def test_the_gradient_is_that_at_the_perturbed_weights(self) -> None:
        net, x, y = Linear(), torch.rand(5, 1, 2, 2, generator=generator()), torch.tensor([0, 1, 2, 0, 1])
        method = TradesAWP(norm="linf", eps=0.2, steps=3, gamma=0.1)
        attacked = divergent(method, net, x, generator(4))
        (ascent,) = torch.autograd.grad(trades_loss(net, x, attacked, y, 6.0), net.weight)
        other = Linear()
        with torch.no_grad():
            other.weight.add_(0.1 * net.weight.norm() * ascent / ascent.norm())
        worse = trades_loss(other, x, attacked, y, 6.0)
        (expected,) = torch.autograd.grad(worse, other.weight)
        loss = method.loss(net, x, y, generator(4), 0)
        (gradient,) = torch.autograd.grad(loss, net.weight)
        assert float(loss) == pytest.approx(float(worse), rel=1e-5)
        torch.testing.assert_close(gradient, expected)
        assert float(loss) > float(trades_loss(net, x, attacked, y, 6.0))

    def test_before_the_warm_up_is_over_it_is_trades(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net, (x, y) = digits_net().eval(), batch()
        plain = float(Trades(norm="linf", eps=0.1, steps=2).loss(net, x, y, generator(), 0))
        method = TradesAWP(norm="linf", eps=0.1, steps=2, warm_up=10)
        assert float(method.loss(net, x, y, generator(), 9)) == plain
        assert float(method.loss(net, x, y, generator(), 10)) > plain
        monkeypatch.setattr(awp_module, "perturbation", None)
        assert float(TradesAWP(norm="linf", eps=0.1, steps=2, gamma=0.0).loss(net, x, y, generator(), 0)) == plain


class TestMacer:
    @given(p=st.lists(st.floats(0.01, 1), min_size=3, max_size=6), right=st.integers(0, 2))
    def test_the_margin_is_the_difference_of_the_quantiles(self, p: list[float], right: int) -> None:
        shares = np.array(p) / sum(p)
        expected = normal.ppf(shares[right]) - normal.ppf(np.delete(shares, right).max())
        found = margin(torch.tensor(shares, dtype=torch.float64)[None], torch.tensor([right]))
        assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-9)

    def test_a_certain_answer_has_a_finite_margin_past_the_hinge(self) -> None:
        certain = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
        found = margin(certain, torch.tensor([0]))
        assert 8 < float(found) < 10
        torch.autograd.backward(found.sum())
        assert certain.grad is not None and certain.grad.isfinite().all()

    def test_the_loss_by_hand_on_known_probabilities(self) -> None:
        # Two noised copies each of three images; the second is wrong, the third is past the hinge.
        p = np.array(
            [[[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]], [[0.1, 0.8, 0.1], [0.3, 0.4, 0.3]], [[1 - 2e-9, 1e-9, 1e-9]] * 2]
        )
        logits, y = torch.tensor(np.log(p), dtype=torch.float64), torch.tensor([0, 0, 0])
        smooth = p.mean(1)
        classification = -np.log(smooth[:, 0]).mean()
        xi = normal.ppf(smooth[0, 0]) - normal.ppf(smooth[0, 1])
        by_hand = classification + 12.0 * 0.25 / 2 * (8 - xi) / 3
        assert float(macer_loss(logits, y, 0.25, 12.0, 8.0, 1.0)) == pytest.approx(by_hand, rel=1e-6)

    def test_the_radius_term_sharpens_with_beta_and_the_classification_does_not(self) -> None:
        p = np.array([[[0.5, 0.3, 0.2]]])
        logits, y = torch.tensor(np.log(p)), torch.tensor([0])
        sharp = (p**2 / (p**2).sum()).ravel()
        by_hand = -np.log(0.5) + 3.0 * 0.5 / 2 * (8 - (normal.ppf(sharp[0]) - normal.ppf(sharp[1])))
        assert float(macer_loss(logits, y, 0.5, 3.0, 8.0, 2.0)) == pytest.approx(by_hand, rel=1e-6)

    def test_the_copies_of_an_image_belong_together(self) -> None:
        seen: list[Tensor] = []
        net: Any = lambda x: (seen.append(x), x.flatten(1)[:, :3])[1]  # noqa: E731
        x = torch.tensor([0.0, 10.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
        Macer(noise=0.1, samples=500).loss(net, x, torch.tensor([0, 1]), generator(), 0)
        assert seen[0].shape == (1000, 1, 2, 2)
        assert seen[0][:500].mean() < 1 and seen[0][500:].mean() > 9
        assert float(seen[0][:500].std()) == pytest.approx(0.1, rel=0.05)
