"""``puregrid data``: the only place that downloads data, and only on demand."""

import os
from pathlib import Path
from typing import Any

from defense.errors import InvalidInput, PuregridError, nearest
from defense.files import found, writable, writable_folder
from defense.packages import installed
from defense.torchvision_cpu import allow_torchvision_import
from tasks.cifar_c import RELEASES, CifarC, Release
from tasks.datasets import DATA_VARIABLE, DATASETS, DatasetConfig
from workflows.assets.download import RemoteFile, download

__all__ = ["WEIGHTS_VARIABLE", "fetch_dataset", "verify_dataset"]

WEIGHTS_VARIABLE = "PUREGRID_WEIGHTS"
"""Environment variable that names the folder of checkpoints."""

ALEXNET = RemoteFile("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "sha256", "7be5be79")
"""torchvision's AlexNet, the backbone of LPIPS; torchvision's file names end with the sha256's first digits."""

_TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def fetch_dataset(name: str, root: Path | None) -> str:
    """Download a data set, or the weights of LPIPS; returns what was done.

    Arguments:
        name: ``cifar10``, ``cifar100``, ``cifar10-c``, ``cifar100-c`` or ``lpips``.
        root: Where it shall lie; by default ``PUREGRID_DATA``, for ``lpips`` ``PUREGRID_WEIGHTS``.

    Raises:
        InvalidInput: Unknown name, or no root.
        PuregridError: The download failed.
    """
    _known(name)
    if name == "digits":
        return "digits is part of scikit-learn: there is nothing to fetch."
    if name == "lpips":
        path = writable_folder(_root(root, WEIGHTS_VARIABLE, "the weights"), "folder", where="--root")
        path = writable(path / Path(ALEXNET.url).name, "the weights", where="--root", make_folder=True)
        _complete(ALEXNET, path)
        return verify_dataset(name, path.parent)
    if name not in _TORCHVISION and name not in RELEASES:
        raise InvalidInput(f"data set {name!r} has no downloader; see its documentation.")
    folder = writable_folder(_root(root, DATA_VARIABLE, "the data set"), "folder", where="--root")
    if name in RELEASES:
        release = RELEASES[name]
        if not (folder / release.folder / "labels.npy").is_file():  # else it was unpacked by somebody
            _complete(_tar(release), folder / release.archive)
        return verify_dataset(name, folder)
    allow_torchvision_import()
    with installed(f"data set {name}"):
        from torchvision import datasets

    kind = getattr(datasets, _TORCHVISION[name])
    try:
        kind(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        title = f"CIFAR-{name.removeprefix('cifar')}"
        raise PuregridError(
            f"{title} could not be downloaded ({error}). Put {title.lower()}-python.tar.gz, from the data set's home "
            f"page, into {folder} and run this again: it is unpacked and checked."
        ) from error
    return verify_dataset(name, folder)


def verify_dataset(name: str, root: Path | None) -> str:
    """Check that a data set is whole; returns its sizes and digests, or what was compared.

    Raises:
        InvalidInput: It is not there or damaged.
    """
    _known(name)
    if name == "lpips":
        path = _root(root, WEIGHTS_VARIABLE, "the weights") / Path(ALEXNET.url).name
        if not path.is_file():
            raise InvalidInput(f"{path} is not there: `puregrid data fetch lpips --root {path.parent}` downloads it.")
        if not ALEXNET.matches(path):
            raise InvalidInput(f"{path} has another sha256 than {ALEXNET.digest}...: it is damaged; fetch it again.")
        return f"{path}: sha256 {ALEXNET.digest}..., torchvision's AlexNet; name it as `lpips: {path}`"
    if name in RELEASES:
        return CifarC(_root(root, DATA_VARIABLE, "the data set"), RELEASES[name]).verify()
    kind = DATASETS.get(name)
    lines = []
    for split in ("train", "test"):
        fields: dict[str, Any] = {"dataset": name, "split": split}
        if root is not None:
            found(root, "folder", kind="folder", where="--root")
        if root is not None and "root" in kind.model_fields:
            fields["root"] = str(root)
        config: DatasetConfig = kind.model_validate(fields).resolved(Path.cwd())
        lines.append(f"{name} {split}: {len(config.load())} images, digest {config.digest}")
    return "\n".join(lines)


def _known(name: str) -> None:
    names = [*DATASETS.names(), *RELEASES, "lpips"]
    if name not in names and ":" not in name:
        raise InvalidInput(f"unknown data set {name!r}; {nearest(name, names)}")


def _root(root: Path | None, variable: str, what: str) -> Path:
    folder = os.environ.get(variable) if root is None else root
    if not folder or not str(folder).strip():
        raise InvalidInput(f"give --root FOLDER or set {variable}: where {what} shall lie.")
    found(folder, "folder", kind="folder", where="--root" if root is not None else variable)
    return Path(folder)


def _tar(release: Release) -> RemoteFile:
    return RemoteFile(f"{release.record}/files/{release.archive}?download=1", "md5", release.md5, release.size)


def _complete(remote: RemoteFile, path: Path) -> None:
    """Download unless the file is there and whole."""
    if not (path.is_file() and remote.matches(path)):
        download(remote, path)
