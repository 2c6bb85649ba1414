"""What was done, in sentences made from the specs: data, networks, purifiers, and what each attacker knew."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from defense.classifiers.base import ENTRIES
from defense.gradients import GradientMode
from defense.spec import Spec
from tasks.attacks import AttackConfig, LadderConfig, TransferConfig
from tasks.attacks.budgets import format_eps
from workflows.formats.latex import escaped
from workflows.grid.cells import Cell, Defence
from workflows.grid.sweep import Sweep
from workflows.paper.bibliography import cited
from workflows.tables.common import INTERVALS

__all__ = ["knowledge", "methods", "methods_used"]

_MODES = {
    "exact": "differentiates every step of the purifier",
    "bpda": "runs the purifier and passes gradients through it as through the identity (BPDA)",
    "surrogate": "differentiates a shorter chain of {0} steps in place of the purifier",
    "soft": "differentiates every step of the purifier, with published differentiable stand-ins for what rounds",
    "exact-no-guidance-path": "differentiates the purifier with its guidance taken as constant, which is incomplete",
}
_NAMED = {"attack", "norm", "eps", "knows", "gradient", "eot", "rungs", "source", "classifier", "purifier"}
_BALLS = {"linf": r"\ell_\infty", "l2": r"\ell_2", "l1": r"\ell_1"}


def methods_used(sweep: Sweep) -> list[str]:
    """Return the names, in a sweep file, of everything that a sweep uses, for :func:`~.bibliography.cited`."""
    names: list[str] = []
    for cell in sweep.cells:
        names += [cell.images.dataset.dataset, *_kind(cell), *(part.purifier for part in _purifiers(cell))]
        names += _names(cell.attack) if cell.attack is not None else []
        names += ["certificate"] if cell.certificate is not None else []
        names += ["corruption"] if cell.corruption is not None else []
        names += ["quality"] if cell.quality is not None else []
    return list(dict.fromkeys([*names, *(["anytime"] if sweep.precision is not None else [])]))


def _kind(cell: Cell) -> list[str]:
    """A classifier that is a method of its own; others are named after their weights."""
    name = cell.classifier.classifier
    return [name] if name in ENTRIES else []


def _names(attack: AttackConfig) -> list[str]:
    mode = [] if attack.gradient is None else [GradientMode.parse(attack.gradient).name]
    inside = [name for rung in _inside(attack) for name in _names(rung)]
    return [attack.attack, *mode, *["eot"] * (attack.eot > 1), *["l1"] * (attack.norm == "l1"), *inside]


def _inside(attack: AttackConfig) -> tuple[AttackConfig, ...]:
    if isinstance(attack, LadderConfig):
        return tuple(attack.rungs)
    return (attack.source,) if isinstance(attack, TransferConfig) else ()


def _purifiers(cell: Cell) -> Iterator[Any]:
    for _, part in cell.defence.purifier.parts():
        if hasattr(part, "purifier"):
            yield part
    yield cell.defence.purifier


def knowledge(attack: AttackConfig, *, bare: bool = False) -> str:
    """Return what the attacker knew, and what not, in a sentence.

    Arguments:
        attack: The attack.
        bare: Whether it attacked the classifier alone, so that there was no purifier to know.
    """
    if bare:
        return "There is no purifier: the attacker knows the classifier with its weights, which is all there is."
    if isinstance(attack, LadderConfig):
        return (
            "The attacker knows classifier and purifier with all weights and settings, runs the attacks below and "
            "submits for each image what they leave fewest right draws of. It does not know the draws by which the "
            "image is judged."
        )
    if isinstance(attack, TransferConfig):
        return (
            "The images are those of an attack on another network or purifier: the attacker knows nothing of what is "
            "judged."
        )
    if attack.static:
        return (
            "The attack is static: the attacker knows the classifier with its weights, and does not know that there "
            "is a purifier. Accuracy under it is an upper bound that says nothing about an attacker who knows the "
            "defence."
        )
    how = "asks for scores alone and sees no gradient" if attack.black_box else _mode(attack.gradient or "exact")
    mean = f", averaged over {attack.eot} draws an evaluation (EOT)" if attack.eot > 1 else ", on one draw at a time"
    draws = (
        "and those draws too by which the image is judged"
        if attack.knows == "randomness"
        else "and does not know the draws by which the image is judged"
    )
    return (
        f"The attack is adaptive: the attacker knows classifier and purifier with all weights and settings, {how}"
        f"{mean}, {draws}."
    )


def _mode(gradient: str) -> str:
    name, _, steps = gradient.partition("(")
    return _MODES.get(name, f"follows the gradient {gradient}").format(steps.rstrip(")"))


def methods(sweep: Sweep) -> str:
    """Return the methods of a sweep as LaTeX: a paragraph for each part, with every field that decides a row."""
    return "\n\n".join(_paragraphs(sweep)) + "\n"


def _paragraphs(sweep: Sweep) -> Iterator[str]:
    cells, labels = sweep.cells, sweep.labels
    for images in {cell.images.dataset.id: cell.images for cell in cells}.values():
        label = next(labels[cell.id]["dataset"] for cell in cells if cell.images.dataset.id == images.dataset.id)
        ids = [i for chunk in images.chunks for i in chunk.ids]
        which = f"images {ids[0]} to {ids[-1]}" if ids == list(range(ids[0], ids[-1] + 1)) else "chosen images"
        text = f"{images.count} {which} of the split, in the order of the files."
        yield _paragraph(f"Data set {label}", text, images.dataset, cited([images.dataset.dataset]))
    for cell in {cell.classifier.id: cell for cell in cells}.values():
        yield _paragraph(f"Classifier {labels[cell.id]['classifier']}", "", cell.classifier, cited(_kind(cell)))
    for cell in {labels[cell.id]["defence"]: cell for cell in cells}.values():
        purifier, label = cell.defence.purifier, labels[cell.id]["defence"]
        if purifier.purifier == "none":
            yield _paragraph("Defence none", "The bare classifier.", purifier, ())
            continue
        level = purifier.noise_level
        text = f"{_summary(purifier)} Each image is judged on {_draws(cell.defence)} fresh draws; "
        text += f"its own answer is their {cell.defence.aggregation}."
        if level is not None and level.t_star is not None:
            text += (
                f" It noises to t* = {level.t_star}, where the share of the signal's variance is {level.abar:.4g} "
                f"and the noise level {level.sigma_eq:.4g} in pixels of [0, 1]."
            )
        names = [part.purifier for part in _purifiers(cell)]
        yield _paragraph(f"Defence {label}", text, purifier, cited(names))
    yield from _attacks(sweep)
    certificates = {cell.certificate.id: cell.certificate for cell in cells if cell.certificate is not None}
    for certificate in certificates.values():
        text = "Randomised smoothing: radii in l_2, each wrong with probability at most alpha."
        yield _paragraph(f"Certificate {certificate.label()}", text, certificate, cited(["certificate"]))
    corruptions = {cell.corruption.label() for cell in cells if cell.corruption is not None}
    if corruptions:
        text = f"{len(corruptions)} kinds and severities of common corruptions: {', '.join(sorted(corruptions))}."
        yield _paragraph("Corruptions", text, None, cited(["corruption"]))
    if sweep.precision is not None:
        promise = "Cells stop early; intervals are confidence sequences that hold at any number of images."
        yield _paragraph("Intervals", promise, None, cited(["anytime"]))
    else:
        yield _paragraph("Intervals", INTERVALS, None, ["wilson1927"])


def _attacks(sweep: Sweep) -> Iterator[str]:
    found: dict[tuple[str, bool], tuple[AttackConfig, list[float]]] = {}
    for cell in sweep.cells:
        if cell.attack is None:
            continue
        bare = cell.defence.purifier.purifier == "none"
        # A static attack is one computation, whatever is judged on it: one paragraph, of the threat to purifiers.
        attack = cell.attack_stage.attack if cell.attack_stage is not None else cell.attack
        key = (sweep.labels[cell.id]["attack"], bare and not attack.static)
        _, budgets = found.setdefault(key, (attack, []))
        if attack.eps not in budgets:
            budgets.append(attack.eps)
    purified = any(cell.defence.purifier.purifier != "none" for cell in sweep.cells)
    for (label, bare), (attack, budgets) in found.items():
        ball = _BALLS.get(attack.norm)
        radii = ", ".join(format_eps(eps) for eps in budgets)
        text = knowledge(attack, bare=bare or not purified)
        body = _paragraph(f"Attack {label}", text, attack, cited(_names(attack)))
        if ball:
            body += f" The budget is a ball in ${ball}$ of radius {escaped(radii)} in pixels of $[0, 1]$."
        for rung in _inside(attack):
            body += f"\n\n\\noindent Within it, {escaped(rung.label())}: {escaped(knowledge(rung))}"
            body += f" {_fields(rung)}"
        yield body


def _summary(spec: Spec) -> str:
    return (type(spec).__doc__ or "").strip().partition("\n")[0]


def _paragraph(title: str, text: str, spec: Spec | None, keys: Iterable[str]) -> str:
    citations = "".join(f"~\\cite{{{','.join(keys)}}}" for keys in [list(keys)] if keys)
    fields = "" if spec is None else f" {_fields(spec)}"
    return f"\\paragraph{{{escaped(title)}{citations}.}} {escaped(text)}{fields}"


def _fields(spec: Spec) -> str:
    """Every field that is in the id, as it is: what sentences leave out is not lost."""
    flat = dict(_flat(spec.identity(), _NAMED if isinstance(spec, AttackConfig) else set()))
    if not flat:
        return ""
    entries = "; ".join(f"{name} = {value}" for name, value in flat.items())
    return f"\\emph{{Fields:}} {{\\small {_breakable(entries)}}}."


def _flat(values: Mapping[str, Any], without: set[str], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if name in without:
            continue
        if isinstance(value, dict):
            yield from _flat(value, set(), f"{before}{name}.")
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            for place, entry in enumerate(value):
                inner = entry if isinstance(entry, dict) else {"": entry}
                yield from _flat(inner, set(), f"{before}{name}.{place}.")
        else:
            yield f"{before}{name}", value


def _breakable(text: str) -> str:
    """Escaped text in which long hashes and names may break."""
    words = []
    for word in text.split(" "):
        pieces = [escaped(word[i : i + 16]) for i in range(0, len(word), 16)] or [""]
        words.append("\\allowbreak{}".join(pieces))
    return " ".join(words)


def _draws(defence: Defence) -> str:
    certain = {"vote": "its majority vote", "worst": "whether all are right"}
    if defence.until is None:
        return str(defence.draws)
    return f"up to {defence.draws} (until {certain[defence.until]} is certain)"
