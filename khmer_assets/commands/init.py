"""`khmer init`: a recipe and a catalogue for text of one's own, from a look at the beginning of its files."""

import argparse
import glob
import os
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from upath import UPath

from khmer_assets.foundation.files import write_whole
from khmer_assets.foundation.settings import RecipeError
from khmer_assets.khmer.script import Language, dominant_script
from khmer_assets.recipe import RECIPE_VARIABLE, SAMPLE_RECIPE, Recipe
from khmer_assets.sources import reading
from khmer_assets.sources.entries import find_files
from khmer_assets.sources.kinds.files import TABLES, TEXTS, first_records, format_of
from khmer_assets.sources.rows import SourceError

HELP = "write a recipe and a catalogue for text of your own"

RECIPE, CATALOGUE = "recipe.yaml", "sources.yaml"
LOOKED_AT = 3  # files of a source
RECORDS = 100  # of each of them
FEW_FILES = 20  # of text: with fewer, one is no document, but holds many
LEAST_SHARE = 0.01  # of the characters, for a language to be trained on
NO_CHARACTERS = re.compile("[\ud800-\udfff]")
BLANK_LINE = re.compile(r"\n\s*\n\s*\S")
CATALOGUE_HEADER = """\
# Where the texts are; docs/sources.md tells of every kind of source and its settings. Paths are relative to this file.
# `license` goes with every document and into the model card: write it where it says unknown.
"""
RECIPE_HEADER = """\
# Written by `khmer init` from khmer_assets/recipes/sample.yaml, whose sizes two CPU cores train in minutes: raise them
# as your text and machine allow. What is not set here has its default. Every key is documented in the module that obeys
# it, which khmer_assets/recipe.py imports: `filters` in khmer_assets/corpus/filters.py, and so on.
"""


@dataclass
class Found:
    """A source: its patterns and files, and what the beginning of the files shows."""

    name: str
    patterns: list[str]
    files: list[UPath]
    settings: dict[str, Any] = field(default_factory=dict)
    other_fields: list[str] = field(default_factory=list)
    characters: Counter[Language] = field(default_factory=Counter)
    trouble: list[str] = field(default_factory=list)

    @property
    def format(self) -> str:
        """The format of the first file. Raises `SourceError` for one that is not known."""
        return format_of(self.files[0])

    def look(self) -> None:
        """Find the field with the text, how texts are parted, and the languages."""
        records: list[dict[str, Any]] = []
        for file in self.files[:LOOKED_AT]:
            try:
                records += first_records(file, RECORDS)
            except Exception as error:  # whatever the libraries of the formats raise
                self.trouble.append(f"{file.name}: {error}")
        self.trouble += [str(record["reason"]) for record in records if record.get("rule")][:1]
        if any(NO_CHARACTERS.search(str(record)) for record in records):
            self.trouble.append("holds bytes that are not UTF-8: set its encoding in settings")
        records = [r for r in records if not r.get("rule") and not NO_CHARACTERS.search(str(r))]
        sizes: Counter[str] = Counter()
        for record in records if self.format in TABLES else []:
            sizes.update({key: len(value) for key, value in record.items() if isinstance(value, str) and value.strip()})
        text = "text" if sizes["text"] or not sizes else sizes.most_common(1)[0][0]
        if text != "text":
            self.settings["text"] = text
        self.other_fields = [key for key in sizes if key != text]
        texts = [str(record.get(text) or "") for record in records]
        scripts: dict[Language, str] = {"khm": "Khmr", "eng": "Latn"}
        for language, script in scripts.items():
            self.characters[language] = sum(len(one) for one in texts if dominant_script(one) == script)
        if self.format in TEXTS and len(self.files) < FEW_FILES:
            self.settings["split"] = "paragraph" if any(BLANK_LINE.search(one) for one in texts) else "line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A folder and files."""
    parser.add_argument("folder", type=Path, help=f"where {RECIPE} and {CATALOGUE} are written")
    parser.add_argument("--text", nargs="+", required=True, metavar="FILE", help="files or globs; see docs/sources.md")


