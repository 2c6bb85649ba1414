"""The strongest attack: shortlists on fresh draws, draws by cosine, and rungs that go on from the worst image."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from coins import LINF, Coin, CoinConfig, by_mean, flat
from torch import Tensor

from defense import ClassifierConfig, InvalidInput, NoPurifierConfig, Omega, Purifier
from defense.purifiers import JPEGConfig, PurifierConfig
from tasks.attacks import APGDConfig, DiffHammerConfig, LadderConfig, PGDConfig, StrongestConfig, Target
from tasks.attacks.draws import by_cosine, cosines
from tasks.attacks.losses import PointLoss, margin, point_loss
from tasks.attacks.shortlist import Shortlist, Ties, rejudged, spread_score
from tasks.attacks.target import Evaluation
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig
from tasks.stages import AttackStage, Chunk, Output, images_from_table
from workflows.grid.cells import Cell, Defence, Images

KNOWING: dict[str, Any] = {**LINF, "gradient": "exact", "eot": 2}
IDS = tuple(range(12))


class Turned(Purifier):
    """A draw keeps each half of the pixels or not: gradients of two draws are orthogonal, or the same."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        noise = omega.normal("turned", 0, x)
        return x * (1 + self.size * noise)


def target(count: int, draws: int = 2, purifier: Purifier | None = None, role: str = "eot") -> Target:
    labels = torch.zeros(count, dtype=torch.long)
    return Target(by_mean, labels, Omega.of("p", 0, role, range(count)), purifier or Coin(), draws=draws)


def test_a_shortlist_holds_the_points_of_highest_loss_and_the_last_of_each_run() -> None:
    kept = Shortlist(flat(0, 0), kept=2)
    for value, losses in ((0.1, (1.0, 5.0)), (0.2, (3.0, 4.0)), (0.3, (2.0, 6.0))):
        kept.see(flat(value, value), torch.tensor(losses))
    kept.end_run()
    kept.see(flat(0.4, 0.4), torch.tensor([0.0, 0.0]))
    kept.end_run()
    means = [images.flatten(1).mean(1).tolist() for images in kept.candidates()]
    assert means == [pytest.approx(pair) for pair in ([0.3, 0.3], [0.4, 0.4], [0.2, 0.3], [0.3, 0.1])]
    assert torch.equal(kept.loss, torch.tensor([3.0, 6.0]))


def test_spread_is_the_mean_margin_over_its_deviation() -> None:
    logits = torch.tensor([[[3.0, 0.0], [1.0, 0.0]], [[0.0, 4.0], [0.0, 0.0]], [[2.0, 0.0], [2.0, 0.0]]])
    score = spread_score(logits, torch.zeros(3, dtype=torch.long))
    assert score.tolist() == [pytest.approx(-2.0), pytest.approx(1.0), pytest.approx(-2000.0)]
    assert spread_score(logits[:, :1], torch.zeros(3, dtype=torch.long)).tolist() == [-3.0, 4.0, -2.0]


@pytest.mark.parametrize(("ties", "kept"), [("margin", 0), ("spread", 1)])
def test_of_images_that_no_draw_gets_wrong_spread_keeps_the_one_that_varies(ties: Ties, kept: int) -> None:
    """The second point is the better one by the mean margin, and the one that fails at times."""
    points = [flat(0.3), flat(0.2)]
    noise = torch.tensor([0.0, 0.5, -0.5, 0.4]).view(1, 4, 1)

    class Draws(Target):
        def logits(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1).view(-1, 1, 1)
            right = 1 - mean + noise * (mean < 0.25)
            return torch.cat([right.expand(len(x), 4, 1), torch.zeros(len(x), 4, 1)], 2)

    aimed = Draws(by_mean, torch.zeros(1, dtype=torch.long), Omega.of("p", 0, "eot", range(1)), Coin(), draws=4)
    images, _ = rejudged(aimed, points, margin, 4, ties)
    assert torch.equal(images, points[kept])


