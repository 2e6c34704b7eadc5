"""A file's version is its content's, and content that cannot have changed is not read again."""

import os
import sqlite3
from pathlib import Path

import pytest
from upath import UPath

from khmer_assets.sources import file_versions
from khmer_assets.sources.file_versions import version_of, versions_of

SIZE = 10_000_000


@pytest.fixture
def file(tmp_path, monkeypatch) -> UPath:
    monkeypatch.setattr(file_versions, "SETTLED", 0)
    file = UPath(tmp_path / "a.txt")
    file.write_bytes(b"a" * SIZE)
    return file


def bytes_read_by(call) -> int:
    """What this process reads from files while it makes the call."""

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read()
    call()
    return read() - before


def test_a_file_is_read_once_and_again_when_the_disk_says_that_it_changed(file):
    first = version_of(file)
    assert bytes_read_by(lambda: version_of(file)) < SIZE / 10
    times = file.stat()
    file.write_bytes(b"b" * SIZE)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync does
    assert version_of(file) != first
    file.write_bytes(b"a" * SIZE)
    assert version_of(file) == first


def test_what_changed_a_moment_ago_is_read_again(file, monkeypatch):
    monkeypatch.setattr(file_versions, "SETTLED", 60)
    version_of(file)
    assert bytes_read_by(lambda: version_of(file)) >= SIZE


def test_without_a_usable_state_folder_files_are_read(file, monkeypatch, tmp_path):
    first = version_of(file)
    (tmp_path / "full").write_text("")
    monkeypatch.setenv("KHMER_HOME", str(tmp_path / "full"))
    assert version_of(file) == first
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / file_versions.DATABASE).write_bytes(b"no database" * 1000)
    monkeypatch.setenv("KHMER_HOME", str(broken))
    assert version_of(file) == first
    with pytest.raises(sqlite3.Error):
        file_versions._database(broken / file_versions.DATABASE)


def test_a_file_that_cannot_be_read_says_so_and_the_others_have_their_versions(file):
    folder = file.parent
    (folder / "broken.txt").symlink_to(folder / "gone.txt")
    assert versions_of([folder / "broken.txt", file])[1] == version_of(file)
    os.mkfifo(folder / "pipe.txt")
    for other in ("broken.txt", "pipe.txt", "."):
        assert versions_of([folder / other])[0].startswith("unreadable: ")
