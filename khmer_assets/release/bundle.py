"""Packs a released model with its model card and checksums into one archive, and unpacks such an archive safely."""

import filecmp
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from khmer_assets.evaluation.report import scores_of
from khmer_assets.release.model_card import CHECKSUMS, model_card
from khmer_assets.training.models import BASE_RECORD
from resources.payload import PayloadRun, Refusal

COMPRESSION_LEVEL = 10
FIGURES = "bundle.json"
CARD = "README.md"
TAR_OVERHEAD = 1 << 20  # headers and padding of the few files of a model stay well below


class Spec(BaseModel):
    """`model` is the released variant's folder, `recipe` the settings it was made with, `sources` the catalogue, `base`
    the folder of the open model that it began with, `report` that of the benchmark report."""

    model: Path
    variant: str
    recipe: dict[str, Any]
    sources: list[dict[str, Any]]
    base: Path | None = None
    report: Path | None = None


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `<recipe>-<variant>.tar.zst`, its README.md and SHA256SUMS, and `bundle.json` with the figures returned.

    `bit_identical` tells whether unpacking the archive gives back each file of the model bit by bit, with the checksums
    that the archive names.
    """
    name = bundle_name(spec)
    base = None if spec.base is None else json.loads((spec.base / BASE_RECORD).read_text())
    scores = scores_of(spec.report, spec.variant) if spec.report else []
    card = model_card(name, spec.variant, spec.model, spec.recipe, spec.sources, base, scores)
    (run.output / CARD).write_text(card, encoding="utf-8")
    files = {path.relative_to(spec.model).as_posix(): path for path in spec.model.rglob("*") if path.is_file()}
    files[CARD] = run.output / CARD
    sums = {member: _sha256(path) for member, path in sorted(files.items())}
    (run.output / CHECKSUMS).write_text("".join(f"{digest}  {member}\n" for member, digest in sums.items()))
    files[CHECKSUMS] = run.output / CHECKSUMS
    archive = run.output / f"{name}.tar.zst"
    run.log(f"packing {len(files)} files")
    pack(files, archive, name)
    size = sum(path.stat().st_size for path in files.values())
    run.log("unpacking again to compare")
    unpacked = run.state / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
    unpack(archive, unpacked, size + TAR_OVERHEAD)
    identical = {p.relative_to(unpacked / name).as_posix() for p in unpacked.rglob("*") if p.is_file()} == files.keys()
    identical = identical and all(
        filecmp.cmp(unpacked / name / member, path, shallow=False) for member, path in files.items()
    )
    identical = identical and all(_sha256(unpacked / name / member) == digest for member, digest in sums.items())
    figures = {
        "files": len(files),
        "bytes": size,
        "archive_bytes": archive.stat().st_size,
        "sha256": _sha256(archive),
        "bit_identical": identical,
    }
    (run.output / FIGURES).write_text(json.dumps(figures, indent=1))
    return figures


def pack(files: dict[str, Path], archive: Path, folder: str) -> None:
    """Write `files`, by their names in the archive, under `folder` into a tar compressed with zstd.

    The same contents give the same bytes: names are sorted, and owners, modes and times are fixed.
    """
    import zstandard

    # with threads the blocks, and so the bytes, do not depend on how many of them there are
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, threads=-1, write_checksum=True)
    with (
        archive.open("wb") as raw,
        compressor.stream_writer(raw) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in sorted(files.items()):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mode, member.mtime = path.stat().st_size, 0o644, 0
            with path.open("rb") as content:
                tar.addfile(member, content)


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Unpack a bundle into `folder`. At most `max_bytes` are decompressed, the tar's headers included.

    Raises `Refusal` for anything but files, for files outside `folder`, for a larger archive and for a broken one.
    """
    import zstandard

    try:
        with (
            archive.open("rb") as raw,
            zstandard.ZstdDecompressor().stream_reader(raw) as plain,
            tarfile.open(fileobj=_Bounded(plain, max_bytes, archive), mode="r|") as tar,
        ):
            for member in tar:
                if not member.isreg():
                    raise Refusal(f"{archive}: {member.name!r} is no regular file; a bundle holds nothing else")
                target = (folder / member.name).resolve()
                if not target.is_relative_to(folder.resolve()) or target.exists():
                    raise Refusal(f"{archive}: {member.name!r} would be outside of {folder} or replace another file")
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, zstandard.ZstdError) as error:
        raise Refusal(f"{archive} is no intact tar.zst archive: {error}") from None


class _Bounded(io.RawIOBase):
    """Passes reads on until `limit` bytes have gone by, so that a small archive cannot fill a disk or memory."""

    def __init__(self, source: IO[bytes], limit: int, archive: Path):
        self.source, self.left, self.limit, self.archive = source, limit, limit, archive

    def read(self, size: int = -1) -> bytes:
        data = self.source.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(data)
        if self.left < 0:
            raise Refusal(f"{self.archive} unpacks to more than {self.limit:,} bytes; raise the limit if you trust it")
        return data


def bundle_name(spec: Spec) -> str:
    """The name of the archive and of the folder in it."""
    return f"{spec.recipe['name']}-{spec.variant}".replace(" ", "-")


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
