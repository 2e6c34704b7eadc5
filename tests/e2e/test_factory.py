"""The way that the README goes, on real text: one command builds and serves everything, the next finds nothing to do.

Five real sources where `../shared/data` is at hand, else the embedded sample. The recipe is the sample's with a
shorter training, so the gates on quality are open; everything else is as a user gets it.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import polars as pl
import pytest
import yaml

from khmer_assets.foundation.home import PROJECT
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.training import models as models
from resources.model_server import ModelServer
from resources.storage import Store
from tests.ports import free_port

pytestmark = pytest.mark.slow

DATA = PROJECT.parent / "shared" / "data"
REAL_SOURCES: dict[str, dict[str, Any]] = {
    "office_help": {"path": "office_help.jsonl", "text": ["km", "en"], "id": "id"},
    "wikipedia_lines": {"path": "wikipedia_lines.jsonl", "id": "id"},
    "spoken_prompts": {"path": "spoken_prompts.jsonl", "id": "id"},
    "constitution": {"path": "constitution.md", "split": "paragraph"},
    "udhr": {"path": "udhr.*.txt", "split": "line"},
}
LINES = 1_000
QUESTION: Any = [{"role": "user", "content": "តើលេខ ២៥ សរសេរជាអក្សរដូចម្តេច?"}]
PROMPTS = 20
BFLOAT16_STEP = 2**-7  # of a number, to the next one that bfloat16 can hold


class Factory:
    """A factory in a folder of its own, run by the command line."""

    def __init__(self, folder: Path):
        self.home = folder / "home"
        self.sources = folder / "sources"
        self.sources.mkdir()
        recipe = yaml.safe_load(SAMPLE_RECIPE.read_text())
        if DATA.is_dir():
            for file in DATA.iterdir():
                (self.sources / file.name).write_bytes(file.read_bytes())
            recipe["catalogue"] = str(self.sources / "sources.yaml")
            entries = [
                {"name": name, "kind": "files", "license": "see its origin", "settings": settings}
                for name, settings in REAL_SOURCES.items()
            ]
            (self.sources / "sources.yaml").write_text(yaml.safe_dump({"sources": entries}))
        else:
            recipe["catalogue"] = str(SAMPLE_RECIPE.parent / recipe["catalogue"])
        recipe["name"] = "e2e"
        recipe["pretraining"]["steps"] = 40
        recipe["finetuning"]["epochs"] = 1
        recipe["instructions"]["generated_chats"] = 1500
        adapter, _ = recipe["adapters"]  # the other is made on demand
        adapter |= {"min_answer_accuracy": 0.0, "chats": str(Recipe.load(SAMPLE_RECIPE).adapters[0].chats)}
        adapter["finetuning"]["epochs"] = 1
        recipe["evaluation"]["max_documents"] = 15
        recipe["release"] |= {"min_answer_accuracy": 0.0, "max_bits_per_character": 8.0}
        recipe["serving"]["port"] = free_port()
        recipe["serving"]["benchmark"] = {"users": [1, 4], "requests": 8, "answer_tokens": 8}
        self.recipe_file = folder / "recipe.yaml"
        self.recipe_file.write_text(yaml.safe_dump(recipe, allow_unicode=True))
        self.environment = {
            **os.environ,
            "KHMER_HOME": str(self.home),
            "KHMER_RECIPE": str(self.recipe_file),
            "KHMER_UI_PORT": str(free_port()),
            "KHMER_MLFLOW_PORT": str(free_port()),
        }
        self.environment.pop("KHMER_STORE", None)
        self.first_output = ""
        self.server = ModelServer(home=str(self.home), port=recipe["serving"]["port"])

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).parent / "khmer"), *words],
            cwd=PROJECT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def artifact(self, asset: str, partition: str | None = None) -> Path:
        return Store(str(self.home / "store"), self.home / "cache").current(asset, partition)

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.server.api_key()}"}
        return httpx.Client(base_url=self.server.base_url, headers=headers, timeout=120, trust_env=False)


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    made = Factory(tmp_path_factory.mktemp("factory"))
    try:
        first = made.command("run")
        print(first.stdout[-3000:], first.stderr[-3000:])
        assert first.returncode == 0
        made.first_output = first.stdout
        yield made
    finally:
        made.command("stop")


@pytest.fixture(scope="module")
def real_lines(factory) -> list[str]:
    """Lines of the corpus as it was collected, before any cleaning."""
    texts = []
    for source in Recipe.load(factory.recipe_file).sources:
        texts += pl.read_parquet(factory.artifact("raw_corpus", source) / "data.parquet")["text"].to_list()
    lines = dict.fromkeys(line for text in texts for line in text.split("\n") if line.strip())
    step = max(1, len(lines) // LINES)
    return list(lines)[::step][:LINES]


def test_the_run_ends_with_an_answer_and_the_addresses(factory):
    assert re.search(r"answer +\S", factory.first_output)
    for expected in ("Dagster    http://127.0.0.1:", "MLflow     http://127.0.0.1:", "report.md"):
        assert expected in factory.first_output


def test_the_second_run_makes_nothing(factory):
    again = factory.command("run")
    assert re.search(r"^0 materialized, \d+ up to date", again.stdout, re.MULTILINE), again.stdout + again.stderr


def test_the_server_wants_its_key_and_shows_the_release(factory):
    with factory.http() as client:
        names = {model["id"] for model in client.get("/models").json()["data"]}
        assert client.get("/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert f"khmer-{factory.artifact('release').name[:12]}" in names


def test_every_variant_is_in_the_report(factory):
    report = json.loads((factory.artifact("benchmark_report") / "report.json").read_text())
    assert set(report["variants"]) == {"merged", "pruned", "awq", "gguf Q4_K_M", "gguf Q5_K_M", "gguf Q8_0"}
    for figures in report["variants"].values():
        assert set(figures["bits_per_character"]) == {"khm", "eng"}


def test_transformers_vllm_and_llama_cpp_read_the_same_tokens(factory, real_lines):
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(factory.artifact("tokenizer"))
    expected = tokenizer(real_lines, add_special_tokens=False)["input_ids"]
    file = next(factory.artifact("gguf_model", "Q8_0").glob("*.gguf"))
    llama = Llama(str(file), vocab_only=True, verbose=False)
    assert [llama.tokenize(line.encode(), add_bos=False, special=False) for line in real_lines] == expected
    with factory.http() as client:
        address = factory.server.base_url.removesuffix("/v1") + "/tokenize"
        served = [
            client.post(address, json={"model": "khmer", "prompt": line, "add_special_tokens": False}).json()["tokens"]
            for line in real_lines
        ]
    assert served == expected


def test_transformers_and_vllm_decode_alike(factory):
    import torch
    from transformers import AutoTokenizer

    folder = factory.artifact("release") / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = models.load_model(folder, torch.bfloat16).eval()
    chats = pl.read_parquet(factory.artifact("chat_dataset") / "data.parquet").filter(split="test")
    with factory.http() as client:
        for messages in chats["messages"].head(PROMPTS).to_list():
            prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
            with torch.inference_mode():
                out = model.generate(
                    torch.tensor([prompt]),
                    max_new_tokens=24,
                    do_sample=False,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
            expected = tokenizer.decode(out.sequences[0, len(prompt) :], skip_special_tokens=True)
            best = torch.stack([logits[0].float().topk(2).values for logits in out.logits])
            # two logits that bfloat16 cannot tell apart may come out in either order
            tie = bool((best[:, 0] - best[:, 1] <= best[:, 0].abs() * BFLOAT16_STEP).any())
            body = {"model": "khmer", "messages": messages[:-1], "max_tokens": 24, "temperature": 0}
            answer = client.post("/chat/completions", json=body).json()["choices"][0]["message"]["content"]
            assert answer == expected or tie


def test_the_adapter_answers_under_its_name(factory):
    digest = factory.artifact("adapter_release", "numbers").name
    names = ("khmer-numbers", f"khmer-numbers-{digest[:12]}")
    with factory.http() as client:
        assert names == tuple(model["id"] for model in client.get("/models").json()["data"])[2:]
        body = {"model": names[0], "messages": QUESTION, "max_tokens": 8}
        response = client.post("/chat/completions", json=body)
    assert response.json()["model"] == names[1]
    assert response.headers["x-khmer-adapter"] == digest


def test_the_openai_client_works_unchanged(factory):
    plain = openai.OpenAI(
        base_url=factory.server.base_url,
        api_key=factory.server.api_key(),
        http_client=openai.DefaultHttpxClient(trust_env=False),
        max_retries=0,
    )
    body: dict[str, Any] = {"model": "khmer", "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    answer = plain.chat.completions.create(**body)
    assert answer.choices[0].message.content
    assert answer.model == f"khmer-{factory.artifact('release').name[:12]}"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    pieces = list(plain.chat.completions.create(**body, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == answer.choices[0].message.content
    completion = plain.completions.create(model="khmer", prompt="ភ្នំពេញ", max_tokens=4)
    assert completion.choices[0].finish_reason in ("length", "stop")

    with plain.chat.completions.create(**{**body, "max_tokens": 200}, stream=True) as stream:
        next(iter(stream))  # and the client goes away
    with pytest.raises(openai.BadRequestError, match="temperature"):
        plain.chat.completions.create(**{**body, "temperature": 9})
    with pytest.raises(openai.BadRequestError, match="256"):
        plain.chat.completions.create(**{**body, "messages": [{"role": "user", "content": "ទន្លេ" * 500}]})
    with pytest.raises(openai.NotFoundError, match="khmer-unknown"):
        plain.chat.completions.create(**{**body, "model": "khmer-unknown"})
    with pytest.raises(openai.AuthenticationError):
        plain.with_options(api_key="wrong").models.list()


def test_the_asynchronous_openai_client_works_unchanged(factory):
    async def ask() -> list[str]:
        asynchronous = openai.AsyncOpenAI(
            base_url=factory.server.base_url,
            api_key=factory.server.api_key(),
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        )
        body: dict[str, Any] = {"model": "khmer", "messages": QUESTION, "max_tokens": 24, "temperature": 0}

        async def streamed() -> str:
            stream = await asynchronous.chat.completions.create(**body, stream=True)
            return "".join([piece.choices[0].delta.content or "" async for piece in stream])

        whole = await asynchronous.chat.completions.create(**body)
        return [whole.choices[0].message.content or "", *await asyncio.gather(*(streamed() for _ in range(8)))]

    first, *others = asyncio.run(ask())
    assert first and len(others) == 8
    assert all(others)


def test_the_benchmark_tells_what_users_see(factory):
    result = factory.command("benchmark")
    assert result.returncode == 0, result.stderr
    folder = factory.artifact("serving_benchmark")
    assert (folder / "benchmark.md").read_text() in result.stdout
    runs = json.loads((folder / "benchmark.json").read_text())["runs"]
    assert [(run["users"], run["way"]) for run in runs] == [
        (1, "gateway"), (1, "direct"), (4, "gateway"), (4, "direct")
    ]  # fmt: skip
    for run in runs:
        assert (run["completed"], run["failed"], run["total_output_tokens"]) == (8, 0, 64)
        assert 0 < run["p50_ttft_ms"] <= run["p99_ttft_ms"] <= run["p99_e2el_ms"]
    keys = [(factory.home / "server" / name).read_text() for name in ("api_key", "engine_key")]
    written = result.stdout + result.stderr + (folder / "benchmark.json").read_text()
    assert not any(key in written for key in keys)


def test_a_changed_source_makes_that_source_again_and_what_comes_out_different(factory):
    if not DATA.is_dir():
        pytest.skip("the embedded sample is not changed by tests")
    with (factory.sources / "udhr.en.txt").open("a") as file:
        file.write("\nx\n")  # a line that the filters set aside
    again = factory.command("run")
    assert again.returncode == 0, again.stderr
    made = re.findall(r"^\[ *\d+/\d+\] (.+?)(?:, because .+)?$", again.stdout, re.MULTILINE)
    own = ["raw_corpus (udhr)", "normalized_corpus (udhr)", "filtered_corpus (udhr)", "deduplicated_corpus (udhr)"]
    assert sorted(made) == sorted([*own, "dedup_index", "corpus_report"])
