"""What the typed client gets of the sample's tutor: held-out questions, asked of the adapter and of the model alone.

    PYTHONPATH=client python -m benchmarks.tutor --chats 20

Served must be the sample with its adapter `tutor` (job train_adapter). Each task's figures: `form`, the share of
answers that parse; `exact`, those equal to the expected one; `right`: a correction whose text is the right one, a score
at most one off, an explanation that names the rule and has the right sentence, words with the right meanings, a
dialogue about its topic. `once more`: questions that had to be asked twice.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import polars as pl
from khmer_client import AnswerError, KhmerClient
from khmer_client.answers import Answer, Correction, Dialogue, Explanation, Fluency, Vocabulary
from khmer_client.tasks import Language, Task, dialogue, error, fluency, grammar, vocabulary

from khmer_assets.commands.served import server_of
from khmer_assets.foundation.home import home
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.recipe import Recipe
from resources.storage import Store, store_root


class Counting(KhmerClient):
    """Counts its requests."""

    asked = 0

    def _told(self, request: dict[str, Any]) -> Any:
        self.asked += 1
        return super()._told(request)


def task_of(name: str, system: str, text: str) -> Task[Any]:
    """The client's task of a chat of adapter_chats."""
    language: Language = "en" if "English" in system else "km"
    if name == "dialogue":
        return dialogue(text, language, "A1" if "level A1" in system else "B1" if "level B1" in system else "A2", 4)
    made: dict[str, Callable[[str, Language], Task[Any]]]
    made = {"fluency": fluency, "grammar": grammar, "explanation": error, "vocabulary": vocabulary}
    return made[name](text, language)


def is_right(given: Answer, expected: Answer, topic: str) -> bool:
    """Whether an answer is as good as the expected one."""
    match given, expected:
        case Correction(), Correction():
            return given.corrected == expected.corrected
        case Fluency(), Fluency():
            return abs(given.score - expected.score) <= 1
        case Explanation(), Explanation():
            return given.rule == expected.rule and expected.examples[0] in given.examples
        case Vocabulary(), Vocabulary():
            return {(w.word, w.meaning) for w in given.words} == {(w.word, w.meaning) for w in expected.words}
        case Dialogue(), Dialogue():
            about = topic.removeprefix("about ").removeprefix("អំពី")
            return len(given.lines) == len(expected.lines) and any(about in line.text for line in given.lines)
    return False


def measure(client: openai.OpenAI, model: str, chats: pl.DataFrame) -> list[dict[str, Any]]:
    """A row a task."""
    counted: dict[str, list[tuple[bool, bool, bool, bool]]] = defaultdict(list)
    asking = Counting(client, model)
    for name, messages in chats.select("task", "messages").iter_rows():
        system, text, answer = (message["content"] for message in messages)
        task = task_of(name, system, text)
        assert task.messages[0]["content"] == system, "the adapter was trained on other words: train it again"
        expected, before = task.form.model_validate_json(answer), asking.asked
        try:
            given = asking._ask(task)
        except AnswerError:
            counted[name].append((False, False, False, True))
            continue
        counted[name].append((True, given == expected, is_right(given, expected, text), asking.asked > before + 1))
    return [
        {"model": model, "task": name, "asked": len(rows)}
        | {
            column: round(sum(row[place] for row in rows) / len(rows), 3)
            for place, column in enumerate(("form", "exact", "right", "once more"))
        }
        for name, rows in sorted(counted.items())
    ]


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=20, help="of each task")
    parser.add_argument("--models", nargs="+", default=["khmer-tutor", "khmer"])
    parser.add_argument("--address", help="another server's, with /v1; its key in OPENAI_API_KEY")
    parser.add_argument("--held-out", type=Path, help="the chats; else those of the current home")
    arguments = parser.parse_args()
    if arguments.address:
        client = openai.OpenAI(base_url=arguments.address)
    else:
        server = server_of(Recipe.current())
        client = openai.OpenAI(base_url=server.base_url, api_key=server.api_key())
    folder = arguments.held_out or Store(store_root(home()), home() / "cache").current("adapter_chats", "tutor")
    held_out = pl.read_parquet(folder / "data.parquet").filter(split="test")
    chosen = held_out.group_by("task", maintain_order=True).head(arguments.chats)
    rows = [row for model in arguments.models for row in measure(client, model, chosen)]
    print(markdown_table(pl.DataFrame(rows)))
    of_first = [row for row in rows if row["model"] == arguments.models[0]]
    print(json.dumps({row["task"]: row["right"] for row in of_first}))


if __name__ == "__main__":
    main()
