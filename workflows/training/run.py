"""One training from config to card, continued where it stopped."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from defense.checkpoints import sha256_file
from defense.errors import InvalidInput, inside
from defense.files import writable_folder
from defense.reading import reading
from defense.redaction import redacted
from workflows.documents.parse import LARGEST, decode, parse
from workflows.training import checkpoint
from workflows.training.config import Training
from workflows.training.kinds.registry import objective_of
from workflows.training.loop import fit
from workflows.training.tracking import TrainingLog

__all__ = ["train"]

_SEEN = "training-images.u64"
"""Fingerprints of the training images, eight bytes each, little-endian: by them the auditor finds whoever is judged
on images that it was trained on."""

_CODE_VERSION = 1
"""Raised when the same config gives other weights than before: a checkpoint from before must not continue."""


def train(
    config: Training,
    *,
    command: str,
    force: bool = False,
    mlflow: str | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Train, evaluate on the test split, write weights and card; continue from a checkpoint if there is one.

    Arguments:
        config: What to train.
        command: The command line, for the card.
        force: Start again whatever lies in the out folder.
        mlflow: MLflow tracking URI for curves, figures and artifacts; none by default.
        notify: Called with each note for the user.

    Returns:
        The card's content; that of the folder if its training is finished.

    Raises:
        InvalidInput: The config does not fit the data, or the folder holds another training.
        KeyboardInterrupt: Ctrl-C; the checkpoint is written.
    """
    device = _settings(config)
    with inside("out"):
        writable_folder(config.out, "the folder of weights")
    data, test = (config.data_config(split).load() for split in ("train", "test"))
    objective = objective_of(config)(config, data)
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"out: folder {config.out!r} cannot be made ({error.strerror}); name another.") from error
    digests = {"train_digest": data.digest(), "test_digest": test.digest(), "train_images": len(data)}
    identity = _comparable(config.identity())
    if force:
        checkpoint.delete(out)
        (out / "card.yaml").unlink(missing_ok=True)
    else:
        card = _finished(out, identity, digests)
        if card is not None:
            notify(f"{config.out} holds the finished training of this config; give --force to train it again.")
            return card
    condition = {
        "config": identity,
        "data": digests,
        "device": device.type,
        "torch": str(torch.__version__),
        "code": _CODE_VERSION,
    }
    state = checkpoint.read(out, condition)
    if state is not None:
        notify(f"continuing at step {state['step']} of {config.steps}")
    # After everything that may draw: the network's fresh weights are a function of the seed.
    torch.manual_seed(config.seed)
    with TrainingLog.open(mlflow, config, digests, again=force, notify=notify) as log:

        def save(current: dict[str, Any]) -> None:
            # Points first: those before a checkpoint are not computed again.
            log.flush()
            checkpoint.write(out, condition, current)

        fitted = fit(
            config, objective, data, test, device, resume=state, save=save, observe=log.point if log.on else None
        )
        started = time.monotonic()
        measured = objective.measure(fitted.net, test)
        files = objective.save(fitted.net, out)
        seen = out / _SEEN
        data.fingerprints().tofile(seen)
        card = {
            "command": command,
            "config": config.identity(),
            "data": digests,
            "training_images": {"file": seen.name, "sha256": sha256_file(seen)},
            "measured": measured,
            "sha256": {file.name: sha256_file(file) for file in files},
            "parameters": sum(p.numel() for p in fitted.net.parameters()),
            "seconds": round(fitted.seconds + time.monotonic() - started, 1),
            "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        }
        text = redacted(yaml.safe_dump(card, sort_keys=False, width=110))
        log.finish(config.steps, measured, {"card.yaml": text, "config.yaml": yaml.safe_dump(config.model_dump())})
    # The card is written last: a folder with a card is finished.
    temporary = out / "card.yaml.tmp"
    temporary.write_text(text)
    temporary.replace(out / "card.yaml")
    checkpoint.delete(out)
    return card


def _settings(config: Training) -> torch.device:
    """Deterministic settings, and the device.

    Raises:
        InvalidInput: CUDA is requested and not available.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device: cuda is asked for, but torch finds no CUDA device here; use `auto` or `cpu`.")
    cuda = config.device != "cpu" and torch.cuda.is_available()
    torch.set_num_threads(config.threads)
    if cuda:
        # cuBLAS is deterministic only with a fixed workspace, and reads this before its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        # fp32 means fp32; who wants speed says bf16.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    # On CUDA some layers (the U-Net's upsampling) have no deterministic gradient: they warn instead of failing.
    torch.use_deterministic_algorithms(True, warn_only=cuda)
    return torch.device("cuda" if cuda else "cpu")


def _comparable(identity: dict[str, Any]) -> dict[str, Any]:
    """Return a config without the paths of files; the data are compared by digest."""
    dataset = {key: value for key, value in identity["dataset"].items() if key != "root"}
    return {key: value for key, value in identity.items() if key != "out"} | {"dataset": dataset}


def _finished(out: Path, identity: dict[str, Any], digests: dict[str, Any]) -> dict[str, Any] | None:
    """Return the folder's card if it belongs to this training; None if there is no card.

    Raises:
        InvalidInput: The card is another training's, or the weights are no longer those of the card.
    """
    path = out / "card.yaml"
    if not path.exists():
        return None
    again = "Name another folder, or give --force to replace it."
    with reading(path, "out: the card of a training", hint=again):
        with path.open("rb") as file:
            card = parse(decode(file.read(LARGEST + 1))).data
        stored = {"config": _comparable(card["config"]), "data": card["data"]}
        files = {str(name): str(sha256) for name, sha256 in card["sha256"].items()}
    ours = {"config": identity, "data": digests}
    if stored != ours:
        raise InvalidInput(
            f"out: {str(out)!r} holds the finished training of another config: "
            f"{checkpoint.describe(stored, ours)}. {again}"
        )
    for name, sha256 in files.items():
        if not (out / name).exists() or sha256_file(out / name) != sha256:
            raise InvalidInput(f"out: {str(out / name)!r} is missing or not the file of the card beside it. {again}")
    finished: dict[str, Any] = card
    return finished
