"""Fetching an image: from a site that a test makes on loopback."""

from __future__ import annotations

import errno
import hashlib
import lzma
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="the runner is for POSIX hosts")

from freebsd_vm import failures, images

CONTENT = bytes(range(256)) * 4096
NAME = "FreeBSD-15.1-RELEASE-amd64-BASIC-CLOUDINIT-ufs.qcow2.xz"


class Site:
    """Files by path, and how the server answers."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.ranges = True
        self.cut: int | None = None  # bytes after which the connection breaks
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                site.asked.append(self.path.rpartition("/")[2] + (f" {asked}" if asked else ""))
                content = site.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                first = int(asked[6:-1]) if asked and site.ranges else 0
                if first > len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(content) - first))
                self.end_headers()
                cut = site.cut if self.path.endswith(NAME) else None
                last = len(content) if cut is None else first + cut
                self.wfile.write(content[first:last])

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/VM-IMAGES/"

    def put(self, name: str, content: bytes) -> None:
        self.files[f"/VM-IMAGES/15.1-RELEASE/amd64/Latest/{name}"] = content

    def release(self, content: bytes = CONTENT) -> None:
        packed = lzma.compress(content, preset=0)
        self.put(NAME, packed)
        self.sums(hashlib.sha512(packed).hexdigest())

    def sums(self, digest: str) -> None:
        other = f"SHA512 (other.xz) = {'0' * 128}\n"
        self.put("CHECKSUM.SHA512", f"{other}SHA512 ({NAME}) = {digest}\n{other}".encode())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    made.release()
    yield made
    made.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fetch(site: Site, cache: Path) -> Path:
    return images.official("15.1", "amd64", cache, site.url, lambda text: None)


def test_an_image_is_fetched_once(site: Site, cache: Path) -> None:
    image = fetch(site, cache)
    assert image == cache / NAME.removesuffix(".xz")
    assert image.read_bytes() == CONTENT
    assert not image.stat().st_mode & 0o222, "an image that a run could write to"
    assert fetch(site, cache) == image
    assert site.asked == ["CHECKSUM.SHA512", NAME]


def test_a_download_goes_on_where_it_stopped(site: Site, cache: Path) -> None:
    site.cut = 300
    with pytest.raises(failures.DownloadFailed, match="run it again"):
        fetch(site, cache)
    site.cut = None
    assert fetch(site, cache).read_bytes() == CONTENT
    assert site.asked[-1] == f"{NAME} bytes=300-"


def test_a_site_that_knows_no_ranges_starts_over(site: Site, cache: Path) -> None:
    site.cut, site.ranges = 300, False
    with pytest.raises(failures.DownloadFailed):
        fetch(site, cache)
    site.cut = None
    assert fetch(site, cache).read_bytes() == CONTENT


def test_all_was_fetched_but_not_checked(site: Site, cache: Path) -> None:
    cache.mkdir()
    whole = site.files[f"/VM-IMAGES/15.1-RELEASE/amd64/Latest/{NAME}"]
    (cache / f"{NAME}.part").write_bytes(whole)
    assert fetch(site, cache).read_bytes() == CONTENT


def test_a_part_of_something_larger_is_thrown_away(site: Site, cache: Path) -> None:
    cache.mkdir()
    (cache / f"{NAME}.part").write_bytes(bytes(1 << 20))
    with pytest.raises(failures.DownloadFailed, match="run it again"):
        fetch(site, cache)
    assert fetch(site, cache).read_bytes() == CONTENT


def test_an_image_that_is_not_what_the_checksum_says_is_deleted(site: Site, cache: Path) -> None:
    site.sums("1" * 128)
    with pytest.raises(failures.BadChecksum, match="1" * 128):
        fetch(site, cache)
    assert {path.name for path in cache.iterdir()} == {"lock", f"{NAME}.sha512"}


def test_a_release_whose_checksum_changes_is_not_believed(site: Site, cache: Path) -> None:
    fetch(site, cache).unlink()
    site.release(b"somebody else's")
    with pytest.raises(failures.BadChecksum, match="first seen"):
        fetch(site, cache)


def test_a_checksum_file_without_the_image_is_no_checksum(site: Site, cache: Path) -> None:
    site.put("CHECKSUM.SHA512", b"<html>welcome to this airport</html>")
    with pytest.raises(failures.BadChecksum, match="says nothing"):
        fetch(site, cache)


def test_a_release_that_is_not_there_is_a_failed_download(site: Site, cache: Path) -> None:
    with pytest.raises(failures.DownloadFailed, match="404"):
        images.official("99.9", "amd64", cache, site.url, lambda text: None)


def test_a_site_that_is_not_there_is_a_failed_download(cache: Path) -> None:
    with pytest.raises(failures.DownloadFailed, match=r"nowhere\.invalid"):
        images.official("15.1", "amd64", cache, "http://nowhere.invalid", lambda text: None)


def test_a_full_disk_is_said_as_such(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(failures.HostDiskFull, match="no room"):
        fetch(site, cache)
    monkeypatch.undo()
    assert fetch(site, cache).read_bytes() == CONTENT


def test_aarch64_has_a_folder_and_a_name_of_its_own() -> None:
    assert images.folder("https://x/", "14.4", "aarch64") == "https://x/14.4-RELEASE/aarch64/Latest"
    name = images.file_name("14.4", "aarch64")
    assert name == "FreeBSD-14.4-RELEASE-arm64-aarch64-BASIC-CLOUDINIT-ufs.qcow2.xz"


def test_progress_is_told_now_and_then(
    site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_SECONDS_BETWEEN_NEWS", 0.0)
    monkeypatch.setattr(images, "_PIECE", 256)
    said: list[str] = []
    images.official("15.1", "amd64", cache, site.url, said.append)
    assert said[0].startswith("fetching http")
    assert any(line.endswith("100 %") for line in said)
