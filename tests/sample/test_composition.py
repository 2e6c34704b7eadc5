"""The embedded corpus: what is written, and what is composed."""

from pathlib import Path
from random import Random

import polars as pl
import pytest

from khmer_assets.foundation.settings import RecipeError
from khmer_assets.instructions.chat_dataset import split_chats
from khmer_assets.instructions.chats import Split
from khmer_assets.instructions.embedded_chats import compose_chats, written_chats
from khmer_assets.khmer.normalization import normalize
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.sample import composition
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.kinds import generated

NOWHERE = Path()


def source(**settings: object) -> Source:
    return Source(name="composed", kind="generated", license="Apache-2.0", settings=settings)


def texts(**settings: object) -> list[str | None]:
    return [row["text"] for row in generated.read(source(**settings), NOWHERE)]


def shingles(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(len(text) - 4)}


def test_every_text_of_the_sample_is_canonical_khmer():
    recipe = Recipe.load(SAMPLE_RECIPE)
    files = [path for path in composition.SAMPLE.rglob("*.*") if path.suffix in (".md", ".txt", ".jsonl", ".csv")]
    assert len(files) >= 6
    for path in [*files, composition.SAMPLE / "knowledge.yaml"]:
        for line in path.read_text(encoding="utf-8").splitlines():
            words = " ".join(line.split())
            assert normalize(words, recipe.normalization) == (words, {})
    for text in texts(documents=300, seed=3):
        assert text is not None and normalize(text, recipe.normalization) == (text, {})


def test_the_same_seed_composes_the_same_texts_and_more_of_them_begin_alike():
    assert texts(documents=50, seed=5) == texts(documents=80, seed=5)[:50]
    assert texts(documents=50, seed=5) != texts(documents=50, seed=6)


def test_three_in_five_texts_are_khmer():
    languages = [row["language"] for row in generated.read(source(documents=1000, seed=1), NOWHERE)]
    assert set(languages) == {"khm", "eng"}
    assert 0.55 < languages.count("khm") / 1000 < 0.65


def test_texts_hold_three_to_eight_sentences_or_four_to_seven_answered_questions():
    for row in generated.read(source(documents=300, seed=1), NOWHERE):
        text = row["text"] or ""
        if row["category"] == "questions":
            assert 4 <= len(text.split("\n\n")) <= 7
            continue
        ends = text.count("។") if row["language"] == "khm" else text.count(". ") + 1
        assert 3 <= ends <= 8, text


def test_few_texts_are_near_duplicates():
    found = [shingles(text or "") for text in texts(documents=250, seed=2)]
    repeated = sum(
        any(len(one & other) >= 0.8 * len(one | other) for other in found[:number]) for number, one in enumerate(found)
    )
    assert repeated < 0.15 * len(found)


def test_amounts_agree_within_a_sentence():
    for seed in range(200):
        slots = composition._slots(Random(seed), "eng")
        numbers = {name: int(slots[name]) for name in ("price", "quantity", "cost", "paid", "change", "a", "b", "sum")}
        assert numbers["cost"] == numbers["price"] * numbers["quantity"]
        assert numbers["paid"] - numbers["cost"] == numbers["change"] >= 0
        assert numbers["a"] + numbers["b"] == numbers["sum"]
        assert slots["place"] != slots["place2"]


def test_a_question_has_one_answer():
    answers: dict[str, str] = {}
    for fact in composition.facts():
        for question in fact.questions:
            assert answers.setdefault(question, fact.answer) == fact.answer, question


def test_a_pattern_stands_for_its_wordings():
    assert composition.wordings("(Tell me|Say) it( now|).") == [
        *("Tell me it now.", "Tell me it.", "Say it now.", "Say it."),
    ]
    assert composition.wordings("(តើ|) ២") == ["តើ ២", "២"]
    assert composition.wordings("No (choice)") == ["No (choice)"]
    assert not any(mark in question for fact in composition.facts() for question in fact.questions for mark in "(|)")


def test_facts_are_right():
    answers = {question: fact.answer for fact in composition.facts() for question in fact.questions}
    assert answers["តើ ៣ បូក ៤ ស្មើប៉ុន្មាន?"] == "៣ បូក ៤ ស្មើ ៧។"
    assert answers["What is 5 minus 5?"] == "5 minus 5 is 0."
    assert answers["តើខែអ្វីនៅបន្ទាប់ពីខែធ្នូ?"] == "បន្ទាប់ពីខែធ្នូគឺខែមករា។"
    assert answers["តើខែកុម្ភៈមានប៉ុន្មានថ្ងៃ?"] == "ខែកុម្ភៈមាន ២៨ ឬ ២៩ ថ្ងៃ។"
    assert answers["If today is Monday, what day was yesterday?"] == "Before Monday comes Sunday."
    assert answers['What is the opposite of "small"?'] == 'The opposite of "small" is "big".'
    assert answers["What kind of animal is an elephant?"] == "An elephant is a mammal."
    assert answers["Which is the twelfth month of the year?"] == "Month 12 is December."
    assert answers["តើខែទីមួយនៃឆ្នាំជាខែអ្វី?"] == "ខែទី ១ គឺខែមករា។"
    assert answers["Which is bigger, 2 or 5?"] == answers["Which is bigger, 5 or 2?"] == "5 is bigger than 2."


def test_the_fingerprint_follows_the_settings():
    one, same, other = (generated.fingerprint(source(documents=10, seed=s), NOWHERE) for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("settings", [{}, {"documents": 0, "seed": 1}, {"documents": 5, "seed": 1, "sed": 2}])
def test_wrong_settings_are_refused_before_anything_is_read(settings):
    with pytest.raises(RecipeError, match=r"'composed'.*settings\."):
        generated.read(source(**settings), NOWHERE)


def test_no_question_of_the_texts_is_held_out_from_the_chats():
    split = Split(train=0.5, validation=0.25, test=0.25)
    chats = split_chats(pl.concat([written_chats(), compose_chats(2000, 1)]), split).collect()
    held_out = {m[0]["content"] + "\n" + m[1]["content"] for m in chats.filter(pl.col("split") != "train")["messages"]}
    texts = [composition.compose_text(Random(n), language) for n in range(200) for language in ("khm", "eng")]
    asked = {pair for category, text in texts if category == "questions" for pair in text.split("\n\n")}
    assert len(asked) > 300
    assert not asked & held_out
