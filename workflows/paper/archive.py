"""Adversarial images in an archive that somebody else can judge again, without our store and without trust in it.

A folder: ``manifest.json`` with the sha256 of each other file, the text of the sweep, and the cells;
``STAGE.safetensors`` for each attack, with ``images`` (float32, (N, C, H, W), in [0, 1]), ``image_id`` (int32) and,
for each cell that was judged on them, ``answered/CELL`` (ids) and ``prediction/CELL`` (int16, (ids, draws)). No file
holds code: JSON and safetensors alone. Judging verifies every hash, that images are in their budget around the clean
ones, and compares answers.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from defense.aggregate import certain_answer
from defense.errors import InvalidInput
from defense.files import make_folder, write_text
from defense.redaction import redacted
from defense.registry import no_plugins
from tasks.attacks.budgets import format_eps
from tasks.compute import Context
from tasks.stages import Chunk
from tasks.stages.base import images_to_table
from workflows.analysis import Analysis
from workflows.assets.bundled import bundled_folder
from workflows.grid.cells import Cell
from workflows.grid.load import load_sweep, recorded_sweep
from workflows.grid.sweep import Sweep
from workflows.statistics.proportions import Proportion, average, proportion
from workflows.tables.common import ATTACK, CLASSIFIER, DEFENCE, EPS
from workflows.tables.table import Column, Table

__all__ = ["Archive", "judge", "open_archive", "write_archive"]

FORMAT = "puregrid-adversarial-1"
_STAGE = re.compile(r"[0-9a-f]{16}")
_MOST_BYTES, _MOST_MANIFEST = 64 * 2**30, 64 * 2**20
_SLACK = 1e-6
"""What rounding to float32 may add to the norm of a perturbation, relative to the budget's 1."""


