"""Belebele: four answers to a question about a passage of FLORES-200 (Bandarkar et al. 2023), by likelihood.

The prompt and its order are those of EleutherAI's harness, with which the picks are compared.
"""

from khmer_assets.evaluation.items import Benchmark, Item, bad, folder_of, published, rows_of, texts_in, with_shots

FILES = ("data/{language}.jsonl", "{language}.jsonl")
FIELDS = ("flores_passage", "question", "mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4", "correct_answer_num")
LETTERS = ("A", "B", "C", "D")


def read(benchmark: Benchmark) -> list[Item]:
    """The items as published: JSON Lines with `FIELDS` as text; `link` and `question_number` name an item."""
    names = [name.format(language=benchmark.language) for name in FILES]
    items = []
    for number, row in enumerate(rows_of(published(folder_of(benchmark, names), names)), 1):
        identity = " ".join(str(row[key]) for key in ("link", "question_number") if row.get(key)) or str(number)
        texts, fault = texts_in(row, FIELDS)
        if fault:
            items.append(bad(f"{number}", "unreadable", fault))
            continue
        passage, question, *answers, right = texts
        if right not in ("1", "2", "3", "4"):
            items.append(bad(identity, "unknown_answer", f"correct_answer_num is {right!r:.40}, expected 1 to 4"))
            continue
        listed = "".join(f"{letter}: {answer}\n" for letter, answer in zip(LETTERS, answers, strict=True))
        prompt = f"P: {passage}\nQ: {question}\n{listed}Answer:"
        items.append(Item(identity, prompt, list(LETTERS), int(right) - 1, language=benchmark.language))
    return with_shots(items, items, benchmark.shots)[: benchmark.items]
