"""Networks are asked ceil(images x draws / batch) times, and get the same elements however those are packed."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import every
from torch import Tensor, nn

from defense.certify.certificate import Role
from defense.classifiers import ClassifierConfig
from defense.purifiers import PURIFIERS, Purifier
from defense.randomness import Omega
from tasks.attacks import ATTACKS
from tasks.compute import Compute, Context
from tasks.datasets import DigitsConfig
from tasks.stages import AttackStage, Chunk, EvaluateStage, QualityStage, SampleStage, Smoothed
from tasks.stages.base import images_to_table
from tasks.stages.quality import QualityConfig

SEED = 3
"""What every stage here is computed with."""
NOISE = PURIFIERS.get("gaussian-noise")(sigma=0.3)
CLASSIFIER = ClassifierConfig(classifier="digits-cnn").resolved(Path())


class Counting(Context):
    """Notes each call of the purifier: how many elements, and which (image, draw) they are."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.calls: list[list[tuple[int, int]]] = []

    def purifier(self, config: Any, protecting: Any) -> Purifier:
        return _Noting(super().purifier(config, protecting), self.calls)  # type: ignore[return-value]


class _Noting(nn.Module):
    def __init__(self, inner: nn.Module, calls: list[list[tuple[int, int]]]) -> None:
        super().__init__()
        self.inner = inner
        self.calls = calls

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        self.calls.append(list(zip(omega.image_ids, omega.draws, strict=True)))
        result: Tensor = self.inner(x, omega)
        return result


@pytest.fixture
def context() -> Iterator[Counting]:
    yield Counting()


def evaluate(batch: int, draws: int) -> EvaluateStage:
    return EvaluateStage(
        dataset=DigitsConfig(),
        source=None,
        classifier=CLASSIFIER,
        purifier=NOISE,
        draws=draws,
        seed=SEED,
        compute=Compute(batch=batch),
    )


def measured(batch: int) -> QualityStage:
    return QualityStage(
        dataset=DigitsConfig(),
        source=None,
        classifier=None,
        purifier=NOISE,
        quality=QualityConfig(),
        seed=SEED,
        compute=Compute(batch=batch),
    )


