"""What answers and scores while a model is measured, whichever library runs it. One small interface of token ids.

All engines decode greedily from the logits themselves: no setting that a model brings along in its
`generation_config.json`, such as a repetition penalty, changes what is measured. Texts and prompts do not belong here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from khmer_assets.evaluation import reading
from khmer_assets.training import held_out
from resources.llama_cpp import llama_cpp

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Question(NamedTuple):
    """Token ids of a context, and of each choice to go on with (one id at least)."""

    context: list[int]
    choices: list[list[int]]


class Generation(NamedTuple):
    """The greedy continuation, without the id that stopped it, and the negative log-likelihood (nats) of each id; that
    of the stopping id is the last where there is one."""

    ids: list[int]
    nats: list[float]


class Engine(ABC):
    """What a model must be able to do. `context_length`: tokens, prompt and answer together."""

    context_length: int

    @abstractmethod
    def score(self, windows: list[list[int]]) -> list[float]:
        """See `held_out.Scorer`."""

    @abstractmethod
    def _likelihoods(self, questions: list[Question]) -> list[list[float]]:
        """As `likelihoods`, of questions that are not too long."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], stops: set[int], limit: int) -> list[Generation]:
        """The continuation of each prompt, up to an id of `stops`, of at most `limit` ids and as the context allows; a
        prompt that fills the context is not continued."""

    def likelihoods(self, questions: list[Question]) -> list[list[float]]:
        """The log-likelihood (nats) of each choice. What is too long loses the beginning of its context."""
        found: list[list[float]] = [[0.0] * len(question.choices) for question in questions]
        asked: list[tuple[int, list[int], Question]] = []
        for number, question in enumerate(questions):
            for places in self._alike(question):
                choices = [question.choices[place] for place in places]
                room = max(1, self.context_length + 1 - max(map(len, choices)))
                asked.append((number, places, Question(question.context[-room:], choices)))
        for (number, places, _), own in zip(asked, self._likelihoods([q for _, _, q in asked]), strict=True):
            for place, likelihood in zip(places, own, strict=True):
                found[number][place] = likelihood
        return found

    def _alike(self, question: Question) -> list[list[int]]:
        """The places of the choices that can be read after the same context: all of them or, where something is lost,
        those of one length."""
        places = range(len(question.choices))
        if not self.is_truncated(question):
            return [list(places)]
        lengths = dict.fromkeys(map(len, question.choices))
        return [[place for place in places if len(question.choices[place]) == length] for length in lengths]

    def is_truncated(self, question: Question) -> bool:
        """Whether the question does not fit into the context."""
        return len(question.context) + max(map(len, question.choices)) > self.context_length + 1


class TransformersEngine(Engine):
    """A model in transformers, or with an adapter in peft."""

    def __init__(self, model: Any, context_length: int):
        reading.use_grouped_attention(model)
        self.model = model
        self.context_length = context_length
        self._score = held_out.model_scorer(model)

    def score(self, windows: list[list[int]]) -> list[float]:
        return self._score(windows)

    def _likelihoods(self, questions: list[Question]) -> list[list[float]]:
        """What contexts have in common is read once, the choices after each together."""
        import torch

        if not self._sees_all:
            return self._each_alone(questions)
        found: list[list[float]] = [[]] * len(questions)
        with torch.no_grad():
            for state, numbers, logits in reading.read_all(self.model, [q.context for q in questions]):
                first = logits.float().log_softmax(-1)
                after = state.read_choices([questions[number].choices for number in numbers])
                for row, number in enumerate(numbers):
                    begin = first[row, [choice[0] for choice in questions[number].choices]].tolist()
                    found[number] = [one + rest for one, rest in zip(begin, after[row], strict=True)]
        return found

    @cached_property
    def _sees_all(self) -> bool:
        """Whether each layer sees all that stands before; to others, padding would put it too far away."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        return all(type(layer) is DynamicLayer for layer in DynamicCache(config=self.model.config).layers)

    def _each_alone(self, questions: list[Question]) -> list[list[float]]:
        """As `_likelihoods`, of a model whose layers do not see all that stands before: a row a choice, without its
        last id, which nothing is asked after."""
        import torch

        asked: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # choices of one id share their row
        for number, question in enumerate(questions):
            for place, choice in enumerate(question.choices):
                asked.setdefault((*question.context, *choice[:-1]), []).append((number, place))
        found = [[0.0] * len(question.choices) for question in questions]
        with torch.no_grad():
            for batch in reading.rows_together(sorted(asked, key=len), len, reading.TOKENS_A_BATCH):
                ids = torch.tensor([[*text, *[0] * (len(batch[-1]) - len(text))] for text in batch])
                told = [(row, *one) for row, text in enumerate(batch) for one in asked[text]]
                rows, columns, targets, owners = (list[int]() for _ in range(4))
                for owner, (row, number, place) in enumerate(told):
                    choice = questions[number].choices[place]
                    first = len(questions[number].context) - 1
                    rows += [row] * len(choice)
                    columns += range(first, first + len(choice))
                    targets += choice
                    owners += [owner] * len(choice)
                device = self.model.device
                places = torch.tensor(rows, device=device), torch.tensor(columns, device=device)
                logits = reading.logits_at(self.model, ids.to(device), places)
                nats = reading.likelihoods(logits, torch.tensor(targets, device=device)).double().cpu()
                sums = torch.zeros(len(told), dtype=torch.double).index_add_(0, torch.tensor(owners), nats)
                for (_, number, place), likelihood in zip(told, sums.tolist(), strict=True):
                    found[number][place] = likelihood
        return found

    def generate(self, prompts: list[list[int]], stops: set[int], limit: int) -> list[Generation]:
        import torch

        answers = [Generation([], []) for _ in prompts]
        room = [min(limit, self.context_length - len(prompt)) if prompt else 0 for prompt in prompts]
        order = sorted((n for n in range(len(prompts)) if room[n] > 0), key=lambda n: len(prompts[n]))
        with torch.no_grad():
            for rows in self._batches(order, prompts, limit):
                state, logits = self._read_prompts([prompts[number] for number in rows])
                while True:
                    told = logits.float().log_softmax(-1)
                    best = told.argmax(-1)
                    nats = (-told.gather(1, best[:, None])[:, 0]).tolist()
                    going = []
                    for row, (number, identity) in enumerate(zip(rows, best.tolist(), strict=True)):
                        answer = answers[number]
                        answer.nats.append(nats[row])
                        if identity not in stops:
                            answer.ids.append(identity)
                            if len(answer.ids) < room[number]:
                                going.append(row)
                    if not going:
                        break
                    if len(going) < len(rows):
                        state, rows, best = state.selected(going), [rows[row] for row in going], best[going]
                    logits = state.read([[identity] for identity in best.tolist()])
        return answers

    def _batches(self, order: list[int], prompts: list[list[int]], limit: int) -> Iterator[list[int]]:
        """Prompts of about one length together or, where padding would do harm, of just one."""
        for _, some in groupby(order, key=lambda n: None if self._sees_all else len(prompts[n])):
            yield from reading.rows_together(list(some), lambda n: len(prompts[n]) + limit, reading.TOKENS_A_BATCH)

    def _read_prompts(self, prompts: list[list[int]]) -> tuple[reading.State, Any]:
        """What has been read, and the logits after it; the common beginning, such as a system's message, once."""
        state = reading.State(self.model)
        shared = min(reading.common(prompts[0], prompt[:-1]) for prompt in prompts)
        if not self._sees_all or (len(prompts) - 1) * shared < reading.LEAST_SAVED:
            shared = 0
        else:
            state.read([prompts[0][:shared]])
        state = state.selected([0] * len(prompts))
        return state, state.read([prompt[shared:] for prompt in prompts])


