"""Names of files that users give: each kind of wrong one is told, at once, before anything is opened."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loops import every

from defense.errors import InvalidInput, PuregridError
from defense.files import (
    existing,
    found,
    path_of,
    read_text,
    shown,
    writable,
    writable_folder,
    write_text,
)
from defense.reading import reading
from defense.text import in_one_line, visible


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with one of each kind."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "ring").symlink_to(tmp_path / "round")
    (tmp_path / "round").symlink_to(tmp_path / "ring")
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket has 107 bytes at most
        server.bind("socket")
        os.chdir(before)
        yield tmp_path


NAMES = [
    ("", "is an empty name"),
    ("  ", "is an empty name"),
    ("a\0b", "holds a NUL character"),
    ("a\udc80b", "holds bytes that are no UTF-8 text"),
    ("x" * 300, "is longer than a name of a file can be"),
    ("y/" * 3000, "is longer than a name of a file can be"),
    ("ring", "is a link that leads round in a circle"),
]


@every(("name", "problem"), NAMES)
@every("check", [path_of, existing, found, read_text, writable, writable_folder])
def test_what_is_no_name_is_told(
    check: Callable[..., object], name: str, problem: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(InvalidInput) as error:
        check(name, "weights", where="--option")
    assert problem in str(error.value) and str(error.value).startswith("--option: weights '")
    assert len(str(error.value)) < 400 and str(error.value).isprintable()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere", "does not exist"),
        ("file/below", "does not exist: something on its path is a file, not a folder"),
        ("dangling", "nowhere', which does not exist"),
        ("folder", "is a folder, and a file is needed"),
        ("pipe", "is a pipe, and a file is needed"),
        ("socket", "is a socket, and a file is needed"),
        ("/dev/zero", "is a device, and a file is needed"),
    ],
)
def test_what_is_no_file_is_told_without_opening_it(
    name: str, problem: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for check in (existing, read_text):
        with pytest.raises(InvalidInput) as error:
            check(name, "weights")
        assert problem in str(error.value)
    if name not in ("nowhere", "file/below"):
        with pytest.raises(InvalidInput):
            found(name, "weights")
    with pytest.raises(InvalidInput, match=r"cannot be read|is needed"), reading(name, "weights"):
        Path(name).read_bytes()
    if name != "nowhere":
        with pytest.raises(InvalidInput):
            writable(name, "weights")


@pytest.mark.parametrize("name", ["file", "pipe", "/dev/full", "file/below", "dangling"])
def test_what_can_be_no_folder_is_told(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(InvalidInput, match=r"a folder is needed|which is no folder|which does not exist"):
        writable_folder(name, "the folder")
    assert writable_folder("new/below", "the folder") == place / "new/below" and not (place / "new").exists()


def test_a_relative_name_starts_at_its_base_and_links_are_followed(place: Path) -> None:
    (place / "link").symlink_to(place / "folder")
    assert path_of("link/x", "weights", base=place) == place / "folder" / "x"
    assert existing("link", "weights", kind="folder", base=place) == place / "link"


def test_a_text_that_has_no_end_or_is_none_is_refused(place: Path) -> None:
    large = place / "large"
    large.touch()
    os.truncate(large, 1 << 34)  # takes no room
    with pytest.raises(InvalidInput, match="has more than 16 MiB"):
        read_text(large, "sweep file")
    (place / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="is not UTF-8 text"):
        read_text(place / "bytes", "sweep file")
    assert read_text(place / "file", "sweep file") == "text"


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is forbidden to root")
def test_rights_that_are_missing_are_told(place: Path) -> None:
    (place / "file").chmod(0)
    with pytest.raises(InvalidInput, match="may not be read"):
        existing(place / "file", "weights")
    (place / "folder").chmod(0o500)
    with pytest.raises(InvalidInput, match="may not write"):
        writable(place / "folder" / "new", "the page")


def test_a_file_is_replaced_whole_or_not_at_all(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = place / "file"
    target.chmod(0o640)
    (place / "link").symlink_to(target)
    write_text(place / "link", "new \udc80", "the page")
    assert target.read_text() == "new \\udc80" and (place / "link").is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    names = sorted(os.listdir(place))
    with pytest.raises(PuregridError, match=r"could not be written \(No space left on device\).*is unchanged"):
        write_text(target, "newer", "the page")
    assert target.read_text() == "new \\udc80" and sorted(os.listdir(place)) == names


def test_control_characters_are_written_out() -> None:
    assert visible("a\x1b[31m\n\tb\x85\udc80\u202e") == "a\\x1b[31m\n\tb\\x85\\udc80\\u202e"
    assert in_one_line("é\n\u2028|\r") == "é\\n\\u2028|\\r"
    assert shown("\x1b" * 500).count("x1b") < 130


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_new_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "text", "the page")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    finally:
        os.umask(before)
