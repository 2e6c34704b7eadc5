"""An open model is brought in as it is, or refused with what to do."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from khmer_assets.base_model import bring_in
from khmer_assets.foundation.home import PROJECT
from khmer_assets.tokenizer.chat_template import TURN_END
from khmer_assets.training.models import BASE_RECORD
from resources.payload import PayloadRun, Refusal
from tests.tiny_model import save_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder


@pytest.fixture
def copy(model, tmp_path):
    """A copy of the model that a test may spoil."""
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", model, folder], check=True)
    return folder


def brought_in(folder, work):
    run = PayloadRun(work)
    return bring_in.main(bring_in.Spec(model=str(folder), revision=None), run), run.output


def edit(file, **changes):
    values = json.loads(file.read_text())
    values.update(changes)
    file.write_text(json.dumps(values))


def test_a_folder_is_taken_as_it_is(model, tmp_path):
    figures, output = brought_in(model, tmp_path)
    assert (output / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert figures == json.loads((output / BASE_RECORD).read_text())
    assert (figures["license"], figures["architecture"], figures["chat_marks_are_new"]) == (
        "apache-2.0",
        "qwen3",
        False,
    )
    loaded = AutoModelForCausalLM.from_pretrained(output)
    assert figures["parameters"] == sum(p.numel() for p in loaded.parameters())
    text = "ទឹកហូរ and 12 words"
    assert AutoTokenizer.from_pretrained(output)(text) == AutoTokenizer.from_pretrained(model)(text)


def test_a_model_without_a_chat_template_gets_one(copy, tmp_path):
    (copy / "chat_template.jinja").unlink()
    tokenizer_file = copy / "tokenizer.json"
    tokenizer = json.loads(tokenizer_file.read_text())
    marks = {mark["content"]: mark["id"] for mark in tokenizer["added_tokens"] if "im_" in mark["content"]}
    tokenizer["added_tokens"] = [mark for mark in tokenizer["added_tokens"] if mark["content"] not in marks]
    for mark in marks:  # as if the base had never heard of them
        tokenizer["model"]["vocab"][mark.replace("im", "xx")] = tokenizer["model"]["vocab"].pop(mark)
    tokenizer_file.write_text(json.dumps(tokenizer))
    config = json.loads((copy / "tokenizer_config.json").read_text())
    edit(copy / "tokenizer_config.json", eos_token=config["pad_token"], extra_special_tokens=[], chat_template=None)

    figures, output = brought_in(copy, tmp_path)

    assert figures["chat_marks_are_new"] and figures["vocabulary"] == 514
    tokenizer, loaded = AutoTokenizer.from_pretrained(output), AutoModelForCausalLM.from_pretrained(output)
    assert tokenizer.eos_token == TURN_END
    table, before = (
        loaded.get_input_embeddings().weight,
        AutoModelForCausalLM.from_pretrained(copy).get_input_embeddings(),
    )
    assert table.shape[0] == 514
    assert (table[:512] == before.weight).all(), "what was learned stays"
    assert (table[512] - before.weight.mean(0)).abs().max() < 1e-3


def test_the_mark_that_ends_the_assistants_turn_ends_the_text(copy, tmp_path):
    config = json.loads((copy / "tokenizer_config.json").read_text())
    edit(copy / "tokenizer_config.json", eos_token=config["pad_token"])
    _, output = brought_in(copy, tmp_path)
    assert AutoTokenizer.from_pretrained(output).eos_token == TURN_END


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "wants its own code to run"),
        ("config.json", {"model_type": "t5"}, "'t5', which is no decoder"),
        ("config.json", {"quantization_config": {"bits": 4}}, "is quantized; name the original weights"),
        ("config.json", {"vocab_size": 300}, "do not belong together"),
    ],
)
def test_what_cannot_be_used_is_refused(copy, tmp_path, file, changes, told):
    edit(copy / file, **changes)
    with pytest.raises(Refusal, match=told):
        brought_in(copy, tmp_path)


def test_pickled_weights_are_refused(copy, tmp_path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(Refusal, match=r"no weights as \.safetensors, only pytorch_model\.bin; convert"):
        brought_in(copy, tmp_path)


def test_a_template_that_fails_is_refused(copy, tmp_path):
    (copy / "chat_template.jinja").write_text("{{ messages[7].content }}")
    with pytest.raises(Refusal, match="fails on a plain chat"):
        brought_in(copy, tmp_path)


def test_a_missing_folder_and_one_without_a_model_are_refused(tmp_path):
    with pytest.raises(Refusal, match="is no folder"):
        brought_in(tmp_path / "none", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal, match=r"no config\.json"):
        brought_in(tmp_path / "empty", tmp_path)


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download needs, for the files of one folder."""

    folder = None
    fetched: list[str] = []

    def do_HEAD(self):
        self._file(False)

    def do_GET(self):
        sizes = {file.name: file.stat().st_size for file in sorted(self.folder.iterdir())} | {
            "pytorch_model.bin": 10**15
        }
        if self.path.startswith("/api/models/khmer/small/tree/"):
            files = [
                {"type": "file", "path": n, "size": size, "oid": n, "lastCommit": None} for n, size in sizes.items()
            ]
            return self._send(200, json.dumps(files).encode())
        if self.path.startswith("/api/models/khmer/small"):
            files = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            return self._send(200, json.dumps({"id": "khmer/small", "sha": COMMIT, "siblings": files}).encode())
        if self.path.startswith("/api/models/khmer/gated"):
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"})
        if self.path.startswith("/api/"):
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        return self._file(True)

    def _file(self, whole):
        content = (self.folder / self.path.rpartition("/")[2]).read_bytes()
        if whole:
            self.fetched.append(self.path)
        self._send(200, content, {"ETag": sha256(content).hexdigest(), "X-Repo-Commit": COMMIT}, whole)

    def _send(self, status, content, headers=None, whole=True):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if whole:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(model):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"folder": model, "fetched": []}))
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def from_hub(hub, name, work):
    """Runs the payload in a process of its own, for the hub's library reads its address once."""
    script = (
        "import sys; from pathlib import Path; from resources.payload import PayloadRun, Refusal\n"
        "from khmer_assets.base_model import bring_in\n"
        "try: print(bring_in.main(bring_in.Spec(model=sys.argv[1], revision=None), PayloadRun(Path(sys.argv[2]))))\n"
        "except Refusal as refusal: print('refused:', refusal)"
    )
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(work / "cache"), "HF_HUB_DISABLE_XET": "1"}
    env.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", script, name, str(work)]
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_model_is_fetched_from_a_hub(hub, model, tmp_path):
    assert COMMIT in from_hub(hub, "khmer/small", tmp_path)
    assert (tmp_path / "output" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not any(path.endswith(".bin") for path in hub.RequestHandlerClass.fetched), (
        "weights in pickle are not fetched"
    )
    assert "refused: base.model: khmer/none: the hub has no such model" in from_hub(hub, "khmer/none", tmp_path)
    assert "refused: base.model: khmer/gated is gated: accept its terms" in from_hub(hub, "khmer/gated", tmp_path)
    hub.shutdown()
    hub.server_close()
    assert "cannot be fetched from the hub" in from_hub(hub, "khmer/small", tmp_path)
