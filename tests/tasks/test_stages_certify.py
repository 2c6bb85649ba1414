"""Certificates as stages: counts that add up however they are divided, and certificates that agree with the core."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from defense import ClassifierConfig, DiffPureConfig, DiffusersConfig, InvalidInput, NoPurifierConfig, Omega
from defense.certify import ESTIMATE, SELECT, Counts, SequentialPlan, certify
from defense.purifiers import PurifierConfig
from defense.purifiers.densepure import DensePureConfig
from defense.purifiers.gaussian_noise import GaussianNoiseConfig
from defense.purifiers.one_shot import OneShotConfig
from tasks.certificates import Base, CertificateConfig
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig
from tasks.stages import CertifyStage, Chunk, SampleStage, SequenceStage, Smoothed, StageSpec

IDS = (4, 17, 598)
CHUNK = Chunk(IDS)


def smoothed(
    digits: DatasetConfig, cnn: ClassifierConfig, purifier: PurifierConfig | None = None, *, sigma: float = 0.5
) -> Smoothed:
    return Smoothed(
        dataset=digits,
        classifier=cnn,
        purifier=purifier or NoPurifierConfig(),
        base="bare" if purifier is None else "denoised",
        votes=1,
        sigma=sigma,
        seed=0,
        compute=Compute(batch=20),
    )


def run(stage: StageSpec, context: Context, known: dict[str, pa.Table] | None = None) -> pa.Table:
    """The rows of a stage, after those of its inputs, each computed once."""
    known = {} if known is None else known
    if stage.id not in known:
        inputs: Mapping[str, pa.Table] = {role: run(each, context, known) for role, each in stage.inputs().items()}
        known[stage.id] = stage.run(CHUNK, inputs, context).rows
    return known[stage.id]


def test_answers_are_those_of_the_classifier_to_unclipped_noise(
    digits: DatasetConfig, cnn: ClassifierConfig, context: Context
) -> None:
    of = smoothed(digits, cnn)
    rows = run(SampleStage(smoothed=of, role=ESTIMATE, first=0, count=40), context)
    network, data = cnn.build(), digits.load()
    for row, image in enumerate(IDS):
        x = torch.from_numpy(data.images[[image] * 20])
        expected = np.zeros(10, dtype=int)
        for start in (0, 20):
            omega = Omega.of(NoPurifierConfig().id, 0, ESTIMATE, [image] * 20, range(start, start + 20))
            noised = x + 0.5 * omega.normal("smoothing", 0, x)
            assert noised.min() < -0.5 and noised.max() > 1.5
            with torch.no_grad():
                expected += np.bincount(network(noised).argmax(1).numpy(), minlength=10)
        assert rows["counts"][row].as_py() == expected.tolist()
    assert rows["label"].to_pylist() == data.labels[list(IDS)].tolist()
    assert rows["classifier_evaluations"].to_pylist() == [40] * 3


@pytest.mark.parametrize("kind", ["bare", "purified", "denoised"])
def test_a_device_without_memory_halves_the_batch_of_samples_and_counts_the_same(
    kind: Base,
    digits: DatasetConfig,
    cnn: ClassifierConfig,
    denoiser: DiffusersConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    purifier = {
        "bare": NoPurifierConfig(),
        "purified": GaussianNoiseConfig(sigma=0.1),
        "denoised": OneShotConfig(denoiser=denoiser, schedule="linear-1000", sigma_eq=0.5),
    }[kind]
    of = smoothed(digits, cnn, None, sigma=0.5).model_copy(update={"purifier": purifier, "base": kind})
    stage = SampleStage(smoothed=of, role=ESTIMATE, first=10, count=50)
    expected = run(stage, Context())

    sizes: list[int] = []
    context = Context()
    network = context.classifier(cnn)

    def little_memory(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 6:
            raise torch.OutOfMemoryError

    network.register_forward_pre_hook(little_memory)
    assert run(stage, context).equals(expected)
    # 20 do not fit, nor do 10; 5 do, and that is remembered: four parts of each of three batches of three images.
    assert sizes == [20, 10] + [5] * 36 and context.memory_retries == 2

    monkeypatch.setattr(type(network), "forward", _nothing_fits)
    with pytest.raises(torch.OutOfMemoryError):
        run(stage, Context())


def _nothing_fits(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError


def test_a_larger_certificate_begins_with_the_samples_of_a_smaller_one(
    digits: DatasetConfig, cnn: ClassifierConfig
) -> None:
    of = smoothed(digits, cnn)
    small = CertifyStage(smoothed=of, certificate=CertificateConfig(sigma=0.5, n=100, shard=40))
    large = CertifyStage(smoothed=of, certificate=CertificateConfig(sigma=0.5, n=400, alpha=0.01, shard=40))
    ids = {stage.id for stage in large.inputs().values()}
    shared = [stage.id in ids for stage in small.inputs().values()]
    assert shared == [True, True, True, False]  # selection, 0 to 39, 40 to 79; 80 to 99 is cut
    assert small.id != large.id


@pytest.mark.parametrize("shard", [20, 60, 1000])
def test_counts_and_certificates_do_not_depend_on_how_samples_are_divided(
    shard: int, digits: DatasetConfig, cnn: ClassifierConfig, context: Context
) -> None:
    of = smoothed(digits, cnn, sigma=0.25)
    config = CertificateConfig(sigma=0.25, n=130, n0=30, shard=shard)
    stage = CertifyStage(smoothed=of, certificate=config)
    assert len(stage.inputs()) == 1 + -(-130 // max(shard, 20))
    assert stage.id == CertifyStage(smoothed=of, certificate=config.model_copy(update={"shard": 77})).id
    rows = run(stage, context).to_pydict()
    selection, estimation = (of.counts(context, role, IDS, 0, n) for role, n in ((SELECT, 30), (ESTIMATE, 130)))
    assert rows["counts"] == estimation.tolist() and rows["selection_counts"] == selection.tolist()
    for i, image in enumerate(IDS):
        counts0, counts = Counts.of(image, SELECT, selection[i]), Counts.of(image, ESTIMATE, estimation[i])
        expected = certify(counts0, counts, 0.001, 0.25)
        found = (rows["prediction"][i], rows["radius"][i], rows["p_lower"][i], rows["samples"][i])
        assert found == (expected.prediction, expected.radius, expected.p_lower, 130)
    assert set(rows["guarantee"]) == {"fixed-n"} and set(rows["rule"]) == {"one-sided"}
    # The noise is strong enough for the images to differ, so that the comparison says something.
    assert len(set(rows["radius"])) > 1


@pytest.mark.slow
@pytest.mark.parametrize("shard", [400, *(pytest.param(n, marks=pytest.mark.nightly) for n in (100, 2000))])
def test_sequential_certificates_stop_where_the_plan_says_however_they_are_divided(
    shard: int, digits: DatasetConfig, cnn: ClassifierConfig, context: Context
) -> None:
    of = smoothed(digits, cnn, sigma=0.35)
    config = CertificateConfig(sigma=0.35, n=2000, guarantee="sequential", shard=shard)
    rows = run(CertifyStage(smoothed=of, certificate=config), context).to_pydict()
    plan, selection = SequentialPlan(2000, 0.001), of.counts(context, SELECT, IDS, 0, 100)
    for i, image in enumerate(IDS):
        counts, at = np.zeros(10, dtype=np.int64), 0
        for look in plan.looks(20):
            counts += of.counts(context, ESTIMATE, (image,), at, look - at)[0]
            at = look
            if plan.done(counts[selection[i].argmax()], look):
                break
        expected = plan.certify(Counts.of(image, SELECT, selection[i]), Counts.of(image, ESTIMATE, counts), 0.35)
        assert (rows["samples"][i], rows["counts"][i]) == (at, counts.tolist())
        assert (rows["prediction"][i], rows["radius"][i]) == (expected.prediction, expected.radius)
    assert set(rows["guarantee"]) == {"sequential"} and min(rows["samples"]) < 2000


@pytest.mark.slow
def test_images_that_have_stopped_cost_nothing(
    digits: DatasetConfig, cnn: ClassifierConfig, context: Context
) -> None:
    config = CertificateConfig(sigma=0.05, n=2000, guarantee="sequential", shard=500)
    last = CertifyStage(smoothed=smoothed(digits, cnn, sigma=0.05), certificate=config).inputs()["sequence"]
    assert isinstance(last, SequenceStage) and last.after is not None
    known: dict[str, pa.Table] = {}
    final = run(last, context, known)
    # All answers agree at this noise; the plan stops at about six samples in ten, before the last range.
    assert final["stopped"].to_pylist() == [True] * 3
    spent = sum(sum(table["classifier_evaluations"].to_pylist()) for table in known.values())
    assert spent == 3 * 100 + sum(sum(counts) for counts in final["counts"].to_pylist()) < 3 * 2100


@pytest.mark.slow
def test_one_shot_noise_of_the_certificate_is_its_forward_noise(
    digits: DatasetConfig, cnn: ClassifierConfig, denoiser: DiffusersConfig, context: Context
) -> None:
    certificate = CertificateConfig(sigma=0.25)
    defence = OneShotConfig.model_validate({"denoiser": denoiser, "schedule": "linear-1000", "t_star": 400})
    base, purifier = certificate.base_of(defence)
    assert base == "denoised" and isinstance(purifier, OneShotConfig)
    assert purifier.t_star == 146  # methods: index 145, counted from 0
    assert certificate.base_of(purifier) == (base, purifier)
    rows = run(
        SampleStage(smoothed=smoothed(digits, cnn, purifier, sigma=0.25), role=ESTIMATE, first=0, count=20), context
    )
    network, predict, data = cnn.build(), denoiser.build(), digits.load()
    level = purifier.noise_level
    assert level is not None
    abar = level.abar
    for row, image in enumerate(IDS):
        x = torch.from_numpy(data.images[[image] * 20])
        omega = Omega.of(purifier.id, 0, ESTIMATE, [image] * 20, range(20))
        z = abar**0.5 * (2 * (x + 0.25 * omega.normal("smoothing", 0, x)) - 1)
        with torch.no_grad():
            clean = ((z - (1 - abar) ** 0.5 * predict(z, 146)) / abar**0.5).clamp(-1, 1)
            answers = network((clean + 1) / 2).argmax(1).numpy()
        assert rows["counts"][row].as_py() == np.bincount(answers, minlength=10).tolist()
    assert rows["denoiser_evaluations"].to_pylist() == [20] * 3


def test_bases_of_defences(denoiser: DiffusersConfig) -> None:
    def diffusion(kind: type[DiffPureConfig] | type[DensePureConfig], **fields: object) -> PurifierConfig:
        return kind.model_validate({"denoiser": denoiser, "schedule": "linear-1000", **fields})

    quarter = CertificateConfig(sigma=0.25)
    assert quarter.base_of(NoPurifierConfig()) == ("bare", NoPurifierConfig())
    assert quarter.base_of(GaussianNoiseConfig(sigma=0.7)) == ("bare", NoPurifierConfig())
    pure = diffusion(DiffPureConfig, t_star=50)
    assert quarter.base_of(pure) == ("purified", pure)
    denoised = CertificateConfig(sigma=0.25, base="denoised")
    # A chain of every step keeps taking every step, one of few keeps its few.
    assert denoised.base_of(pure)[1] == diffusion(DiffPureConfig, t_star=146)
    few = diffusion(DensePureConfig, t_star=50, steps=10)
    assert quarter.base_of(few) == ("denoised", diffusion(DensePureConfig, t_star=146, steps=10))
    for config, purifier, why in (
        (denoised, NoPurifierConfig(), "takes a purifier"),
        (quarter, GaussianNoiseConfig(sigma=0.25, clip=True), "not clipped"),
        (CertificateConfig(sigma=200.0, unbounded=("sigma",)), few, "not on schedule"),
    ):
        with pytest.raises(InvalidInput, match=why):
            config.base_of(purifier)


def test_certificates_that_cannot_certify_are_refused() -> None:
    for fields, why in (
        ({"n": 9}, "cannot certify anything"),
        ({"n": 10, "rule": "two-class"}, "cannot certify anything"),
        ({"guarantee": "sequential", "rule": "two-class"}, "one-sided rule alone"),
    ):
        with pytest.raises(InvalidInput, match=why):
            CertificateConfig.model_validate({"sigma": 0.25, **fields})
    assert CertificateConfig(sigma=0.25, n=10_000).ceiling == pytest.approx(0.79964, abs=5e-6)


def test_rows_of_other_images_are_refused(digits: DatasetConfig, cnn: ClassifierConfig, context: Context) -> None:
    stage = CertifyStage(smoothed=smoothed(digits, cnn), certificate=CertificateConfig(sigma=0.5, n=20, n0=20))
    inputs = {role: each.run(CHUNK, {}, context).rows for role, each in stage.inputs().items()}
    with pytest.raises(ValueError, match="not those of this chunk"):
        stage.run(Chunk((17, 4, 598)), inputs, context)
    # Samples that are missing, or there twice, are no certificate of n.
    (first,) = (role for role in inputs if role != "select")
    short = SampleStage(smoothed=stage.smoothed, role=ESTIMATE, first=0, count=19).run(CHUNK, {}, context).rows
    with pytest.raises(InvalidInput, match="n = 20"):
        stage.run(CHUNK, {**inputs, first: short}, context)


def test_specs_of_certificates_survive_json(digits: DatasetConfig, cnn: ClassifierConfig, tmp_path: Path) -> None:
    of = smoothed(digits, cnn)
    again = Smoothed.model_validate({**{name: getattr(of, name) for name in Smoothed.model_fields}})
    assert again.id == of.id
    for field, value in (
        ("sigma", 0.51),
        ("votes", 2),
        ("seed", 1),
        ("compute", Compute(batch=21)),
        ("base", "denoised"),
    ):
        assert of.model_copy(update={field: value}).id != of.id
