"""Rows of attacks and judgements agree with a recomputation by hand, whatever the batch and the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defense import ClassifierConfig, NoPurifierConfig, Omega, Purifier, get_schedule
from defense.denoisers import digits_denoiser
from defense.models import Models
from defense.purifiers import PurifierConfig, SSNIConfig
from defense.purifiers.ssni import expected_perturbation_score
from tasks.attacks import PGDConfig, Target
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig, ImageSet
from tasks.stages import AttackStage, Chunk, EvaluateStage, images_from_table, images_to_table

IDS = (4, 17, 3, 598, 42, 7)
CHUNK = Chunk(IDS)


def changed(stage: Any, **update: Any) -> Any:
    """The stage with other fields, validated like a new one."""
    return type(stage).model_validate({**{k: getattr(stage, k) for k in type(stage).model_fields}, **update})


def stored(table: pa.Table, name: str) -> npt.NDArray[Any]:
    return np.array(table[name].to_pylist())


def test_attack_rows_are_what_the_stored_images_say(
    attack: AttackStage, context: Context, network: nn.Module, digits_test: ImageSet
) -> None:
    output = attack.run(CHUNK, {}, context)
    rows, images = output.rows, output.images
    assert images is not None and rows["image_id"].to_pylist() == list(IDS)
    adversarial = images_from_table(images, IDS)
    x, y = digits_test.images[list(IDS)], digits_test.labels[list(IDS)]
    assert rows["label"].to_pylist() == y.tolist()
    with torch.no_grad():
        before, after = network(torch.from_numpy(x)), network(torch.from_numpy(adversarial))
    assert rows["clean_prediction"].to_pylist() == before.argmax(1).tolist()
    assert rows["adversarial_prediction"].to_pylist() == after.argmax(1).tolist()
    loss = F.cross_entropy(after.double(), torch.from_numpy(y), reduction="none")
    np.testing.assert_allclose(stored(rows, "loss"), loss, rtol=1e-5, atol=1e-5)
    delta = (adversarial.astype(np.float64) - x).reshape(len(IDS), -1)
    assert stored(rows, "linf").tolist() == np.abs(delta).max(1).tolist()
    np.testing.assert_allclose(stored(rows, "l2"), np.sqrt((delta**2).sum(1)), rtol=1e-12)
    assert (stored(rows, "linf") <= 0.15).all() and (stored(rows, "linf") > 0.149).any()
    assert rows["classifier_evaluations"].to_pylist() == [4] * len(IDS)
    # The attack does something, else all of the above is about clean images.
    clean = F.cross_entropy(before.double(), torch.from_numpy(y), reduction="none")
    assert (stored(rows, "loss") > clean.numpy()).all()


def test_attack_images_are_those_of_the_attack_run_by_hand(
    attack: AttackStage, context: Context, network: nn.Module, digits_test: ImageSet
) -> None:
    images = attack.run(CHUNK, {}, context).images
    assert images is not None
    found = []
    for part in (IDS[:4], IDS[4:]):  # compute.batch is 4
        x, y = torch.from_numpy(digits_test.images[list(part)]), torch.from_numpy(digits_test.labels[list(part)])
        omega = Omega.of(attack.attack.id, 0, "attack", part)
        found.append(attack.attack.run(Target(network, y, omega), x, omega).images)
    assert np.array_equal(images_from_table(images, IDS), torch.cat(found).numpy())


@pytest.mark.slow
def test_a_units_rows_are_the_same_bit_for_bit_when_it_is_run_again(
    attack: AttackStage, evaluate: EvaluateStage, context: Context
) -> None:
    first = attack.run(CHUNK, {}, context)
    second = attack.run(CHUNK, {}, Context("cpu"))
    assert first.rows.equals(second.rows) and first.images is not None and first.images.equals(second.images)
    inputs = {"source": first.images}
    # Other work before it, in the same process, has no influence.
    judged = evaluate.run(CHUNK, inputs, context).rows
    torch.manual_seed(5)
    torch.rand(7)
    evaluate.run(Chunk((1, 2)), {"source": images_to_table((1, 2), torch.rand(2, 1, 8, 8))}, context)
    assert evaluate.run(CHUNK, inputs, context).rows.equals(judged)


def by_hand(
    stage: EvaluateStage, x: npt.NDArray[np.float32], network: nn.Module, ids: tuple[int, ...] = IDS
) -> npt.NDArray[np.float64]:
    """Probabilities (images, draws, classes), one image and one draw at a time."""
    purifier = stage.purifier.build()
    found = np.empty((len(ids), stage.draws, 10))
    for row, image in enumerate(ids):
        for draw in range(stage.draws):
            omega = Omega(stage.purifier.id, stage.seed, "judge", (image,), (draw,))
            with torch.no_grad():
                logits = network(purifier(torch.from_numpy(x[row : row + 1]), omega))[0].double().numpy()
            weight = np.exp(logits - logits.max())
            found[row, draw] = weight / weight.sum()
    return found


@pytest.mark.slow
def test_judged_rows_are_what_draw_by_draw_purification_gives(
    evaluate: EvaluateStage, context: Context, network: nn.Module, digits_test: ImageSet
) -> None:
    assert evaluate.source is not None
    images = evaluate.source.run(CHUNK, {}, context).images
    assert images is not None
    rows = evaluate.run(CHUNK, {"source": images}, context).rows
    labels = digits_test.labels[list(IDS)]
    expected = by_hand(evaluate, images_from_table(images, IDS), network)
    assert rows["image_id"].to_pylist() == list(IDS) and rows["label"].to_pylist() == labels.tolist()
    assert rows["prediction"].to_pylist() == expected.argmax(2).tolist()
    of_label = expected[np.arange(len(IDS)), :, labels]
    np.testing.assert_allclose(stored(rows, "label_probability"), of_label, rtol=0, atol=1e-5)
    np.testing.assert_allclose(stored(rows, "mean_probability"), expected.mean(1), rtol=0, atol=1e-5)
    # The draws differ, else a draw that is used twice would go unseen.
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 1e-3 < np.abs(expected[:, 1] - expected[:, 2]).max()
    level = evaluate.purifier.noise_level
    assert level is not None and level.t_star == 60
    assert rows["t_star"].to_pylist() == [60] * len(IDS)
    abar = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:60])
    np.testing.assert_allclose(stored(rows, "abar"), abar, rtol=1e-9)
    np.testing.assert_allclose(stored(rows, "sigma_eq"), np.sqrt((1 - abar) / abar) / 2, rtol=1e-9)
    assert rows["denoiser_evaluations"].to_pylist() == [6] * len(IDS)
    assert rows["classifier_evaluations"].to_pylist() == [3] * len(IDS)


def test_the_bare_classifier_on_clean_images_has_the_accuracy_that_its_card_says(
    digits: DatasetConfig, cnn: ClassifierConfig, context: Context, network: nn.Module, digits_test: ImageSet
) -> None:
    chunk = Chunk(tuple(range(599)))
    shared: dict[str, Any] = {"dataset": digits, "classifier": cnn, "seed": 0, "compute": Compute()}
    stage = EvaluateStage(source=None, purifier=NoPurifierConfig(), draws=1, **shared)
    rows = stage.run(chunk, {}, context).rows
    with torch.no_grad():
        plain = network(torch.from_numpy(digits_test.images)).argmax(1).tolist()
    assert [votes[0] for votes in rows["prediction"].to_pylist()] == plain
    right = np.array(plain) == digits_test.labels
    assert round(float(right.mean()), 6) == 0.993322
    assert rows["t_star"].null_count == rows["abar"].null_count == rows["sigma_eq"].null_count == 599
    assert rows["denoiser_evaluations"].to_pylist() == [0] * 599
    assert rows["classifier_evaluations"].to_pylist() == [1] * 599


def columns(rows: pa.Table, image: int) -> npt.NDArray[np.float64]:
    """All probabilities of one image."""
    row = rows["image_id"].to_pylist().index(image)
    return np.array(rows["label_probability"][row].as_py() + rows["mean_probability"][row].as_py())


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_an_images_rows_do_not_depend_on_its_chunk_or_batch(
    evaluate: EvaluateStage, context: Context, batch: int
) -> None:
    clean = changed(evaluate, source=None)
    whole = clean.run(CHUNK, {}, context).rows
    stage = changed(clean, compute=Compute(batch=batch))
    for ids in ((42,), (3, 42), (42, 7, 100, 101, 102, 4)):
        rows = stage.run(Chunk(ids), {}, context).rows
        for image in set(ids) & set(IDS):
            np.testing.assert_allclose(columns(rows, image), columns(whole, image), rtol=0, atol=1e-6)
            place, other = rows["image_id"].to_pylist().index(image), IDS.index(image)
            assert rows["prediction"][place].as_py() == whole["prediction"][other].as_py()


class Spy(Purifier):
    """Keeps the randomness that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Omega] = []

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        self.seen.append(omega)
        return x


