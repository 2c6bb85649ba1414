"""Fetching: resumed, checked, in place only when whole; and what to do by hand where there is no network."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workflows.assets.datasets
import workflows.assets.download
from defense.errors import InvalidInput, PuregridError
from defense.torchvision_cpu import allow_torchvision_import
from tasks.cifar_c import CIFAR10_C, CIFAR100_C, CifarC, Release
from workflows.assets.datasets import fetch_dataset, verify_dataset
from workflows.assets.download import RemoteFile, download

CONTENT = bytes(np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8))
MD5 = hashlib.md5(CONTENT).hexdigest()


class Site:
    """A web server on this machine.

    Arguments:
        files: Content by path.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.ranges = True
        self.cut: int | None = None  # bytes after which the connection is closed
        self.asked: list[str | None] = []  # the Range header of each request
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = site.files.get(self.path.partition("?")[0])
                wanted = self.headers.get("Range")
                site.asked.append(wanted)
                if content is None:
                    self.send_error(404)
                    return
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.ranges else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start : None if site.cut is None else start + site.cut])

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site({"/file.bin": CONTENT})
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def remote(site: Site) -> RemoteFile:
    return RemoteFile(f"{site.url}/file.bin", "md5", MD5, len(CONTENT))


class TestDownload:
    def test_a_file_arrives_whole_and_leaves_nothing_else(
        self, remote: RemoteFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = tmp_path / "new" / "file.bin"
        download(remote, target)
        assert target.read_bytes() == CONTENT
        assert [path.name for path in target.parent.iterdir()] == ["file.bin"]
        assert capsys.readouterr().out == ""  # progress is not a result

    def test_what_was_cut_off_is_continued_and_not_repeated(
        self, site: Site, remote: RemoteFile, tmp_path: Path
    ) -> None:
        target = tmp_path / "file.bin"
        site.cut = 100_000
        with pytest.raises(PuregridError, match=r"closed early.*100,000 bytes are kept; run the same command again"):
            download(remote, target)
        assert not target.exists() and (tmp_path / "file.bin.part").stat().st_size == 100_000
        site.cut = None
        download(remote, target)
        assert target.read_bytes() == CONTENT
        assert site.asked == [None, "bytes=100000-"]

    def test_a_server_without_ranges_sends_all_of_it_again(
        self, site: Site, remote: RemoteFile, tmp_path: Path
    ) -> None:
        site.ranges = False
        (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
        download(remote, tmp_path / "file.bin")
        assert (tmp_path / "file.bin").read_bytes() == CONTENT

    def test_a_whole_part_is_only_checked(self, site: Site, tmp_path: Path) -> None:
        # Killed between the last byte and the rename; the size is not published.
        (tmp_path / "file.bin.part").write_bytes(CONTENT)
        download(RemoteFile(f"{site.url}/file.bin", "sha256", sha256()[:8]), tmp_path / "file.bin")
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        assert site.asked == [f"bytes={len(CONTENT)}-"]

    @pytest.mark.parametrize("damage", ["other content", "damaged beginning"])
    def test_what_has_another_hash_never_gets_the_name(
        self, site: Site, remote: RemoteFile, tmp_path: Path, damage: str
    ) -> None:
        if damage == "other content":
            site.files["/file.bin"] = CONTENT[::-1]
        else:
            (tmp_path / "file.bin.part").write_bytes(bytes(1000))
        with pytest.raises(PuregridError, match=rf"not the published file \(md5 {MD5}, 300,000 bytes\)"):
            download(remote, tmp_path / "file.bin")
        assert list(tmp_path.iterdir()) == []  # else every further run would continue the damaged file

    def test_an_answer_of_the_server_is_reported(self, site: Site, tmp_path: Path) -> None:
        with pytest.raises(PuregridError, match=r"answered 404 .*put it at .*file\.bin \(md5 "):
            download(RemoteFile(f"{site.url}/gone", "md5", MD5), tmp_path / "file.bin")

    def test_without_a_network_the_way_by_hand_is_reported(
        self, site: Site, remote: RemoteFile, tmp_path: Path
    ) -> None:
        site.server.shutdown()
        site.server.server_close()
        with pytest.raises(PuregridError) as error:
            download(remote, tmp_path / "file.bin")
        for part in ("Connection refused", remote.url, f"put it at {tmp_path / 'file.bin'}", MD5):
            assert part in str(error.value)
        assert "bytes are kept" not in str(error.value)

    def test_too_little_space_is_reported_before_anything_is_written(
        self, remote: RemoteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = workflows.assets.download.shutil.disk_usage(tmp_path)._replace(free=10)
        monkeypatch.setattr(workflows.assets.download.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(PuregridError, match=r"needs 300,000 bytes and .* has 10 free"):
            download(remote, tmp_path / "file.bin")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("url", ["http://example.org/file", "file:///etc/hostname", "ftp://127.0.0.1/file"])
    def test_only_https_and_this_machine_are_asked(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(PuregridError, match="only https"):
            download(RemoteFile(url, "md5", MD5), tmp_path / "file.bin")


def sha256() -> str:
    return hashlib.sha256(CONTENT).hexdigest()


def make_release(site: Site) -> Release:
    """A release of three images on the site, whose tar is put together here."""
    arrays = {"labels": np.tile(np.arange(3, dtype=np.uint8), 5), "fog": np.full((15, 32, 32, 3), 7, dtype=np.uint8)}
    tar, md5s = io.BytesIO(), {}
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            member = tarfile.TarInfo(f"CIFAR-10-C/{name}.npy")
            member.size = len(file.getvalue())
            archive.addfile(member, io.BytesIO(file.getvalue()))
            md5s[name] = hashlib.md5(file.getvalue()).hexdigest()
    content = tar.getvalue()
    site.files["/records/1/files/CIFAR-10-C.tar"] = content
    md5 = hashlib.md5(content).hexdigest()
    return Release("cifar10-c", "CIFAR-10-C", f"{site.url}/records/1", md5, len(content), md5s, 3)


class TestReleases:
    @pytest.fixture
    def release(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> Release:
        made = make_release(site)
        monkeypatch.setattr(workflows.assets.datasets, "RELEASES", {made.name: made})
        return made

    def test_a_fetched_release_can_be_read_and_is_not_fetched_twice(
        self, site: Site, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PUREGRID_DATA", str(tmp_path))
        said = fetch_dataset("cifar10-c", None)
        assert said == f"{tmp_path / 'CIFAR-10-C.tar'}: md5 {release.md5}, the published CIFAR-10-C.tar"
        assert (CifarC(tmp_path, release).read("fog", 5, [2]).pixels == 7).all()
        assert (fetch_dataset("cifar10-c", None), len(site.asked)) == (said, 1)

    def test_an_unpacked_release_is_checked_and_not_fetched(
        self, site: Site, release: Release, tmp_path: Path
    ) -> None:
        with tarfile.open(fileobj=io.BytesIO(site.files["/records/1/files/CIFAR-10-C.tar"])) as tar:
            tar.extractall(tmp_path, filter="data")
        assert fetch_dataset("cifar10-c", tmp_path) == f"{tmp_path / 'CIFAR-10-C'}: 2 files with the published md5s"
        assert site.asked == []
        (tmp_path / "CIFAR-10-C" / "fog.npy").write_bytes(b"torn")
        with pytest.raises(InvalidInput, match=r"fog\.npy .* damaged"):
            verify_dataset("cifar10-c", tmp_path)

    def test_a_damaged_tar_is_fetched_anew(self, site: Site, release: Release, tmp_path: Path) -> None:
        (tmp_path / "CIFAR-10-C.tar").write_bytes(bytes(release.size))
        fetch_dataset("cifar10-c", tmp_path)
        assert (tmp_path / "CIFAR-10-C.tar").read_bytes() == site.files["/records/1/files/CIFAR-10-C.tar"]

    @pytest.mark.parametrize("release", [CIFAR10_C, CIFAR100_C], ids=lambda release: release.name)
    def test_the_published_files_are_asked_of_their_records(
        self, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[RemoteFile, Path]] = []

        def note(remote: RemoteFile, target: Path) -> None:
            asked.append((remote, target))
            raise PuregridError("offline")

        monkeypatch.setattr(workflows.assets.datasets, "download", note)
        with pytest.raises(PuregridError, match="offline"):
            fetch_dataset(release.name, tmp_path)
        url = f"https://zenodo.org/records/{release.record.rpartition('/')[2]}/files/{release.folder}.tar?download=1"
        assert asked == [(RemoteFile(url, "md5", release.md5, release.size), tmp_path / f"{release.folder}.tar")]

    def test_a_release_that_is_not_there_says_its_command(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="puregrid data fetch cifar100-c --root FOLDER"):
            verify_dataset("cifar100-c", tmp_path)


class TestLpips:
    def test_the_backbone_goes_to_the_folder_of_weights(
        self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert workflows.assets.datasets.ALEXNET.url.endswith(
            f"alexnet-owt-{workflows.assets.datasets.ALEXNET.digest}.pth"
        )
        monkeypatch.setattr(
            workflows.assets.datasets, "ALEXNET", RemoteFile(f"{site.url}/file.bin", "sha256", sha256()[:8])
        )
        monkeypatch.setenv("PUREGRID_WEIGHTS", str(tmp_path))
        with pytest.raises(InvalidInput, match=r"file\.bin is not there: `puregrid data fetch lpips --root"):
            verify_dataset("lpips", None)
        assert "name it as `lpips:" in fetch_dataset("lpips", None)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
        (tmp_path / "file.bin").write_bytes(CONTENT[1:])
        with pytest.raises(InvalidInput, match="another sha256"):
            verify_dataset("lpips", None)

    def test_without_a_folder_it_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PUREGRID_WEIGHTS", raising=False)
        with pytest.raises(InvalidInput, match="--root FOLDER or set PUREGRID_WEIGHTS"):
            fetch_dataset("lpips", None)


def test_an_unknown_name_leads_to_the_ones_that_can_be_fetched(tmp_path: Path) -> None:
    for action in (fetch_dataset, verify_dataset):
        with pytest.raises(InvalidInput, match=r"'cifar-10-c'; did you mean 'cifar10-c'\? Valid names: .*lpips"):
            action("cifar-10-c", tmp_path)
    with pytest.raises(InvalidInput, match="'folder' has no downloader"):
        fetch_dataset("folder", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_offline_says_which_archive_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_torchvision_import()
    import torchvision.datasets

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(torchvision.datasets, name.upper(), refused)
    archive = f"cifar-{name.removeprefix('cifar')}-python.tar.gz"
    with pytest.raises(PuregridError, match=rf"Error downloading\)\. Put {archive}, .* into {tmp_path} and run this"):
        fetch_dataset(name, tmp_path)
