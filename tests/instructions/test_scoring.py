"""The label model judges the chats that nobody has judged."""

import polars as pl

from khmer_assets.instructions.chats import NEW_CHAT, new_chat
from khmer_assets.instructions.scoring import scored
from tests.labels.conftest import documents
from tests.labels.test_labelled import model


def test_what_was_judged_stays_and_the_rest_is_judged_by_what_is_said():
    texts = documents("news", 30)["text"].to_list()
    rows = [new_chat(str(number), "s", "khm", "c", ["?", text]) for number, text in enumerate(texts)]
    rows[0] |= {"quality": 2.5, "label": "truth", "toxicity": "insult", "tags": ["mine"]}
    found = scored(pl.DataFrame(rows, schema=NEW_CHAT), model())
    assert found.schema == NEW_CHAT
    first = found.row(0, named=True)
    assert (first["quality"], first["label"], first["toxicity"], first["tags"]) == (2.5, "truth", "insult", ["mine"])
    rest = found[1:]
    assert rest["quality"].is_between(1, 10).all() and rest["quality"].n_unique() > 1
    assert rest["label"].null_count() == rest["toxicity"].null_count() == 0
    assert "safe" in set(rest["toxicity"])


def test_a_model_that_has_not_learned_quality_leaves_it_open():
    (chat,) = scored(
        pl.DataFrame([new_chat("a", "s", "khm", "c", ["?", "ទេ"])], schema=NEW_CHAT), model("topics")
    ).to_dicts()
    assert chat["quality"] is None and chat["toxicity"] is None and chat["tags"]


def test_no_chats_are_no_mistake():
    assert scored(NEW_CHAT.to_frame(), model()).height == 0
