"""An extended tokenizer reads Khmer in few tokens, and every other text as before, whoever reads it."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from khmer_assets.extension import embeddings, merges
from khmer_assets.extension.merges import CODE, Extension, Spec
from khmer_assets.tokenizer.bpe import GPT2_PATTERN, KHMER_PATTERN
from resources.payload import PayloadRun, Refusal
from tests.extension.conftest import ADDED
from tests.tiny_model import ENGLISH_TEXTS, KHMER_TEXTS

MERGES = 60
SENTENCE = "កុមារៗលេងនៅមុខផ្ទះ ហើយជីតាអង្គុយអានសៀវភៅ ១២ ទំព័រ។"


def extend(base: Path, mixture: Path, work: Path, **wanted: object) -> tuple[Path, dict]:
    run = PayloadRun(work)
    spec = Spec(base=base, mixture=mixture, settings=Extension.model_validate({"merges": MERGES, **wanted}))
    return run.output, merges.main(spec, run)


@pytest.fixture(scope="module", params=["qwen", "smollm"])
def pair(request, mixture, tmp_path_factory) -> tuple[Path, Path, dict]:
    """A base, its extended tokenizer and the figures."""
    base = request.getfixturevalue(request.param)
    return base, *extend(base, mixture, tmp_path_factory.mktemp("extended"))


@pytest.fixture(scope="module")
def tokenizers(pair) -> list[Tokenizer]:
    return [Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in pair[:2]]


def test_khmer_takes_a_fraction_of_the_tokens(tokenizers):
    before, after = (len(tokenizer.encode(SENTENCE).ids) for tokenizer in tokenizers)
    assert after < before / 3


def test_each_khmer_character_is_one_token_at_most_also_after_a_space(tokenizers):
    for character in merges.KHMER_CHARACTERS:
        assert len(tokenizers[1].encode(character).ids) == 1
    for letter in merges.KHMER_LETTERS:
        assert len(tokenizers[1].encode(f"a {letter}").ids) <= 3


def test_new_tokens_come_last_and_the_old_keep_their_ids(pair):
    old, new = (json.loads((folder / "tokenizer.json").read_text()) for folder in pair[:2])
    added = {token["content"]: token["id"] for token in old["added_tokens"]}
    assert added[ADDED] == len(old["model"]["vocab"])
    known = old["model"]["vocab"] | added
    assert known.items() <= new["model"]["vocab"].items()
    assert new["model"]["merges"][: len(old["model"]["merges"])] == old["model"]["merges"]
    ids = sorted(identity for token, identity in new["model"]["vocab"].items() if token not in known)
    assert ids == list(range(len(known), len(known) + pair[2]["new_tokens"]))


def test_what_is_found_out_stands_beside_the_tokenizer(pair):
    _, folder, figures = pair
    assert figures["english_lines"] > 0
    assert figures["english_lines_changed"] == 0
    assert figures["code_ids_equal"] and figures["chat_template_ids_equal"]
    assert figures["merges_learned"] == MERGES
    kept = json.loads((folder / merges.FIGURES).read_text())
    assert kept == figures | {"examples_of_changed_lines": []}


# No Khmer; and no marks, for llama.cpp's qwen35 differs from Qwen 2's pattern in the marks of all scripts.
OTHER_TEXT = st.text(st.characters(exclude_categories=["Cs", "Mn", "Mc", "Me"], max_codepoint=0x1AFF).filter(
    lambda character: not 0x1780 <= ord(character) <= 0x17FF
))  # fmt: skip


@settings(max_examples=300)
@given(OTHER_TEXT | st.lists(st.sampled_from([*ENGLISH_TEXTS, CODE, ADDED, "<|im_start|>", " ", "\n"])).map("".join))
def test_any_text_without_khmer_keeps_its_ids(tokenizers, text):
    before, after = (tokenizer.encode(text).ids for tokenizer in tokenizers)
    assert before == after


@settings(max_examples=300)
@given(
    st.text(st.characters(min_codepoint=0x1780, max_codepoint=0x17F9) | st.sampled_from("a 1.\n\u200b"), max_size=40)
)
def test_any_text_comes_back_as_it_was(tokenizers, text):
    extended = tokenizers[1]
    assert extended.decode(extended.encode(text).ids, skip_special_tokens=False) == text


def test_transformers_reads_the_folder_as_it_is_whatever_class_the_base_had(pair, tokenizers, tmp_path):
    from transformers import AutoTokenizer

    base, folder, _ = pair
    embeddings.extend(base, folder, tmp_path)  # with the model's config.json, which transformers looks at too
    again = tmp_path / "again"
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(again)  # as each later stage does
    shutil.copyfile(tmp_path / "config.json", again / "config.json")
    for place in (folder, tmp_path, again):
        loaded = AutoTokenizer.from_pretrained(place)
        for text in (SENTENCE, *KHMER_TEXTS, *ENGLISH_TEXTS, CODE):
            assert loaded(text)["input_ids"] == tokenizers[1].encode(text).ids
        assert loaded.eos_token == "<|im_end|>"
        assert loaded.chat_template


@pytest.mark.parametrize("pair", ["qwen"], indirect=True)
def test_llama_cpp_gives_the_same_ids_for_a_base_with_the_pattern_of_qwen(pair, tokenizers, tmp_path):
    base, folder, figures = pair
    assert figures["llama_cpp_pre_tokenizer"] == "qwen35"
    assert_llama_cpp_agrees(base, folder, tokenizers[1], tmp_path)


def assert_llama_cpp_agrees(base: Path, folder: Path, tokenizer: Tokenizer, work: Path) -> None:
    from llama_cpp import Llama

    from khmer_assets.compression import gguf

    (work / "model").mkdir()
    embeddings.extend(base, folder, work / "model")
    gguf.write_float16(work / "model", work / "model.gguf")
    llama = Llama(str(work / "model.gguf"), vocab_only=True, verbose=False)
    for text in (SENTENCE, *KHMER_TEXTS, *ENGLISH_TEXTS, CODE, f"{ADDED}{SENTENCE}"):
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == tokenizer.encode(text).ids
    llama.close()


def test_a_base_with_another_pattern_is_exact_or_becomes_gguf_as_the_recipe_says(smollm, mixture, tmp_path):
    _, exact = extend(smollm, mixture, tmp_path / "exact")
    assert exact["llama_cpp_pre_tokenizer"] is None
    folder, figures = extend(smollm, mixture, tmp_path / "llama_cpp", pattern="llama_cpp")
    assert figures["llama_cpp_pre_tokenizer"] == "qwen35"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert_llama_cpp_agrees(smollm, folder, tokenizer, tmp_path)


def test_a_line_of_an_english_text_that_quotes_khmer_is_no_english_line(smollm, tmp_path):
    import polars as pl

    texts = [*KHMER_TEXTS, "The number is written\n៩៨៧៦៥\nand read from the left."]
    languages, splits = ["khm"] * 6 + ["eng"], ["train"] * 6 + ["validation"]
    columns = {"text": texts, "language": languages, "split": splits, "copies": [3] * 6 + [1]}
    pl.DataFrame(columns).write_parquet(tmp_path / "data.parquet")
    _, figures = extend(smollm, tmp_path, tmp_path / "extended")
    assert (figures["english_lines"], figures["english_lines_changed"]) == (2, 0)


def test_too_many_changed_english_lines_are_refused(smollm, tmp_path):
    import polars as pl

    lines = [f"{word}\n\n  Indented, (and more)" for word in ("Beans", "Peas", "Rice")]
    texts = [*KHMER_TEXTS * 3, *lines]
    languages = ["khm"] * 18 + ["eng"] * 3
    splits = ["train"] * 18 + ["validation"] * 3
    columns = {"text": texts, "language": languages, "split": splits, "copies": [1] * 21}
    pl.DataFrame(columns).write_parquet(tmp_path / "data.parquet")
    _, figures = extend(smollm, tmp_path, tmp_path / "exact")
    assert figures["english_lines"] == 6
    content = json.loads((smollm / "tokenizer.json").read_text())
    other = "\\p{L}{1,2}|[^\\p{L}]"  # qwen35 cuts nearly everything in another way
    content["pre_tokenizer"]["pretokenizers"] = [
        merges._split(other),
        {**content["pre_tokenizer"]["pretokenizers"][1], "use_regex": False},
    ]
    base = tmp_path / "base"
    base.mkdir()
    for file in smollm.glob("tokenizer_config.json"):
        (base / file.name).write_bytes(file.read_bytes())
    (base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(Refusal, match=r"would get other ids with llama.cpp's pattern qwen35"):
        extend(base, tmp_path, tmp_path / "llama_cpp", pattern="llama_cpp")


def test_marks_join_the_letters_of_a_pattern_wherever_it_names_them():
    marked = merges.with_khmer_marks(GPT2_PATTERN)
    assert marked.count(merges.KHMER_MARKS) == 2
    assert merges.with_khmer_marks(KHMER_PATTERN) == KHMER_PATTERN  # which knows the marks of all scripts


def test_text_that_yields_too_few_merges_is_refused(qwen, mixture, tmp_path):
    with pytest.raises(Refusal, match=r"only \d+ merges, fewer than extension.merges \(100000\)"):
        extend(qwen, mixture, tmp_path, merges=100_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "is a Unigram model .* take such a base"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "cuts text by Metaspace"),
        ({"pre_tokenizer": None}, "cuts text by nothing"),
    ],
)
def test_a_tokenizer_that_is_no_byte_level_bpe_is_refused(qwen, tmp_path, change, message):
    content = json.loads((qwen / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | change))
    with pytest.raises(Refusal, match=message):
        merges.read_tokenizer(tmp_path)


def test_a_base_without_a_tokenizer_file_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"has no tokenizer.json"):
        merges.read_tokenizer(tmp_path)


def test_steps_that_are_not_understood_are_refused(qwen):
    content = merges.read_tokenizer(qwen)
    content["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Punctuation"})
    with pytest.raises(Refusal, match="cuts text by Punctuation"):
        merges.use_khmer_pattern(content, "exact")
