"""YAML from people: a mistake is told with its line, and a small file takes little time and memory."""

import os

import pytest

from khmer_assets.foundation.settings import RecipeError
from khmer_assets.foundation.yaml_files import read_yaml

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGED_LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (LAUGHS, ", line 6, .*over 1,000,000 characters when its aliases are written out"),
        (MERGED_LAUGHS, ", line 7, .*over 1,000,000 characters when its aliases are written out"),
        ("a: &a [1, *a]\n", r", line 1, .*\*a stands in what it names"),
        ("x: 1\na: " + "[" * 20_000 + "]" * 20_000, ", line 2, column 53: .*nested more than 50 levels deep"),
        ("\n".join("  " * n + "a:" for n in range(200)), ", line 51, .*nested more than 50 levels deep"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", ", line 4, column 3: .*the key 'c' is given twice; keep one"),
        ("a: 1\n'a': 2\n", ", line 2, .*the key 'a' is given twice"),
        ("a: 1\nb: [", ", line 3, .*while parsing a flow node, did not find expected node content"),
        ("a: 1\n\tb: 2", ", line 2, .*found a tab character that violates indentation"),
        ("a: *nobody\n", ", line 1, .*found undefined alias"),
        ("a: 1\nb: 2026-13-45\n", ", line 2, column 4: .*month must be in 1..12"),
        ("a: !!int x\n", ", line 1, .*ValueError"),
        ("a: !!python/object/apply:os.system [ls]\n", ", line 1, .*could not determine a constructor"),
        ("? [a]\n: 1\n", ", line 1, .*unhashable key"),
        ("a: \0", ": cannot be read as YAML: .*control characters are not allowed"),
        ("- a\n", ": expected keys and values, found list"),
        ("", ": expected keys and values, found NoneType"),
        ("a: " + "x" * 1_000_000, ": expected a recipe or a catalogue, found over 1,000,000 characters"),
    ],
)
def test_what_is_refused_is_told_in_one_line_with_its_place(file, content, told):
    file.write_text(content)
    with pytest.raises(RecipeError, match=rf"^{file}{told}") as refused:
        read_yaml(file)
    assert "\n" not in str(refused.value)


def test_what_is_no_text_file_is_told(file):
    with pytest.raises(RecipeError, match="no such file; name an existing one"):
        read_yaml(file)
    file.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(RecipeError, match="line 2: holds bytes that are not UTF-8"):
        read_yaml(file)
    os.mkfifo(file.with_name("pipe"))
    for other in (file.with_name("pipe"), file.parent):
        with pytest.raises(RecipeError, match="is no file; name an existing one"):
            read_yaml(other)


def test_aliases_and_merged_keys_are_read_as_in_any_yaml(file):
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [*a, *a]\n")
    assert read_yaml(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": [{"x": 1, "y": 2}] * 2}
