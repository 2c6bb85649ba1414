"""Which finding each planted fault gets in a sweep of clean images and a ladder, and which ones sound defences get.

    python benchmarks/planted_sweep.py [planted|sound] [--folder FOLDER]

Sweeps are run by ``puregrid run`` on Ray and read by ``puregrid tables --format json``. *planted* has every faulty
purifier and classifier of the tests (``tests/defense/planted.py``, ``planted_backward.py``,
``tests/workflows/planted_rows.py``, ``test_broken_zoo.py``) under ``[none, ladder]``. A fault that the preflight
refuses stops a run before it begins, so each is asked alone first; what is refused is a line of its own. A fault
counts as found by the errors and warnings that its sound twin in the same sweep does not get. Networks have a sweep
of their own, since p of a test is multiplied by the number of tests in a sweep. *sound* has every kind of purifier
that ships in front of ``digits-cnn`` and ``digits-at``, and both networks, all probed. What is printed are the tables
of docs/planted-faults.md.

With ``--folder`` sweep files and stores are kept there, and another call goes on with them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from defense.classifiers import Architecture
from defense.errors import InvalidInput
from tasks.datasets import DigitsConfig

REPOSITORY = Path(__file__).resolve().parents[1]
ASSETS = REPOSITORY / "defense" / "assets"
PARTS = tuple(str(REPOSITORY / place) for place in ("", "benchmarks", "tests", "tests/defense", "tests/workflows"))
"""Where the faulty parts are."""

LADDER = (
    "{{attack: ladder, norm: linf, eps: 0.15, rungs: [blind, bpda, exact, black-box], steps: {}, eot: 2, "
    "queries: {}, select: 4}}"
)
PLANTED_LADDER, SOUND_LADDER = LADDER.format(8, 30), LADDER.format(5, 10)
PLANTED_IMAGES, SOUND_IMAGES = 90, 24
HEAD = """
sweep: {name}
datasets: [{{dataset: digits, images: {{first: {images}}}}}]
classifiers: [{classifiers}]
denoisers:
  ddpm: {{format: diffusers, path: {assets}/digits-ddpm, schedule: linear-1000}}
  flow: {{format: diffusers, path: {assets}/digits-flowpure, schedule: flowpure, prediction: flowpure}}
  consistency: {{format: diffusers, path: {assets}/digits-consistency, schedule: edm, prediction: consistency}}
  adbm: {{format: diffusers, path: {assets}/digits-adbm, schedule: linear-1000}}