def test_candidates_are_judged_on_the_same_draws_which_are_not_those_of_the_steps() -> None:
    attacked = target(3)
    images, loss = rejudged(attacked, [flat(0.2, 0.8, 0.5), flat(0.6, 0.1, 0.5), flat(0.4, 0.4, 0.5)], margin, 400)
    assert torch.equal(images, flat(0.6, 0.8, 0.5))
    # The mean margin of an image of mean m is m + 1/2 - 1, on draws that saw no choice.
    torch.testing.assert_close(loss, torch.tensor([0.1, 0.3, 0.0]), rtol=0, atol=4 * (1 / 12 / 400) ** 0.5)
    own = Omega.of("p", 0, "eot/reselect", range(3), 0)
    values = [by_mean(Coin()(flat(0.6, 0.8, 0.5), Omega.of("p", 0, own.role, range(3), k))) for k in range(400)]
    expected = torch.stack([margin(value, attacked.labels) for value in values]).mean(0)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    assert attacked.tally.evaluations[0] == attacked.evaluations / 3 == 1200


@pytest.mark.parametrize("config", [PGDConfig, APGDConfig, DiffHammerConfig])
def test_the_loss_of_a_chosen_image_is_no_lucky_one(config: Any) -> None:
    """The coin decides nearly all of the loss: the highest of 9 single draws is near its maximum, 1/2 too high."""
    x, count = torch.full((64, 1, 2, 2), 0.5), 64
    excess = {}
    for reselect in (None, 8):
        fields = {"losses": ("margin",)} if config is DiffHammerConfig else {"loss": "margin"}
        attack = config(norm="linf", eps=0.01, gradient="exact", steps=8, reselect=reselect, **fields)
        attack = attack.model_copy(update={"eot": 1})
        found = attack.run(target(count, 1), x, Omega.of("a", 0, "attack", range(count)))
        truth = found.images.flatten(1).mean(1) - 0.5
        excess[reselect] = float((found.loss - truth).mean())
    assert excess[None] > 0.3 and abs(excess[8]) < 0.06


def test_the_cosine_of_two_draws() -> None:
    same = torch.ones(1, 4, 1, 2, 2)
    split = torch.eye(4).view(1, 4, 1, 2, 2)
    mixed = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]]).view(1, 3, 2)
    assert cosines(same).item() == pytest.approx(1)
    assert cosines(split).item() == pytest.approx(0)
    assert cosines(mixed).item() == pytest.approx(1 / 3)
    assert cosines(torch.zeros(1, 3, 2)).item() == 0


def test_draws_follow_the_cosine_and_steps_the_budget() -> None:
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = point_loss("margin")
    (certain,) = by_cosine(target(6), x, loss, steps=20, eot=10)  # the coin moves no gradient
    assert (certain.draws, certain.steps, len(certain.positions)) == (1, 201, 6)
    noisy = by_cosine(target(6, purifier=Turned(2.0)), x, loss, steps=20, eot=10)
    assert sum(len(part.positions) for part in noisy) == 6
    for part in noisy:
        assert part.draws in (1, 2, 4, 8, 16) and part.steps == 202 // part.draws - 1
    # The gradient of a pixel is 1 + 2 n: the cosine of two draws is near 1 / 5, which takes 17 draws; 16 is the most.
    assert max(part.draws for part in noisy) == 16
    alone = by_cosine(target(6, purifier=Turned(2.0)).select(torch.tensor([4])), x[4:5], loss, steps=20, eot=10)
    assert [part.draws for part in alone] == [part.draws for part in noisy if 4 in part.positions.tolist()]


def test_each_image_is_attacked_with_its_own_draws() -> None:
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    attack = PGDConfig(**KNOWING, steps=30, loss="margin", eot_by="cosine", reselect=4)
    omega = Omega.of("a", 0, "attack", range(6))
    aimed = target(6, purifier=Turned(2.0))
    found = attack.run(aimed, x, omega)
    assert float((found.images - x).abs().max()) <= 0.15 + 1e-7
    assert float((found.images.flatten(1).mean(1) - x.flatten(1).mean(1)).min()) > 0.05  # up, which fools
    part = aimed.select(torch.tensor([1, 5]))
    again = attack.run(part, x[[1, 5]], omega.select([1, 5]))
    assert torch.equal(found.images[[1, 5]], again.images)


