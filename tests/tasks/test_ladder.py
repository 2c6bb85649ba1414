"""Ladders: the minimum for each image, chosen on the attacker's draws; rungs that skip; transfers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coins import LINF, Coin, CoinConfig, by_mean, flat

from defense import ClassifierConfig, DiffPureConfig, DiffusersConfig, InvalidInput, NoPurifierConfig, Omega
from defense.purifiers import PurifierConfig
from tasks.attacks import Given, LadderConfig, PGDConfig, SquareConfig, Target, TransferConfig, perturbation_norms
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig
from tasks.stages import AttackStage, Chunk, Output, images_from_table
from workflows.grid.cells import Cell, Defence, Images

TWO, THREE = ("blind", "bpda"), ("blind", "bpda", "exact")


def coin_target(count: int, draws: int) -> Target:
    labels = torch.zeros(count, dtype=torch.long)
    omega = Omega.of("coin", 0, "select", range(count))
    return Target(by_mean, labels, omega, Coin(), draws=draws, fixed=True)


def test_every_image_gets_the_rung_that_leaves_the_fewest_draws_right() -> None:
    ladder = LadderConfig(rungs=("blind", "bpda", "exact"), **LINF)
    given = [Given(flat(0.1, 0.8, 0.5, 0.0)), Given(flat(0.9, 0.1, 0.5, 0.0)), Given(flat(0.5, 0.5, 0.9, 0.0))]
    found = ladder.combine(coin_target(4, 2000), flat(0, 0, 0, 0), given)
    assert found.columns["rung"].tolist() == [1, 0, 2, 0]
    assert torch.equal(found.images, flat(0.9, 0.8, 0.9, 0.0))
    expected = 1 - torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.1, 0.5], [0.5, 0.5, 0.9], [0, 0, 0]]).double()
    torch.testing.assert_close(found.columns["rights"], expected, rtol=0, atol=4 * (0.25 / 2000) ** 0.5)
    torch.testing.assert_close(found.columns["right"], found.columns["rights"].min(1).values)


def test_a_tie_goes_to_the_higher_loss() -> None:
    ladder = LadderConfig(rungs=("blind", "bpda"), **LINF)
    found = ladder.combine(coin_target(1, 3), flat(0), [Given(flat(2.0)), Given(flat(3.0))])
    assert found.columns["rung"].tolist() == [1]
    assert found.columns["rights"].tolist() == [[0.0, 0.0]]


def test_a_skipped_rung_is_nowhere_compared() -> None:
    ladder = LadderConfig(rungs=("blind", "bpda", "exact"), skip=True, **LINF)
    so_far = Given(
        flat(1.0, 0.5),
        {
            "rung": torch.tensor([0, 1]),
            "right": torch.tensor([0.0, 0.5]),
            "rights": torch.tensor([[0.0, torch.nan], [1.0, 0.5]], dtype=torch.float64),
            "loss": torch.tensor([0.3, -0.1]),
        },
    )
    last = Given(flat(1.0, 0.99), {"skipped": torch.tensor([True, False])})
    target = coin_target(2, 400)
    found = ladder.combine(target, flat(0, 0), [so_far, last])
    assert found.columns["rung"].tolist() == [0, 2]
    assert target.evaluations == 0  # the ladder so far is not judged again, and the skipped image not at all
    rights = found.columns["rights"].numpy()
    np.testing.assert_array_equal(np.isnan(rights), [[False, True, True], [False, False, False]])


def test_an_equal_score_of_spread_leaves_the_earlier_rung() -> None:
    """Rows hold scores in single precision: the same image again is no higher by what that has rounded off."""
    images = flat(*(0.02 * k for k in range(1, 13)))
    first, second = (LadderConfig(rungs=rungs, ties="spread", skip=True, **LINF) for rungs in (TWO, THREE))  # type: ignore[arg-type]
    so_far = first.combine(coin_target(12, 7), images, [Given(images), Given(images)])
    row = {**so_far.columns, "loss": so_far.loss.float()}
    found = second.combine(coin_target(12, 7), images, [Given(images, row), Given(images)])
    assert found.columns["rung"].tolist() == [0] * 12
    assert torch.equal(found.loss, so_far.loss)


def cell(digits: DatasetConfig, cnn: ClassifierConfig, purifier: PurifierConfig, attack: LadderConfig) -> Cell:
    images = Images(digits, (Chunk(tuple(range(24))),))
    return Cell(images, cnn, Defence(purifier, 2, "single"), attack, 0, Compute(batch=7))


def computed(stage: AttackStage, context: Context, done: dict[str, Output]) -> Output:
    """The output of a stage after those of all that it reads, each computed once."""
    if stage.id not in done:
        inputs = {}
        for role, source in stage.inputs().items():
            assert isinstance(source, AttackStage)
            output = computed(source, context, done)
            table = output.images
            assert table is not None
            for name in output.rows.column_names:
                if name not in table.column_names:
                    table = table.append_column(output.rows.schema.field(name), output.rows[name])
            inputs[role] = table
        done[stage.id] = stage.run(Chunk(tuple(range(24))), inputs, context)
    return done[stage.id]


def test_the_rungs_are_the_stages_of_the_same_attacks_alone(digits: DatasetConfig, cnn: ClassifierConfig) -> None:
    alone = PGDConfig(gradient="bpda", steps=4, eot=2, **LINF)
    ladder = LadderConfig(rungs=("blind", "bpda"), steps=4, eot=2, **LINF)
    source = cell(digits, cnn, CoinConfig(), ladder).evaluate.source
    assert source is not None
    assert [rung.id for rung in source.sources] == [
        cell(digits, cnn, CoinConfig(), attack).evaluate.source.id  # type: ignore[arg-type,union-attr]
        for attack in (PGDConfig(steps=4, **LINF), alone)
    ]


@pytest.mark.slow
def test_skipping_changes_nothing_where_nothing_is_random(digits: DatasetConfig, cnn: ClassifierConfig) -> None:
    """On the bare classifier success is a fact: the same images are broken, with fewer evaluations."""
    rungs = ({"attack": "fgsm"}, {"attack": "pgd", "steps": 3}, {"attack": "pgd", "steps": 30})
    context, done = Context(), dict[str, Output]()
    outputs = []
    for skip in (False, True):
        ladder = LadderConfig(rungs=rungs, skip=skip, norm="linf", eps=0.08)  # type: ignore[arg-type]
        source = cell(digits, cnn, NoPurifierConfig(), ladder.on_bare_classifier()).evaluate.source
        assert source is not None
        outputs.append((source, computed(source, context, done).rows))
    (_, everything), (last, skipping) = outputs
    assert 0 < sum(everything["attack_right"].to_pylist()) < 24
    assert everything["attack_right"].equals(skipping["attack_right"])
    rights, fewer = (np.array(rows["attack_rights"].to_pylist()) for rows in (everything, skipping))
    known = ~np.isnan(fewer)
    assert 0 < known.sum() < known.size
    np.testing.assert_array_equal(rights[known], fewer[known])
    # Skipped exactly where an earlier rung had left nothing right, and then at no cost.
    np.testing.assert_array_equal(np.isnan(fewer)[:, 1:], np.minimum.accumulate(rights, 1)[:, :-1] == 0)
    strongest = last.sources[1]
    rows = done[strongest.id].rows
    skipped = np.array(rows["attack_skipped"].to_pylist())
    np.testing.assert_array_equal(skipped, np.isnan(fewer[:, 2]))
    np.testing.assert_array_equal(rows["classifier_evaluations"].to_numpy(), np.where(skipped, 0, 31))


@pytest.mark.slow
def test_a_ladder_on_diffpure_is_the_minimum_of_its_rungs(
    digits: DatasetConfig, cnn: ClassifierConfig, denoiser: DiffusersConfig, context: Context
) -> None:
    purifier = DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=100, steps=3)
    ladder = LadderConfig(rungs=("blind", "exact"), steps=4, eot=2, select=6, norm="linf", eps=0.3)
    done: dict[str, Output] = {}
    source = cell(digits, cnn, purifier, ladder).evaluate.source
    assert source is not None
    rows = computed(source, context, done).rows
    rights = np.array(rows["attack_rights"].to_pylist())
    np.testing.assert_array_equal(rows["attack_right"].to_numpy(), rights.min(1))
    assert rights[:, 1].mean() < rights[:, 0].mean()  # knowing the purifier helps
    # The images are those of the rung that the row names, bit for bit.
    ids = tuple(range(24))
    candidates = [images_from_table(done[rung.id].images, ids) for rung in source.sources]
    best = images_from_table(done[source.id].images, ids)
    for i, rung in enumerate(rows["attack_rung"].to_pylist()):
        np.testing.assert_array_equal(best[i], candidates[rung][i])
    assert len(set(rows["attack_rung"].to_pylist())) == 2
    # The shares are those of the purifier's own draws of the role `select`, which judgement never uses.
    built, network = context.purifier(purifier, cnn), context.classifier(cnn)
    labels = torch.tensor(rows["label"].to_pylist())
    right = []
    for draw in range(6):
        with torch.no_grad():
            purified = built(torch.from_numpy(candidates[1]), Omega.of(purifier.id, 0, "select", ids, draw))
            right.append(network(purified).argmax(1) == labels)
    np.testing.assert_allclose(rights[:, 1], torch.stack(right, 1).double().mean(1).numpy(), atol=1e-12)
    assert rows["denoiser_evaluations"].to_pylist() == [2 * 6 * 3] * 24


def test_named_rungs_are_pgd_with_that_gradient_and_square() -> None:
    ladder = LadderConfig(
        rungs=("blind", "surrogate(2)", "black-box", {"attack": "fgsm"}), steps=7, eot=3, queries=9, **LINF
    )  # type: ignore[arg-type]
    assert ladder.rungs[:3] == (
        PGDConfig(steps=7, **LINF),
        PGDConfig(steps=7, gradient="surrogate(2)", eot=3, **LINF),
        SquareConfig(queries=9, knows="purifier", eot=3, **LINF),
    )
    assert [rung.static for rung in ladder.rungs] == [True, False, False, True]
    assert not ladder.static and ladder.on_bare_classifier().static
    assert len(LadderConfig(**LINF).rungs) == 5  # type: ignore[call-arg]
    # A spec comes back from its own JSON.
    assert LadderConfig.model_validate(ladder.identity()) == ladder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rungs": []}, "rungs is a list"),
        ({"rungs": ["exakt"]}, "'exakt' is none of"),
        ({"rungs": [{"attack": "fgsm", "eps": 0.2}]}, "minima over images compare attacks of one budget"),
        ({"rungs": [{"attack": "ladder"}]}, "itself made of other attacks"),
        ({"rungs": [3]}, "neither a gradient mode"),
        ({"knows": "classifier", "eot": 1}, "a ladder's attacker knows the purifier"),
    ],
)
def test_wrong_ladders_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        LadderConfig.model_validate({**LINF, **fields})


def test_a_transfer_submits_the_other_cells_images_within_its_own_budget(
    digits: DatasetConfig, cnn: ClassifierConfig, context: Context
) -> None:
    other = ClassifierConfig(classifier="digits-at")
    source = PGDConfig(norm="linf", eps=0.2, steps=3)
    attack = TransferConfig(source=source, classifier=other, **LINF).resolved(Path())
    made = cell(digits, cnn, CoinConfig(), attack).evaluate.source  # type: ignore[arg-type]
    assert made is not None and made.purifier is None and made.sources[0].classifier == other.resolved(Path())
    done: dict[str, Output] = {}
    ids = tuple(range(24))
    images = images_from_table(computed(made, context, done).images, ids)
    theirs = images_from_table(done[made.sources[0].id].images, ids)
    x = digits.load().images[:24]
    expected = np.clip(np.clip(theirs, x - 0.15, x + 0.15), 0, 1)
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert perturbation_norms(torch.from_numpy(images), torch.from_numpy(x))["linf"].max() <= 0.15
    # All defences share it; and it is weaker than the attack on the classifier itself.
    again = cell(digits, cnn, NoPurifierConfig(), attack.on_bare_classifier()).evaluate.source  # type: ignore[arg-type]
    assert again is not None and again.id == made.id


def test_a_transfer_comes_from_somewhere_else() -> None:
    inner: dict[str, Any] = {"attack": "pgd", "steps": 2}
    with pytest.raises(InvalidInput, match="needs a `classifier` or a `purifier`"):
        TransferConfig.model_validate({**LINF, "source": inner})
    with pytest.raises(InvalidInput, match="knows a purifier: say which"):
        TransferConfig.model_validate(
            {**LINF, "source": {**inner, "gradient": "bpda"}, "classifier": ClassifierConfig(classifier="digits-at")}
        )
    with pytest.raises(InvalidInput, match="does not look at a purifier"):
        TransferConfig.model_validate({**LINF, "source": inner, "purifier": {"purifier": "jpeg", "quality": 50}})
