"""A recipe and a catalogue for one's own text: the README's way works to the letter, and a mistake is told at once."""

import argparse
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from khmer_assets.commands import init
from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.settings import RecipeError
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.sources import reading

KHMER, ENGLISH = "ទឹកទន្លេឡើងខ្ពស់នៅរដូវវស្សា។", "The river rises in the rainy season."


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Runs `khmer init my_project --text ...` in an empty folder, with these files in it."""
    monkeypatch.chdir(tmp_path)

    def begin(*text: str, **files: str) -> Recipe:
        for name, content in files.items():
            file = tmp_path / name.replace("__", "/").replace("_DOT_", ".")
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
        assert init.main(argparse.Namespace(folder=Path("my_project"), text=list(text))) == 0
        return Recipe.load(tmp_path / "my_project/recipe.yaml")

    return begin


def rows(**fields: str) -> str:
    """Three lines of JSON, numbered."""
    numbered = ({key: f"{value} {n}" for key, value in fields.items()} for n in range(3))
    return "\n".join(json.dumps({"id": "a", **row}, ensure_ascii=False) for row in numbered)


def texts(recipe: Recipe) -> dict[str, list[str]]:
    base = recipe.folder
    return {name: reading.read(one, base).collect()["text"].to_list() for name, one in recipe.sources.items()}


def test_the_commands_of_the_readme_work_in_an_empty_folder(tmp_path):
    section = (PROJECT / "README.md").read_text().split("## Your own text\n")[1].split("\n## ")[0]
    first, second = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    (tmp_path / ".venv").symlink_to(PROJECT / ".venv")
    (tmp_path / "news").mkdir()
    for number in range(2):
        (tmp_path / "news" / f"{number}.jsonl").write_text(rows(body=f"{number} {KHMER}", title="ទឹក"))
    done = subprocess.run(first, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert second.strip() in done.stdout, "the next command is told"
    assert "news: 2 files, khm 100%\n  the text is in 'body'; there are id, title" in done.stdout
    variable, _, recipe_file = second.split()[0].partition("=")
    assert (variable, second.split()[1:]) == ("KHMER_RECIPE", ["make", "run"])
    recipe = Recipe.load(tmp_path / recipe_file)
    assert texts(recipe) == {"news": [f"{number} {KHMER} {row}" for number in range(2) for row in range(3)]}


def test_the_recipe_is_the_samples_with_a_catalogue_of_its_own_and_without_adapters(begin):
    both = begin("a.jsonl", a_DOT_jsonl=f"{rows(text=KHMER)}\n{rows(text=ENGLISH)}")
    own = {"name": "my_project", "catalogue": Path("my_project/sources.yaml").resolve(), "adapters": []}
    own |= {"failures": None}
    assert both.model_dump() == Recipe.load(SAMPLE_RECIPE).model_copy(update=own).model_dump()


@pytest.mark.parametrize(("language", "text"), [("khm", KHMER), ("eng", ENGLISH)])
def test_a_language_that_is_not_there_gets_no_weight_and_guards_no_release(begin, language, text):
    recipe = begin("a.txt", a_DOT_txt=text)
    assert recipe.mixture.weights == {language: 1.0}
    assert recipe.release.must_not_lose == [f"held-out text {language}", "chats"]


@pytest.mark.parametrize(
    ("files", "text", "settings"),
    [
        ({"news__a_DOT_csv": f"n,អត្ថបទ\n1,{KHMER}"}, ["news/a.csv"], {"a": {"path": "../news/a.csv", "text": "អត្ថបទ"}}),
        ({"a_DOT_md": "ក\nខ\n"}, ["a.md"], {"a": {"path": "../a.md", "split": "line"}}),
        ({"a_DOT_txt": "ក\nខ\n\nគ"}, ["a.txt"], {"a": {"path": "../a.txt", "split": "paragraph"}}),
        (
            {"n__a_DOT_jsonl": rows(text=KHMER), "n__b_DOT_jsonl": rows(text=ENGLISH), "n__c_DOT_jsonl": "{}"},
            ["n/a.jsonl", "n/b.jsonl"],
            {"n": {"path": ["../n/a.jsonl", "../n/b.jsonl"]}},
        ),
        (
            {"news__a_DOT_jsonl": rows(text=KHMER), "News__a_DOT_jsonl": rows(text=ENGLISH)},
            ["news/*.jsonl", "News/*.json*"],
            {"a": {"path": "../news/*.jsonl"}, "a_2": {"path": "../News/*.json*"}},
        ),
        ({"ព័ត៌មាន_DOT_jsonl": rows(text=KHMER)}, ["ព័ត៌មាន.jsonl"], {"text": {"path": "../ព័ត៌មាន.jsonl"}}),
    ],
)
def test_each_glob_and_each_folder_is_a_source_with_the_settings_that_its_files_show(begin, files, text, settings):
    recipe = begin(*text, **files)
    assert {name: source.settings for name, source in recipe.sources.items()} == settings
    assert all(texts(recipe).values())


def test_what_cannot_be_read_is_told_and_nothing_is_overwritten(begin, capsys, tmp_path):
    begin("a.jsonl", "b.csv", a_DOT_jsonl="[1]", b_DOT_csv=f"text\n{KHMER}")
    assert "a: 1 files, no text was found\n  a.jsonl, line 1: is one JSON document" in capsys.readouterr().out
    written = (tmp_path / "my_project/sources.yaml").read_text()
    assert [entry["name"] for entry in yaml.safe_load(written)["sources"]] == ["a", "b"]
    with pytest.raises(RecipeError, match=r"recipe\.yaml: is there already; name another folder"):
        begin("b.csv")
    assert (tmp_path / "my_project/sources.yaml").read_text() == written


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("none.txt", r"--text: nothing is at .*none\.txt; put the files there"),
        ("my_text", r"--text: .*my_text is a folder; name the files in it, as .*my_text/\*\.jsonl"),
        ("a.docx", r"--text: .*a\.docx has no known format; expected a name that ends in \.txt"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(begin, tmp_path, text, told):
    (tmp_path / "my_text").mkdir()
    with pytest.raises(RecipeError, match=told):
        begin(text, a_DOT_docx="x")
    assert not (tmp_path / "my_project").exists()
