"""Khmer text gets one spelling, and nothing makes the normalization fail."""

import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.khmer import normalization
from khmer_assets.khmer.normalization import Normalization, normalize

REMOVE = Normalization(zero_width_space="remove", fold_deprecated=True)
KEEP = Normalization(zero_width_space="keep", fold_deprecated=False)

SENTENCES = Path(__file__).parents[3] / "shared" / "data" / "spoken_prompts.jsonl"

khmer_like = st.text(
    st.sampled_from(
        [chr(code) for code in range(0x1780, 0x17DE)]
        + list("\u17d2\u17d2\u17d2\u17bb\u17be\u17c1\u200b\u200c\u200d\ufeff a\u0301\u0323\r\n")
    ),
    max_size=14,
)


@pytest.mark.parametrize(
    ("rule", "given", "expected"),
    [
        ("cluster_order", "\u1780\u17b7\u17d2\u179a", "\u1780\u17d2\u179a\u17b7"),  # vowel before subscript
        ("cluster_order", "\u1780\u17c6\u17bb", "\u1780\u17bb\u17c6"),  # sign before vowel
        ("repeated_coeng", "\u1780\u17d2\u17d2\u179a", "\u1780\u17d2\u179a"),
        ("repeated_coeng", "\u1780\u17d2\u200d\u179a", "\u1780\u17d2\u179a"),
        ("zero_width_non_joiner", "\u1780\u17b6\u200c\u1780", "\u1780\u17b6\u1780"),
        ("doubled_mark", "\u1798\u17bd\u17bd\u1799", "\u1798\u17bd\u1799"),
        ("composed_vowel", "\u1780\u17c1\u17b8", "\u1780\u17be"),
        ("composed_vowel", "\u1780\u17c1\u17b6", "\u1780\u17c4"),
        ("register_shifter", "\u179f\u17bb\u17b8", "\u179f\u17ca\u17b8"),  # a strong consonant takes triisap
        ("register_shifter", "\u1798\u17bb\u17b7", "\u1798\u17c9\u17b7"),  # a weak one muusikatoan
        ("register_shifter", "\u1794\u17be\u17bb", "\u1794\u17c9\u17be"),  # and BA too
        ("coeng_ro", "\u179f\u17d2\u179a\u17d2\u178f\u17b8", "\u179f\u17d2\u178f\u17d2\u179a\u17b8"),
        ("coeng_da", "\u1794\u178e\u17d2\u178a", "\u1794\u178e\u17d2\u178f"),
        ("deprecated_letter", "\u17a3\u1780", "\u17a2\u1780"),
        ("zero_width_space", "\u1780\u200b\u1781", "\u1780\u1781"),
        ("byte_order_mark", "\ufeff\u1780", "\u1780"),
        ("control_character", "\u1780\x00\x07\t\n", "\u1780\t\n"),
        ("invisible_character", "\u1780\u00ad\u2060", "\u1780"),
        ("line_ending", "a\r\nb\rc", "a\nb\nc"),
        ("lone_surrogate", "a\ud800", "a\ufffd"),
        ("nfc", "e\u0301", "\u00e9"),
        ("spaces", "a \u00a0  b", "a b"),
    ],
)
def test_each_rule_gives_the_canonical_form_and_is_counted(rule, given, expected):
    text, counts = normalize(given, REMOVE)
    assert text == expected
    assert counts[rule] >= 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "ព្រះរាជាណាចក្រកម្ពុជា",
        "ស្ត្រី",
        "ប៉ុន្មាន",
        "ខ្ញុំ​ទៅសាលា",
        "គេហៅថា អាាា!",
        "\u1794\u17ca\u200c\u17b8",
        "ក៏",
        "👩‍🌾",
    ],
)
def test_canonical_text_passes_unchanged(text):
    assert normalize(text, KEEP) == (text, {})


def test_word_marks_and_deprecated_letters_stay_when_the_settings_say_so():
    assert normalize("\u1780\u200b\u17a3", KEEP)[0] == "\u1780\u200b\u17a3"


def test_counts_are_of_what_was_changed():
    assert normalize("\u1780\u200b\u1780\u200b\u178e\u17d2\u178a", REMOVE)[1] == {"zero_width_space": 2, "coeng_da": 1}