class LlamaCppEngine(Engine):
    """A GGUF file in llama.cpp, one text after the other; what a text has in common with the one before is not read
    again."""

    def __init__(self, file: Path, context_length: int):
        self.context_length = context_length
        self.llama = llama_cpp().Llama(str(file), n_ctx=context_length + 1, n_batch=context_length + 1, verbose=False)
        self._held: list[int] = []

    def score(self, windows: list[list[int]]) -> list[float]:
        return [float(self._nats(window[:1], window[1:]).sum()) for window in windows]

    def _likelihoods(self, questions: list[Question]) -> list[list[float]]:
        found: list[list[float]] = [[]] * len(questions)
        for number in sorted(range(len(questions)), key=lambda n: questions[n].context):
            question = questions[number]
            found[number] = [-float(self._nats(question.context, choice).sum()) for choice in question.choices]
        return found

    def generate(self, prompts: list[list[int]], stops: set[int], limit: int) -> list[Generation]:
        import numpy as np

        answers = [Generation([], []) for _ in prompts]
        for number in sorted(range(len(prompts)), key=lambda n: prompts[n]):
            prompt, answer = prompts[number], answers[number]
            room = min(limit, self.context_length - len(prompt)) if prompt else 0
            while len(answer.ids) < room:
                logits = self._logits([*prompt, *answer.ids], 1)[0]
                identity = int(logits.argmax())
                answer.nats.append(float(np.logaddexp.reduce(logits) - logits[identity]))
                if identity in stops:
                    break
                answer.ids.append(identity)
        return answers

    def _nats(self, context: list[int], continuation: list[int]) -> "NDArray[np.float64]":
        """The negative log-likelihood of each id of the continuation. No more than `LOGITS_AT_ONCE` logits are held."""
        import numpy as np

        part = held_out.positions_at_once(self.llama.n_vocab())
        ids, nats = [*context, *continuation], []
        for at in range(len(context), len(ids), part):
            targets = ids[at : at + part]
            logits = self._logits(ids[: at + len(targets) - 1], len(targets))
            nats.append(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(targets)), targets])
        return np.concatenate(nats)

    def _logits(self, ids: list[int], last: int) -> "NDArray[np.float64]":
        """The logits after each of the last ids, of shape (last, vocabulary). What llama.cpp holds of them is kept."""
        import numpy as np

        context, batch, vocabulary = self.llama._ctx, self.llama._batch, self.llama.n_vocab()
        keep = min(reading.common(self._held, ids), len(ids) - last)
        if not keep or not context.kv_cache_seq_rm(-1, keep, -1):
            context.kv_cache_clear()
            keep = 0
        self._held = []  # of what a failure leaves behind nothing is known
        if before := ids[keep : len(ids) - last]:
            batch.set_batch(batch=before, n_past=keep, logits_all=False)
            context.decode(batch)
        batch.set_batch(batch=ids[len(ids) - last :], n_past=len(ids) - last, logits_all=True)
        context.decode(batch)
        self._held = ids
        return np.ctypeslib.as_array(context.get_logits(), shape=(last, vocabulary)).astype(np.float64)
