r"""AutoAttack: the reference implementation, as published, behind the interface of the other attacks.

Croce and Hein, arXiv 2003.01690, section 4; the package ``pyautoattack``. Its attacks run one after the other, each
on the images that the ones before have left:

* ``standard``: apgd-ce, apgd-t, fab-t, square;
* ``plus``: apgd-ce, apgd-dlr, fab, square, apgd-t, fab-t, with five restarts of the first three;
* ``rand``: apgd-ce, apgd-dlr, each step averaged over 20 calls of the defence;
* ``custom``: those in ``attacks``, with the package's settings.

``attacks`` of another version are the parts of it that are run, and ``steps``, ``calls``, ``targets`` and ``queries``
stand for the package's numbers: a shortened attack is the same in kind, and its name says what was cut.

In the l_1 ball (Croce and Hein, arXiv 2103.01208) ``standard`` has five restarts of apgd-ce and five targets of
apgd-t, both beginning in larger balls; the other versions do not differ.

It is here because it is what published figures mean, not because it is right for stochastic defences. It counts an
image as broken as soon as one draw is, the clean ones included, keeps the first image that fooled one, and never
attacks it again. That verdict is kept in the column ``broken``, and its flags in the notes; the rows are judged on
fresh draws like those of every attack. For a stochastic defence compare :mod:`tasks.attacks.apgd`.

**Draws.** A call answers with the mean logits of ``eot`` fresh draws (the log of the mean probabilities with
``attacked: mean-probability``, of the soft votes with ``vote``). The package repacks the images that are left, so
that element b of a call is not image b of the batch: draws are keyed by the image id *at position b*, and by the
number of the call, which makes them fresh and reproducible but ties none to an image. For the same reason there is
no ``knows: randomness``.

**Randomness.** The package draws from torch's global generator, seeded anew for each of its attacks, with a seed that
is a hash of spec id, seed and the image ids of the batch. Torch's, numpy's and Python's generators are left as they
were found.
"""

import hashlib
import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from defense.errors import InvalidInput, nearest
from defense.gradients import GradientMode
from defense.packages import installed
from defense.randomness import Omega
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.losses import margin
from tasks.attacks.region import Norm, Region
from tasks.attacks.target import Target

__all__ = ["AutoAttackConfig", "reference_seed"]

