"""``puregrid init``: a first sweep file, with a comment on each line, that runs as it is."""

from pathlib import Path
from typing import TypeVar

from defense.errors import InvalidInput, nearest

__all__ = ["ATTACKS", "DATASETS", "DEFENCES", "first_sweep"]

T = TypeVar("T")

_SHIPPED = Path(__file__).parents[2] / "defense" / "assets"

DATASETS = {
    "digits": ("digits-cnn", "eps: 0.15", "8x8 pixels, of scikit-learn; nothing is downloaded"),
    "cifar10": (
        "resnet56",
        "eps_255: [4, 8]         # in 1/255: two attacks",
        "from PUREGRID_DATA, or `root: FOLDER`",
    ),
}
"""Data sets of a first sweep: a classifier for it, a budget that is usual there, and where images come from."""

_WEIGHTS = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet32": "resnet32-d509ac18.th",
    "resnet44": "resnet44-014dd654.th",
    "resnet56": "resnet56-4bfd9763.th",
}

_DIFFUSION = {
    "t_star": "    t_star: [50, 100]       # noising steps: two defences\n",
    "steps": "    steps: 5                # reverse steps, evenly spaced; all t_star of them without this line\n",
}

DEFENCES: dict[str, tuple[str, ...]] = {
    "none": (),
    "diffpure": ("denoiser", "schedule", "t_star", "steps", "draws"),
    "gdmp": ("denoiser", "schedule", "t_star", "steps", "draws"),
    "distribution-transfer": ("denoiser", "schedule", "t_star", "steps", "draws"),
    "gradual-noise": ("denoiser", "schedule", "t_star", "steps", "draws"),
    "guided-from-noise": ("denoiser", "schedule", "t_star", "steps", "draws"),
    "one-shot": ("denoiser", "schedule", "t_star", "draws"),
    "densepure": ("denoiser", "schedule", "t_star", "draws"),
    "gaussian-noise": ("sigma", "draws"),
    "jpeg": (),
    "median": (),
    "bit-depth": ("bits",),
}
"""Purifiers of a first sweep, and the lines that each needs."""

ATTACKS = ("pgd", "apgd", "fgsm", "square", "ladder", "none")
"""Attacks of a first sweep: static ones, and the ladder, which knows the purifier."""


def first_sweep(
    name: str,
    *,
    dataset: str = "digits",
    classifier: str | None = None,
    defence: str = "diffpure",
    attack: str = "pgd",
) -> str:
    """Return the text of a sweep file.

    Arguments:
        name: Its name.
        dataset: ``digits``, which needs nothing, or ``cifar10``.
        classifier: An architecture; by default one that is usual on the data set.
        defence: A purifier, which stands beside the bare classifier.
        attack: An attack, which stands beside clean images.

    Raises:
        InvalidInput: One of them is not known here.
    """
    usual, eps, origin = _chosen("data set", dataset, DATASETS)
    classifier = usual if classifier is None else classifier
    _chosen("attack", attack, dict.fromkeys(ATTACKS, ""))
    needs = _chosen("defence", defence, DEFENCES)
    parts = [
        "# Written by `puregrid init`. `puregrid plan FILE` shows what it would compute; `run` does it.\n",
        f"sweep: {name}\n",
        f"datasets:\n  - dataset: {dataset}         # {origin}\n",
        "    images: {first: 50}     # all of them without this line\n",
        f"classifiers:\n{_classifier(classifier)}",
        _denoisers(dataset) if "denoiser" in needs else "",
        f"defences:\n  - none                    # the bare classifier, to compare with\n{_defence(defence, needs)}",
        f"attacks:\n  - none                    # clean images\n{_attack(attack, eps)}",
        "chunk: 25                   # images of a unit: what is computed, committed and repeated as one\n",
    ]
    return "".join(parts)


def _chosen(what: str, name: str, known: dict[str, T]) -> T:
    if name not in known:
        raise InvalidInput(
            f"no first sweep is written for the {what} {name!r}; {nearest(name, sorted(known))}. For any other write "
            "the entry yourself: `puregrid list` has all names, and `puregrid list KIND NAME` the fields of one."
        )
    return known[name]


def _classifier(name: str) -> str:
    if name in _WEIGHTS:
        digits = _WEIGHTS[name].partition("-")[2].partition(".")[0]
        return (
            f"  - classifier: {name}\n"
            f"    weights: ${{PUREGRID_WEIGHTS}}/{_WEIGHTS[name]}\n"
            f"    sha256: {digits}        # its first hex digits, checked before anything runs\n"
        )
    if (_SHIPPED / name).is_dir():
        return f"  - {name}              # its weights ship with puregrid\n"
    return f"  - classifier: {name}\n    weights: ${{PUREGRID_WEIGHTS}}/{name}.pth   # yours\n"


def _denoisers(dataset: str) -> str:
    path = str(_SHIPPED / "digits-ddpm") if dataset == "digits" else "${PUREGRID_WEIGHTS}/ddpm-cifar10-small"
    entry = f"{{format: diffusers, path: '{path}', schedule: linear-1000}}"
    return f"denoisers:                  # by names of yours\n  ddpm: {entry}\n"


def _defence(name: str, needs: tuple[str, ...]) -> str:
    if not needs:
        return "" if name == "none" else f"  - {name}\n"
    lines = {
        "denoiser": "    denoiser: ddpm\n",
        "schedule": "    schedule: linear-1000   # t* means nothing without it\n",
        **_DIFFUSION,
        "sigma": "    sigma: [0.1, 0.2]       # of the noise, pixels in [0, 1]: two defences\n",
        "bits": "    bits: 4                 # of a pixel\n",
        "draws": "    draws: 3                # how often each image is purified and judged\n",
    }
    return f"  - purifier: {name}\n" + "".join(lines[field] for field in needs)


_BELOW_ATTACK = {
    "pgd": (
        "    steps: 20\n"
        "    # gradient: exact       # an attacker who knows the purifier; 50 times the cost\n"
        "    # eot: 10\n"
    ),
    "apgd": "    steps: 20\n",
    "square": "    queries: 500\n",
    "ladder": (
        "    steps: 5\n    eot: 2\n    queries: 50\n"
        "    select: 5               # raise all four for figures that count\n"
    ),
}


def _attack(name: str, eps: str) -> str:
    if name == "none":
        return ""
    return f"  - attack: {name}\n    norm: linf\n    {eps}\n{_BELOW_ATTACK.get(name, '')}"