def main(arguments: argparse.Namespace) -> int:
    """Write both files and say what was found. Raises `RecipeError`."""
    folder: Path = arguments.folder
    for file in (folder / RECIPE, folder / CATALOGUE):
        if file.exists():
            raise RecipeError(f"{file}: is there already; name another folder, or remove it")
    try:
        sources = _sources(arguments.text, folder)
        for source in sources:
            source.look()
    except SourceError as error:
        raise RecipeError(f"--text: {error}") from None
    entries = []
    for source in sources:
        path = source.patterns[0] if len(source.patterns) == 1 else source.patterns
        entries.append(
            {"name": source.name, "kind": "files", "license": "unknown", "settings": {"path": path, **source.settings}}
        )
    characters: Counter[Language] = sum((source.characters for source in sources), Counter())
    languages = [name for name, count in characters.items() if count >= LEAST_SHARE * characters.total()]
    catalogue = CATALOGUE_HEADER + yaml.safe_dump({"sources": entries}, sort_keys=False, allow_unicode=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # the recipe last: where it is, all is
        for name, text in ((CATALOGUE, catalogue), (RECIPE, recipe_text(_slug(folder.resolve().name), languages))):
            write_whole(folder / name, text)
    except OSError as error:
        raise RecipeError(f"{folder}: cannot be written: {error.strerror}; name another folder") from None
    _tell(folder, sources)
    return 0


def recipe_text(name: str, languages: list[Language]) -> str:
    """The sample's recipe under another name, for a catalogue beside it, without the sample's adapters.

    Where one language alone was found, it gets all of the weight, and its held-out text is what must not get worse.
    """
    first, *others = SAMPLE_RECIPE.read_text(encoding="utf-8").split("\n\n")
    first = "\n".join(line for line in first.splitlines() if not line.startswith("#"))
    first = re.sub(r"(?m)^name: .*", f"name: {name}", first)
    first = re.sub(r"(?m)^catalogue: .*", f"catalogue: {CATALOGUE}", first)
    if len(languages) == 1:
        others.insert(1, f"mixture:\n  weights: {{{languages[0]}: 1.0}}  # the one language that was found")
        others = [part.replace("held-out text khm", f"held-out text {languages[0]}") for part in others]
    return RECIPE_HEADER + "\n\n".join(
        [first, *(part for part in others if not part.startswith(("adapters:", "failures:")))]
    )


def _sources(texts: list[str], folder: Path) -> list[Found]:
    """The files as sources: one for each glob, one for the files of a folder that end alike."""
    groups: dict[str, tuple[list[str], list[UPath]]] = {}
    for text in texts:
        files = find_files(text, Path.cwd())
        if len(files) == 1 and UPath(text).name == files[0].name:
            ending = "".join(files[0].suffixes)
            patterns, known = groups.setdefault(str(files[0].parent / f"*{ending}"), ([], []))
        else:
            patterns, known = groups.setdefault(text, ([], []))
        patterns.append(text)
        known += [file for file in files if file not in known]
    names: Counter[str] = Counter()
    found = []
    for group, (patterns, files) in groups.items():
        if len(files) > 1 and _same(group, files):
            patterns = [group]
        name = _slug(files[0].name.split(".")[0] if len(files) == 1 else _folder(group))
        names[name] += 1
        name += f"_{names[name]}" if names[name] > 1 else ""
        found.append(Found(name, [_beside(pattern, folder) for pattern in patterns], files))
    return found


def _same(pattern: str, files: list[UPath]) -> bool:
    try:
        return {str(file) for file in find_files(pattern, Path.cwd())} == {str(file) for file in files}
    except SourceError:
        return False


def _folder(pattern: str) -> str:
    """The last folder of a glob that has a name of its own."""
    return next((part for part in reversed(UPath(pattern).parent.parts) if not glob.has_magic(part)), "")


def _beside(pattern: str, folder: Path) -> str:
    """The pattern relative to the folder; an address as it is."""
    return pattern if UPath(pattern).protocol not in ("", "file") else os.path.relpath(pattern, folder.resolve())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:40].strip("_") or "text"


def _tell(folder: Path, sources: list[Found]) -> None:
    for name, source in Recipe.load(folder / RECIPE).sources.items():
        reading.read(source, folder.resolve())  # a mistake is told now
        (found,) = (one for one in sources if one.name == name)
        shares = ", ".join(
            f"{language} {count / found.characters.total():.0%}"
            for language, count in found.characters.most_common()
            if count
        )
        print(f"{name}: {len(found.files)} files, {shares or 'no text was found'}")
        if "split" in found.settings:
            print(f"  each {found.settings['split']} is a document")
        elif found.other_fields:
            print(f"  the text is in {found.settings.get('text', 'text')!r}; there are {', '.join(found.other_fields)}")
        for trouble in found.trouble:
            print(f"  {trouble}")
    print(f"\nWritten: {folder / CATALOGUE} and {folder / RECIPE}. Look at them, then\n")
    print(f"  {RECIPE_VARIABLE}={shlex.quote(str(folder / RECIPE))} make run\n")