def test_named_rungs_of_the_strongest() -> None:
    attack = StrongestConfig(steps=5, eot=3, select=6, queries=9, **LINF)
    names = ["pgd", "pgd", "pgd", "pgd", "pgd", "square", "diffhammer", "pgd", "pgd"]
    assert [rung.attack for rung in attack.rungs] == names
    assert [bool(rung.parameter("warm")) for rung in attack.rungs] == [False] * 7 + [True] * 2
    assert attack.alone == 7 and {rung.parameter("reselect") for rung in attack.rungs[6:]} == {6}
    assert {rung.parameter("ties") for rung in attack.rungs[6:]} == {"spread"}
    hammer = attack.rungs[6]
    assert isinstance(hammer, DiffHammerConfig) and (hammer.steps, len(hammer.losses)) == (15, 3)
    refine, soft = attack.rungs[-2:]
    assert isinstance(refine, PGDConfig)
    assert (refine.steps, refine.eot_by, refine.decay) == (40, "cosine", "from-eps")
    assert refine.attacked == "mean-probability"
    assert attack.rungs[0] == PGDConfig(steps=5, **LINF)  # what a ladder has: one stage for both
    assert StrongestConfig.model_validate(attack.identity()) == attack
    vote = attack.against("majority-vote")
    assert [rung.attacked for rung in vote.rungs[1:5]] == ["vote"] * 4 and vote.rungs[6] == attack.rungs[6]
    assert attack.against("single") == attack.against("mean-probability") == attack
    certain = attack.against("single", stochastic=False)
    assert certain.select == 1 and certain.rungs[-1].parameter("reselect") == 1
    # Soft rungs are the exact ones through other gradients, and go where there are none.
    assert [attack.rungs[i].gradient for i in (3, 4, 7, 8)] == ["exact", "soft"] * 2
    assert soft.model_copy(update={"gradient": "exact"}) == refine
    assert attack.on(JPEGConfig(quality=50)) == attack
    plain = attack.on(CoinConfig())
    assert [rung.id for rung in plain.rungs] == [rung.id for rung in attack.rungs if rung.gradient != "soft"]
    alone = StrongestConfig(rungs=("bpda", "soft"), **LINF)  # type: ignore[arg-type]
    assert alone.on(CoinConfig()) == alone
    bare = attack.on_bare_classifier()
    assert bare.rungs == plain.on_bare_classifier().rungs  # the soft ones are no others there
    assert all(rung.static and rung.parameter("reselect") is None for rung in bare.rungs)


def test_two_classes_have_no_dlr_and_the_named_rung_leaves_it_out() -> None:
    attack = StrongestConfig(steps=5, **LINF)
    with pytest.raises(InvalidInput, match="dlr needs at least 3 classes"):
        attack.check_task(2, (1, 8, 8))
    attack.for_classes(2).check_task(2, (1, 8, 8))
    assert attack.for_classes(2).rungs[6].parameter("losses") == ("margin", "ce")
    assert attack.for_classes(3) == attack
    asked = StrongestConfig.model_validate({**LINF, "rungs": ["blind", {"attack": "diffhammer", "losses": ["dlr"]}]})
    assert asked.for_classes(2) == asked


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rungs": ["refine"]}, "is the first: put another before it"),
        ({"rungs": ["blind", "apgd", "exact"]}, "list the rungs with `warm` last"),
        ({"rungs": ["blind", "refine", "diffhammer"]}, "list the rungs with `warm` last"),
        ({"skip": True}, "attacks every image to the end"),
        ({"rungs": ["exakt"]}, "'exakt' is none of .*black-box, diffhammer, apgd, refine, refine"),
        ({"rungs": [{"attack": "ladder"}]}, "itself made of other attacks"),
        ({"rungs": [{"attack": "strongest"}]}, "itself made of other attacks"),
        ({"rungs": [{"attack": "fgsm", "eps": 0.2}]}, "minima over images compare attacks of one budget"),
    ],
)
def test_wrong_ones_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        StrongestConfig.model_validate({**LINF, **fields})