AttackName = Literal["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]

_VERSIONS: dict[str, tuple[AttackName, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
_NUMBERS: dict[str, set[AttackName]] = {
    "steps": {"apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t"},
    "calls": {"apgd-ce", "apgd-dlr"},
    "targets": {"apgd-t", "fab-t"},
    "queries": {"square"},
}
"""Numbers of the package that may be others, and the attacks that have them."""
_WARNINGS = {
    "randomized defense": "randomized",
    "probability distribution": "softmax_output",
    "zero gradient": "zero_gradient",
    "Square Attack has decreased": "square_gain",
    "dynamic defense": "dynamic",
    "with only": "few_classes",
    "more target classes": "few_classes",
    "too many target classes": "few_classes",
}


@ATTACKS.register("autoattack")
class AutoAttackConfig(AttackConfig):
    """AutoAttack.

    Arguments:
        version: ``standard``, ``plus``, ``rand`` or ``custom``.
        attacks: The attacks of ``custom``, in order; of another version those of its attacks that are run, None for
            all of them.
        steps: Steps of the apgd attacks and of fab; None for the package's 100.
        calls: Calls that a gradient of apgd-ce and apgd-dlr is the mean of; None for the version's (``rand``: 20, the
            others: 1).
        targets: Wrong classes that apgd-t and fab-t try; None for the version's.
        queries: Queries of square; None for the package's 5000.
        attacked: ``mean-logits``, the default where the purifier is known, ``mean-probability`` or ``vote``.

    Raises:
        InvalidInput: ``custom`` without ``attacks``; ``attacks`` that the version does not have; a number of an
            attack that is not run; ``knows: randomness``; ``attacked: mean-loss`` where there are draws, since the
            package sees one vector of logits per image.
    """

    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = dict.fromkeys(("steps", "calls", "targets", "queries"), (None,))
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    attack: Literal["autoattack"] = "autoattack"
    version: Literal["standard", "plus", "rand", "custom"] = "standard"
    attacks: tuple[AttackName, ...] | None = None
    steps: int | None = Field(default=None, ge=1)
    calls: int | None = Field(default=None, ge=1)
    targets: int | None = Field(default=None, ge=1, le=9)
    queries: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _one_answer(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if data.get("knows") == "randomness":
            raise InvalidInput(
                "autoattack cannot be given the draws of the judgement: the package repacks the images that are "
                "left, and no draw would stay with its image. Use apgd, or `knows: purifier`."
            )
        gradient = data.get("gradient")
        blind = isinstance(gradient, str) and GradientMode.parse(gradient).name == "blind"
        if (gradient is not None and not blind) or data.get("knows") == "purifier":
            if data.get("attacked") == "mean-loss":
                raise InvalidInput(
                    "`attacked: mean-loss` is not for autoattack: the package sees one vector of logits per image. "
                    "Write mean-logits, mean-probability or vote."
                )
            data.setdefault("attacked", "mean-logits")
        for name in data.get("attacks") or ():
            if name not in get_args(AttackName):
                raise InvalidInput(f"autoattack has no attack {name!r}; {nearest(str(name), get_args(AttackName))}")
        return data

    @model_validator(mode="after")
    def _custom(self) -> Self:
        if not self.attacks and (self.version == "custom" or self.attacks is not None):
            raise InvalidInput("`attacks` lists the attacks of `version: custom`, which has none otherwise.")
        if self.attacks and len(set(self.attacks)) < len(self.attacks):
            raise InvalidInput("`attacks` names an attack twice; the second run would repeat the first.")
        has = _VERSIONS.get(self.version)
        if self.attacks and has is not None and self.attacks != tuple(name for name in has if name in self.attacks):
            raise InvalidInput(
                f"`attacks` of `version: {self.version}` are some of {', '.join(has)}, in this order; others are "
                "`version: custom`.",
                keys=("attacks",),
            )
        for name, of in _NUMBERS.items():
            if getattr(self, name) is not None and not of.intersection(self.names):
                raise InvalidInput(
                    f"`{name}` is a number of {', '.join(sorted(of))}, which are not run.", keys=(name,)
                )
        return self

    @property
    def shortened(self) -> bool:
        """Whether parts or numbers are other ones than the package's."""
        parts = self.version != "custom" and self.attacks is not None and self.attacks != _VERSIONS[self.version]
        return parts or any(getattr(self, name) is not None for name in _NUMBERS)

    @property
    def autoattack(self) -> str:
        """See :class:`AttackConfig`."""
        return self.version

    @property
    def _numbers(self) -> dict[str, int]:
        """Its numbers, the package's where no other is stated."""
        return {
            "steps": self.steps or 100,
            "calls": self.calls or (20 if self.version == "rand" else 1),
            "targets": self.targets or (5 if self.norm == "l1" and self.version == "standard" else 9),
            "queries": self.queries or 5000,
        }

    @property
    def effort(self) -> dict[str, int | tuple[str, ...]]:
        """Its parts, their numbers, the package's where no other is stated, and the draws of a call."""
        used = {name: number for name, number in self._numbers.items() if _NUMBERS[name].intersection(self.names)}
        if "fab-t" in self.names:
            used["targets"] = self.targets or 9  # in l_1 too, where apgd-t has 5
        return {"attacks": self.names, **used, "eot": self.eot}

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        _check_classes(self._least_classes, classes)

    @property
    def _least_classes(self) -> int:
        """Classes without which one of its attacks cannot run."""
        targets = self.targets or 9
        return targets + 1 if {"apgd-t", "fab-t"} & set(self.names) else 3 if "apgd-dlr" in self.names else 2

    def method(self) -> str:
        """``autoattack-standard linf``; ``custom`` with its attacks; numbers that were cut, ``steps 10``."""
        which: list[str] = [] if self.version == "custom" else [self.version]
        which += ["+".join(self.attacks)] if self.attacks else []
        cut = [f"{name} {value}" for name in _NUMBERS if (value := getattr(self, name)) is not None]
        return " ".join([f"{self.attack}-{'-'.join(which)} {self.norm}", *cut])

    @property
    def evaluations(self) -> int:
        """Return the cost of an unbroken image in a batch of such, with 10 classes: no image costs more."""
        sparse = self.norm == "l1" and self.version == "standard"
        restarts = 5 if sparse else {"standard": 1, "rand": 1}.get(self.version, 5)
        numbers = self._numbers
        steps, calls, targets = numbers["steps"], numbers["calls"], numbers["targets"]
        run = steps + (3 if sparse else 1)  # three balls have three starts
        apgd = 1 + restarts * run * calls
        costs: dict[str, int] = {
            "apgd-ce": apgd,
            "apgd-dlr": apgd,
            "fab": 1 + restarts * (1 + 2 * steps + 1),
            "square": 1 + numbers["queries"] + 1 + 1,
            "apgd-t": 1 + targets * (1 + run),
            "fab-t": 1 + (self.targets or 9) * (2 + 2 * steps + 1),
        }
        before = 3 + (0 if self.version == "rand" else 5)  # its checks and the clean answer
        # And after each attack it asks for the answer; at the end comes the loss of the result.
        return before + sum(costs[name] + 1 for name in self.names) + 1

    @property
    def names(self) -> tuple[AttackName, ...]:
        """The attacks of this version, in order."""
        return self.attacks or _VERSIONS[self.version]

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`.

        Returns:
            The package's images, projected. ``loss`` is the margin there, on further draws. The notes count, by
            ``reference_``..., the images of the batch, those that the package found right when clean, after each
            attack, and in the end (``robust``), and by ``warning_...`` its warnings; the column ``broken`` has its
            verdict, which is true of images whose clean answer was wrong.

        Raises:
            InvalidInput: The package is not installed, or there are too few classes for the version.
        """
        with installed("autoattack"):
            from pyautoattack import AutoAttack  # type: ignore[import-untyped, unused-ignore]
        scores = _Scores(target, self._least_classes)
        with _collected() as messages, _generators_restored():
            reference = AutoAttack(
                scores,
                norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[self.norm],
                eps=self.eps,
                version=self.version,
                attacks=list(self.names) if self.version == "custom" else None,
                seed=reference_seed(omega),
                device=x.device,
            )
            self._shorten(reference)
            images, answers = reference.run_standard_evaluation(x, target.labels, batch_size=len(x))
        images = Region(x, self.norm, self.eps).project(images)
        broken = answers != target.labels
        notes = {"reference_images": len(x), **_notes(messages, len(x)), "reference_robust": int((~broken).sum())}
        return AttackResult(images, target.evaluate(images, margin).loss, notes, {"broken": broken})

    def _shorten(self, reference: Any) -> None:
        """Give the package's attacks these parts and numbers instead of its own."""
        reference.attacks_to_run = list(self.names)
        for apgd in (reference.apgd, reference.apgd_targeted):
            if self.steps is not None:
                apgd.n_iter = apgd.n_iter_orig = self.steps
                # The checkpoints that its constructor makes of the number of steps.
                apgd.n_iter_2, apgd.n_iter_min, apgd.size_decr = (
                    max(int(share * self.steps), 1) for share in (0.22, 0.06, 0.03)
                )
        if self.steps is not None:
            reference.fab.n_iter = self.steps
        if self.calls is not None:
            reference.apgd.eot_iter = self.calls
        if self.targets is not None:
            reference.apgd_targeted.n_target_classes = reference.fab.n_target_classes = self.targets
        if self.queries is not None:
            reference.square.n_queries = self.queries


def reference_seed(omega: Omega) -> int:
    """Return the package's seed, 32 bits of a hash of spec id, seed, role and the image ids in order."""
    text = repr((omega.spec_id, omega.seed, omega.role, omega.image_ids, omega.draws))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def _check_classes(least: int, classes: int) -> None:
    if classes < least:
        raise InvalidInput(
            f"{classes} classes, but apgd-t and fab-t of autoattack need 10 (they try 9 wrong ones, or as "
            "many as `targets`) and apgd-dlr needs 3. Use `version: custom` with other attacks, or apgd with "
            "`targets`."
        )


class _Scores(nn.Module):
    """One vector of logits per image, of batches of any composition; ``least`` is how many classes there must be."""

    def __init__(self, target: Target, least: int = 2) -> None:
        super().__init__()
        self._target = target
        self._least = least
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        target = self._target
        part = target.select(torch.arange(len(x)))
        logits = part.logits(x)
        _check_classes(self._least, logits.shape[2])
        target.calls, target.evaluations = part.calls, target.evaluations + part.evaluations
        return target.together(logits)


@contextmanager
def _generators_restored() -> Iterator[None]:
    """Leave the global generators, the tracer and the package's counters as they were found."""
    from pyautoattack import checks

    state, python, trace = np.random.get_state(), random.getstate(), sys.gettrace()
    # It counts calls of autograd since the process began: another unit's guidance would make this one dynamic.
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        sys.settrace(trace)  # its check for dynamic defences removes whatever tracer there is
        random.setstate(python)
        np.random.set_state(state)


class _Handler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _collected() -> Iterator[list[logging.LogRecord]]:
    """Whatever the package logs, and nobody else sees it."""
    logger, handler = logging.getLogger("auto-attack"), _Handler()
    level, before = logger.level, (logger.propagate, logger.handlers, logger.disabled)
    logger.setLevel(logging.DEBUG)
    logger.propagate, logger.handlers, logger.disabled = False, [handler], False
    try:
        yield handler.records
    finally:
        logger.setLevel(level)
        logger.propagate, logger.handlers, logger.disabled = before


def _notes(records: list[logging.LogRecord], count: int) -> dict[str, int | float | str]:
    """Counts of images that were right at each stage, and of warnings by kind."""
    notes: Counter[str] = Counter()
    for record in records:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            kind = next((kind for words, kind in _WARNINGS.items() if words in text), "other")
            notes[f"warning_{kind}"] += 1
        elif match := re.match(r"(initial accuracy|robust accuracy after ([\w-]+)): ([\d.]+)%", text):
            stage = f"after_{match[2].lower()}" if match[2] else "clean"
            notes[f"reference_{stage}"] = round(float(match[3]) * count / 100)
    return dict(notes)
