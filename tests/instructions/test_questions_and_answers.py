"""What teachers are asked for questions with their answers, and which answers are kept."""

import pytest

from khmer_assets.foundation.settings import RecipeError, validated
from khmer_assets.instructions.questions_and_answers import QuestionsAndAnswers, question_task
from khmer_assets.instructions.writing import Ground, Unfit

KHMER = Ground("rice", "document", "កសិករដាំស្រូវនៅរដូវវស្សា។ ស្រូវត្រូវការទឹកច្រើន។ នៅឆ្នាំ ២០២៣ គេច្រូតបាន ១២ តោន។", "khm")
ENGLISH = Ground("boat", "topic", "old boats", "eng")
EXPLAIN = "directives: {khm: [{say: សូមពន្យល់, sentences: 3}], eng: [{say: Explain, sentences: 2}]}"
ANSWER = "ស្រូវត្រូវការទឹក។ រដូវវស្សាមានភ្លៀងច្រើន។ ដូច្នេះកសិករដាំនៅពេលនោះ។"


@pytest.fixture
def settings(tmp_path) -> QuestionsAndAnswers:
    (tmp_path / "mine.yaml").write_text(EXPLAIN)
    return validated(QuestionsAndAnswers, {"topics": ["x"], "directives": "mine.yaml"}, tmp_path / "recipe.yaml")


def answered(settings: QuestionsAndAnswers, ground: Ground, **value: str) -> list[str]:
    task = question_task(settings, [ground], 1)
    chat = task.chat(
        task.rows[0], {"instruction": "សូមពន្យល់ថា ហេតុអ្វីគេដាំស្រូវនៅរដូវវស្សា។", "input": "", "output": ANSWER} | value
    )
    return [message["content"] for message in chat["messages"]]


def test_a_good_answer_makes_a_chat(settings):
    question, answer = answered(settings, KHMER)
    assert question.startswith("សូមពន្យល់") and answer == ANSWER
    assert answered(settings, KHMER, input="រដូវវស្សា")[0].endswith("\n\nរដូវវស្សា")
    english = {"instruction": "Explain what old boats are for.", "output": "They carry fish. They carry people."}
    assert answered(settings, ENGLISH, **english)[1] == english["output"]


@pytest.mark.parametrize(
    ("value", "rule", "measure"),
    [
        ({"output": "ស្រូវត្រូវការទឹក។ មានភ្លៀង!"}, "too_few_sentences", 2),
        ({"instruction": "ហេតុអ្វីគេដាំស្រូវ?"}, "other_directive", None),
        (
            {"output": "Rice needs water. It rains much. So it is planted then."},
            "other_language",
            pytest.approx(0.4, abs=0.1),
        ),
        ({"output": f"{ANSWER} គេច្រូតបាន 99 តោននៅឆ្នាំ 2023។"}, "foreign_number", 1),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused_with_its_measure(settings, value, rule, measure):
    with pytest.raises(Unfit) as refused:
        answered(settings, KHMER, **value)
    assert refused.value.args[:2] == (rule, measure)


def test_a_number_of_the_document_in_the_other_digits_is_no_foreign_one(settings):
    assert "2023" in answered(settings, KHMER, output=f"{ANSWER} នៅឆ្នាំ 2023 គេបាន 12 តោន។")[1]


def test_directives_differ_by_question_and_are_those_of_the_texts_language():
    task = question_task(QuestionsAndAnswers(topics=["x"], each=4), [KHMER, ENGLISH], 1)
    khmer, english = (
        [row["directive"] for row in task.rows if row["id"].startswith(name)] for name in ("rice", "boat")
    )
    assert len(set(khmer)) == len(set(english)) == 4
    own = QuestionsAndAnswers().directives
    assert set(khmer) <= {one.say for one in own.khm}
    assert set(english) <= {one.say for one in own.eng}
    assert set(task.template.placeholders) <= set(task.rows[0])


def test_the_directives_of_the_project_ask_for_three_sentences_where_something_is_explained():
    asked = {one.say: one.sentences for one in QuestionsAndAnswers().directives.khm}
    assert [asked[say] for say in ("សូមពន្យល់", "ចូរអធិប្បាយ", "ចូរប្រៀបធៀប")] == [3, 3, 3]


@pytest.mark.parametrize(
    "text", ["{}", "directives: {khm: [], eng: [{say: What}]}", "directives: {khm: [{ask: x}], eng: []}"]
)
def test_a_file_that_holds_no_directives_is_told(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match="directives"):
        validated(QuestionsAndAnswers, {"topics": ["x"], "directives": "mine.yaml"}, tmp_path / "recipe.yaml")


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(RecipeError, match=r"directives: .*none\.yaml"):
        validated(QuestionsAndAnswers, {"topics": ["x"], "directives": "none.yaml"}, tmp_path / "recipe.yaml")
