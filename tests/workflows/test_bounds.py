"""Numbers that cannot be meant are refused at their place, before anything of their size is made."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from loops import every

from defense.bounds import BOUNDS, diameter
from defense.errors import InvalidInput
from defense.purifiers import GaussianNoiseConfig
from puregrid import CertificateConfig, Compute, LadderConfig, PGDConfig, Sweep, plan
from puregrid.evaluation import _at_least
from workflows.documents.names import wrong_name
from workflows.grid.load import load_sweep

ROOT = Path(__file__).parents[2]
QUICKSTART = (ROOT / "workflows" / "sweeps" / "quickstart.yaml").read_text()
QUICKSTART = QUICKSTART.replace("../../defense", str(ROOT / "defense"))


def load(folder: Path, old: str, new: str, name: str = "bounds.yaml") -> list[float]:
    assert old in QUICKSTART
    path = folder / name
    path.write_text(QUICKSTART.replace(old, new))
    return sorted({cell.attack.eps for cell in load_sweep(path).cells if cell.attack is not None})


EPS = "eps: [0.10, 0.15, 0.20]"
EPSILONS = [n / 10_000 for n in range(1, 1200)]
L2 = f"norm: linf\n    {EPS}"


@every(
    ("old", "new", "line", "says"),
    [
        (EPS, "eps: [0.1, 8]", 25, ("attacks.1.eps.1: eps = 8 (2040/255) is beyond 1", "`eps_255: 8`?", "[eps]`")),
        (EPS, "eps_255: 300", 25, ("attacks.1.eps_255: eps = 1.17", "300/255) is beyond 1, the largest l_inf")),
        (EPS, "eps: 1e308", 25, ("attacks.1.eps: eps = 1e+308 is beyond",)),
        (L2, "norm: l2\n    eps: [1.0, 8.5]", 25, ("eps = 8.5", "is beyond 8, the largest l_2", "(1, 8, 8)")),
        (
            EPS,
            f"{EPS}\n    step_size: 2",
            26,
            ("attacks.1.step_size: step_size = 2", "`step_size: 0.00784`, that is 2"),
        ),
        (EPS, f"{EPS}\n    restarts: 1000000000", 26, ("attacks.1.restarts", "is beyond 10000")),
        ("draws: 3", "draws: [3, 100000]", 20, ("defences.1.draws.1: draws = 100000 is beyond 10000", "[draws]`")),
        (
            "t_star: [50, 150]\n    steps: 20",
            "sigma_eq: 25",
            18,
            ("defences.1.sigma_eq", "`sigma_eq: 0.098`, that is"),
        ),
        ("chunk: 100", "chunk: 1000000000", 27, ("chunk: chunk = 1000000000", "1,000,000 cannot be meant")),
        ("chunk: 100", "resubmissions: 1000000000", 27, ("resubmissions", "cannot be meant")),
        ("chunk: 100", "compute: {batch: 1000000000}", 27, ("compute.batch: batch = 1000000000 is beyond 100000",)),
        (
            "chunk: 100",
            "compute: {threads: 1000000000}",
            27,
            ("compute.threads: threads = 1000000000 is beyond 1024",),
        ),
        (
            "chunk: 100",
            "certificates: [{sigma: 64, n: 100}]",
            27,
            ("certificates.0.sigma", "`sigma: 0.251`, that is"),
        ),
        ("chunk: 100", "certificates: [{sigma: 0.25, n: 1000000000000}]", 27, ("certificates.0.n",)),
        ("chunk: 100", "certificates: [{sigma: 0.25, alpha: 0.95}]", 27, ("certificates.0.alpha", "`alpha: 0.05`?")),
        ("digits\nclass", "digits\n    images: {first: 1000000000}\nclass", 6, ("first = 1000000000 is too large",)),
        ("digits\nclass", "digits\n    images: {start: 1000000000}\nclass", 6, ("images 0 to 598",)),
        ("- attack: none", "- ~", 22, ("attacks.0", "where no attack is meant, write `none`")),
        (
            f"{EPS}\n    steps: 20",
            f"eps: {EPSILONS}\n    steps: {list(range(1, 1200))}",
            21,
            ("attacks: the grid has 4,312,806 cells (3 defences x 1,437,602 attacks), more than 1,000,000",),
        ),
        (
            "chunk: 100",
            f"include: [{{seeds: {list(range(500))}, attacks: [{{attack: fgsm, norm: linf, eps: {EPSILONS}}}]}}]",
            27,
            ("include.0.attacks: the grid has 1,798,512 cells (3 defences x 500 seeds x 1,199 attacks)",),
        ),
    ],
)
def test_a_number_that_cannot_be_meant(tmp_path: Path, old: str, new: str, line: int, says: tuple[str, ...]) -> None:
    started = time.process_time()
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path, old, new)
    assert caught.value.where == f"{tmp_path / 'bounds.yaml'}:{line}"
    for text in says:
        assert text in str(caught.value)
    assert time.process_time() - started < 10


def test_the_curious_go_beyond_with_the_same_ids(tmp_path: Path) -> None:
    assert load(tmp_path, EPS, "eps: [0.1, 8.0]\n    unbounded: [eps]") == [0.1, 8.0]
    assert load(tmp_path, L2, "norm: l2\n    eps: 9.0\n    unbounded: [eps]") == [9.0]
    bounded, lifted = PGDConfig(norm="linf", eps=0.1), PGDConfig(norm="linf", eps=0.1, unbounded=["eps"])
    assert bounded.id == lifted.id
    assert "unbounded" not in lifted.identity()
    assert "unbounded" not in bounded.as_entry() and lifted.as_entry()["unbounded"] == ["eps"]
    ladder = LadderConfig(norm="linf", eps=8, unbounded=["eps"])
    assert {rung.eps for rung in ladder.rungs} == {8.0}
    path = tmp_path / "lifted.yaml"
    path.write_text(QUICKSTART.replace("draws: 3", "draws: 20000\n    unbounded: [draws]"))
    assert max(cell.defence.draws for cell in load_sweep(path).cells) == 20000
    with pytest.raises(InvalidInput, match=r"is beyond 1e\+12, which is hardly meant"):
        PGDConfig(norm="linf", eps=1e300, unbounded=["eps"])


def test_the_ends_of_the_bounds_are_valid() -> None:
    assert PGDConfig(norm="linf", eps_255=255).eps == 1.0
    assert PGDConfig(norm="linf", eps=1, steps=int(BOUNDS["steps"].most)).steps == 100_000
    edge = PGDConfig(norm="l2", eps=math.sqrt(3 * 32 * 32))
    edge.check_budget((3, 32, 32))
    with pytest.raises(InvalidInput, match=r"beyond 55\.4256"):
        PGDConfig(norm="l2", eps=55.5).check_budget((3, 32, 32))
    assert diameter("l1", (3, 32, 32)) == 3072 and diameter("flow", (3, 32, 32)) is None


def test_a_config_alone_has_the_same_words() -> None:
    for make, says in (
        (lambda: PGDConfig(norm="linf", eps=8), r"^eps = 8 \(2040/255\) is beyond 1.*Did you mean `eps_255: 8`\?"),
        (lambda: GaussianNoiseConfig(sigma=25), r"^sigma = 25 is beyond 10.*`sigma: 0\.098`, that is 25/255"),
        (lambda: CertificateConfig(sigma=0.25, n=10**12, guarantee="sequential"), "^n = 1000000000000 is beyond"),
        (lambda: Compute(batch=10**9), "^batch = 1000000000 is beyond 100000"),
        (lambda: LadderConfig(norm="linf", eps=0.1, rungs=[{"attack": "pgd", "steps": 10**9}]), r"^rungs\.0\.steps"),
    ):
        with pytest.raises(InvalidInput, match=says):
            make()


def test_numbers_of_a_run(tmp_path: Path) -> None:
    for numbers in ({"workers": 10**9}, {"max_attempts": 10**9}, {"gpus_per_worker": 1e9}):
        with pytest.raises(InvalidInput, match="cannot be meant"):
            _at_least(0, **numbers)
    with pytest.raises(InvalidInput, match="workers = 1000000000 is more than 100,000"):
        plan("quickstart", tmp_path / "store", workers=10**9)


GOOD = ("quickstart", "a b", "2026-11-29", "Prüfung ε", "x" * 120, "a.b_c-d", "conference", "x..y")
BAD = {
    "a/b": "path separator",
    "a\\b": "path separator",
    "../up": "path separator",
    ".": "begins with a dot",
    "..": "begins with a dot",
    ".hidden": "begins with a dot",
    "-rf": "dash",
    " x": "space",
    "x ": "space",
    "x.": "ends with a dot",
    "a\nb": "control character",
    "a\tb": "control character",
    "a\x00b": "control character",
    "a\u202eb": "control character",
    "\udc80": "control character",
    "x" * 121: "121 characters",
    "\U0001f600" * 70: "280 bytes",
    "con": "Windows",
    "NUL.txt": "Windows",
    "   ": "empty",
}


def test_the_name_of_a_sweep_is_a_name(tmp_path: Path) -> None:
    assert [name for name in GOOD if wrong_name(name) is not None] == []
    for name, says in BAD.items():
        assert says in str(wrong_name(name)), name
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path, "sweep: quickstart", "sweep: ../../x")
    assert caught.value.where == f"{tmp_path / 'bounds.yaml'}:3"
    assert "sweep: the name '../../x' cannot be a sweep's: it has a path separator" in str(caught.value)
    with pytest.raises(InvalidInput, match=r"'-x' \(of the file, as there is no `sweep: NAME` in it\)"):
        load(tmp_path, "sweep: quickstart\n", "", name="-x.yaml")
    for name in ("a/b", "x" * 121, "a\x00b"):
        with pytest.raises(InvalidInput, match="sweep: "):
            Sweep(name, datasets=["digits"], classifiers=["digits-cnn"], defences=["none"])
