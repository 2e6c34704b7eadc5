"""Which chats are learned because of a failure: near ones, in turn, and never what is held out."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.corpus.semantic import SemanticSearch
from khmer_assets.failures.clusters import LEARNED, MEASURED
from khmer_assets.failures.find import FAILURE, failure
from khmer_assets.failures.new_chats import nearest_chats, prompts_of, without_held_out
from khmer_assets.instructions.chats import NEW_CHAT, new_chat, prompt_of

LONG = "តើអ្នកអាចប្រាប់ខ្ញុំអំពីប្រវត្តិនៃប្រាសាទអង្គរវត្ត និងស្តេចដែលបានសាងសង់វានៅសតវត្សទី {} បានទេ?"


def chats(*prompts: str) -> pl.DataFrame:
    rows = [new_chat(f"{number}", "s", "khm", "c", [one, "បាទ។"]) for number, one in enumerate(prompts)]
    return pl.DataFrame(rows, schema=NEW_CHAT)


def asked(prompt: str) -> str:
    return prompt_of([{"role": "user", "content": prompt}])


def test_what_is_held_out_or_nearly_so_is_set_aside_with_its_similarity():
    judged = without_held_out(
        chats("តើមេឃពណ៌អ្វី?", "តើមេឃពណ៌អ្វី", "តើស្មៅពណ៌អ្វី?", LONG.format(13)),
        [asked("តើមេឃពណ៌អ្វី?"), asked(LONG.format(12))],
    )
    assert judged["rule"].to_list() == ["held_out", "held_out", None, "held_out"]
    assert judged["measure"][0] == 1 and 0.8 <= judged["measure"][3] < 1
    assert without_held_out(chats("ក"), [])["rule"].to_list() == [None]
    assert without_held_out(chats(), ["ក"]).is_empty()


@given(st.lists(st.text("កខគ ?12", min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=8), st.data())
def test_no_prompt_that_is_held_out_is_ever_left(prompts, data):
    held_out = data.draw(st.lists(st.sampled_from(prompts)))
    judged = without_held_out(chats(*prompts), [asked(one) for one in held_out])
    left = prompts_of(judged.filter(pl.col("rule").is_null()))
    assert not set(left) & {asked(one) for one in held_out}


def rows(*found: tuple[str, int, str]) -> pl.DataFrame:
    made = [
        {
            **failure("chats", prompt, [{"role": "user", "content": prompt}], "?", "!", ""),
            "cluster": cluster,
            "part": part,
        }
        for prompt, cluster, part in found
    ]
    return pl.DataFrame(made, schema={**FAILURE, "cluster": pl.Int64(), "part": pl.String()})


def test_each_cluster_gets_the_chats_that_are_nearest_to_what_it_learns_from():
    failures = rows(
        ("តើរាជធានីប្រទេសថៃឈ្មោះអ្វី?", 0, LEARNED), ("What does a dog eat?", 1, LEARNED), ("៣ + ៤ = ?", 1, MEASURED)
    )
    pool = chats("What does a cat eat?", "តើរាជធានីប្រទេសឡាវឈ្មោះអ្វី?", "៥ + ៤ = ?", "What does a cow eat?")
    found = nearest_chats(failures, pool, 1, SemanticSearch())
    assert dict(found.select("cluster", "id").iter_rows()) == {0: "1", 1: found.filter(cluster=1)["id"][0]}
    assert found.filter(cluster=1)["id"][0] in ("0", "3"), "what is measured with has no say"
    whole = nearest_chats(failures, pool, 10, SemanticSearch())
    assert whole["id"].is_unique().all() and whole.height == 4, "each is taken once"


def test_the_failures_of_a_cluster_take_turns():
    failures = rows(("What does a dog eat?", 0, LEARNED), ("តើរាជធានីប្រទេសថៃឈ្មោះអ្វី?", 0, LEARNED))
    pool = chats(*(f"What does a {name} eat?" for name in ("cat", "cow", "bee", "hen")), "តើរាជធានីប្រទេសឡាវឈ្មោះអ្វី?")
    assert "4" in nearest_chats(failures, pool, 2, SemanticSearch())["id"].to_list()


def test_without_failures_or_chats_nothing_is_chosen():
    assert nearest_chats(rows(("ក", 0, MEASURED)), chats("ក"), 5, SemanticSearch()).is_empty()
    assert nearest_chats(rows(("ក", 0, LEARNED)), chats(), 5, SemanticSearch()).is_empty()
