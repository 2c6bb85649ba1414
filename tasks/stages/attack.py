"""*attack*: clean images to adversarial ones, on the bare classifier or on a defence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import SerializeAsAny, model_validator
from torch import Tensor

from defense.classifiers import ClassifierConfig
from defense.gradients import GradientMode
from defense.purifiers import IterativePurifier, Purifier, PurifierConfig, Sequence
from defense.randomness import Omega
from tasks.attacks import AttackConfig, DerivedAttackConfig, Given, LadderConfig, Target, perturbation_norms
from tasks.attacks.base import AttackResult, checked_result
from tasks.attacks.budgets import format_eps
from tasks.attacks.shortlist import AscentConfig
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig
from tasks.stages.base import Chunk, Components, Output, StageSpec, images_from_table, images_to_table
from tasks.stages.schemas import EXTRA, PREFIX, ROW_SCHEMAS, attack_columns, extra_column

__all__ = ["AttackStage"]


class AttackStage(StageSpec):
    """An attack: on the bare classifier (static, and then nothing of the defence is in it), or on the defence.

    Arguments:
        sources: The stages of whose images the attack is made, for attacks that are made of others'.
        after: A ladder of earlier rungs: images that it has broken are passed on as they are, or a warm rung starts
            from its images.
        version: 5 where votes are attacked, since the tiny gradients of their draws keep their digits there; 6 where
            DiffHammer leaves images out behind a purifier, since the draws of one no longer depend on others; else 4.
    """

    stage: Literal["attack"] = "attack"
    version: Literal[4, 5, 6] = 4
    dataset: SerializeAsAny[DatasetConfig]
    classifier: SerializeAsAny[ClassifierConfig]
    purifier: SerializeAsAny[PurifierConfig] | None = None
    attack: SerializeAsAny[AttackConfig]
    sources: tuple[AttackStage, ...] = ()
    after: AttackStage | None = None
    seed: int
    compute: Compute

    @model_validator(mode="before")
    @classmethod
    def _version_of_attack(cls, data: Any) -> Any:
        attack = data.get("attack") if isinstance(data, dict) else None
        if getattr(attack, "restart_up_to", None) is not None and data.get("purifier") is not None:
            return {"version": 6, **data}
        return {"version": 5, **data} if getattr(attack, "attacked", None) == "vote" else data

    def inputs(self) -> dict[str, StageSpec]:
        """Return the sources in order, and the ladder so far."""
        stages: dict[str, StageSpec] = {f"source {i}": source for i, source in enumerate(self.sources)}
        return stages if self.after is None else {**stages, "after": self.after}

    @property
    def reads(self) -> Literal["images", "images and rows"]:
        """See :class:`StageSpec`."""
        return "images and rows" if self.sources or self.after is not None else "images"

    @property
    def components(self) -> Components:
        """See :class:`StageSpec`."""
        return Components(self.classifier, self.purifier, attack=self.attack)

    def label(self) -> str:
        """Data set, classifier, purifier if it is attacked, attack, budget."""
        behind = "" if self.purifier is None else f" behind {self.purifier.label()}"
        attack = f"{self.attack.label()} eps {format_eps(self.attack.eps)}"
        rest = "" if self.after is None else ", where the rungs before failed"
        if self.attack.parameter("warm"):
            rest = ", from the worst image of the rungs before"
        return f"{self.dataset.label()}, {self.classifier.label()}{behind}, {attack}{rest}"

    def model_key(self) -> str:
        """Return the purifier's network, or the classifier."""
        return (self.purifier.model_key() if self.purifier is not None else "") or self.classifier.id

    def work_per_image(self) -> float:
        """Return the evaluations of the classifier, or of the purifier's network: a gradient counts as three."""
        if self.purifier is None:
            return float(self.attack.evaluations)
        if isinstance(self.attack, LadderConfig):
            return float(self.attack.evaluations * max(self.purifier.evaluations, 1))
        times = 1.0 if self.attack.black_box else 3.0
        return times * self.attack.evaluations * self.attack.eot * max(self.purifier.evaluations, 1)

    @property
    def together(self) -> int:
        """The draws of one evaluation."""
        return self.attack.eot

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        """Rows: label, clean and adversarial prediction of the bare classifier, loss, norms, evaluations.

        What the attack itself says of an image is in columns with the prefix ``attack_``, or by name in
        ``attack_extra`` where :data:`ROW_SCHEMAS` has no column for it; its notes go into the commit, counts summed
        over the batches.
        """
        data = context.images(self.dataset)
        ids = np.array(chunk.ids)
        classifier = context.classifier(self.classifier)
        omega = Omega.of(self.attack.id, self.seed, "attack", chunk.ids, noise=self.compute.noise)
        from_sources = [_given(inputs[f"source {i}"], chunk.ids) for i in range(len(self.sources))]
        before = None if self.after is None else _given(inputs["after"], chunk.ids)
        notes: dict[str, int | float | str] = {}

        def attack(start: int, stop: int) -> dict[str, Tensor]:
            x = context.tensor(data.images[ids[start:stop]])
            y = context.tensor(data.labels[ids[start:stop]])
            omega_part = omega.part(start, stop)
            target = self.target(context, y, omega_part)
            if isinstance(self.attack, DerivedAttackConfig):
                result = self.attack.combine(
                    target, x, [_part(source, start, stop, context) for source in from_sources]
                )
            elif before is not None and isinstance(self.attack, AscentConfig) and self.attack.warm:
                result = self.attack.run_from(target, x, omega_part, _part(before, start, stop, context).images)
            elif before is not None:
                result = self._rest(target, x, omega_part, _part(before, start, stop, context))
            else:
                result = self.attack.run(target, x, omega_part)
            result = checked_result(result, x, f"attack {self.attack.label()!r}")
            _add(notes, result.notes)
            names = ("evaluations", "gradients", "zero", "nan", "points")
            counters = {name: getattr(target.tally, name) for name in names}
            counts = {
                name: torch.tensor([counter[image] for image in omega_part.image_ids])
                for name, counter in counters.items()
            }
            with torch.no_grad():
                right, wrong = classifier(x).argmax(1), classifier(result.images).argmax(1)
            return {
                "images": result.images,
                "clean_prediction": right,
                "adversarial_prediction": wrong,
                "loss": result.loss,
                **perturbation_norms(result.images, x),
                "evaluations": counts["evaluations"],
                "points": counts["points"],
                "attack_gradients": counts["gradients"],
                "attack_gradient_zero": counts["zero"],
                "attack_gradient_nan": counts["nan"],
                **{f"attack_{name}": values for name, values in result.columns.items()},
            }

        parts = context.in_batches(self._memory_key, len(ids), self.compute.batch, attack)
        column = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
        images = column.pop("images")
        rows = self._rows(chunk, data.labels[ids], column, self._share_of_steps(context))
        return Output(rows, images_to_table(chunk.ids, images), notes)

    def _rest(self, target: Target, x: Tensor, omega: Omega, before: Given) -> AttackResult:
        """Return the attack on the images that the rungs before have left, and the others as they are."""
        skipped = before.columns["right"] == 0
        images, loss = before.images.clone(), before.columns["loss"].clone()
        index = (~skipped).nonzero().flatten()
        notes: dict[str, int | float | str] = {}
        if len(index):
            result = self.attack.run(target.select(index), x[index], omega.select(index.tolist()))
            images[index], loss[index], notes = result.images, result.loss.to(loss), result.notes
        return AttackResult(images, loss, notes, {"skipped": skipped})

    def _share_of_steps(self, context: Context) -> float:
        """Steps of the chain that the attack walks through, as a share of the purifier's: below 1 for surrogates."""
        mode = GradientMode.parse(self.attack.gradient or "exact")
        if self.purifier is None or mode.name != "surrogate" or self.attack.black_box:
            return 1.0
        purifier = context.purifier(self.purifier, self.classifier)
        return _steps(purifier.surrogate(mode.steps)) / max(_steps(purifier), 1)

    def _rows(self, chunk: Chunk, labels: npt.NDArray[np.int64], column: dict[str, Tensor], steps: float) -> pa.Table:
        """``steps`` is the share of the purifier's steps that every evaluation took."""
        denoising, guiding = (
            (0, 0) if self.purifier is None else (self.purifier.evaluations, self.purifier.classifier_evaluations)
        )
        evaluations = column["evaluations"].numpy()
        own = {name: values for name, values in column.items() if name.startswith(PREFIX)}
        known = own.keys() & set(ROW_SCHEMAS["attack"].arrow.names) - {EXTRA}
        extra = {name.removeprefix(PREFIX): _extra(own[name]) for name in own.keys() - known}
        return ROW_SCHEMAS["attack"].table(
            {
                "image_id": pa.array(chunk.ids, pa.int32()),
                "label": pa.array(labels, pa.int16()),
                "clean_prediction": pa.array(column["clean_prediction"].numpy(), pa.int16()),
                "adversarial_prediction": pa.array(column["adversarial_prediction"].numpy(), pa.int16()),
                "loss": pa.array(column["loss"].numpy(), pa.float32()),
                **{norm: pa.array(column[norm].numpy(), pa.float64()) for norm in ("linf", "l2", "l1")},
                "denoiser_evaluations": pa.array((evaluations * steps * denoising).round(), pa.int64()),
                "classifier_evaluations": pa.array(
                    (evaluations * (1 + steps * guiding) + column["points"].numpy()).round(), pa.int64()
                ),
                **attack_columns({name: _column(own[name]) for name in known}, extra_column(extra, len(evaluations))),
            }
        )

    @property
    def _memory_key(self) -> str:
        """What a worker knows by how many images it has the memory for."""
        return f"{self.stage}-{self.model_key()}"

    def target(self, context: Context, labels: Tensor, omega: Omega) -> Target:
        """Return the attacked function for one batch.

        Arguments:
            context: The worker's models.
            labels: True labels, shape (B,).
            omega: The attack's own randomness of the batch.
        """
        classifier = context.classifier(self.classifier)
        if self.purifier is None:
            return Target(classifier, labels, omega)
        if isinstance(self.attack, LadderConfig):
            # Drawn by the id of the purifier: all ladders of a defence compare their rungs on the same draws.
            return Target(
                classifier,
                labels,
                replace(omega, spec_id=self.purifier.id, role="select"),
                context.purifier(self.purifier, self.classifier),
                draws=self.attack.select,
                fixed=True,
                batch=context.fitting(self._memory_key, self.compute.batch),
                precision=lambda: context.autocast(self.compute),
            )
        fixed = self.attack.knows == "randomness"
        # Who knows the randomness attacks the very draws of the judgement; who does not, draws of their own.
        draws = replace(omega, spec_id=self.purifier.id, role="judge") if fixed else omega.within("eot")
        return Target(
            classifier,
            labels,
            draws,
            context.purifier(self.purifier, self.classifier),
            mode=GradientMode.parse(self.attack.gradient or "exact"),
            draws=self.attack.eot,
            fixed=fixed,
            attacked=self.attack.attacked,
            batch=context.fitting(self._memory_key, self.compute.batch),
            precision=lambda: context.autocast(self.compute),
        )


