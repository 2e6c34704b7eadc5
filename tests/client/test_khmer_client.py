"""The typed client against a server that speaks OpenAI's protocol: forms, one more try, and servers without schemas."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from khmer_client import (
    AnswerError,
    AsyncKhmerClient,
    Correction,
    Dialogue,
    Explanation,
    Fluency,
    KhmerClient,
    Vocabulary,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.server.gateways import listening

FLUENCY = {"score": 4, "problems": ["ពាក្យស្ទួន"], "summary": "អានបានល្អ។"}
CORRECTION = {"corrected": "ខ្ញុំទៅសាលារៀន។", "changes": [{"before": "សាលរៀន", "after": "សាលារៀន", "reason": "ខ្វះស្រៈ"}]}
VOCABULARY = {"words": [{"word": "សាលា", "level": "A1", "meaning": "កន្លែងរៀន"}]}
DIALOGUE = {"title": "នៅផ្សារ", "lines": [{"speaker": "សុខា", "text": "ត្រីថ្លៃប៉ុន្មាន?"}]}
EXPLANATION = {"rule": "ស្រៈ", "explanation": "ពាក្យនេះត្រូវមានស្រៈ។", "examples": ["ខ្ញុំនៅសាលារៀន។"]}
QUESTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("analyze_fluency", "ខ្ញុំទៅសាលារៀន។", FLUENCY),
    ("classify_vocabulary", "សាលា", VOCABULARY),
    ("correct_grammar", "ខ្ញុំទៅសាលរៀន។", CORRECTION),
    ("generate_dialogue", "ផ្សារ", DIALOGUE),
    ("explain_error", "ខ្ញុំទៅសាលរៀន។", EXPLANATION),
]


class Server:
    """Says `answers` one after the other; `refuses` schemas with this status, or all."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.refuses: int | None = None
        self.refuses_all = False
        self.refuses_after: int | None = None
        self.asked: list[dict[str, Any]] = []
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.answer, methods=["POST"])])

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if self.refuses_after is not None and len(self.asked) > self.refuses_after:
            return JSONResponse({"error": {"message": "the prompt is too long"}}, 400)
        if self.refuses and (self.refuses_all or "response_format" in body):
            return JSONResponse({"error": {"message": "response_format: unknown"}}, self.refuses)
        message = {"role": "assistant", "content": self.answers.pop(0)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return JSONResponse({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


@pytest.fixture
def server() -> Iterator[Server]:
    yield Server()


@pytest.fixture
def settings(server) -> Iterator[dict[str, Any]]:
    with listening(server.app) as port:
        yield {"base_url": f"http://127.0.0.1:{port}/v1", "api_key": "k", "max_retries": 0}


@pytest.fixture
def khmer(settings) -> KhmerClient:
    return KhmerClient(openai.OpenAI(**settings, http_client=openai.DefaultHttpxClient(trust_env=False)))


@pytest.mark.parametrize(("method", "text", "answer"), QUESTIONS)
def test_each_question_has_its_form_also_asynchronously(server, settings, khmer, method, text, answer):
    async def ask() -> Any:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(**settings, http_client=http) as client:
            return await getattr(AsyncKhmerClient(client), method)(text, "en")

    server.answers = [json.dumps(answer), json.dumps(answer)]
    assert getattr(khmer, method)(text).model_dump() == asyncio.run(ask()).model_dump() == answer
    first, second = server.asked
    assert first["messages"][1] == second["messages"][1] == {"role": "user", "content": text}
    assert "Khmer" in first["messages"][0]["content"] and "English" in second["messages"][0]["content"]
    schema = first["response_format"]["json_schema"]["schema"]
    assert schema["additionalProperties"] is False and set(schema["required"]) == answer.keys()


def test_an_answer_that_is_not_in_its_form_is_asked_for_once_more_with_what_was_wrong(server, khmer):
    server.answers = [json.dumps(FLUENCY | {"score": 9}), f"```json\n{json.dumps(FLUENCY)}\n```"]
    assert khmer.analyze_fluency("ខ្ញុំ").score == 4
    *_, before, again = server.asked[1]["messages"]
    assert before["role"] == "assistant" and "score: Input should be less than or equal to 5" in again["content"]
    server.answers = ["ខ្ញុំមិនដឹងទេ", "}{"]
    with pytest.raises(AnswerError, match=r"expected Fluency as JSON, got '}\{'") as failed:
        khmer.analyze_fluency("ខ្ញុំ")
    assert failed.value.text == "}{" and len(server.asked) == 4


def test_a_context_too_short_for_a_second_try_is_told_as_an_answer_without_its_form(server, khmer):
    server.refuses_after = 1
    server.answers = ["ខ្ញុំមិនដឹងទេ"]
    with pytest.raises(AnswerError, match="asked once more, the server refused") as failed:
        khmer.analyze_fluency("ខ្ញុំ")
    assert failed.value.text == "ខ្ញុំមិនដឹងទេ"


def test_a_form_is_told_in_a_line_with_every_field_of_its_schema():
    pattern = json.loads(Correction.pattern())
    assert pattern == {"corrected": "the whole text", "changes": [{"before": "...", "after": "...", "reason": "..."}]}
    for form in (Fluency, Vocabulary, Correction, Dialogue, Explanation):
        assert json.loads(form.pattern()).keys() == form.model_fields.keys()


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_without_schemas_is_asked_without_and_never_again_with_one(server, khmer, status):
    server.refuses = status
    server.answers = [json.dumps(FLUENCY)] * 2
    for _ in range(2):
        assert khmer.analyze_fluency("ខ្ញុំ").score == 4
    assert ["response_format" in asked for asked in server.asked] == [True, False, False]


def test_what_a_server_refuses_without_a_schema_too_is_told_and_the_next_is_asked_with_one(server, khmer):
    server.refuses, server.refuses_all = 400, True
    with pytest.raises(openai.BadRequestError, match="unknown"):
        khmer.analyze_fluency("ខ្ញុំ")
    server.refuses, server.answers = None, [json.dumps(FLUENCY)]
    assert khmer.analyze_fluency("ខ្ញុំ").score == 4
    assert ["response_format" in asked for asked in server.asked] == [True, False, True]


def test_it_imports_nothing_of_the_factory():
    script = "import sys, khmer_client; print(sorted({'torch', 'dagster', 'khmer_assets'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="client")
    assert found.stdout.strip() == "[]"
