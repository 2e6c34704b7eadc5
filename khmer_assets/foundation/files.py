"""Files and folders: digests, sizes, versions, second homes of one content, and folders that processes share.

A process that reads or writes a folder holds a lock on the folder itself, which ends with the process. So nobody
removes what another one is using, and what a killed process left behind can be told from what a living one makes.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

SCRATCH = ".scratch-"


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


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Run the block while no other process runs one for this folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep a folder from `remove_unused` while the block runs. Raises FileNotFoundError when there is none."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):  # another took its place while this one waited
            raise FileNotFoundError(f"{folder} was replaced a moment ago")
        yield
    finally:
        os.close(descriptor)


def remove_unused(folder: Path) -> None:
    """Remove a folder unless a process uses it. It disappears at once, also when this process is killed meanwhile."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    with suppress(BlockingIOError, FileNotFoundError):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            removed = folder.with_name(f"{SCRATCH}{uuid.uuid4().hex}")
            folder.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)
        finally:
            os.close(descriptor)


def write_whole(file: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Write a file, in place of one that is there. Nobody ever sees a part of it, also after a loss of power. `mode`
    are its permissions before the umask. Raises `OSError`, and has changed nothing then."""
    aside = file.with_name(f"{file.name}.{os.getpid()}.aside")  # other processes may be writing the same
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as opened:
            opened.write(content.encode() if isinstance(content, str) else content)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new empty folder in `parent`, removed at the end unless it was moved away by then.

    What killed processes left there is removed first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{SCRATCH}*"):
        remove_unused(left)
    with ExitStack() as held:
        while True:
            folder = Path(tempfile.mkdtemp(dir=parent, prefix=SCRATCH))
            with suppress(FileNotFoundError):  # another process took it for one that was left
                held.enter_context(in_use(folder))
                break
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
