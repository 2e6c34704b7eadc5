"""Measures are formulas of sums over items; intervals and paired tests come of the same draws."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from khmer_assets.evaluation.measures import Measure, difference, differences, interval, mean_of, read
from khmer_assets.evaluation.tasks.translation import bleu, chrf

REFERENCES = {"1": "ថ្ងៃនេះមេឃស្រឡះ ហើយខ្យល់បក់ត្រជាក់។", "2": "The river is high this year.", "3": "គាត់ទៅផ្សារ។"}
ANSWERS = {"1": "ថ្ងៃនេះមេឃភ្លៀង ហើយខ្យល់បក់ខ្លាំង។", "2": "The river was high last year.", "3": "គាត់ទៅផ្សារ។"}


def test_chrf_and_bleu_are_those_of_sacrebleu_to_the_digit():
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    said, wanted = list(ANSWERS.values()), [list(REFERENCES.values())]
    ours = chrf("t", ANSWERS, REFERENCES), bleu("t", ANSWERS, REFERENCES)
    theirs = CHRF(word_order=2), BLEU(tokenize="char")
    for measure, metric in zip(ours, theirs, strict=True):
        assert interval(measure)[0] == pytest.approx(metric.corpus_score(said, wanted).score, abs=1e-9)
        assert measure.note == str(metric.get_signature())


khmer_or_not = st.text("កខគងច្រើន ញ។abc", max_size=30)


@settings(max_examples=40)
@given(st.lists(st.tuples(khmer_or_not, khmer_or_not), min_size=1, max_size=4))
def test_any_texts_score_as_in_sacrebleu(pairs):
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    said = {str(n): answer for n, (answer, _) in enumerate(pairs)}
    wanted = {str(n): reference for n, (_, reference) in enumerate(pairs)}
    for ours, metric in ((chrf, CHRF(word_order=2)), (bleu, BLEU(tokenize="char", force=True))):
        expected = metric.corpus_score(list(said.values()), [list(wanted.values())]).score
        assert interval(ours("t", said, wanted))[0] == pytest.approx(expected, abs=1e-9)


def scored(right: int, wrong: int, metric: str = "accuracy", **options) -> Measure:
    scores = {str(n): float(n < right) for n in range(right + wrong)}
    return mean_of("belebele", metric, scores, scale=100, **options)


def test_the_interval_holds_the_value_and_narrows_with_more_items():
    few, many = interval(scored(6, 4)), interval(scored(600, 400))
    assert few[0] == many[0] == 60
    assert few[1] < many[1] < 60 < many[2] < few[2]
    # the normal approximation of a binomial share
    assert many[2] - many[1] == pytest.approx(2 * 1.96 * 100 * (0.6 * 0.4 / 1000) ** 0.5, rel=0.1)


def test_two_models_differ_only_when_a_paired_test_says_so():
    generator = random.Random(1)
    scores = {str(n): float(generator.random() < 0.5) for n in range(100)}
    turned = {name: 1 - score if int(name) < 5 else score for name, score in scores.items()}
    worse = {name: 0.0 if int(name) < 30 else score for name, score in scores.items()}
    first = mean_of("t", "accuracy", scores)
    assert difference(first, first).verdict == "alike"
    assert difference(first, mean_of("t", "accuracy", turned)).verdict == "alike"
    assert difference(first, mean_of("t", "accuracy", worse)).verdict == "worse"
    assert difference(mean_of("t", "accuracy", worse), first).verdict == "better"
    lower = {"higher_is_better": False}
    assert difference(mean_of("t", "loss", scores, **lower), mean_of("t", "loss", worse, **lower)).verdict == "better"


def test_a_model_whose_figures_are_no_numbers_is_worse():
    broken = mean_of("belebele", "accuracy", {str(n): float("nan") for n in range(10)}, higher_is_better=False)
    assert difference(scored(5, 5), broken).verdict == "worse"


def test_only_items_that_both_were_asked_are_compared():
    first, second = scored(5, 5), mean_of("belebele", "accuracy", {"3": 0.0, "4": 0.0, "new": 1.0}, scale=100)
    found = difference(first, second)
    assert found.items == 2 and found.change == -100
    assert difference(first, mean_of("belebele", "accuracy", {"other": 1.0})) is None
    assert [one.name for one in differences([first], [second, scored(1, 1, "new metric")])] == ["belebele: accuracy"]


def test_a_measure_is_read_as_it_was_kept():
    measure = chrf("flores200 khm_Khmr", ANSWERS, REFERENCES)
    assert read(json.loads(json.dumps(measure.kept()))) == measure


def test_no_item_is_told():
    with pytest.raises(ValueError, match="chats: exact match has no item"):
        interval(mean_of("chats", "exact match", {}))
