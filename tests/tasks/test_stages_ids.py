"""Ids of stages and chunks say what determines a row and nothing else; stored images come back bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from defense import ClassifierConfig, DiffPureConfig, DiffusersConfig, NoPurifierConfig
from defense.purifiers import PurifierConfig
from defense.spec import CODE, digest
from tasks.attacks import DiffHammerConfig, PGDConfig
from tasks.compute import Compute
from tasks.datasets import DigitsConfig
from tasks.stages import AttackStage, Chunk, EvaluateStage, images_from_table, images_to_table


def changed(stage: Any, **update: Any) -> Any:
    """The stage with other fields, validated like a new one."""
    return type(stage).model_validate({**{k: getattr(stage, k) for k in type(stage).model_fields}, **update})


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
    "clipping": lambda s: {"purifier": s.purifier.model_copy(update={"clip_denoised": True})},
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
    # The class stands here, so the code of this file is in its identity too.
    assert {**raised.identity(), "version": attack.version, CODE: None} == {**attack.identity(), CODE: None}
    fields = {name: getattr(evaluate, name) for name in EvaluateStage.model_fields if name != "version"}
    assert RaisedEvaluate(**fields).id != evaluate.id
    with pytest.warns(UserWarning, match="Expected `AttackStage`"):  # pydantic: no field has that subclass
        assert changed(evaluate, source=raised).id != evaluate.id


def test_attacks_on_votes_and_diffhammer_are_of_versions_of_their_own_and_others_keep_their_ids(
    attack: AttackStage, cnn: ClassifierConfig, denoiser: DiffusersConfig
) -> None:
    purifier = DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=60, steps=2)
    ways = {
        way: changed(
            attack.model_copy(update={"version": 4}),
            purifier=purifier,
            attack=PGDConfig(norm="linf", eps=0.15, steps=3, gradient="exact", knows="purifier", attacked=way),
        ).model_dump(mode="json", exclude={"version"})
        for way in ("mean-loss", "mean-logits", "mean-probability", "vote")
    }
    versions = {way: AttackStage.model_validate(fields).version for way, fields in ways.items()}
    assert versions == {"mean-loss": 4, "mean-logits": 4, "mean-probability": 4, "vote": 5}
    given = {name: getattr(attack, name) for name in AttackStage.model_fields if name != "version"}
    for behind, up_to, version in ((purifier, 0.5, 6), (purifier, None, 4), (None, 0.5, 4)):
        hammer = DiffHammerConfig(norm="linf", eps=0.15, restart_up_to=up_to)
        assert AttackStage(**{**given, "purifier": behind, "attack": hammer}).version == version
    # One that is on record is read as what it is.
    assert AttackStage.model_validate({**ways["vote"], "version": 4}).version == 4


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


def test_t_stars_of_one_denoiser_go_to_one_worker(evaluate: EvaluateStage, cnn: ClassifierConfig) -> None:
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


def test_a_chunk_is_named_by_its_first_image_and_the_hash_of_all() -> None:
    assert Chunk((0, 1, 2)).name == f"0000000-{digest('0,1,2')[:10]}" == "0000000-c0be322c1a"


@given(lists=st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=6).map(tuple), unique=True, max_size=30))
def test_chunks_have_equal_names_only_if_they_have_equal_images(lists: list[tuple[int, ...]]) -> None:
    names = [Chunk(ids).name for ids in lists]
    assert len(set(names)) == len(lists)
    assert names == [Chunk(tuple(ids)).name for ids in lists]
    assert all(int(name.split("-")[0]) == ids[0] for name, ids in zip(names, lists, strict=True))


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
