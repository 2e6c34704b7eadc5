"""The embedder: a sentence-transformers model in a process of its own, asked as an engine is.

    python -m khmer_assets.server.embedder MODEL PORT

What belongs here: what it answers, and how it is started. What does not: who may ask (`front_door.py`), and that it
runs (`supervisor.py`). MODEL is a folder or a hub's name. The key is read from the environment variable KEY_VARIABLE.
"""

import base64
import hmac
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.processes import BackgroundProcess, free_ports
from khmer_assets.server.keys import engine_key
from khmer_assets.server.refusals import Refused
from khmer_assets.server.requests import Body, Embeddings
from khmer_assets.server.state import EMBEDDER_NAME, EmbedderVersion, ServerState

if TYPE_CHECKING:
    import numpy as np
    from starlette.applications import Starlette

KEY_VARIABLE = "KHMER_EMBEDDER_KEY"
BATCH = 32  # texts that are computed together


class Embedder:
    """As an engine's kind (`engine_kinds.py`), for embeddings alone."""

    def check(self, body: Body) -> None:
        """Raise `Refused` for what is no embedding."""
        if not isinstance(body, Embeddings):
            raise Refused(404, f"{EMBEDDER_NAME} makes embeddings alone; ask it at /v1/embeddings", parameter="model")

    def content(self, body: Body) -> bytes:
        """The body as users write it."""
        return to_json(body.model_dump(exclude_none=True))

    def refusal(self, status: int, answer: bytes, path: str) -> Refused | None:
        """None: its errors are OpenAI's."""
        return None


def version_of(model: str, state: ServerState, beside: int, taken: tuple[int, ...] = ()) -> EmbedderVersion | None:
    """The embedder that is to run for a recipe that names `model`, or "": where it listens already, or on a port beside
    `beside` that is none of `taken`. Raises `PortInUse`.
    """
    if not model:
        return None
    if state.embedder is not None and state.embedder.model == model:
        return state.embedder
    (port,) = free_ports(beside, 1, (*state.ports, *taken))
    return EmbedderVersion(model=model, port=port)


def process_of(folder: Path, port: int) -> BackgroundProcess:
    """The process of the embedder on 127.0.0.1:`port`; `folder` holds the server's state."""
    return BackgroundProcess(folder, f"embedder-{port}")


def start(folder: Path, embedder: EmbedderVersion) -> None:
    """Start it in the background, unless it runs. Raises `OSError` where that cannot be."""
    command = [sys.executable, "-m", __name__, embedder.model, str(embedder.port)]
    env = {KEY_VARIABLE: engine_key(folder), "TOKENIZERS_PARALLELISM": "false"}
    process_of(folder, embedder.port).start(command, env=env, cwd=PROJECT)


def application(model: Any, key: str) -> "Starlette":
    """What the process answers; `model` is a `SentenceTransformer`."""
    import anyio
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    alone = anyio.Lock()  # cores are shared already within one computation

    async def embed(request: Request) -> Response:
        if not hmac.compare_digest(request.headers.get("authorization", ""), f"Bearer {key}"):
            return Response(status_code=401)
        asked = from_json(await request.body())
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        try:
            async with alone:
                vectors, tokens = await anyio.to_thread.run_sync(computed, model, texts, asked.get("dimensions"))
        except Refused as refused:
            return JSONResponse(refused.body(), refused.status)
        form = as_base64 if asked.get("encoding_format") == "base64" else as_numbers
        data = [{"object": "embedding", "index": index, "embedding": form(v)} for index, v in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Response(
            to_json({"object": "list", "data": data, "model": asked["model"], "usage": usage}),
            media_type="application/json",
        )

    async def health(_: Request) -> Response:
        return Response()

    return Starlette(routes=[Route("/health", health), Route("/v1/embeddings", embed, methods=["POST"])])


def computed(model: Any, texts: list[str], dimensions: int | None) -> tuple["np.ndarray[Any, Any]", int]:
    """Vectors of length 1 (texts x dimensions, float32), and how many tokens were read.

    Raises `Refused` for texts that are longer than the model reads, and for other dimensions than it has.
    """
    has = model.get_embedding_dimension()
    if dimensions not in (None, has):
        raise Refused(
            400, f"dimensions: this model's embeddings have {has:,}, and cannot be cut", parameter="dimensions"
        )
    counts = [len(ids) for ids in tokenized(model, texts)]
    limit = model.max_seq_length
    if limit and max(counts) > limit:
        place = counts.index(max(counts))
        told = f"input {place} has {max(counts):,} tokens; the model reads {limit:,.0f} of a text"
        raise Refused(400, told, code="context_length_exceeded", parameter="input")
    vectors = model.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
    return vectors.astype("<f4"), sum(counts)


def tokenized(model: Any, texts: list[str]) -> list[list[int]]:
    """The token ids of each text, uncut; of words where a model has no tokens."""
    tokenizer = model.tokenizer
    if hasattr(tokenizer, "encode_batch"):  # of a static embedding
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    return list(tokenizer(texts, truncation=False, verbose=False)["input_ids"])


def as_numbers(vector: "np.ndarray[Any, Any]") -> list[float]:
    """OpenAI's "float"."""
    return list(map(float, vector))


def as_base64(vector: "np.ndarray[Any, Any]") -> str:
    """OpenAI's "base64": little-endian float32."""
    return base64.b64encode(vector.tobytes()).decode()


def main() -> None:
    """Serve until SIGTERM."""
    import uvicorn
    from sentence_transformers import SentenceTransformer

    name, port = sys.argv[1:]
    model = SentenceTransformer(name)
    print(f"serving {name} on port {port}", flush=True)
    app = application(model, os.environ[KEY_VARIABLE])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