class SpyConfig(PurifierConfig):
    purifier: Literal["spy"] = "spy"

    def label(self) -> str:
        return "spy"

    def build(self, models: Models | None = None) -> Spy:
        return Spy()


def test_all_budgets_of_a_defence_are_judged_on_the_same_draws_and_no_attacker_has_them(
    evaluate: EvaluateStage,
) -> None:
    config, seen = SpyConfig(), []
    stages = [changed(evaluate, purifier=config, source=None)]
    for eps in (0.1, 0.2):
        pgd = PGDConfig(norm="linf", eps=eps, steps=1)
        stages.append(changed(evaluate, purifier=config, source=changed(evaluate.source, attack=pgd)))
    for stage in stages:
        context = Context()
        stage.run(CHUNK, {"source": images_to_table(IDS, torch.zeros(len(IDS), 1, 8, 8))}, context)
        spy = context.purifier(config, stages[0].classifier)
        assert isinstance(spy, Spy)
        seen.append(spy.seen)
    # Batches of four, filled with all images of the first draw, then of the next.
    elements = [(image, draw) for draw in range(3) for image in IDS]
    expected = [
        Omega.of(config.id, 0, "judge", *zip(*elements[start : start + 4], strict=True)) for start in range(0, 18, 4)
    ]
    assert seen == [expected] * 3
    # Another seed is other draws; the attack's own randomness has another role and another spec.
    context = Context()
    changed(stages[0], seed=1).run(CHUNK, {}, context)
    spy = context.purifier(config, stages[0].classifier)
    assert isinstance(spy, Spy) and {omega.seed for omega in spy.seen} == {1}