defences:
{defences}
attacks: [none, {ladder}]
probe: {probe}
chunk: {images}
compute: {{batch: 200}}
"""

DDPM = "denoiser: ddpm, schedule: linear-1000"
SOUND = (
    "none",
    "{purifier: jpeg, quality: 75}",
    "{purifier: bit-depth, bits: 4}",
    "{purifier: median, size: 3}",
    "{purifier: gaussian-noise, sigma: 0.15, draws: 4}",
    "{purifier: ebm, energy: digits-energy, steps: 10, draws: 4}",
    f"{{purifier: diffpure, {DDPM}, t_star: 100, steps: 3, form: [ddpm, ddim, sde, ode, heun, dpm++], draws: 4}}",
    f"{{purifier: diffpure, {DDPM}, t_star: 10, steps: 3, form: ldsde, draws: 4}}",
    f"{{purifier: one-shot, {DDPM}, t_star: 100, draws: 4}}",
    f"{{purifier: densepure, {DDPM}, t_star: 100, steps: 2, draws: 4, aggregation: majority-vote}}",
    f"{{purifier: gradual-noise, {DDPM}, depths: [30, 50], steps: 2, draws: 4}}",
    f"{{purifier: gdmp, {DDPM}, t_star: 36, steps: 2, rounds: 2, scale_rule: constant, scale: 100, draws: 4}}",
    "{purifier: guided-from-noise, denoiser: ddpm, steps: 4, scale: 10.0, draws: 4}",
    f"{{purifier: distribution-transfer, {DDPM}, t_star: 100, steps: 3, scale: 2.0, draws: 4}}",
    f"{{purifier: robust-reverse, {DDPM}, t_star: 70, steps: 2, auxiliary: digits-trades, draws: 4}}",
    f"{{purifier: contrastive-stateless, {DDPM}, t_star: 100, steps: 3, draws: 4}}",
    f"{{purifier: ssni, {DDPM}, t_star: 100, steps: 3, draws: 4}}",
    f"{{purifier: diffcap, {DDPM}, t_star: 150, steps: 3, draws: 4}}",
    f"{{purifier: diff-smooth, {DDPM}, t_star: 100, draws: 4, aggregation: mean-probability}}",
    "{published: score-opt-o, denoiser: ddpm, iterations: 2, draws: 4}",
    "{published: likelihood-maximization, denoiser: ddpm, iterations: 2, draws: 4}",
    "{published: aaopt, denoiser: ddpm, iterations: 2, draws: 4}",
    "{published: freqpure, denoiser: ddpm, amplitude_radius: 2, phase_radius: 2, steps: 3, draws: 4}",
    "{published: diff-ap, denoiser: ddpm, b_ref: 768, steps: 3, draws: 4}",
    "{published: mimic-diffusion, denoiser: ddpm, b_ref: 256, steps: 5, draws: 4}",
    "{published: coup, denoiser: ddpm, steps: 3, draws: 4}",
    "{published: osgd, denoiser: ddpm, scale: 12455.0, draws: 4}",
    "{published: heterogeneous, denoiser: ddpm, steps: 3, draws: 4}",
    "{published: flowpure, denoiser: flow, steps: 3, draws: 4}",
    "{published: adbm, denoiser: adbm, steps: 3, draws: 4}",
    "{purifier: consistency, denoiser: consistency, sigma_eq: 0.2, draws: 4}",
    f"{{purifier: chain, draws: 4, stages: [median, {{purifier: diffpure, {DDPM}, t_star: 50, steps: 2}}]}}",
)

NETS = (
    "",
    "rounds its input",
    "rounded logits",
    "detached features",
    "negated",
    "huge logits",
    "softmax",
    "noise",
    "judge",
    "caller",
    "tired",
    "batch statistics",
)
"""Faults of the small network of ``planted.py``."""

CURED = {"batch statistics": "nothing: puregrid loads networks in evaluation mode, and it is the sound one"}
"""Faults that cannot be in a sweep."""


def attribute(fault: str) -> str:
    """The name here of the small network with a fault."""
    return f"NET_{re.sub(r'[^a-z]', '_', fault)}"


def net(fault: str) -> torch.nn.Module:
    from planted import Net

    return Net(fault)


for _fault in NETS:
    globals()[attribute(_fault)] = Architecture(partial(net, _fault), (1, 8, 8), 10, (0.0,), (1.0,))


def fit_net(path: Path) -> None:
    """Write weights of the small network: random features, a last layer by least squares on the training split."""
    from safetensors.torch import save_file

    data, small = DigitsConfig(split="train").read(), net("")
    x = torch.from_numpy(data.images)
    hidden = torch.tanh(small.norm(torch.nn.functional.conv2d(x, small.kernel)))  # type: ignore[operator, arg-type]
    features = torch.nn.functional.adaptive_avg_pool2d(hidden, 2).flatten(1).double()
    targets = torch.eye(10, dtype=torch.float64)[torch.from_numpy(data.labels)]
    head = torch.linalg.lstsq(features, targets).solution.T
    weights = small.state_dict() | {"head": (10 * head).float()}
    save_file({name: value.contiguous() for name, value in weights.items()}, path)


@dataclass
class Fault:
    """A fault, where it is planted, and what was found.

    Arguments:
        group: What it is planted in; faults of one group have one sound twin, the one without a name.
        name: Its name.
        entry: The part in a sweep file.
        found: Severities and rules.
        accuracy: What clean images and the ladder leave, in %.
        refused: Why a sweep with it does not begin.
    """

    group: str
    name: str
    entry: str
    found: list[tuple[str, str]] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    refused: str = ""

    @property
    def classifier(self) -> bool:
        """Whether the part is a classifier."""
        return self.entry.startswith("{classifier")


def planted(weights: Path) -> Iterator[Fault]:
    """Every faulty part, and the sound twin of each kind, whose name is empty."""
    from planted_rows import RANDOM
    from test_planted_rows import CLASSIFIERS, DEFENCES
    from test_probe import PURIFIERS
    from test_probe_backward import FAULTS

    chain, small, rows, cnn = "a noisy chain", "a small network", "a purifier", "digits-cnn"
    planted = "planted:PlantedConfig"
    for name in ("", *PURIFIERS):
        yield Fault(chain, name, f'{{purifier: "{planted}", fault: "{name}", draws: 4}}')
    yield Fault(chain, "says it is not random", f'{{purifier: "{planted}", says_stochastic: false}}')
    yield Fault(chain, "says five evaluations", f'{{purifier: "{planted}", says_evaluations: 5, draws: 4}}')
    for name in FAULTS:
        yield Fault(chain, name, f'{{purifier: "planted_backward:BackwardConfig", fault: "{name}", draws: 4}}')
    for name in DEFENCES:
        draws = 4 if name in RANDOM else 1
        yield Fault(rows, name, f'{{purifier: "planted_rows:Planted", how: {name}, draws: {draws}}}')
    yield Fault(rows, "rounding", '{purifier: "test_broken_zoo:Rounding"}')
    yield Fault(rows, "look-up", '{purifier: "test_broken_zoo:LookUp"}')
    one_off = f'{{purifier: "test_broken_zoo:OneOff", {DDPM}, t_star: 40, steps: 2, draws: 4}}'
    yield Fault(rows, "t* one step off", one_off)
    for name in NETS:
        entry = f'{{classifier: "planted_sweep:{attribute(name)}", name: "net {name}", weights: {weights}}}'
        yield Fault(small, name, entry)
    for name in CLASSIFIERS:
        yield Fault(cnn, name, f'{{classifier: "planted_rows:{name}", name: {name}}}')


def text_of(name: str, faults: list[Fault], images: int) -> str:
    """A sweep file of faulty parts of one kind: purifiers in front of ``digits-cnn``, or bare classifiers."""
    entries = [fault.entry for fault in faults]
    if faults[0].classifier:
        return sweep_text(name, ", ".join(entries), ["none"], PLANTED_LADDER, images)
    return sweep_text(name, "digits-cnn", ["none", *entries], PLANTED_LADDER, images)


def sweep_text(
    name: str, classifiers: str, defences: Sequence[str], ladder: str, images: int, probe: str = "foreign"
) -> str:
    """A sweep file under ``[none, ladder]``."""
    return HEAD.format(
        name=name,
        images=images,
        classifiers=classifiers,
        assets=ASSETS.as_posix(),
        defences="\n".join(f"  - {entry}" for entry in defences),
        ladder=ladder,
        probe=probe,
    )


def refusal(folder: Path, fault: Fault) -> str:
    """Why a sweep with this part alone does not begin; empty if it does."""
    from workflows.grid.load import load_sweep
    from workflows.planning.plan import make_plan
    from workflows.preflight import preflight
    from workflows.store import Store

    path, store = folder / "asked.yaml", Store(str(folder / "asked"))
    path.write_text(text_of("asked", [fault], 2))
    try:
        sweep = load_sweep(path)
        preflight(sweep, make_plan(sweep).committed(store), store, lambda note: None)
    except InvalidInput as error:
        return str(error.message)
    return ""


def puregrid(*arguments: str) -> str:
    """What a command prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "puregrid", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(PARTS)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout


