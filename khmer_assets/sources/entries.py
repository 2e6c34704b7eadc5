"""What an entry of the catalogue says: its settings, checked, and the files that it names with their versions."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from upath import UPath

from khmer_assets.foundation.settings import RecipeError, Settings, digest_of, mistakes
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.collection import Collection
from khmer_assets.sources.file_versions import version_of, versions_of
from khmer_assets.sources.rows import SourceError, failure

S = TypeVar("S", bound=Settings)


def settings_of(source: Source, model: type[S]) -> S:
    """The entry's settings as `model`. Raises `RecipeError` with one line a mistake."""
    try:
        return model.model_validate(source.settings)
    except ValidationError as error:
        lines = [f"source {source.name!r}: {mistake}" for mistake in mistakes(error, "settings.", "settings")]
        raise RecipeError("\n".join(lines)) from None


def files_of(source: Source, patterns: str | list[str], base: Path, key: str = "path") -> list[UPath]:
    """The files that paths, globs or addresses name, each once, those of a glob in the order of their names.

    Relative ones are relative to `base`. `key` is the setting that holds them. Raises `SourceError` where nothing is
    found or the address cannot be reached.
    """
    found: dict[str, UPath] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            found |= {str(file): file for file in find_files(pattern, base)}
        except SourceError as error:
            correct = f"or correct {key!r} in its entry of the catalogue"
            raise SourceError(f"source {source.name!r}: {error}, {correct}") from error
    return list(found.values())


def find_files(pattern: str, base: Path) -> list[UPath]:
    """The files of one path, glob or address, in the order of their names, at least one. Raises `SourceError`."""
    try:
        place = UPath(pattern)
        if place.protocol in ("", "file") and not place.is_absolute():
            place = UPath(base / pattern)
        if place.is_file():
            return [place]
        names = sorted(map(str, place.fs.glob(place.path)))
        found = [UPath(name, protocol=place.protocol, **place.storage_options) for name in names]
        files = [file for file in found if file.is_file() or not file.exists()]  # a broken link is told when it is read
        folders = [file for file in found if file.is_dir()]
    except Exception as error:  # each protocol's library raises its own
        what = f"{pattern} cannot be reached: {error or type(error).__name__}"
        raise SourceError(f"{what}; check the address and the network, fetch the files") from error
    if files:
        return files
    if folders:
        example = f"{folders[0]}/*{folders[0].suffix or '.jsonl'}"
        raise SourceError(f"{folders[0]} is a folder; name the files in it, as {example}")
    if found:
        raise SourceError(f"{found[0]} is a pipe or a device; name a file, which can be read again")
    what = "a link to nothing" if place.protocol in ("", "file") and os.path.islink(place.path) else "nothing"
    raise SourceError(f"{what} is at {place}; put the files there")


def files_to_collect(
    source: Source, patterns: str | list[str] | None, base: Path, key: str, collection: Collection
) -> Iterator[tuple[UPath, str]]:
    """The files of a source that fetches, each with its version; `key` is the setting that names them.

    A pattern without files leaves a row that says so, and the others go on. Raises as `files_of` does when nothing was
    collected yet.
    """
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        try:
            files = {file: version_of(file) for file in files_of(source, pattern, base, key)}
        except (SourceError, OSError) as error:
            if not collection.counts()["rows"]:
                raise
            collection.finish(f"{key}:{pattern}", [failure("unreachable", pattern, str(error))])
            continue
        collection.finish(f"{key}:{pattern}", [])
        yield from files.items()


def fingerprint_of(source: Source, files: list[UPath]) -> str:
    """A digest of the entry and of its files."""
    versions = [[file.name, version] for file, version in zip(files, versions_of(files), strict=True)]
    return digest_of({"entry": source.model_dump(mode="json"), "files": versions})
