"""How the tests of this stage calibrate."""

from pathlib import Path

import polars as pl
import pytest

from khmer_assets.instructions.chats import CHAT
from tests.tiny_model import ENGLISH_TEXTS, KHMER_TEXTS

QUESTIONS = {"khm": "សូមនិយាយមួយប្រយោគ", "eng": "Say a sentence."}


@pytest.fixture(scope="session")
def chats(tmp_path_factory) -> Path:
    """chat_dataset with four training chats a language, and one of each that is held out."""
    folder = tmp_path_factory.mktemp("chats")
    said = [("khm", text) for text in KHMER_TEXTS[:5]] + [("eng", text) for text in ENGLISH_TEXTS[:5]]
    rows = [
        {
            **dict.fromkeys(CHAT),
            "id": str(number),
            "language": language,
            "messages": [
                {"role": "user", "content": QUESTIONS[language]},
                {"role": "assistant", "content": text},
            ],
            "content_hash": f"{number:016x}",
            "split": "test" if number % 5 == 4 else "train",
        }
        for number, (language, text) in enumerate(said)
    ]
    pl.DataFrame(rows, schema=CHAT).write_parquet(folder / "data.parquet")
    return folder


@pytest.fixture
def calibration(model, mixture, chats) -> dict:
    return {"model": model, "mixture": mixture, "chats": chats, "samples": 8, "length": 64, "seed": 1}