@pytest.mark.parametrize(
    ("images", "draws", "batch", "calls"),
    [(20, 20, 400, 1), (20, 20, 399, 2), (7, 5, 10, 4), (100, 3, 100, 3), (30, 2, 7, 9), (1, 1, 100, 1)],
)
def test_evaluate_asks_ceil_of_images_x_draws_by_batch_times(
    context: Counting, images: int, draws: int, batch: int, calls: int
) -> None:
    chunk = Chunk(tuple(range(10, 10 + images)))
    evaluate(batch, draws).run(chunk, {}, context)
    assert len(context.calls) == calls == ceil(images * draws / batch)
    assert all(len(call) == batch for call in context.calls[:-1])
    seen = [element for call in context.calls for element in call]
    assert sorted(seen) == [(image, draw) for image in chunk.ids for draw in range(draws)]


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_every_judging_stage_asks_as_few_times_as_its_batch_allows(data: st.DataObject) -> None:
    """Of any sizes: what is left of a batch is filled, no batch is larger, and every element is asked once."""
    images, draws, batch = (data.draw(st.integers(1, most)) for most in (12, 9, 40))
    chunk, context = Chunk(tuple(range(10, 10 + images))), Counting()
    elements = [(image, draw) for image in chunk.ids for draw in range(draws)]
    first = batch * data.draw(st.integers(0, 2))  # a range of estimation samples begins with a batch
    for stage, asked in {
        evaluate(batch, draws): elements,
        measured(batch): [(image, 0) for image in chunk.ids],
        sampled("certify-estimate", images, first, draws, batch)[0]: [(i, first + k) for i, k in elements],
        sampled("certify-select", images, 0, draws, batch)[0]: elements,
    }.items():
        context.calls.clear()
        stage.run(chunk, {}, context)
        assert sorted(element for call in context.calls for element in call) == asked
        assert max(map(len, context.calls)) <= batch
        whole = isinstance(stage, SampleStage) and stage.role == "certify-select" and draws < batch
        expected = ceil(images / (batch // draws)) if whole else ceil(len(asked) / batch)  # those are never divided
        assert len(context.calls) == expected


@pytest.mark.slow
def test_packing_changes_no_answer_and_probabilities_by_rounding_alone(context: Counting) -> None:
    chunk = Chunk(tuple(range(17)))
    one_by_one, *others = (evaluate(batch, 6).run(chunk, {}, context).rows for batch in (1, 5, 17, 102))
    for other in others:
        assert other.drop(["label_probability", "mean_probability"]).equals(
            one_by_one.drop(["label_probability", "mean_probability"])
        )
        for name in ("label_probability", "mean_probability"):
            first, second = (np.array(table[name].to_pylist()) for table in (one_by_one, other))
            assert np.abs(first - second).max() < 1e-5
    # The draws differ, so a draw in the place of another would be seen.
    assert len({tuple(row) for row in np.array(one_by_one["label_probability"].to_pylist()).T.round(4)}) == 6


def test_full_batches_of_one_draw_are_what_they_were_bit_for_bit(context: Counting) -> None:
    """Where images fill whole batches, the calls are those of one draw at a time."""
    chunk, draws, batch = Chunk(tuple(range(40, 60))), 3, 10
    evaluate(batch, draws).run(chunk, {}, context)
    ids = chunk.ids
    assert context.calls == [
        [(image, draw) for image in ids[start : start + batch]] for draw in range(draws) for start in (0, 10)
    ]


def room_for(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the purifier run out of memory with more images than that."""
    real = _Noting.forward

    def small(self: _Noting, x: Tensor, omega: Omega) -> Tensor:
        if len(x) > most:
            raise torch.OutOfMemoryError(f"more than {most} elements")
        return real(self, x, omega)

    monkeypatch.setattr(_Noting, "forward", small)


def test_a_batch_that_does_not_fit_is_halved_and_the_rest_goes_on(
    context: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(64, 8).run(Chunk(tuple(range(16))), {}, context).rows
    context.calls.clear()
    room_for(20, monkeypatch)
    rows = evaluate(64, 8).run(Chunk(tuple(range(16))), {}, context).rows
    assert context.memory_retries == 2 and max(map(len, context.calls)) == 16
    assert rows["prediction"].equals(whole["prediction"])


@pytest.mark.slow
def test_quality_asks_for_one_draw_of_each_image(context: Counting) -> None:
    measured(8).run(Chunk(tuple(range(20))), {}, context)
    assert [len(call) for call in context.calls] == [8, 8, 4]


def test_the_selection_of_a_ladder_fills_the_batch_too(context: Counting) -> None:
    ids, compute = tuple(range(20)), Compute(batch=400)
    ladder = ATTACKS.get("ladder")(norm="linf", eps=0.1, rungs=("blind", "bpda"), steps=1, eot=1, select=20)
    common = {"dataset": DigitsConfig(), "classifier": CLASSIFIER, "seed": SEED, "compute": compute}
    sources = tuple(AttackStage(attack=rung, purifier=NOISE, **common) for rung in ladder.rungs)
    stage = AttackStage(attack=ladder, purifier=NOISE, sources=sources, **common)
    made = images_to_table(ids, torch.from_numpy(DigitsConfig().load().images[list(ids)]))
    loss = made.append_column("loss", pa.array([0.0] * len(ids), pa.float32()))
    stage.run(Chunk(ids), {f"source {place}": loss for place in range(len(stage.sources))}, context)
    assert [len(call) for call in context.calls] == [400] * 2


def sampled(role: Role, images: int, first: int, count: int, batch: int) -> tuple[SampleStage, Chunk]:
    smoothed = Smoothed(
        dataset=DigitsConfig(),
        classifier=CLASSIFIER,
        purifier=NOISE,
        base="purified",
        votes=1,
        sigma=0.25,
        seed=SEED,
        compute=Compute(batch=batch),
    )
    return SampleStage(smoothed=smoothed, role=role, first=first, count=count), Chunk(tuple(range(images)))


@pytest.mark.parametrize(
    ("images", "samples", "batch", "calls"), [(20, 20, 400, 1), (20, 20, 100, 4), (9, 30, 100, 3), (4, 50, 25, 8)]
)
def test_selection_samples_of_several_images_fill_a_batch(
    context: Counting, images: int, samples: int, batch: int, calls: int
) -> None:
    def counts(size: int) -> np.ndarray:
        stage, chunk = sampled("certify-select", images, 0, samples, size)
        return np.array(stage.run(chunk, {}, context).rows["counts"].to_pylist())

    expected = counts(samples)
    context.calls.clear()
    assert (counts(batch) == expected).all() and expected.sum() == images * samples
    assert len(context.calls) == calls
    assert sum(map(len, context.calls)) == images * samples


@every(
    ("images", "first", "samples", "batch"),
    [(20, 0, 20, 400), (9, 0, 130, 100), (9, 200, 30, 100), (7, 0, 45, 20), (4, 0, 50, 25), (1, 0, 30, 100)],
)
def test_estimation_asks_ceil_of_images_x_samples_by_batch_times(
    images: int, first: int, samples: int, batch: int, context: Counting
) -> None:
    """What is left of each image after whole batches fills batches with that of the others."""
    stage, chunk = sampled("certify-estimate", images, first, samples, batch)
    context.calls.clear()
    packed = np.array(stage.run(chunk, {}, context).rows["counts"].to_pylist())
    calls = list(context.calls)
    assert len(calls) == ceil(images * samples / batch)
    seen = [element for call in calls for element in call]
    assert sorted(seen) == [(image, j) for image in chunk.ids for j in range(first, first + samples)]
    whole = calls[: images * (samples // batch)]
    assert all(len(call) == batch and len({image for image, _ in call}) == 1 for call in whole)
    alone = [stage.run(Chunk((image,)), {}, context).rows["counts"][0].as_py() for image in chunk.ids]
    assert packed.tolist() == alone


@pytest.mark.slow
def test_an_attack_of_many_draws_that_does_not_fit_divides_the_draws_too(
    context: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer images alone would not help: one image has twice the draws that there is memory for."""
    pgd = ATTACKS.get("pgd")(norm="linf", eps=0.1, steps=1, eot=32, gradient="exact", knows="purifier")
    stage = AttackStage(
        dataset=DigitsConfig(),
        classifier=CLASSIFIER,
        purifier=NOISE,
        attack=pgd,
        seed=SEED,
        compute=Compute(batch=64),
    )
    ids = tuple(range(8))
    whole = stage.run(Chunk(ids), {}, context)
    assert {len(call) for call in context.calls} == {64}
    context.calls.clear()
    room_for(16, monkeypatch)
    divided = stage.run(Chunk(ids), {}, context)
    assert context.memory_retries == 1 and {len(call) for call in context.calls} == {4}
    first, second = (np.array(output.images["image"].to_pylist()) for output in (whole, divided))
    assert np.abs(first - second).max() < 1e-6
    assert divided.rows["adversarial_prediction"].equals(whole.rows["adversarial_prediction"])