def write_archive(analysis: Analysis, folder: Path) -> str:
    """Write the adversarial images of a sweep, and what was answered to them.

    Returns:
        The sha256 of the manifest, which speaks for all other files.
    """
    from safetensors.numpy import save

    results, sweep = analysis.results, analysis.sweep
    make_folder(folder, "the archive")
    stages: dict[str, list[Cell]] = {}
    for cell in sweep.adversarial:
        if cell.attack_stage is not None and results.images(cell):
            stages.setdefault(cell.attack_stage.id, []).append(cell)
    files: dict[str, str] = {}
    cells: list[dict[str, Any]] = []
    for stage_id, members in stages.items():
        source = members[0].attack_stage
        assert source is not None
        chunks = results.chunks_of(source, members[0])
        tables = [results.store.read_images(source.stage, stage_id, chunk.name) for chunk in chunks]
        tensors: dict[str, npt.NDArray[Any]] = {
            "image_id": np.concatenate([table["image_id"].to_numpy() for table in tables]).astype(np.int32),
            "images": np.concatenate([_images(table) for table in tables]),
        }
        for cell in members:
            answers = results.asked(cell)
            assert answers is not None
            tensors[f"answered/{cell.id}"] = answers.image_id.astype(np.int32)
            tensors[f"prediction/{cell.id}"] = answers.prediction.astype(np.int16)
            labels = sweep.labels[cell.id]
            named = {name: labels[name] for name in ("dataset", "classifier", "defence", "attack")}
            attack = {"norm": source.attack.norm, "eps": source.attack.eps}
            cells.append({"cell": cell.id, "stage": stage_id, **named, **attack, "seed": cell.seed})
        content = save(tensors)
        name = f"{stage_id}.safetensors"
        (folder / name).write_bytes(content)
        files[name] = hashlib.sha256(content).hexdigest()
    where = sweep.document.folder
    bundled = str(where.relative_to(bundled_folder())) if where.is_relative_to(bundled_folder()) else None
    manifest = {
        "format": FORMAT,
        "sweep": sweep.name,
        "sweep_id": sweep.id,
        "text": redacted(sweep.text),
        "bundled": bundled,
        "files": files,
        "cells": cells,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    write_text(folder / "manifest.json", text, "the manifest")
    return hashlib.sha256(text.encode()).hexdigest()


def _images(table: Any) -> npt.NDArray[np.float32]:
    from tasks.stages.base import images_from_table

    return images_from_table(table, tuple(table["image_id"].to_pylist()))


@dataclass(frozen=True)
class Archive:
    """An archive whose files are what its manifest says.

    Arguments:
        folder: Where it lies.
        manifest: What it says of itself.
        sha256: Of the manifest.
    """

    folder: Path
    manifest: dict[str, Any]
    sha256: str

    def tensors(self, stage_id: str) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays of one attack, whose file is verified as it is read.

        Raises:
            InvalidInput: The file is missing or is not the one that the manifest names.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        name = f"{stage_id}.safetensors"
        path = self.folder / name
        try:
            if path.is_symlink() or path.stat().st_size > _MOST_BYTES:
                raise InvalidInput("it is a link, or too large for an archive of images.", where=str(path))
            content = path.read_bytes()
        except OSError as error:
            raise InvalidInput(f"a file of the archive cannot be read: {error.strerror}.", where=str(path)) from error
        if hashlib.sha256(content).hexdigest() != self.manifest["files"].get(name):
            raise InvalidInput(
                "its sha256 is not the one in the manifest: the file was changed or damaged. Get the archive again.",
                where=str(path),
            )
        try:
            return dict(load(content))
        except (SafetensorError, ValueError) as error:
            raise InvalidInput(f"it is no safetensors file: {error}.", where=str(path)) from error

    def sweep(self, file: Path | None) -> Sweep:
        """Return the sweep that the archive is of.

        Arguments:
            file: Its sweep file here, where weights lie elsewhere than the archive's text says; None for that text.

        Raises:
            InvalidInput: It cannot be loaded, or is another sweep.
        """
        if file is not None:
            loaded = load_sweep(file)
        else:
            folder = self.folder
            if (bundled := self.manifest["bundled"]) is not None:
                folder = bundled_folder() / bundled
                if not folder.resolve().is_relative_to(bundled_folder()):
                    raise InvalidInput("`bundled` names no folder of puregrid's.", where=str(self.folder))
            # The text is a stranger's: no module that it names is imported.
            with no_plugins():
                loaded = recorded_sweep(self.manifest["text"], folder)
        return loaded


def open_archive(folder: Path, sha256: str | None = None) -> Archive:
    """Open an archive and verify its manifest.

    Arguments:
        folder: The archive.
        sha256: Of its manifest, as the paper states it; None leaves it to the manifest to speak for itself.

    Raises:
        InvalidInput: It is no archive, or not the one with that sha256.
    """
    path = folder / "manifest.json"
    try:
        if path.stat().st_size > _MOST_MANIFEST:
            raise InvalidInput("the manifest is too large.", where=str(path))
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"there is no archive of adversarial images: {error.strerror}; `puregrid report --format paper` writes "
            "one.",
            where=str(path),
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256.strip().lower():
        raise InvalidInput(f"the sha256 of the manifest is {found}, not the one that you gave.", where=str(path))
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("the manifest is not readable.", where=str(path)) from error
    kinds = {"format": str, "text": str, "files": dict, "cells": list}
    if not isinstance(manifest, dict) or any(not isinstance(manifest.get(k), v) for k, v in kinds.items()):
        raise InvalidInput("the manifest lacks `format`, `text`, `files` or `cells`.", where=str(path))
    if manifest["format"] != FORMAT:
        raise InvalidInput(
            f"it has the format {manifest['format']!r}, and this version reads {FORMAT}.", where=str(path)
        )
    for cell in manifest["cells"]:
        if not isinstance(cell, dict) or not _STAGE.fullmatch(str(cell.get("stage", ""))):
            raise InvalidInput("a cell of the manifest names no stage.", where=str(path))
    manifest.setdefault("bundled", None)
    return Archive(folder, manifest, found)


_NOTE = (
    "Reported: the share of right draws by the answers in the archive; judged: by the answers that this machine gave "
    "to the same images. With the same seed the draws are the same, and answers differ by rounding alone; with "
    "another one they are draws that nobody chose by. Largest: the largest perturbation, which may not exceed eps."
)
_COLUMNS = (
    CLASSIFIER,
    DEFENCE,
    ATTACK,
    EPS,
    Column("largest", "largest", "number", "Largest norm of a perturbation.", "pixels in [0, 1]", digits=5, drop=2),
    Column("images", "images", "integer", "Images in the archive.", drop=1),
    Column("reported", "reported", "interval", "Share of right draws by the archive's answers."),
    Column("judged", "judged", "interval", "Share of right draws by the answers given now."),
    Column("differ", "differ", "integer", "Answers that differ from the archive's, of all draws."),
    Column("verdict", "verdict", "text", "Whether it agrees: inside the reported interval, and within the budget."),
)


def judge(archive: Archive, sweep: Sweep, *, device: str = "cpu", seed: int | None = None) -> Table:
    """Judge the images of an archive again.

    Arguments:
        archive: The archive.
        sweep: Its sweep.
        device: ``cpu`` or ``cuda``.
        seed: Seed of the draws; None for the archive's own.

    Returns:
        A line a cell; ``verdict`` is ``agrees``, ``differs`` (the judged accuracy is outside the reported interval)
        or ``outside the budget``.

    Raises:
        InvalidInput: A file is not what the manifest says, or a cell is not one of the sweep.
    """
    context = Context(device)
    cells = {cell.id: cell for cell in sweep.cells}
    lines = []
    for stage_id in dict.fromkeys(str(entry["stage"]) for entry in archive.manifest["cells"]):
        tensors = archive.tensors(stage_id)
        where = str(archive.folder / f"{stage_id}.safetensors")
        ids, images = _checked(tensors, where)
        for entry in (entry for entry in archive.manifest["cells"] if entry["stage"] == stage_id):
            cell = cells.get(str(entry.get("cell")))
            if cell is None or cell.attack_stage is None or cell.attack_stage.id != stage_id:
                raise InvalidInput(
                    f"cell {entry.get('cell')} of the archive is not one of the sweep {sweep.name!r} here: code, "
                    "data or weights differ from those that were judged, or --sweep names another file.",
                    where=where,
                )
            lines.append(_line(sweep, cell, tensors, ids, images, context, seed, where))
    return Table("judged", "Judged again", _COLUMNS, pd.DataFrame(lines), _NOTE)


def _checked(
    tensors: dict[str, npt.NDArray[Any]], where: str
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    try:
        ids, images = tensors["image_id"], tensors["images"]
    except KeyError as error:
        raise InvalidInput(f"it has no {error}.", where=where) from error
    if (
        images.dtype != np.float32
        or images.ndim != 4
        or ids.shape != images.shape[:1]
        or len(set(ids.tolist())) < len(ids)
    ):
        raise InvalidInput("`images` is not float32 of shape (N, C, H, W) with an id for each.", where=where)
    if not len(ids) or not np.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        raise InvalidInput("`images` holds none, or values outside of [0, 1].", where=where)
    return ids, images


def _line(
    sweep: Sweep,
    cell: Cell,
    tensors: dict[str, npt.NDArray[Any]],
    ids: npt.NDArray[np.int32],
    images: npt.NDArray[np.float32],
    context: Context,
    seed: int | None,
    where: str,
) -> dict[str, Any]:
    answered, before = tensors.get(f"answered/{cell.id}"), tensors.get(f"prediction/{cell.id}")
    if answered is None or before is None or before.shape != (len(answered), cell.defence.draws):
        raise InvalidInput(f"it lacks the answers of cell {cell.id}.", where=where)
    data = context.images(cell.images.dataset)
    place = {int(image): i for i, image in enumerate(ids)}
    if not set(map(int, answered)) <= place.keys() or max(place) >= len(data.labels) or min(place) < 0:
        raise InvalidInput("it has answers to images that are not in it, or not in the data set.", where=where)
    if images.shape[1:] != data.images.shape[1:]:
        raise InvalidInput(
            f"its images are {images.shape[1:]}, those of the data set {data.images.shape[1:]}.", where=where
        )
    stage = cell.evaluate if seed is None else cell.evaluate.model_copy(update={"seed": seed})
    predictions = []
    wanted = set(map(int, answered))
    for chunk in cell.images.chunks:
        if not wanted.issuperset(chunk.ids):
            continue
        own = images[[place[i] for i in chunk.ids]]
        with context.settings(stage.settings()):
            rows = stage.run(
                Chunk(chunk.ids), {"source": images_to_table(chunk.ids, torch.from_numpy(own))}, context
            ).rows
        predictions.append((chunk.ids, np.array(rows["prediction"].to_pylist(), dtype=np.int16)))
    if not predictions:
        raise InvalidInput(f"it has no whole chunk of images of cell {cell.id}.", where=where)
    order = [i for chunk_ids, _ in predictions for i in chunk_ids]
    after = np.concatenate([prediction for _, prediction in predictions])
    by_id = {int(image): answer for image, answer in zip(answered, before, strict=True)}
    reported = np.stack([by_id[i] for i in order])
    labels, until = data.labels[order], cell.defence.until
    if until is None:
        old, new = (proportion(average(answers == labels[:, None])) for answers in (reported, after))
    else:
        old, new = (proportion(certain_answer(answers, labels, until) == labels) for answers in (reported, after))
    attack = cell.attack_stage.attack if cell.attack_stage is not None else None
    assert attack is not None
    largest = _largest(images[[place[i] for i in order]], data.images[order], attack.norm)
    outside = largest is not None and largest > attack.eps * (1 + _SLACK) + _SLACK
    agrees = old.low <= new.value <= old.high
    named = {name: sweep.labels[cell.id][name] for name in ("classifier", "defence", "attack")}
    return {
        **named,
        "eps": attack.eps,
        "largest": largest,
        "images": len(order),
        **_columns("reported", old),
        **_columns("judged", new),
        "differ": int((reported != after).sum()),
        "verdict": f"outside the budget {format_eps(attack.eps)}" if outside else "agrees" if agrees else "differs",
    }


def _columns(name: str, share: Proportion) -> dict[str, float]:
    return {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}


def _largest(images: npt.NDArray[np.float32], clean: npt.NDArray[Any], norm: str) -> float | None:
    """The largest norm of a perturbation; None for attacks whose budget bounds no distance of pixels."""
    delta = (images.astype(np.float64) - clean.astype(np.float64)).reshape(len(images), -1)
    norms = {"linf": partial(np.max, axis=1), "l1": partial(np.sum, axis=1)}
    if norm == "l2":
        return float(np.sqrt((delta**2).sum(1)).max())
    return float(norms[norm](np.abs(delta)).max()) if norm in norms else None