def findings_of(folder: Path, name: str, text: str) -> dict[str, Any]:
    """Run a sweep and return its tables and findings, with the label of each cell's classifier and defence."""
    path = folder / f"{name}.yaml"
    path.write_text(text)
    store = str(folder / "store")
    puregrid("run", str(path), "--store", store, "--workers", "1", "--mlflow", "off", "--json")
    text = puregrid("tables", str(path), "--store", store, "--format", "json")
    (folder / f"{name}.json").write_text(text)
    tables: dict[str, Any] = json.loads(text)
    return tables


def by_part(tables: dict[str, Any]) -> dict[tuple[str, str], tuple[list[float], list[tuple[str, str]]]]:
    """Accuracies, and findings (severity, rule or check of the probe), of each classifier and defence, in order."""
    parts = {row["cell"]: (row["classifier"], row["defence"]) for row in tables["robustness"]}
    found: dict[tuple[str, str], tuple[list[float], list[tuple[str, str]]]]
    found = {part: ([], []) for part in parts.values()}
    for row in tables["robustness"]:
        found[parts[row["cell"]]][0].append(100 * row["avg"])
    for finding in tables["findings"]:
        check = re.search(r"fails `([^`]+)`", finding["text"])
        rule = f"probe `{check[1]}`" if finding["rule"] == "probe-failed" and check else f"`{finding['rule']}`"
        for part in dict.fromkeys(parts[cell] for cell in finding["cells"] if cell in parts):
            found[part][1].append((finding["severity"], rule))
    return found


