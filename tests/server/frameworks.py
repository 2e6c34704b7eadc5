"""LangChain's and LlamaIndex's OpenAI classes and Open WebUI's requests, unchanged, before a real engine.

They have an environment of their own (`make .venv-frameworks/.done`), since they want an older client of OpenAI than
the other tests have. Nothing of the project can be imported here. On standard input: the `address` of the server, its
`key`, the `engine`, and of `tests/tiny_model.py` the `question` and the `tool` that its model calls for it.
"""

import json
import sys
from typing import Any

import httpx
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

ARGUMENTS = {"city": "ភ្នំពេញ"}
EMBEDDED = ["ស្រូវ", "ទន្លេមេគង្គ"]


class Flag(BaseModel):
    """A schema that any engine fills."""

    good: bool


def langchain(address: str, key: str, engine: str, question: str, tool: dict[str, Any]) -> None:
    """Whole, streamed, two turns, by `/v1/responses`, a tool, a schema, embeddings."""
    told: dict[str, Any] = {"model": "khmer", "base_url": f"{address}/v1", "api_key": key, "temperature": 0}
    chat = ChatOpenAI(**told, max_tokens=8, max_retries=0)
    first = chat.invoke(question)
    assert first.content and first.usage_metadata and first.usage_metadata["output_tokens"] <= 8
    assert "".join(str(piece.content) for piece in chat.stream(question)) == first.content
    second = chat.invoke([HumanMessage(question), first, HumanMessage(question)])
    assert second.usage_metadata and second.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"]
    assert ChatOpenAI(**told, use_responses_api=True, max_tokens=8).invoke(question).text == first.content

    asked = ChatOpenAI(**told, max_tokens=100).bind_tools([tool])
    called = asked.invoke(question)
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("weather", ARGUMENTS)
    turns = [HumanMessage(question), called, ToolMessage("ភ្លៀងខ្លាំង", tool_call_id=call["id"])]
    assert chat.bind_tools([tool]).invoke(turns).usage_metadata

    assert isinstance(ChatOpenAI(**told).with_structured_output(Flag).invoke(question), Flag)
    if engine == "llama.cpp":  # before it there is an embedder
        embedder = OpenAIEmbeddings(
            model="khmer-embedding", base_url=f"{address}/v1", api_key=key, check_embedding_ctx_length=False
        )
        one, other = embedder.embed_documents(EMBEDDED)
        assert one != other and abs(sum(x * x for x in one) - 1) < 1e-5


def llama_index(address: str, key: str, engine: str, question: str, tool: dict[str, Any]) -> None:
    """The same by LlamaIndex, but for `/v1/responses`."""
    told: dict[str, Any] = {"model": "khmer", "api_base": f"{address}/v1", "api_key": key, "temperature": 0}
    told |= {"is_chat_model": True, "is_function_calling_model": True, "context_window": 640, "max_retries": 0}
    chat = OpenAILike(**told, max_tokens=8)
    turn = ChatMessage(role="user", content=question)
    first = chat.chat([turn])
    assert first.message.content
    assert "".join(piece.delta or "" for piece in chat.stream_chat([turn])) == first.message.content
    assert chat.chat([turn, first.message, turn]).message.content
    assert chat.complete(question).text == first.message.content

    asked = OpenAILike(**told, max_tokens=100)
    called = asked.chat([turn], tools=[tool])
    (call,) = asked.get_tool_calls_from_response(called)
    assert (call.tool_name, call.tool_kwargs) == ("weather", ARGUMENTS)
    result = ChatMessage(role="tool", content="ភ្លៀងខ្លាំង", additional_kwargs={"tool_call_id": call.tool_id})
    assert chat.chat([turn, called.message, result], tools=[tool]).raw

    schema = {"name": "Flag", "schema": Flag.model_json_schema(), "strict": True}
    formed = asked.chat([turn], response_format={"type": "json_schema", "json_schema": schema})
    assert Flag.model_validate_json(formed.message.content or "")
    if engine == "llama.cpp":
        embedder = OpenAIEmbedding(model_name="khmer-embedding", api_base=f"{address}/v1", api_key=key)
        one, other = embedder.get_text_embedding_batch(EMBEDDED)
        assert one != other


def open_webui(address: str, key: str, engine: str, question: str, tool: dict[str, Any]) -> None:
    """What its server sends (`backend/open_webui/routers/openai.py` and `tasks.py`): the list of models, a chat with
    its usage, and the title of a chat, for which it always allows 1,000 tokens."""
    headers = {"Authorization": f"Bearer {key}", "X-OpenWebUI-User-Name": "%E1%9E%8A%E1%9E%B6%E1%9E%9A%E1%9E%B6"}
    with httpx.Client(base_url=f"{address}/v1", headers=headers, timeout=60, trust_env=False) as client:
        listed = client.get("/models", headers={"Content-Type": "application/json"}).json()["data"]
        assert {"khmer"} <= {model["id"] for model in listed} and all(model["object"] == "model" for model in listed)
        turns = [{"role": "user", "content": question}]
        body = {"model": "khmer", "messages": turns, "stream": True, "stream_options": {"include_usage": True}}
        with client.stream("POST", "/chat/completions", json={**body, "max_tokens": 8}) as response:
            assert response.status_code == 200
            events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert events[-1] == "[DONE]" and json.loads(events[-2])["usage"]["completion_tokens"] <= 8
        title = {"model": "khmer", "messages": turns, "stream": False, "max_completion_tokens": 1000}
        answer = client.post("/chat/completions", json=title)
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["role"] == "assistant", answer.text


if __name__ == "__main__":
    given = json.load(sys.stdin)
    for framework in (langchain, llama_index, open_webui):
        framework(**given)
        print(framework.__name__)
