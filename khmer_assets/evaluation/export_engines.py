"""What runs an export: llama.cpp, CTranslate2 or onnxruntime for the files that are theirs, transformers for all else.

What engines must be able to do, and those of transformers and llama.cpp, stand in `engines.py`.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from khmer_assets.compression import ctranslate2, onnx
from khmer_assets.evaluation.engines import Engine, Generation, LlamaCppEngine, Question
from khmer_assets.evaluation.reading import ROWS_A_BATCH
from khmer_assets.foundation.files import size_of_folder
from khmer_assets.foundation.workers import cores
from khmer_assets.training.held_out import positions_at_once
from resources.llama_cpp import llama_cpp

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WEIGHTS = (".safetensors", ".gguf", ".bin", ".onnx", ".data")

Runtime = Literal["transformers", "llama.cpp", "CTranslate2", "onnxruntime"]


def runtime_of(folder: Path) -> Runtime:
    """The library that runs the model in the folder."""
    if next(folder.glob("*.gguf"), None):
        return "llama.cpp"
    if (folder / ctranslate2.FILE).exists():
        return "CTranslate2"
    return "onnxruntime" if (folder / onnx.FILE).exists() else "transformers"


def bytes_of_weights(folder: Path) -> int:
    """Bytes on the disk without tokenizer and settings; of a model in another form, all of it."""
    sizes = [path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS]
    return sum(sizes) or size_of_folder(folder)


def export_engine(folder: Path, context_length: int, threads: int | None = None) -> Engine | None:
    """The engine of a model that transformers does not load; None for one that it does. `threads` of CTranslate2 and
    onnxruntime, by default one a core."""
    match runtime_of(folder):
        case "llama.cpp":
            return LlamaCppEngine(next(folder.glob("*.gguf")), context_length)
        case "CTranslate2":
            return CTranslate2Engine(folder, context_length, threads or cores())
        case "onnxruntime":
            return OnnxEngine(folder / onnx.FILE, context_length, threads or cores())
        case "transformers":
            return None


class CTranslate2Engine(Engine):
    """A model in CTranslate2, which knows tokens by their names."""

    def __init__(self, folder: Path, context_length: int, threads: int):
        import ctranslate2 as library

        self.context_length = context_length
        device = "cuda" if library.get_cuda_device_count() else "cpu"
        self.generator = library.Generator(str(folder), device=device, intra_threads=threads)
        self.names: list[str] = json.loads((folder / ctranslate2.VOCABULARY).read_text(encoding="utf-8"))
        self._tokens_a_batch = positions_at_once(len(self.names))

    def score(self, windows: list[list[int]]) -> list[float]:
        return [sum(nats) for nats in self._nats(windows)]

    def _likelihoods(self, questions: list[Question]) -> list[list[float]]:
        texts = [question.context + choice for question in questions for choice in question.choices]
        nats = iter(self._nats(texts))
        return [[-sum(next(nats)[-len(choice) :]) for choice in question.choices] for question in questions]

    def generate(self, prompts: list[list[int]], stops: set[int], limit: int) -> list[Generation]:
        answers = [Generation([], []) for _ in prompts]
        room = [min(limit, self.context_length - len(prompt)) if prompt else 0 for prompt in prompts]
        asked = [number for number in range(len(prompts)) if room[number] > 0]
        for length, together in groupby(sorted(asked, key=room.__getitem__), key=room.__getitem__):
            numbers = list(together)
            results = self.generator.generate_batch(
                [self._named(prompts[number]) for number in numbers],
                max_batch_size=ROWS_A_BATCH,
                max_length=length,
                end_token=sorted(stops) or [len(self.names)],  # an id that there is not: nothing ends
                include_prompt_in_result=False,
                return_end_token=True,
            )
            said = [list(result.sequences_ids[0]) for result in results]
            nats = self._nats([prompts[number] + ids for number, ids in zip(numbers, said, strict=True)])
            for number, ids, own in zip(numbers, said, nats, strict=True):
                ended = bool(ids) and ids[-1] in stops
                answers[number] = Generation(ids[:-1] if ended else ids, own[len(own) - len(ids) :])
        return answers

    def _nats(self, texts: list[list[int]]) -> list[list[float]]:
        """The negative log-likelihood of each id of the texts but the first."""
        results = self.generator.score_batch(
            [self._named(text) for text in texts],
            max_batch_size=self._tokens_a_batch,
            batch_type="tokens",
            max_input_length=0,
        )
        return [[-value for value in result.log_probs] for result in results]

    def _named(self, ids: Sequence[int]) -> list[str]:
        return [self.names[identity] for identity in ids]


class OnnxEngine(Engine):
    """A decoder in onnxruntime: texts of one length together, for the file takes no padding."""

    def __init__(self, file: Path, context_length: int, threads: int):
        import onnxruntime

        self.context_length = context_length
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self.session.get_outputs()]
        self._vocabulary = int(self.session.get_outputs()[0].shape[-1])

    def score(self, windows: list[list[int]]) -> list[float]:
        return [float(self._nats(window[:1], window[1:]).sum()) for window in windows]

    def _likelihoods(self, questions: list[Question]) -> list[list[float]]:
        return [[-float(self._nats(q.context, choice).sum()) for choice in q.choices] for q in questions]

    def generate(self, prompts: list[list[int]], stops: set[int], limit: int) -> list[Generation]:
        import numpy as np

        answers = [Generation([], []) for _ in prompts]
        room = [min(limit, self.context_length - len(prompt)) if prompt else 0 for prompt in prompts]
        for batch in _of_one_length(prompts, [number for number in range(len(prompts)) if room[number] > 0]):
            rows = list(batch)
            logits, past = self._read([prompts[number] for number in rows], 1, {})
            while True:
                best = logits[:, -1].argmax(-1)
                nats = _nats_of(logits, best[:, None])[:, 0]
                going = []
                for row, (number, identity) in enumerate(zip(rows, best.tolist(), strict=True)):
                    answers[number].nats.append(float(nats[row]))
                    if identity not in stops:
                        answers[number].ids.append(identity)
                        if len(answers[number].ids) < room[number]:
                            going.append(row)
                if not going:
                    break
                if len(going) < len(rows):
                    rows, best = [rows[row] for row in going], best[going]
                    past = {name: np.ascontiguousarray(held[going]) for name, held in past.items()}
                logits, past = self._read(best[:, None].tolist(), 1, past)
        return answers

    def _nats(self, context: list[int], continuation: list[int]) -> "NDArray[np.float64]":
        """The negative log-likelihood of each id of the continuation. No more than `LOGITS_AT_ONCE` logits are held."""
        import numpy as np

        part, found = positions_at_once(self._vocabulary), []
        read, past = context, dict[str, Any]()
        for at in range(0, len(continuation), part):
            targets = continuation[at : at + part]
            logits, past = self._read([[*read, *targets[:-1]]], len(targets), past)
            found.append(_nats_of(logits, np.array([targets]))[0])
            read = targets[-1:]
        return np.concatenate(found)

    def _read(self, rows: list[list[int]], logits: int, past: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The logits after the last ids of each row, of shape (rows, logits, vocabulary), and what it holds now."""
        given = past or onnx.first_inputs(self.session, len(rows))
        made = self.session.run(None, {**given, **onnx.inputs_of(rows, logits)})
        named = dict(zip(self._outputs, made, strict=True))
        told = named.pop("logits")
        return told, {name.replace("present", "past_key_values"): held for name, held in named.items()}


