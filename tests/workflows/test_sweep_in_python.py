"""A sweep built in Python is the sweep of the file that says the same, and is refused for the same mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grids_small import ASSETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workflows
from defense import DiffPureConfig, DiffusersConfig
from defense.classifiers import ClassifierConfig
from defense.errors import InvalidInput
from defense.purifiers import SequenceConfig
from defense.purifiers.jpeg import JPEGConfig
from tasks.attacks import LadderConfig, PGDConfig, PGDEOTConfig, SquareConfig, TransferConfig
from tasks.certificates import CertificateConfig
from tasks.compute import Compute
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DigitsConfig
from tasks.stages.quality import QualityConfig
from workflows.documents.document import read_document, written
from workflows.grid import Sweep, load_sweep

SWEEPS = Path(workflows.__file__ or "").parent / "sweeps"
DIGITS = sorted(
    [*SWEEPS.glob("digits-*.yaml"), SWEEPS / "quickstart.yaml", *SWEEPS.glob("papers/smoke/*-digits.yaml")]
)
DENOISER = {"format": "diffusers", "path": str(ASSETS / "digits-ddpm"), "schedule": "linear-1000"}
SMALL: dict[str, Any] = {
    "datasets": [{"dataset": "digits", "images": {"first": 4}}],
    "classifiers": ["digits-cnn"],
    "defences": ["none"],
}


def ids(sweep: Sweep) -> tuple[str, list[str]]:
    return sweep.id, [cell.id for cell in sweep.cells]


def again(folder: Path, sweep: Sweep) -> Sweep:
    """The sweep that its text gives, read from another folder."""
    (folder / "again.yaml").write_text(sweep.text)
    return load_sweep(folder / "again.yaml")


@pytest.mark.parametrize("path", DIGITS, ids=lambda path: path.stem)
def test_a_bundled_sweep_from_python_has_the_ids_of_its_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {name: value for name, value in read_document(path).data.items() if name != "requires"}
    monkeypatch.chdir(path.parent)  # where its relative paths start
    sweep = Sweep(data.pop("sweep", path.stem), **data)
    monkeypatch.chdir(tmp_path)
    assert ids(sweep) == ids(load_sweep(path)) == ids(again(tmp_path, sweep))


def test_configs_are_entries(tmp_path: Path) -> None:
    """Every section with configs, and the same with names and mappings."""
    denoiser = DiffusersConfig(schedule="linear-1000", path=str(ASSETS / "digits-ddpm"))
    typed = Sweep(
        "typed",
        datasets=[{"dataset": DigitsConfig(), "images": {"ids": (3, 1)}}],
        classifiers=[ClassifierConfig(classifier="digits-cnn", name="cnn")],
        denoisers={"mine": denoiser},
        defences=[
            "none",
            {"purifier": DiffPureConfig(denoiser=denoiser, sigma_eq=0.1, steps=5), "draws": [2, 3]},
            {"purifier": "diffpure", "denoiser": "mine", "sigma_eq": 0.2, "steps": 4},
            {"purifier": "one-shot", "denoiser": denoiser, "sigma_eq": 0.2},
            SequenceConfig(stages=[JPEGConfig(quality=60), {"purifier": "median"}]),
        ],
        attacks=[
            "none",
            PGDConfig(norm="linf", eps_255=8),
            PGDEOTConfig(norm="linf", eps=0.1, gradient="blind", eot=1),
            LadderConfig(norm="linf", eps_255=8, rungs=["bpda", PGDConfig(norm="linf", eps_255=8, steps=3)]),
            {
                "attack": "transfer",
                "norm": "l2",
                "eps": 1,
                "source": SquareConfig(norm="l2", eps=1),
                "classifier": "digits-cnn",
            },
        ],
        corruptions=[CorruptionConfig(corruption="gaussian_noise", severity=3)],
        certificates=[CertificateConfig(sigma=0.25, n=100)],
        seeds=range(2),
        chunk=1,
        compute=Compute(batch=2),
        quality=QualityConfig(),
        resubmissions=1,
        exclude=[{"attack": {"attack": "pgd", "eps_255": 8}, "seed": 1}],
        include=[{"attacks": [PGDConfig(norm="linf", eps=0.3)], "seeds": [7]}],
    )
    plain = Sweep(
        "typed",
        datasets=[{"dataset": "digits", "images": {"ids": [3, 1]}}],
        classifiers=["digits-cnn"],
        denoisers={"mine": DENOISER},
        defences=[
            "none",
            {"purifier": "diffpure", "denoiser": "mine", "sigma_eq": 0.1, "steps": 5, "draws": [2, 3]},
            {"purifier": "diffpure", "denoiser": "mine", "sigma_eq": 0.2, "steps": 4},
            {"purifier": "one-shot", "denoiser": "mine", "sigma_eq": 0.2},
            {"purifier": "chain", "stages": [{"purifier": "jpeg", "quality": 60}, "median"]},
        ],
        attacks=[
            "none",
            {"attack": "pgd", "norm": "linf", "eps_255": 8},
            {"attack": "pgd-eot", "norm": "linf", "eps": 0.1, "gradient": "blind", "eot": 1},
            {"attack": "ladder", "norm": "linf", "eps_255": 8, "rungs": ["bpda", {"attack": "pgd", "steps": 3}]},
            {"attack": "transfer", "norm": "l2", "eps": 1, "source": "square", "classifier": "digits-cnn"},
        ],
        corruptions=[{"corruption": "gaussian_noise", "severity": 3}],
        certificates=[{"sigma": 0.25, "n": 100}],
        seeds=[0, 1],
        chunk=1,
        compute={"batch": 2},
        quality=True,
        resubmissions=1,
        exclude=[{"attack": {"attack": "pgd", "eps": 8 / 255}, "seed": 1}],
        include=[{"attacks": [{"attack": "pgd", "norm": "linf", "eps": 0.3}], "seeds": 7}],
    )
    assert ids(typed) == ids(plain) == ids(again(tmp_path, typed)) == ids(again(tmp_path, plain))
    assert len(typed.cells) == len({cell.id for cell in typed.cells}) > 60
    assert typed.cells[0].classifier.label() == "cnn"  # in the text too, though not in the id
    assert again(tmp_path, typed).cells[0].classifier.label() == "cnn"


BUDGETS = st.floats(1e-8, 1, allow_subnormal=False)
PGDS = st.fixed_dictionaries(
    {"attack": st.just("pgd"), "norm": st.sampled_from(["linf", "l2"])},
    optional={"steps": st.integers(1, 90), "keep": st.just("last"), "gradient": st.sampled_from(["bpda", "exact"])},
)


@given(
    pgd=PGDS,
    budget=st.one_of(
        st.fixed_dictionaries({"eps": BUDGETS}),
        st.fixed_dictionaries({"eps_255": st.one_of(st.integers(1, 255), BUDGETS)}),
        st.fixed_dictionaries({"eps": st.lists(BUDGETS, min_size=1, max_size=3)}),
    ),
    images=st.one_of(
        st.fixed_dictionaries({"first": st.integers(1, 9)}),
        st.fixed_dictionaries({"ids": st.lists(st.integers(0, 598), min_size=1, max_size=5, unique=True)}),
        st.fixed_dictionaries({"every": st.integers(100, 600)}),
    ),
    draws=st.integers(1, 3),
    chunk=st.integers(1, 700),
    seeds=st.one_of(st.integers(0, 5), st.lists(st.integers(0, 5), min_size=1, max_size=3)),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_small_grid_has_the_same_ids_as_its_file(tmp_path: Path, **drawn: Any) -> None:
    data = {
        **SMALL,
        "datasets": [{"dataset": "digits", "images": drawn["images"]}],
        "defences": ["none", {"purifier": "gaussian-noise", "sigma": 0.1, "draws": drawn["draws"]}],
        "attacks": ["none", {**drawn["pgd"], **drawn["budget"]}],
        "chunk": drawn["chunk"],
        "seeds": drawn["seeds"],
    }
    (tmp_path / "file.yaml").write_text(written({"sweep": "any", **data}))
    sweep = Sweep("any", **data)
    assert ids(sweep) == ids(load_sweep(tmp_path / "file.yaml")) == ids(again(tmp_path, sweep))


def test_the_text_is_read_anywhere_though_paths_were_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ASSETS)
    weights = Path("digits-cnn/model.safetensors")
    sweep = Sweep("here", **{**SMALL, "classifiers": [{"classifier": "digits-cnn", "weights": weights}]})
    monkeypatch.chdir("/")
    assert ids(again(tmp_path, sweep)) == ids(sweep) == ids(Sweep("here", **SMALL))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a field": (
        {"attacks": [{"attack": "pgd", "stepz": 3}]},
        "attacks.0.stepz: unknown field 'stepz'; did you mean 'steps'?",
    ),
    "a rung": (
        {
            "attacks": [
                {"attack": "ladder", "norm": "linf", "eps": 0.1, "rungs": ["bpda", {"attack": "pgd", "stepz": 3}]}
            ]
        },
        "attacks.0.rungs.1.stepz: unknown field 'stepz'; did you mean 'steps'?",
    ),
    "a name": ({"defences": ["none", "jepg"]}, "defences.1.purifier: unknown purifier 'jepg'; did you mean 'jpeg'?"),
    "beside a config": (
        {"defences": [{"purifier": JPEGConfig(), "quality": 3}]},
        "defences.0.quality: unknown field 'quality'; Valid names: aggregation, draws, purifier, until.",
    ),
    "draws of a deterministic config": (
        {"defences": [{"purifier": JPEGConfig(), "draws": 3}]},
        "defences.0.draws: purifier 'jpeg' is deterministic",
    ),
    "a config of another kind": (
        {"attacks": [JPEGConfig()]},
        "attacks.0: an entry of attacks is a name or a mapping with the key `attack`.",
    ),
    "a value of no file": (
        {"attacks": [{"attack": "pgd", "norm": "linf", "eps": 1j}]},
        "attacks.0.eps: 1j (complex) is no plain value",
    ),
    "a denoiser": (
        {"denoisers": {"mine": {**DENOISER, "shedule": "x"}}},
        "denoisers.mine.shedule: unknown field 'shedule'; did you mean 'schedule'?",
    ),
    "no denoisers": (
        {"defences": [{"purifier": "diffpure", "denoiser": "mine", "sigma_eq": 0.1}]},
        "defences.0.denoiser: unknown denoiser 'mine'; there is no section `denoisers`",
    ),
    "files": (
        {"classifiers": [{"classifier": "digits-cnn", "weights": "nowhere.pt"}]},
        "classifiers.0: classifier weights ",
    ),
    "images": (
        {"datasets": [{"dataset": DigitsConfig(), "images": {"ids": [599]}}]},
        "datasets.0.images: image id 599 is out of range",
    ),
    "seeds": ({"seeds": ["one"]}, "seeds: seeds are whole numbers"),
    "nothing": ({"attacks": []}, "attacks: a sweep needs a list of attacks with at least one entry"),
    "an exclusion": ({"exclude": [{"defence": "jpeg"}]}, "exclude.0: {'defence': 'jpeg'} matches no cell"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_reported_at_its_place_without_a_file(name: str) -> None:
    sections, says = WRONG[name]
    with pytest.raises(InvalidInput) as caught:
        Sweep("wrong", **{**SMALL, **sections})
    assert str(caught.value).startswith(says)
    assert caught.value.where is None


def test_a_config_of_its_own_is_refused_with_the_same_words() -> None:
    with pytest.raises(InvalidInput) as caught:
        LadderConfig(norm="linf", eps=0.1, rungs=[{"attack": "pgd", "stepz": 3}])
    assert str(caught.value).startswith(
        "rungs.0.stepz: unknown field 'stepz'; did you mean 'steps'? Valid names: attack"
    )
    with pytest.raises(InvalidInput, match=r"^source\.eps: eps = 'x' \(str\)"):
        TransferConfig(norm="linf", eps=1, source={"attack": "pgd", "eps": "x"}, classifier="digits-cnn")
    assert PGDConfig(norm="linf", eps_255=8) == PGDConfig(norm="linf", eps=8 / 255)
    with pytest.raises(InvalidInput, match="give either `eps` or `eps_255`, not both"):
        PGDConfig(norm="linf", eps=0.1, eps_255=8)
    with pytest.raises(InvalidInput, match=r"^stages\.1\.qality: unknown field 'qality'; did you mean 'quality'\?"):
        SequenceConfig(stages=["median", {"purifier": "jpeg", "qality": 3}])
