"""What a target counts, and what it makes of draws that vote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from defense import InvalidInput, Omega, Purifier
from tasks.attacks import APGDConfig, SquareConfig, Target, perturbation_norms
from tasks.attacks.losses import margin, point_loss
from tasks.attacks.target import Tally
from workflows.grid.load import load_sweep

IDS = (7, 3, 11)
LABELS = torch.tensor([0, 1, 0])


class Shift(Purifier):
    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return x + 0.1 * omega.normal("shift", 0, x)


def classify(x: Tensor) -> Tensor:
    """Zero gradient below a mean of 0.5, NaN where a pixel is exactly 0."""
    mean = (x.sqrt().square()).flatten(1).mean(1)
    return torch.stack([torch.zeros_like(mean), (mean - 0.5).relu()], 1)


def target(purifier: Purifier | None = None, draws: int = 1) -> Target:
    return Target(classify, LABELS, Omega.of("spec", 0, "attack", IDS), purifier, draws=draws)


def test_evaluations_and_useless_gradients_are_counted_by_image() -> None:
    x = torch.full((3, 1, 2, 2), 0.9)
    x[1] = 0.2
    x[2, 0, 0, 0] = 0.0
    attacked = target()
    attacked.differentiate(x, margin)
    attacked.evaluate(x, margin)
    attacked.select(torch.tensor([1])).differentiate(x[1:2], margin)
    tally = attacked.tally
    assert dict(tally.evaluations) == {7: 2, 3: 3, 11: 2}
    assert dict(tally.gradients) == {7: 1, 3: 2, 11: 1}
    assert dict(tally.zero) == {3: 2}
    assert dict(tally.nan) == {11: 1}


def test_a_gradient_is_useless_if_it_is_zero_everywhere_or_not_finite_anywhere() -> None:
    inf = torch.inf
    values = [[0.0, -0.0], [0.0, -1e-44], [1.0, inf], [-inf, 0.0], [torch.nan, inf], [0.0, torch.nan], [-3.0, 2.0]]
    tally = Tally()
    tally.see((0, 1, 2, 3, 4, 5, 6), torch.tensor(values))
    tally.see((0, 0), torch.tensor([[0.0, 0.0], [0.0, 0.0]]))  # an image twice, as queries in a batch are
    assert dict(tally.zero) == {0: 3}
    assert dict(tally.nan) == {2: 1, 3: 1, 4: 1, 5: 1}
    assert dict(tally.gradients) == {0: 3, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1}


def test_every_draw_is_an_evaluation() -> None:
    attacked = target(Shift(), draws=4)
    x = torch.full((3, 1, 2, 2), 0.9)
    attacked.per_draw(x, margin)
    attacked.pull_back(x, torch.tensor([0, 1, 2]), torch.ones_like(x))
    assert dict(attacked.tally.evaluations) == dict.fromkeys(IDS, 5)


def test_an_attacked_vote_is_that_of_the_answers_and_not_of_their_certainty() -> None:
    """Two draws are just right, one is very wrong: the mean of the logits is wrong, the vote is right."""
    logits = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 9.0]]])
    votes = Target(classify, LABELS[:1], Omega.of("spec", 0, "attack", (0,)), attacked="vote")
    means = Target(classify, LABELS[:1], Omega.of("spec", 0, "attack", (0,)), attacked="mean-logits")
    assert votes.over_draws(logits, margin)[0] < 0 < means.over_draws(logits, margin)[0]
    ce = votes.over_draws(logits, point_loss("ce"))
    assert float(ce) == pytest.approx(-torch.tensor(2 / 3).log().item(), rel=1e-3)


def blobs(x: Tensor) -> Tensor:
    """Three classes by the means of three rows."""
    return 6 * x.mean((1, 3))[:, :3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        APGDConfig(norm="linf", eps=0.12, steps=6, loss="dlr", restarts=3, stop_on_success=True),
        APGDConfig(norm="linf", eps=0.12, steps=6, loss="dlr-targeted", targets=2, stop_on_success=True),
        SquareConfig(norm="linf", eps=0.12, queries=600, stop_on_success=True),
        SquareConfig(norm="l2", eps=0.3, queries=600, stop_on_success=True),
    ],
    ids=lambda attack: attack.method(),
)
def test_stopping_on_success_saves_evaluations_and_changes_no_verdict(attack: APGDConfig | SquareConfig) -> None:
    def logits(x: Tensor) -> Tensor:
        wide = blobs(x)
        return torch.cat([wide, wide.mean(1, keepdim=True) - 3], 1)  # a fourth class, for the targeted loss

    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    labels = logits(x).argmax(1)
    ids = tuple(range(40))
    found, spent = {}, {}
    for stops in (True, False):
        config = attack.model_copy(update={"stop_on_success": stops})
        attacked = Target(logits, labels, Omega.of("spec", 0, "attack", ids))
        images = config.run(attacked, x, Omega.of("spec", 0, "attack", ids)).images
        assert perturbation_norms(images, x)[attack.norm].max() <= attack.eps
        found[stops] = logits(images).argmax(1) == labels
        spent[stops] = torch.tensor([attacked.tally.evaluations[i] for i in ids])
    assert 0 < int(found[False].sum()) < 40
    assert torch.equal(found[True], found[False])
    assert (spent[True] <= spent[False] + 2).all() and spent[True].sum() < 0.9 * spent[False].sum()
    # An image that holds out is attacked to the end.
    assert (spent[True][found[True]] >= spent[False][found[True]]).all()


@pytest.mark.parametrize(
    ("defence", "attack", "fine"),
    [
        ("none", "", True),
        ("{purifier: gaussian-noise, sigma: 0.1}", ", gradient: exact", False),
        ("{purifier: jpeg, quality: 50}", ", gradient: exact", True),
        ("{purifier: jpeg, quality: 50}", "", False),
    ],
)
def test_stopping_on_success_is_refused_where_it_overrates(
    tmp_path: Path, defence: str, attack: str, fine: bool
) -> None:
    entry = f"{{attack: apgd, norm: linf, eps: 0.1, steps: 5, stop_on_success: true{attack}}}"
    file = tmp_path / "sweep.yaml"
    file.write_text(f"datasets: [digits]\nclassifiers: [digits-cnn]\ndefences: [{defence}]\nattacks: [{entry}]\n")
    if fine:
        assert len(load_sweep(file).cells) == 1
    else:
        with pytest.raises(InvalidInput, match="stops on success, which would overrate"):
            load_sweep(file)