class LlamaCppUsers:
    """A GGUF file in llama.cpp that goes on with several prompts in each pass, as llama.cpp's own server does. It
    measures speed, and tells no likelihoods."""

    def __init__(self, file: Path, context_length: int, users: int, threads: int):
        library = llama_cpp()
        from llama_cpp import _internals

        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        model, context = library.llama_model_default_params(), library.llama_context_default_params()
        context.n_ctx = context.n_batch = users * context_length
        context.n_seq_max = users
        context.kv_unified = True
        context.n_threads = context.n_threads_batch = threads
        self._model = _internals.LlamaModel(path_model=str(file), params=model, verbose=False)
        self._context = _internals.LlamaContext(model=self._model, params=context, verbose=False)
        self._batch = _internals.LlamaBatch(n_tokens=context.n_batch, embd=0, n_seq_max=users, verbose=False)

    def generate(self, prompts: list[list[int]], stops: set[int], limit: int) -> list[Generation]:
        """As `Engine.generate`, of as many prompts as there are users, without likelihoods."""
        import numpy as np

        answers = [Generation([], []) for _ in prompts]
        self._context.kv_cache_clear()
        read = list(enumerate(prompts))
        while read:
            last = self._decode(read, [len(prompts[number]) + len(answers[number].ids) for number, _ in read])
            upcoming = []
            for (number, _), place in zip(read, last, strict=True):
                logits = np.ctypeslib.as_array(self._context.get_logits_ith(place), shape=(self._model.n_vocab(),))
                identity = int(logits.argmax())
                if identity in stops:
                    continue
                answers[number].ids.append(identity)
                if len(answers[number].ids) < limit:
                    upcoming.append((number, [identity]))
            read = upcoming
        return answers

    def _decode(self, rows: list[tuple[int, list[int]]], lengths: list[int]) -> list[int]:
        """Read on, of each sequence (by number) the ids that end at its length; where in the batch the last of each
        stands."""
        batch, place, last = self._batch.batch, 0, []
        for (number, ids), length in zip(rows, lengths, strict=True):
            for at, identity in enumerate(ids, length - len(ids)):
                batch.token[place], batch.pos[place] = identity, at
                batch.seq_id[place][0], batch.n_seq_id[place] = number, 1
                batch.logits[place] = at == length - 1
                place += 1
            last.append(place - 1)
        batch.n_tokens = place
        self._context.decode(self._batch)
        return last


def _of_one_length(texts: Sequence[Sequence[int]], numbers: list[int]) -> Iterator[list[int]]:
    """Numbers of texts of one length, as many as a batch may have."""
    for _, alike in groupby(sorted(numbers, key=lambda n: len(texts[n])), key=lambda n: len(texts[n])):
        listed = list(alike)
        yield from (listed[at : at + ROWS_A_BATCH] for at in range(0, len(listed), ROWS_A_BATCH))


def _nats_of(logits: Any, ids: Any) -> "NDArray[np.float64]":
    """The negative log-likelihood of each id, of shape (rows, ids), for logits of shape (rows, ids, vocabulary)."""
    import numpy as np

    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    whole = np.log(np.exp(wide - top).sum(-1)) + top[..., 0]
    told: NDArray[np.float64] = whole - np.take_along_axis(wide, ids[..., None], -1)[..., 0]
    return told
