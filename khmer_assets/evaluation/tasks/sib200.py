"""SIB-200: one of seven topics of a sentence of FLORES-200 (Adelani et al. 2023), by likelihood or said by it."""

from pathlib import Path

from khmer_assets.evaluation.items import Benchmark, Item, bad, folder_of, published, rows_of, texts_in, with_shots
from khmer_assets.sources.rows import SourceError

FILES = ("data/{language}/test.tsv", "{language}/test.tsv", "test.tsv")
SOLVED = ("data/{language}/train.tsv", "{language}/train.tsv", "train.tsv")  # of which the shots are taken
TOPICS = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")


def read(benchmark: Benchmark) -> list[Item]:
    """The items as published: TSV with index_id, category and text."""
    names, solved = ([name.format(language=benchmark.language) for name in listed] for listed in (FILES, SOLVED))
    folder = folder_of(benchmark, [*names, *solved])
    items = _items(benchmark, published(folder, names))
    pool = items
    if benchmark.shots and folder.is_dir():
        try:
            pool = _items(benchmark, published(folder, solved))
        except SourceError:
            pool = items  # the test items but the one that is asked
    return with_shots(items, pool, benchmark.shots)[: benchmark.items]


def _items(benchmark: Benchmark, file: Path) -> list[Item]:
    items = []
    for number, row in enumerate(rows_of(file), 1):
        (identity, topic, text, *_), fault = _texts(row)
        if fault or topic not in TOPICS:
            reason = fault or f"category is {topic!r:.40}, expected one of {', '.join(TOPICS)}"
            items.append(bad(f"row {number}", "unreadable" if fault else "unknown_answer", reason))
        elif benchmark.by == "likelihood":
            prompt = f"Topics: {', '.join(TOPICS)}\n\nText: {text}\nTopic:"
            items.append(Item(identity, prompt, list(TOPICS), TOPICS.index(topic), "", benchmark.language, topic))
        else:
            prompt = f"Which of these topics is the text about: {', '.join(TOPICS)}? Name the topic alone.\n\n{text}"
            items.append(Item(identity, prompt, [], None, topic, "eng_Latn", topic))
    return items


def _texts(row: dict[str, object]) -> tuple[list[str], str | None]:
    texts, fault = texts_in(row, ("index_id", "category", "text"))
    return texts or ["", "", ""], fault


def topic_said(answer: str) -> str | None:
    """The one topic that an answer names; nothing where it names none, or several. One of the two words of
    science/technology is enough.

    >>> topic_said("Topic: Technology.")
    'science/technology'
    """
    said = answer.casefold()
    named = {topic for topic in TOPICS if any(word in said for word in (topic, *topic.split("/")))}
    return named.pop() if len(named) == 1 else None
