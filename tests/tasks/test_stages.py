"""Stages: ids that say what determines a row and nothing else, and rows that agree with a recomputation by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from defense import ClassifierConfig, DiffPureConfig, DiffusersConfig, NoPurifierConfig, Omega, Purifier
from defense.models import Models
from defense.purifiers import PurifierConfig
from defense.spec import digest
from tasks.attacks import PGDConfig, Target
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig, DigitsConfig, ImageSet
from tasks.stages import AttackStage, Chunk, EvaluateStage, images_from_table, images_to_table

IDS = (4, 17, 3, 598, 42, 7)
CHUNK = Chunk(IDS)


@pytest.fixture(scope="session")
def attack(digits: DatasetConfig, cnn: ClassifierConfig) -> AttackStage:
    pgd = PGDConfig(norm="linf", eps=0.15, steps=3)
    return AttackStage(dataset=digits, classifier=cnn, attack=pgd, seed=0, compute=Compute(batch=4))


@pytest.fixture(scope="session")
def diffpure(denoiser: DiffusersConfig) -> DiffPureConfig:
    return DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=60, steps=2)


@pytest.fixture(scope="session")
def evaluate(attack: AttackStage, diffpure: DiffPureConfig) -> EvaluateStage:
    return EvaluateStage(
        dataset=attack.dataset,
        source=attack,
        classifier=attack.classifier,
        purifier=diffpure,
        draws=3,
        seed=0,
        compute=Compute(batch=4),
    )


def changed(stage: Any, **update: Any) -> Any:
    """The stage with other fields, validated like a new one."""
    return type(stage).model_validate({**{k: getattr(stage, k) for k in type(stage).model_fields}, **update})


# ---------------------------------------------------------------------------------------------------------- ids


def test_paths_and_names_are_not_in_the_ids(
    evaluate: EvaluateStage, cnn: ClassifierConfig, denoiser: DiffusersConfig, tmp_path: Path
) -> None:
    assert cnn.weights is not None and denoiser.path is not None
    weights = shutil.copy(cnn.weights, tmp_path / "other-name.safetensors")
    folder = shutil.copytree(denoiser.path, tmp_path / "unet")
    moved = ClassifierConfig(classifier="digits-cnn", name="our best", weights=str(weights)).resolved(tmp_path)
    network = DiffusersConfig(schedule="linear-1000", path=str(folder)).resolved(tmp_path)
    assert (moved.weights, network.path) != (cnn.weights, denoiser.path)
    attack = changed(evaluate.source, classifier=moved)
    purifier = DiffPureConfig(denoiser=network, schedule="linear-1000", t_star=60, steps=2)
    elsewhere = changed(evaluate, classifier=moved, source=attack, purifier=purifier)
    assert elsewhere.id == evaluate.id
    assert elsewhere.canonical() == evaluate.canonical()
    for text in ("other-name", "our best", str(tmp_path), "assets"):
        assert text not in elsewhere.canonical()


ATTACK_CHANGES: dict[str, Callable[[AttackStage], dict[str, Any]]] = {
    "eps": lambda s: {"attack": PGDConfig(norm="linf", eps=0.15000001, steps=3)},
    "norm": lambda s: {"attack": PGDConfig(norm="l2", eps=0.15, steps=3)},
    "steps": lambda s: {"attack": PGDConfig(norm="linf", eps=0.15, steps=4)},
    "random start": lambda s: {"attack": PGDConfig(norm="linf", eps=0.15, steps=3, random_start=False)},
    "seed": lambda s: {"seed": 1},
    "batch": lambda s: {"compute": Compute(batch=5)},
    "precision": lambda s: {"compute": Compute(batch=4, precision="bf16")},
    "threads": lambda s: {"compute": Compute(batch=4, threads=2)},
    "weights": lambda s: {"classifier": s.classifier.model_copy(update={"sha256": "0" * 64})},
    "normalisation": lambda s: {"classifier": s.classifier.model_copy(update={"mean": (0.5,)})},
    "split": lambda s: {"dataset": DigitsConfig(split="train", digest=s.dataset.digest)},
    "data": lambda s: {"dataset": DigitsConfig(digest="0" * 64)},
}


@pytest.mark.parametrize("what", ATTACK_CHANGES)
def test_what_determines_an_attacks_rows_is_in_its_id_and_in_that_of_its_reader(
    attack: AttackStage, evaluate: EvaluateStage, what: str
) -> None:
    other = changed(attack, **ATTACK_CHANGES[what](attack))
    assert other.id != attack.id
    assert changed(evaluate, source=other).id != evaluate.id


EVALUATE_CHANGES: dict[str, Callable[[EvaluateStage], dict[str, Any]]] = {
    "draws": lambda s: {"draws": 4},
    "seed": lambda s: {"seed": 1},
    "clean": lambda s: {"source": None},
    "batch": lambda s: {"compute": Compute(batch=5)},
    "no purifier": lambda s: {"purifier": NoPurifierConfig()},
    "depth": lambda s: {"purifier": s.purifier.model_copy(update={"t_star": 61})},
    "steps": lambda s: {"purifier": s.purifier.model_copy(update={"steps": 3})},
    "variance": lambda s: {"purifier": s.purifier.model_copy(update={"variance": "large"})},
    "clipping": lambda s: {"purifier": s.purifier.model_copy(update={"clip_denoised": False})},
    "denoiser weights": lambda s: {"purifier": _denoiser(s, sha256="0" * 64)},
    "denoiser config": lambda s: {"purifier": _denoiser(s, config_sha256="0" * 64)},
    "judged classifier": lambda s: {"classifier": s.classifier.model_copy(update={"sha256": "0" * 64})},
}


def _denoiser(stage: EvaluateStage, **update: str) -> PurifierConfig:
    purifier = stage.purifier
    assert isinstance(purifier, DiffPureConfig)
    return purifier.model_copy(update={"denoiser": purifier.denoiser.model_copy(update=update)})


@pytest.mark.parametrize("what", EVALUATE_CHANGES)
def test_what_determines_a_judgement_is_in_its_id(evaluate: EvaluateStage, what: str) -> None:
    assert changed(evaluate, **EVALUATE_CHANGES[what](evaluate)).id != evaluate.id


def test_all_those_changes_give_different_ids(attack: AttackStage, evaluate: EvaluateStage) -> None:
    ids = [attack.id, evaluate.id]
    ids += [changed(attack, **change(attack)).id for change in ATTACK_CHANGES.values()]
    ids += [changed(evaluate, **change(evaluate)).id for change in EVALUATE_CHANGES.values()]
    assert len(set(ids)) == len(ids)


class RaisedAttack(AttackStage):
    version: Literal[9] = 9  # type: ignore[assignment]


class RaisedEvaluate(EvaluateStage):
    version: Literal[9] = 9  # type: ignore[assignment]


def test_the_version_of_the_code_is_in_the_ids(attack: AttackStage, evaluate: EvaluateStage) -> None:
    fields = {name: getattr(attack, name) for name in AttackStage.model_fields if name != "version"}
    raised = RaisedAttack(**fields)
    assert raised.id != attack.id
    assert {**raised.identity(), "version": attack.version} == attack.identity()
    fields = {name: getattr(evaluate, name) for name in EvaluateStage.model_fields if name != "version"}
    assert RaisedEvaluate(**fields).id != evaluate.id
    with pytest.warns(UserWarning, match="Expected `AttackStage`"):  # pydantic: no field has that subclass
        assert changed(evaluate, source=raised).id != evaluate.id


def test_an_id_is_the_leading_hex_of_the_canonical_json(evaluate: EvaluateStage) -> None:
    content = evaluate.identity()
    assert evaluate.id == digest(json.dumps(content, sort_keys=True, separators=(",", ":")))
    assert content["source"]["attack"] == {
        **{"attack": "pgd", "norm": "linf", "eps": 0.15, "steps": 3},
        **{"step_size": None, "random_start": True, "loss": "ce", "momentum": 0.0, "restarts": 1},
        **{"knows": "classifier", "gradient": None, "eot": 1, "attacked": "mean-loss"},
    }
    assert content["purifier"]["denoiser"]["sha256"] == evaluate.purifier.denoiser.sha256  # type: ignore[attr-defined]


def test_all_defences_are_judged_on_one_static_attack(evaluate: EvaluateStage) -> None:
    stages = [changed(evaluate, **change(evaluate)) for what, change in EVALUATE_CHANGES.items() if what != "clean"]
    assert {stage.inputs()["source"].id for stage in stages} == {evaluate.source.id if evaluate.source else ""}
    assert changed(evaluate, source=None).inputs() == {}


def test_depths_of_one_denoiser_go_to_one_worker(evaluate: EvaluateStage, cnn: ClassifierConfig) -> None:
    deeper = changed(evaluate, **EVALUATE_CHANGES["depth"](evaluate))
    assert deeper.model_key() == evaluate.model_key() != ""
    assert changed(evaluate, **EVALUATE_CHANGES["denoiser weights"](evaluate)).model_key() != evaluate.model_key()
    assert changed(evaluate, purifier=NoPurifierConfig()).model_key() == cnn.id
    assert evaluate.source is not None and evaluate.source.model_key() == cnn.id


def test_work_is_counted_in_network_evaluations(evaluate: EvaluateStage) -> None:
    assert evaluate.source is not None
    assert evaluate.source.work_per_image() == 4  # 3 steps and the start
    assert evaluate.work_per_image() == 6  # 3 draws of 2 steps
    assert changed(evaluate, purifier=NoPurifierConfig()).work_per_image() == 3
    assert evaluate.settings() == Compute(batch=4)


def test_a_label_says_data_classifier_attack_defence_and_draws(evaluate: EvaluateStage) -> None:
    assert evaluate.label() == "digits, digits-cnn, pgd-3 linf eps 0.15, behind diffpure t*=60 in 2 steps, 3 draws"
    assert changed(evaluate, source=None, purifier=NoPurifierConfig(), draws=1).label() == (
        "digits, digits-cnn, clean, behind none, 1 draws"
    )


# ------------------------------------------------------------------------------------------------------- chunks


def test_a_chunk_is_named_by_its_first_image_and_the_hash_of_all() -> None:
    assert Chunk((0, 1, 2)).name == f"0000000-{digest('0,1,2')[:10]}" == "0000000-c0be322c1a"


@given(lists=st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=6).map(tuple), unique=True, max_size=30))
def test_chunks_have_equal_names_only_if_they_have_equal_images(lists: list[tuple[int, ...]]) -> None:
    names = [Chunk(ids).name for ids in lists]
    assert len(set(names)) == len(lists)
    assert names == [Chunk(tuple(ids)).name for ids in lists]
    assert all(int(name.split("-")[0]) == ids[0] for name, ids in zip(names, lists, strict=True))


# ------------------------------------------------------------------------------------------------- image tables


@given(data=st.data(), shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)))
def test_stored_images_come_back_bit_for_bit(data: st.DataObject, shape: tuple[int, ...]) -> None:
    elements: Any = st.floats(width=32, allow_nan=False)
    images = data.draw(hnp.arrays(np.float32, shape, elements=elements))
    ids = tuple(range(5, 5 + shape[0]))
    table = images_to_table(ids, torch.from_numpy(images))
    assert table["image_id"].to_pylist() == list(ids)
    again = images_from_table(table, ids)
    assert again.dtype == np.float32 and again.shape == images.shape
    assert again.tobytes() == images.tobytes()
    assert again.flags.writeable  # torch takes it without a copy


def test_stored_images_of_another_chunk_are_refused() -> None:
    table = images_to_table((1, 2), torch.zeros(2, 1, 2, 2))
    for ids in ((2, 1), (1,), (1, 3), (1, 2, 3)):
        with pytest.raises(ValueError, match="not those of this chunk"):
            images_from_table(table, ids)


def test_images_in_several_pieces_keep_their_order() -> None:
    images = torch.arange(24, dtype=torch.float32).view(6, 1, 2, 2)
    parts = [images_to_table((i, i + 1), images[i : i + 2]) for i in (0, 2, 4)]
    assert np.array_equal(images_from_table(pa.concat_tables(parts), tuple(range(6))), images.numpy())
    sliced = pa.concat_tables(parts).slice(1, 4)
    assert np.array_equal(images_from_table(sliced, (1, 2, 3, 4)), images[1:5].numpy())


# ------------------------------------------------------------------------------------------------------- attack


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


# ----------------------------------------------------------------------------------------------------- evaluate


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
    expected = [
        Omega(config.id, 0, "judge", part, (draw,) * len(part)) for part in (IDS[:4], IDS[4:]) for draw in range(3)
    ]
    assert seen == [expected] * 3
    # Another seed is other draws; the attack's own randomness has another role and another spec.
    context = Context()
    changed(stages[0], seed=1).run(CHUNK, {}, context)
    spy = context.purifier(config, stages[0].classifier)
    assert isinstance(spy, Spy) and {omega.seed for omega in spy.seen} == {1}


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