@pytest.mark.slow
def test_paired_cells_differ_by_their_images_alone(evaluate: EvaluateStage, context: Context) -> None:
    """Given the same images as those of two attacks, the rows of two cells are equal bit for bit."""
    table = images_to_table(IDS, torch.rand(len(IDS), 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    other = changed(evaluate, source=changed(evaluate.source, attack=PGDConfig(norm="l2", eps=3.0, steps=1)))
    assert other.id != evaluate.id
    inputs = {"source": table}
    assert evaluate.run(CHUNK, inputs, context).rows.equals(other.run(CHUNK, inputs, context).rows)
    reseeded = changed(evaluate, seed=1)
    assert not reseeded.run(CHUNK, inputs, context).rows.equals(evaluate.run(CHUNK, inputs, context).rows)


class Broken(Purifier):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        x = x.clone()
        x[-1, 0, 0, 0] = self.value
        return x


class BrokenConfig(PurifierConfig):
    purifier: Literal["broken"] = "broken"
    how: Literal["nan", "inf"]

    def label(self) -> str:
        return "broken"

    def build(self, models: Models | None = None) -> Broken:
        return Broken(float(self.how))


@pytest.mark.parametrize("how", ["nan", "inf"])
def test_nan_is_an_error_and_never_a_prediction(evaluate: EvaluateStage, context: Context, how: str) -> None:
    stage = changed(evaluate, source=None, purifier=BrokenConfig.model_validate({"how": how}))
    with pytest.raises(FloatingPointError, match="NaN or infinite probabilities"):
        stage.run(CHUNK, {}, context)


def test_running_out_of_memory_changes_rows_by_rounding_only(evaluate: EvaluateStage, cnn: ClassifierConfig) -> None:
    class Small(Purifier):
        """Takes no more than two images at a time."""

        def forward(self, x: Tensor, omega: Omega) -> Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError
            return x + 0.1 * omega.normal("forward", 0, x)

    class SmallConfig(SpyConfig):
        def build(self, models: Models | None = None) -> Any:
            return Small()

    class LargeConfig(SpyConfig):
        def build(self, models: Models | None = None) -> Any:
            large = Small()
            large.forward = lambda x, omega: x + 0.1 * omega.normal("forward", 0, x)  # type: ignore[method-assign]
            return large

    small, large = Context(), Context()
    found = changed(evaluate, source=None, purifier=SmallConfig()).run(CHUNK, {}, small).rows
    expected = changed(evaluate, source=None, purifier=LargeConfig()).run(CHUNK, {}, large).rows
    assert (small.memory_retries, large.memory_retries) == (1, 0)
    for image in IDS:
        np.testing.assert_allclose(columns(found, image), columns(expected, image), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_rows_say_the_time_of_each_draw_where_the_purifier_chooses_it(
    context: Context, evaluate: EvaluateStage
) -> None:
    denoiser = digits_denoiser().resolved(Path())
    reference = {"minimum": 60.0, "maximum": 600.0, "mean": 180.0, "images": 9, "levels": 2, "data": "none"}
    purifier = SSNIConfig.model_validate(
        {
            "denoiser": denoiser,
            "schedule": "linear-1000",
            "t_star": 50,
            "steps": 2,
            "reference": {**reference, "denoiser": denoiser.id},
        }
    )
    stage = changed(evaluate, source=None, purifier=purifier, draws=2)
    rows = stage.run(CHUNK, {}, context).rows
    times = rows["draw_t_star"].to_pylist()
    for row, image in enumerate(IDS):
        for draw in range(2):
            omega = Omega.of(purifier.id, stage.seed, "judge", (image,), draw)
            x = torch.from_numpy(context.images(stage.dataset).images[[image]])
            score = expected_perturbation_score(denoiser.build(), x, omega, 2)
            assert abs(times[row][draw] - min(round(float((score - 60) / 540 * 50 + 5)), 55)) <= 1
    assert len({time for row in times for time in row}) > 1
    levels = [[get_schedule("linear-1000").level(time) for time in row] for row in times]
    assert rows["draw_abar"].to_pylist() == [[level.abar for level in row] for row in levels]
    assert rows["draw_sigma_eq"].to_pylist() == [[level.sigma_eq for level in row] for row in levels]
    assert rows["t_star"].to_pylist() == [row[0] for row in times]
    other = changed(evaluate, source=None, draws=2).run(CHUNK, {}, context).rows
    assert "draw_t_star" not in other.column_names