def test_what_makes_no_sense_alone_is_refused() -> None:
    with pytest.raises(InvalidInput, match="only `attack: strongest` hands on"):
        LadderConfig.model_validate({**LINF, "rungs": ["blind", {"attack": "pgd", "warm": True}]})
    with pytest.raises(InvalidInput, match="the bare classifier has no draws: remove `reselect`"):
        PGDConfig(**LINF, reselect=4)
    with pytest.raises(InvalidInput, match="those of the judgement are known"):
        APGDConfig(**LINF, knows="randomness", reselect=4)
    with pytest.raises(InvalidInput, match="leaves nothing to choose from"):
        PGDConfig(**KNOWING, keep="last", reselect=4)
    with pytest.raises(InvalidInput, match="`eot_by: cosine` is for attackers"):
        PGDConfig(**LINF, eot_by="cosine")
    with pytest.raises(InvalidInput, match="no images to start from"):
        PGDConfig(**KNOWING, warm=True).run(target(1), flat(0.5), Omega.of("a", 0, "attack", range(1)))


def test_new_fields_are_in_no_id_at_their_defaults() -> None:
    for config in (PGDConfig(**KNOWING), APGDConfig(**KNOWING), DiffHammerConfig(**KNOWING)):
        assert not {"reselect", "warm", "decay", "eot_by", "ties"} & set(config.identity())
        assert config.model_copy(update={"reselect": 4}).id != config.id


def test_linear_decay_walks_as_far_in_all() -> None:
    """The gradient of the mean pixel is the same everywhere: n steps of one length, and n that shrink."""
    x, omega = torch.full((1, 1, 2, 2), 0.5), Omega.of("a", 0, "attack", range(1))
    ends = []
    for decay in ("none", "linear"):
        fields = {"norm": "linf", "eps": 0.4, "steps": 4, "step_size": 0.02, "keep": "last", "decay": decay}
        attack = PGDConfig.model_validate({**fields, "random_start": False, "loss": "margin"})
        ends.append(float(attack.run(target(1, 1), x, omega).images.mean()))
    assert ends == [pytest.approx(0.58)] * 2


@pytest.mark.parametrize("steps", [1, 4, 40])
def test_decay_from_eps_starts_with_steps_of_eps_however_many_there_are(steps: int) -> None:
    """Steps are eps (1 - (k + 1/2)/n), to and fro across the middle, where the loss is highest."""
    x, omega = torch.full((1, 1, 2, 2), 0.5), Omega.of("a", 0, "attack", range(1))
    fields = {"norm": "linf", "eps": 0.4, "steps": steps, "keep": "last", "decay": "from-eps", "random_start": False}
    visited: list[float] = []

    def classify(images: torch.Tensor) -> torch.Tensor:
        mean = images.flatten(1).mean(1)
        visited.append(float(mean[0].detach()))
        bend = -(mean - 0.5).square()
        return torch.stack([-bend, bend], 1)

    PGDConfig.model_validate({**fields, "loss": "margin"}).run(
        replace(target(1, 1), classifier=classify, purifier=None), x + 0.0123, omega
    )
    lengths = [abs(b - a) for a, b in itertools.pairwise(visited)]
    assert lengths == [pytest.approx(0.4 * (1 - (k + 0.5) / steps), abs=1e-6) for k in range(len(lengths))]


def test_a_step_size_beside_decay_from_eps_is_refused() -> None:
    with pytest.raises(InvalidInput, match="begins with steps of eps: remove `step_size`"):
        PGDConfig.model_validate({"norm": "linf", "eps": 0.1, "decay": "from-eps", "step_size": 0.01})


def cell(digits: DatasetConfig, cnn: ClassifierConfig, purifier: PurifierConfig, attack: LadderConfig) -> Cell:
    images = Images(digits, (Chunk(IDS),))
    return Cell(images, cnn, Defence(purifier, 2, "single"), attack, 0, Compute(batch=5))