def planted_table(folder: Path) -> str:
    """Run the sweeps of all faults, and return the table of what was found of each."""
    weights = folder / "net.safetensors"
    fit_net(weights)
    faults = list(planted(weights))
    for fault in faults:
        fault.refused = refusal(folder, fault)
    for name, classifier in (("planted-purifiers", False), ("planted-networks", True)):
        kept = [fault for fault in faults if not fault.refused and fault.classifier == classifier]
        parts = list(by_part(findings_of(folder, name, text_of(name, kept, PLANTED_IMAGES))).values())
        # The first purifier stands behind the bare classifier.
        for fault, (accuracy, found) in zip(kept, parts[not classifier :], strict=True):
            fault.accuracy, fault.found = accuracy, found
    twins = {fault.group: set(fault.found) for fault in faults if not fault.name}
    lines = ["| planted in | fault | clean | ladder | found by |", "|:--|:--|--:|--:|:--|"]
    missed = []
    for fault in faults:
        serious = [one for one in fault.found if one[0] != "note" and one not in twins.get(fault.group, ())]
        by = [rule if severity == "error" else f"{rule} (warning)" for severity, rule in dict.fromkeys(serious)]
        said = ", ".join(by) or ("**nothing**" if fault.name else "nothing")
        shown = [f"{value:.1f}" for value in fault.accuracy] or ["-", "-"]
        if fault.refused:
            said = "refused: " + re.sub(
                r"^[\w.]+: | \((?:[A-Z]|they).*?\)|, as it would .*", "", fault.refused.split(". ")[0].rstrip(".")
            )
        elif fault.name in CURED:
            said = CURED[fault.name]
        elif fault.name and not by:
            missed.append(fault.name)
        name = fault.name or "none, the sound twin"
        lines.append(f"| {fault.group} | {name} | {' | '.join(shown)} | {said} |")
    return "\n".join([*lines, "", f"{sum(bool(fault.name) for fault in faults)} faults, not found: {missed}"])


def sound_table(folder: Path) -> str:
    """Run the sweep of sound defences, and return the table of all that was found."""
    text = sweep_text("sound", "digits-cnn, digits-at", SOUND, SOUND_LADDER, SOUND_IMAGES, "true")
    lines = ["| classifier | defence | clean | ladder | findings |", "|:--|:--|--:|--:|:--|"]
    for (classifier, defence), (accuracy, findings) in by_part(findings_of(folder, "sound", text)).items():
        said = ", ".join(f"{rule} ({severity})" for severity, rule in dict.fromkeys(findings)) or "none"
        lines.append(f"| {classifier} | {defence} | {' | '.join(f'{value:.1f}' for value in accuracy)} | {said} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("which", nargs="?", choices=["planted", "sound"])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.path[:0] = PARTS
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if given.which != "sound":
            print(planted_table(folder), flush=True)
        if given.which != "planted":
            print(sound_table(folder), flush=True)


if __name__ == "__main__":
    main()
