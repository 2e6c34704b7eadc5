"""Errors are made where they are errors, and nowhere else."""

from random import Random

import pytest

from khmer_assets.instructions.grammar_errors import RULES, errors, shuffled
from khmer_assets.khmer.script import Language


@pytest.mark.parametrize(
    ("rule", "sentence", "broken", "wrong", "right"),
    [
        ("confused_word", "ខ្ញុំទិញត្រី និងបន្លែ។", "ខ្ញុំទិញត្រី នឹងបន្លែ។", "នឹង", "និង"),
        ("confused_word", "តើអ្នកចង់បានតែ ឬទឹក?", "តើអ្នកចង់បានតែ រឺទឹក?", "រឺ", "ឬ"),
        ("missing_bantoc", "គាត់ដើរលេង។", "គាតដើរលេង។", "គាត", "គាត់"),
        ("missing_subscript", "ក្មេងលេងបាល់។", "កមេងលេងបាល់។", "កមេង", "ក្មេង"),
        ("marker_after_verb", "ខ្ញុំមិនទៅសាលាទេ។", "ខ្ញុំទៅមិនសាលាទេ។", "ទៅមិន", "មិនទៅ"),
        ("classifier_first", "គាត់មានកូនបីនាក់។", "គាត់មានបីនាក់កូន។", "បីនាក់កូន", "កូនបីនាក់"),
        ("doubled_word", "គាត់រស់នៅតាកែវ។", "គាត់រស់នៅនៅតាកែវ។", "នៅនៅ", "នៅ"),
        ("agreement", "She teaches children.", "She teach children.", "teach", "teaches"),
        ("agreement", "My aunt carries water.", "My aunt carry water.", "carry", "carries"),
        ("agreement_of_many", "They were late.", "They was late.", "was", "were"),
        ("article", "I ate a mango.", "I ate an mango.", "an", "a"),
        ("article", "I ate an orange.", "I ate a orange.", "a", "an"),
        ("preposition", "It rains in May.", "It rains on May.", "on", "in"),
        ("preposition", "We eat at noon.", "We eat in noon.", "in", "at"),
        ("plural", "I have two boxes.", "I have two box.", "box", "boxes"),
        ("plural", "I see many cities.", "I see many city.", "city", "cities"),
        ("irregular_verb", "He bought rice.", "He buyed rice.", "buyed", "bought"),
        ("misspelled_word", "Because it rained, we stayed.", "Becuase it rained, we stayed.", "Becuase", "Because"),
    ],
)
def test_a_rule_makes_its_error(rule, sentence, broken, wrong, right):
    language: Language = "khm" if rule in RULES["khm"] else "eng"
    found = errors(sentence, language, Random(1))[rule]
    assert (found.sentence, found.wrong, found.right, found.rule) == (broken, wrong, right, rule)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("marker_after_verb", "ខ្ញុំមិនសូវដឹងទេ។"),
        ("classifier_first", "គាត់មានបីនាក់។"),
        ("agreement", "It always rains."),
        ("agreement", "They walk."),
        ("article", "He waited an hour at a university."),
        ("plural", "Many thanks to these glasses."),
        ("preposition", "She is in the house."),
        ("misspelled_word", "It's my friend's book."),
    ],
)
def test_no_error_is_made_where_it_would_be_none(rule, sentence):
    language: Language = "khm" if rule in RULES["khm"] else "eng"
    assert rule not in errors(sentence, language, Random(1))


def test_disorder_keeps_the_words_and_the_final_mark():
    mixed = shuffled("ខ្ញុំទៅផ្សារជាមួយម្តាយនៅពេលព្រឹក។", "khm", Random(2))
    assert mixed is not None and mixed != "ខ្ញុំទៅផ្សារជាមួយម្តាយនៅពេលព្រឹក។" and mixed.endswith("។")
    assert sorted(mixed) == sorted("ខ្ញុំទៅផ្សារជាមួយម្តាយនៅពេលព្រឹក។")
    assert shuffled("We go home.", "eng", Random(2)) is None, "of so few words some order may be right"