def computed(stage: AttackStage, context: Context, done: dict[str, Output]) -> Output:
    """The output of a stage after those of all that it reads, each computed once."""
    if stage.id not in done:
        inputs: dict[str, pa.Table] = {}
        for role, source in stage.inputs().items():
            assert isinstance(source, AttackStage)
            output = computed(source, context, done)
            table = output.images
            assert table is not None
            for name in output.rows.column_names:
                if name not in table.column_names:
                    table = table.append_column(output.rows.schema.field(name), output.rows[name])
            inputs[role] = table
        done[stage.id] = stage.run(Chunk(IDS), inputs, context)
    return done[stage.id]


@pytest.mark.slow
def test_a_warm_rung_starts_from_the_worst_image_of_all_before(digits: DatasetConfig, cnn: ClassifierConfig) -> None:
    still = {"attack": "pgd", "gradient": "exact", "eot": 2, "steps": 1, "step_size": 1e-6, "warm": True}
    attack = StrongestConfig.model_validate(
        {**LINF, "rungs": ["blind", "exact", still, "refine"], "steps": 4, "eot": 2, "select": 8}
    )
    context, done = Context(), dict[str, Output]()
    last = cell(digits, cnn, CoinConfig(), attack).attack_stage
    assert last is not None
    rows = computed(last, context, done).rows
    rights = np.array(rows["attack_rights"].to_pylist())
    assert rights.shape == (12, 4)
    np.testing.assert_array_equal(rows["attack_right"].to_numpy(), rights.min(1))
    before, refine = last.sources
    alone, start = before.sources
    worst, moved = (images_from_table(done[stage.id].images, IDS) for stage in (alone, start))
    assert np.abs(worst - moved).max() <= 2e-6
    assert refine.after == before and start.after == alone and last.after is None
    best = images_from_table(done[last.id].images, IDS)
    candidates = [images_from_table(done[stage.id].images, IDS) for stage in (*alone.sources, start, refine)]
    for i, rung in enumerate(rows["attack_rung"].to_pylist()):
        np.testing.assert_array_equal(best[i], candidates[rung][i])
    assert rights.min(1).mean() < rights[:, 0].mean()


def test_a_ladder_and_the_strongest_share_their_blind_rung(digits: DatasetConfig, cnn: ClassifierConfig) -> None:
    stages = [
        cell(
            digits, cnn, CoinConfig(), kind.model_validate({**LINF, "rungs": ["blind", "exact"], "steps": 10})
        ).attack_stage
        for kind in (LadderConfig, StrongestConfig)
    ]
    first, second = stages
    assert first is not None and second is not None
    assert first.sources[0].id == second.sources[0].id and first.sources[1].id != second.sources[1].id


def test_on_a_bare_classifier_it_is_static(digits: DatasetConfig, cnn: ClassifierConfig) -> None:
    attack = StrongestConfig.model_validate({**LINF, "rungs": ["blind", "bpda", "apgd"], "steps": 3})
    attack = attack.on_bare_classifier()
    stage = cell(digits, cnn, NoPurifierConfig(), attack).attack_stage
    assert stage is not None and stage.purifier is None
    rows = computed(stage, Context(), {}).rows
    assert set(np.unique(np.array(rows["attack_rights"].to_pylist()))) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", [PGDConfig, APGDConfig])
def test_of_several_restarts_the_first_goes_on_and_the_others_start_anew(kind: type[PGDConfig | APGDConfig]) -> None:
    attacked, seen = target(2), []
    plain = attacked.differentiate

    def watched(x: Tensor, loss: PointLoss) -> Evaluation:
        seen.append(x)
        return plain(x, loss)

    attacked.differentiate = watched  # type: ignore[method-assign]
    attack = kind(**KNOWING, steps=1, restarts=3, warm=True)
    x, start = flat(0.5, 0.4), flat(0.55, 0.45)
    attack.run_from(attacked, x, Omega.of("a", 0, "attack", range(2)), start)
    assert torch.equal(seen[0], start)
    others = [at for at in seen[1:] if (at - x).flatten(1).std(dim=1).min() > 0.01]  # random ones are not flat
    assert len(others) == 2 and not torch.equal(*others)