def _steps(purifier: Purifier) -> int:
    """Steps of all chains in a purifier; 1 for one that is no chain."""
    if isinstance(purifier, Sequence):
        return sum(_steps(stage) for stage in purifier.stages if isinstance(stage, Purifier))
    return purifier.length if isinstance(purifier, IterativePurifier) else 1


def _given(table: pa.Table, ids: tuple[int, ...]) -> Given:
    """Return images and columns of a source; columns of other attacks are null throughout and left out."""
    columns: dict[str, Tensor] = {}
    for name in table.column_names:
        if (name != "loss" and not name.startswith(PREFIX)) or table[name].null_count == table.num_rows:
            continue
        values = table[name].to_pylist()
        if name == EXTRA:
            rows = [dict(row) for row in values]
            columns |= {key: torch.tensor([_single(row[key]) for row in rows]) for key in rows[0]}
        else:
            columns[name.removeprefix(PREFIX)] = torch.tensor(values)
    return Given(torch.from_numpy(images_from_table(table, ids)), columns)


def _single(values: list[float]) -> float | list[float]:
    return values[0] if len(values) == 1 else values


def _part(given: Given, start: int, stop: int, context: Context) -> Given:
    """Some of it, on the device."""
    columns = {name: context.tensor(values[start:stop]) for name, values in given.columns.items()}
    return Given(context.tensor(given.images[start:stop]), columns)


def _add(notes: dict[str, int | float | str], more: Mapping[str, int | float | str]) -> None:
    """Notes of several batches as one: numbers add up, texts that differ stand side by side."""
    for name, value in more.items():
        old = notes.get(name)
        if old is None or (old == value and isinstance(value, str)):
            notes[name] = value
        elif isinstance(old, str) or isinstance(value, str):
            notes[name] = f"{old}; {value}"
        else:
            notes[name] = old + value


def _column(values: Tensor) -> pa.Array:
    """Return one value per image, or a list of them."""
    if values.is_floating_point():
        values = values.double()
    return pa.array(values.numpy() if values.dim() == 1 else values.tolist())


def _extra(values: Tensor) -> list[list[float]]:
    """The values of each image, as one list."""
    found: list[list[float]] = values.double().reshape(len(values), -1).tolist()
    return found
