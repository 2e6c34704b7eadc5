"""Files and folders: digests, sizes, versions, and second homes of one content."""

import hashlib
import os
import shutil
from pathlib import Path


def digest_of_folder(folder: Path) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def size_of_folder(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def link_files(source: Path, target: Path) -> None:
    """Give the files of the folder `source` a second home in the new folder `target`; copies where links cannot be."""
    shutil.copytree(source, target, copy_function=link_file)


def link_file(file: Path | str, new: Path | str) -> None:
    """Give a file a second home, or a copy where links cannot be."""
    try:
        os.link(os.path.realpath(file), new)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(file, new)


def file_version(file: Path) -> tuple[int, int]:
    """What differs after a file has been replaced."""
    try:
        found = file.stat()
        return found.st_mtime_ns, found.st_ino
    except FileNotFoundError:
        return 0, 0
