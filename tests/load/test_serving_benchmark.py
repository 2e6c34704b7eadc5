"""The load benchmark asks Khmer questions that fit, refuses another release than the served one, and compares."""

import sys

import polars as pl
import pytest

from khmer_assets.instructions.chats import CHAT, new_chat
from khmer_assets.load import serving_benchmark
from khmer_assets.load.client import FIGURES, LoadClient, LoadError, Run
from khmer_assets.load.serving_benchmark import (
    ServingBenchmark,
    Spec,
    compare,
    comparison_text,
    held_out_prompts,
    served,
)
from khmer_assets.tokenizer.bpe import train_bpe
from khmer_assets.tokenizer.chat_template import wrap
from resources.payload import Refusal
from tests.ports import free_port
from tests.server.gateways import RELEASE, front
from tests.tiny_model import KHMER_TEXTS

QUESTIONS = ("តើផ្សារបើកម៉ោងប៉ុន្មាន?", "តើមេឃភ្លៀងទេ?", "តើទន្លេនៅឯណា?")


@pytest.fixture
def chats(tmp_path):
    """Khmer test chats, and an English one, a training one and a long one."""
    said = [("khm", "test", question) for question in (*QUESTIONS, QUESTIONS[0])]
    said += [
        ("eng", "test", "Where is the river?"),
        ("khm", "train", "តើអ្នកឈ្មោះអ្វី?"),
        ("khm", "test", KHMER_TEXTS[0] * 40),
    ]
    rows = [
        new_chat(str(number), "written", language, "talk", [question, "បាទ"], system="ឆ្លើយខ្លី")
        | {"content_hash": str(number), "split": split}
        for number, (language, split, question) in enumerate(said)
    ]
    (tmp_path / "chats").mkdir()
    pl.DataFrame(rows, schema=CHAT).write_parquet(tmp_path / "chats" / "data.parquet")
    return tmp_path / "chats"


@pytest.fixture
def tokenizer(tmp_path):
    wrap(train_bpe(KHMER_TEXTS, 512)).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_prompts_are_khmer_questions_of_the_test_chats_that_leave_room_for_the_answer(chats, tokenizer):
    assert held_out_prompts(chats, tokenizer, 200) == list(QUESTIONS)


def test_no_prompt_that_fits_is_refused_with_what_to_do(chats, tokenizer):
    with pytest.raises(Refusal, match=r"at most 3 tokens.*raise serving\.max_model_length or lower answer_tokens"):
        held_out_prompts(chats, tokenizer, 3)


@pytest.fixture
def spec(tmp_path, chats, tokenizer):
    return Spec(
        server=tmp_path / "home" / "server",
        address=f"http://127.0.0.1:{free_port()}",
        release=RELEASE.digest,
        tokenizer=tokenizer,
        chats=chats,
        former=None,
        settings=ServingBenchmark(users=[1, 4], requests=8, answer_tokens=8),
        seed=1,
    )


def test_the_served_release_is_measured_and_no_other(spec, tmp_path):
    with front(tmp_path / "home") as gateway:
        here = spec.model_copy(update={"address": gateway.address})
        assert served(here).release == RELEASE
        with pytest.raises(Refusal, match=f"serves {RELEASE.digest}, expected another.*materialize served_model"):
            served(here.model_copy(update={"release": "another"}))


def test_a_server_that_does_not_run_is_told(spec):
    with pytest.raises(Refusal, match=r"no model server answers at http.*make run"):
        served(spec)


def report(release: str, throughput: float, cores: int = 2) -> dict:
    runs = [
        {"users": users, "way": way, **dict.fromkeys(FIGURES, 10.0), "output_throughput": throughput * users}
        for users in (1, 4)
        for way in serving_benchmark.WAYS
    ]
    settings = {"users": [1, 4], "requests": 8, "answer_tokens": 8}
    return {
        "release": release,
        "engine": {},
        "machine": {"cores": cores, "gpu": None},
        "settings": settings,
        "runs": runs,
    }


def test_a_benchmark_is_compared_with_the_last_one_at_each_number_of_users():
    former = report("aaaa", 50.0)
    compared = compare(report("bbbb", 60.0), former)
    assert compared.select("users", "way", "tokens/s before", "tokens/s", "tokens/s change %").rows()[-1] == (
        4, "direct", 200.0, 240.0, 20.0
    )  # fmt: skip
    assert compared["TTFT p95 change %"].to_list() == [0.0] * 4
    assert "The last was of release aaaa, vLLM's own settings." in comparison_text(former, compared)


def test_what_was_measured_on_another_machine_or_for_longer_answers_is_not_compared():
    former = report("aaaa", 50.0, cores=64)
    assert compare(report("bbbb", 60.0), former) is None
    assert "release aaaa, cannot be compared" in comparison_text(former, None)
    longer = report("aaaa", 50.0)
    longer["settings"]["answer_tokens"] = 64
    assert compare(report("bbbb", 60.0), longer) is None


def test_a_client_that_breaks_tells_the_end_of_its_output(tmp_path):
    run = Run("direct", "http://127.0.0.1:1", "khmer", "t", "p", users=1, requests=1, answer_tokens=1, seed=0)
    without_vllm = LoadClient(sys.executable, {"direct": "key"}, tmp_path / "log")
    with without_vllm as client, pytest.raises(LoadError, match="No module named 'vllm'"):
        client.measure(run)


@pytest.mark.slow
def test_an_answer_that_breaks_off_is_no_success_through_the_gateway_and_without_it(tmp_path, tokenizer):
    python, _ = serving_benchmark.vllm_python()
    prompts = serving_benchmark.write_prompts(list(QUESTIONS), tmp_path)
    with front(tmp_path / "home") as gateway:
        (engine,) = gateway.engines
        keys = {"gateway": gateway.key, "direct": engine.key}
        addresses = {"gateway": gateway.address, "direct": f"http://127.0.0.1:{gateway.ports[0]}"}
        with LoadClient(python, keys, tmp_path / "log") as client:
            for way, address in addresses.items():
                engine.moods = ["well", "well", "erring", "well", "erring"]  # the first one warms up
                asked = {"model": "khmer", "tokenizer": str(tokenizer), "prompts": str(prompts)}
                result = client.measure(Run(way, address, **asked, users=1, requests=4, answer_tokens=3, seed=0))
                assert (result["completed"], result["failed"]) == (2, 2)
                assert "the answer broke off: expected 3 tokens" in result["error"]
