"""Held-out text is measured text by text, and models are compared on the texts that both have seen."""

import pytest
from transformers import AutoTokenizer

from khmer_assets.evaluation.engines import TransformersEngine
from khmer_assets.evaluation.measures import difference
from khmer_assets.evaluation.tasks import held_out
from khmer_assets.training.models import load_model
from tests.tiny_model import save_tiny_model

TEXTS = ["ស្រូវទុំពេញវាល ហើយកសិករសប្បាយចិត្ត។", "ទូកតូចមួយអណ្តែតលើទន្លេ។", "ក្មេងៗលេងនៅក្រោមដើមស្វាយ។"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("held_out") / "model")
    engine, tokenizer = TransformersEngine(load_model(folder).eval(), 96), AutoTokenizer.from_pretrained(folder)
    return lambda texts: held_out.measure(engine, tokenizer, "khm", texts)[0]


def test_a_text_is_the_same_item_wherever_it_stands(measured):
    first, second = measured(TEXTS[:2]), measured([TEXTS[2], TEXTS[1]])
    assert difference(first, second).items == 1
    assert difference(first, second).change == pytest.approx(0, abs=1e-4)


def test_models_that_were_measured_on_other_texts_are_not_compared(measured):
    assert difference(measured(TEXTS[:2]), measured(TEXTS[2:])) is None
