"""Asks the served model, as any OpenAI-compatible client would."""

import httpx

from khmer_assets.server.state import MODEL_NAME, ModelServerError


def ask(question: str, base_url: str, api_key: str, model: str = MODEL_NAME, max_tokens: int = 128) -> str:
    """The model's answer to one question, decoded greedily, so that the same question gets the same answer.

    `base_url` ends in `/v1`; an answer has at most `max_tokens` tokens. Raises `ModelServerError` when there is none.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    headers = {"Authorization": f"Bearer {api_key}"}
    try:
        # The server is on this machine: without the environment's proxy, and its certificate is for its public name.
        address, local = f"{base_url}/chat/completions", base_url.startswith("https://127.0.0.1")
        response = httpx.post(address, json=body, headers=headers, timeout=120, trust_env=False, verify=not local)
    except httpx.ConnectError:
        raise ModelServerError(f"no model server listens at {base_url}; start it with `make run`") from None
    except httpx.TimeoutException:
        raise ModelServerError(f"the model server at {base_url} gave no answer within 120 s; try again later") from None
    except httpx.HTTPError as error:
        raise ModelServerError(f"the model server at {base_url} broke off: {error!r}; look at its log") from None
    if response.status_code == 401:
        raise ModelServerError(f"the model server at {base_url} refuses this API key; expected the server's own")
    if response.status_code != 200:
        raise ModelServerError(f"the model server refused the question: {_message(response)}")
    return str(response.json()["choices"][0]["message"]["content"] or "").strip()


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}: {response.text[:500]}"
