"""How YAML files are read: strictly, with the place of a mistake, and within bounds whatever they hold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from khmer_assets.foundation.settings import RecipeError

MAX_CHARACTERS = 1_000_000  # of a file, also when each alias is written out
MAX_LEVELS = 50


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises `RecipeError`, with the line, when it holds none or is refused."""
    if not file.is_file():  # a pipe would be waited for
        raise RecipeError(f"{file}: {'is no file' if file.exists() else 'no such file'}; name an existing one")
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise RecipeError(f"{file}: expected a recipe or a catalogue, found over {MAX_CHARACTERS:,} characters")
        _require_bounds(text)
        values = yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read: {error.strerror}; name a file that can") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{file}, line {line}: holds bytes that are not UTF-8; save the file in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        told = ", ".join(filter(None, (error.context, error.problem)))
        raise RecipeError(f"{file}{place}: cannot be read as YAML: {told}") from None
    except yaml.YAMLError as error:  # a character that YAML forbids
        told = " ".join(str(error).split())
        raise RecipeError(f"{file}: cannot be read as YAML: {told}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: expected keys and values, found {type(values).__name__}")
    return values


class _Loader(yaml.CSafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError, TypeError) as error:
            # a scalar that is not what its tag or its form says: 2026-13-45, !!int x
            raise _refused(f"{error!r:.200}", node.start_mark) from None


@dataclass
class _Open:
    """A mapping or sequence that has not ended yet; `keys` are a mapping's, else None."""

    anchor: str | None
    keys: set[str] | None
    nodes: int = 0
    characters: int = 1  # with each alias written out


def _require_bounds(text: str) -> None:
    """Raises `MarkedYAMLError` for a key given twice, and for what nests or unfolds beyond the bounds."""
    open_: list[_Open] = []
    sizes: dict[str, int] = {}  # characters of the nodes with anchors
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.NodeEvent) and open_:
            inside = open_[-1]
            if isinstance(event, yaml.ScalarEvent) and inside.keys is not None and inside.nodes % 2 == 0:
                if event.value in inside.keys:
                    raise _refused(f"the key {event.value!r} is given twice; keep one", event.start_mark)
                inside.keys.add(event.value)
            inside.nodes += 1
        match event:
            case yaml.CollectionStartEvent():
                open_.append(_Open(event.anchor, set() if isinstance(event, yaml.MappingStartEvent) else None))
                if len(open_) > MAX_LEVELS:
                    raise _refused(f"nested more than {MAX_LEVELS} levels deep", event.start_mark)
                continue
            case yaml.CollectionEndEvent():
                ended = open_.pop()
                anchor, size = ended.anchor, ended.characters
            case yaml.ScalarEvent():
                anchor, size = event.anchor, 1 + len(event.value)
            case yaml.AliasEvent():
                if any(event.anchor == one.anchor for one in open_):
                    raise _refused(f"*{event.anchor} stands in what it names", event.start_mark)
                anchor, size = None, sizes.get(event.anchor or "", 1)
            case _:
                continue
        if anchor is not None:
            sizes[anchor] = size
        if open_:
            open_[-1].characters += size
            if open_[-1].characters > MAX_CHARACTERS:
                what = f"over {MAX_CHARACTERS:,} characters when its aliases are written out"
                raise _refused(what, event.start_mark)


def _refused(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, mark)