@given(st.one_of(khmer_like, st.text(), st.text(st.characters())), st.sampled_from([REMOVE, KEEP]))
def test_normalizing_twice_changes_nothing_more(text, settings):
    once, _ = normalize(text, settings)
    assert normalize(once, settings) == (once, {})


# One of each kind of character that a rule treats in its own way.
KINDS = (
    "\u1780\u1794\u178a\u179a\u17d2\u17b6\u17b7\u17b8\u17bb\u17be\u17c1\u17c6\u17c7\u17c9\u17cb\u17cc\u17d0\u17dd"
    "\u200c\u200d"
)


def every_cluster_by_itself(text: str) -> str:
    """The slow way: each syllable is taken apart, also those that look canonical."""
    return normalization._CLUSTER.sub(lambda cluster: normalization._changed_cluster(cluster[0])[0], text)


def test_no_syllable_slips_through_the_fast_path_of_canonical_text():
    """Every text of up to four characters after a base that the rules tell apart."""
    for length in (1, 2, 3):
        for units in itertools.product(KINDS, repeat=length):
            text = "\u1780" + "".join(units)
            if re.fullmatch("[^\u17dd]*", text):  # NFC moves U+17DD
                assert normalize(text, KEEP)[0] == every_cluster_by_itself(text), ascii(text)


@given(st.text(st.sampled_from(KINDS.replace("\u17dd", "") + "a ")))
def test_no_syllable_of_a_longer_text_slips_through_either(text):
    assert normalize(text, KEEP)[0] == every_cluster_by_itself(re.sub(" +", " ", text))


@pytest.mark.parametrize("start", ["", "\u1780", "\u1780\u17d2\u1780"])
@pytest.mark.parametrize(
    "marks",
    [
        "\u17c1\u17b6",
        "\u17bb\u17b8",
        "\u17bb\u17bc",
        "\u17d2",
        "\u17d2\u200c",
        "\u17dd\u17d2",
        "\u0f73",
        "\u0301\u0323",
        "\0",
    ],
)
def test_a_flood_of_marks_is_one_text_among_others(start, marks):
    """With an algorithm that is quadratic in the length of a syllable, this takes minutes."""
    flood = start + marks * (200_000 // len(marks))
    once, _ = normalize(flood, REMOVE)
    assert normalize(once, REMOVE) == (once, {})


def test_syllables_of_a_flood_are_not_remembered():
    remembered = normalization._remembered_cluster.cache_info().currsize
    for base in "\u1780\u1781\u1782":
        normalize(base + "\u17c1\u17b6" * 100, REMOVE)
    assert normalization._remembered_cluster.cache_info().currsize == remembered


def test_every_rule_of_the_module_has_a_name_in_its_table():
    named = set(re.findall(r"^\| (\w+) \|", normalization.__doc__, re.MULTILINE)) - {"rule"}
    in_code = {name for name, _ in normalization._CLUSTER_RULES}
    in_code |= {name for name, _ in normalization._replacements(True)[1].values()}
    assert in_code | {"zero_width_space", "nfc", "spaces", "line_ending"} == named


@given(
    st.sampled_from([chr(code) for code in [*range(0x1780, 0x17A3), *range(0x17A5, 0x17B4)]]),
    st.lists(
        st.sampled_from(
            [chr(code) for code in range(0x17B6, 0x17D2) if code not in (0x17BE, 0x17C1)]
            + ["\u17d2\u1780", "\u17d2\u179a"]
        ),
        max_size=5,
        unique=True,
    ),
)
def test_syllables_agree_with_the_reference_package(base, marks):
    """pheasa implements the same specification. Left out: doubled marks, which it keeps, and U+17BE with -u behind a
    shifter, which is no word."""
    pheasa = pytest.importorskip("pheasa")
    text = base + "".join(marks)
    assert normalize(text, REMOVE)[0] == pheasa.normalize(text, zwsp="strip", fold_deprecated=True)


@pytest.mark.skipif(not SENTENCES.exists(), reason="the sentences are not on this machine")
def test_real_sentences_agree_with_the_reference_package():
    pheasa = pytest.importorskip("pheasa")
    texts = [json.loads(line)["text"] for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    assert len(texts) > 2_000
    for text in texts:
        own, rules = normalize(text, REMOVE)
        if not rules.keys() & {"spaces", "doubled_mark", "control_character"}:  # which it does not have
            assert own == pheasa.normalize(text, zwsp="strip", fold_deprecated=True)
