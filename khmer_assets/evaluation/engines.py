"""What answers and scores while a model is measured, whichever library runs it. One small interface of token ids.

All engines decode greedily from the logits themselves: no setting that a model brings along in its
`generation_config.json`, such as a repetition penalty, changes what is measured. Texts and prompts do not belong here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from khmer_assets.training import held_out
from resources.llama_cpp import llama_cpp

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

ROWS_A_BATCH = 64
TOKENS_A_BATCH = 1 << 14  # padding included; keys and values of so many are held at once
LEAST_SHARED = 16  # tokens of a common beginning that are worth a forward pass of their own

T = TypeVar("T")


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
        self.model = model
        self.context_length = context_length
        self._score = held_out.model_scorer(model)

    def score(self, windows: list[list[int]]) -> list[float]:
        return self._score(windows)

    def _likelihoods(self, questions: list[Question]) -> list[list[float]]:
        """Three passes a batch: what contexts have in common, the rest of each, and the choices after it. Each reads
        the keys and values of the one before."""
        import torch

        layers = getattr(self.model.config.get_text_config(), "layer_types", None) or []
        if any(kind != "full_attention" for kind in layers):  # what is shared would stand too far away
            return self._each_alone(questions)
        found: list[list[float]] = [[]] * len(questions)
        groups = _groups([q.context for q in questions])
        with torch.no_grad():
            for batch in _batches(groups):
                rows = [(place, number) for place, (_, members) in enumerate(batch) for number in members]
                state = _State(self.model)
                state.read([prefix for prefix, _ in batch])
                state.select([place for place, _ in rows])
                rests = [questions[number].context[len(batch[place][0]) :] for place, number in rows]
                first = state.read(rests)[:, -1].float().log_softmax(-1)
                after = state.rests_of([questions[number].choices for _, number in rows])
                for row, (_, number) in enumerate(rows):
                    choices = questions[number].choices
                    begin = first[row, [choice[0] for choice in choices]].tolist()
                    found[number] = [one + rest for one, rest in zip(begin, after[row], strict=True)]
        return found

    def _each_alone(self, questions: list[Question]) -> list[list[float]]:
        """As `_likelihoods`, of a model whose layers do not see all that stands before."""
        import torch

        found = [[0.0] * len(question.choices) for question in questions]
        rows = [(n, at, q.context + choice) for n, q in enumerate(questions) for at, choice in enumerate(q.choices)]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row][2]))
        for batch in _rows_together(order, lambda row: len(rows[row][2])):
            width = len(rows[batch[-1]][2])
            ids = torch.tensor([rows[row][2] + [0] * (width - len(rows[row][2])) for row in batch])
            nats = held_out.token_nats(self.model, ids.to(self.model.device)).tolist()
            for row, own in zip(batch, nats, strict=True):
                number, at, text = rows[row]
                found[number][at] = -sum(own[len(questions[number].context) - 1 : len(text) - 1])
        return found

    def generate(self, prompts: list[list[int]], stops: set[int], limit: int) -> list[Generation]:
        import torch

        answers = [Generation([], []) for _ in prompts]
        room = [min(limit, self.context_length - len(prompt)) if prompt else 0 for prompt in prompts]
        order = sorted((n for n in range(len(prompts)) if room[n] > 0), key=lambda n: len(prompts[n]))
        with torch.no_grad():
            for batch in _rows_together(order, lambda n: len(prompts[n]) + limit):
                state = _State(self.model)
                rows = list(batch)
                logits = state.read([prompts[number] for number in rows])[:, -1]
                while True:
                    likelihoods = logits.float().log_softmax(-1)
                    best = likelihoods.argmax(-1)
                    nats = (-likelihoods.gather(1, best[:, None])[:, 0]).tolist()
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
                        state.select(going)
                        rows, best = [rows[row] for row in going], best[going]
                    logits = state.read([[identity] for identity in best.tolist()])[:, -1]
        return answers


class _State:
    """What a model has read, a row a text, padded on the left wherever a pass began."""

    def __init__(self, model: Any):
        import inspect

        import torch

        self.model = model
        self.cache: Any = None
        self.mask = torch.zeros((0, 0), dtype=torch.long, device=model.device)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}

    def read(self, texts: Sequence[list[int]]) -> "torch.Tensor":
        """Read on in each row; the logits after the last id, of shape (rows, any, vocabulary)."""
        import torch

        device = self.model.device
        width = max(map(len, texts))
        if width == 0:  # contexts that share nothing
            self.mask = torch.zeros((len(texts), 0), dtype=torch.long, device=device)
            return torch.empty(0)
        ids = [[0] * (width - len(text)) + text for text in texts]
        mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts], device=device)
        self.mask = torch.cat([self.mask, mask], dim=1) if self.mask.numel() else mask
        output = self.model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(1) - 1).clamp(min=0)[:, -width:],
            past_key_values=self.cache,
            use_cache=True,
            **self.last_only,
        )
        self.cache = output.past_key_values
        return output.logits

    def rests_of(self, choices: Sequence[list[list[int]]]) -> list[list[float]]:
        """For each row, the log-likelihood of each of its choices' ids but the first, whose likelihood the pass before
        told. The choices of a row stand one behind the other and do not see each other, so that nothing is copied."""
        import torch

        if all(len(choice) == 1 for own in choices for choice in own):
            return [[0.0] * len(own) for own in choices]
        device, dtype = self.model.device, self.model.dtype
        width = max(sum(len(choice) - 1 for choice in own) for own in choices)
        ids, targets, member, at = (torch.zeros((len(choices), width), dtype=torch.long) for _ in range(4))
        member -= 1  # of no choice
        for row, own in enumerate(choices):
            place = 0
            for number, choice in enumerate(own):
                part = slice(place, place + len(choice) - 1)
                ids[row, part], targets[row, part] = torch.tensor(choice[:-1]), torch.tensor(choice[1:])
                member[row, part], at[row, part] = number, torch.arange(len(choice) - 1)
                place += len(choice) - 1
        own_choice = (member[:, :, None] == member[:, None, :]) & (member >= 0)[:, :, None]
        seen = own_choice & (at[:, None, :] <= at[:, :, None])
        seen = torch.cat([self.mask.bool()[:, None].expand(-1, width, -1), seen.to(device)], dim=2)
        unseen = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
        logits = self.model(
            input_ids=ids.to(device),
            attention_mask=unseen[:, None],
            position_ids=self.mask.sum(1, keepdim=True) + at.to(device),
            past_key_values=self.cache,
            use_cache=True,
        ).logits.float()
        told = (logits.gather(2, targets.to(device)[:, :, None])[:, :, 0] - logits.logsumexp(-1)).double().cpu()
        return [
            [float(told[row][member[row] == number].sum()) for number in range(len(own))]
            for row, own in enumerate(choices)
        ]

    def select(self, rows: list[int]) -> None:
        """Go on with these rows; one may be there more than once."""
        import torch

        places = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[places]
        if self.cache is not None:
            self.cache.reorder_cache(places)


def _groups(contexts: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """The contexts (by number) that have a common beginning, and that beginning; each has a rest of one id at least.
    A context that has nothing in common with another is a group by itself, of which nothing but the last is rest."""
    groups: list[tuple[list[int], list[int]]] = []
    for number in sorted(range(len(contexts)), key=lambda n: contexts[n]):
        own = contexts[number][:-1]
        if groups and len(groups[-1][1]) < ROWS_A_BATCH:
            prefix, members = groups[-1]
            shared = _common(prefix, own)
            if shared >= LEAST_SHARED or shared == len(own) == len(prefix):
                groups[-1] = (own[:shared], [*members, number])
                continue
        groups.append((own, [number]))
    return groups


def _batches(groups: list[tuple[list[int], list[int]]]) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Groups of about one length together; those of one context apart, for they have next to no rest, and would be
    padded to that of the others."""
    single = [group for group in groups if len(group[1]) == 1]
    several = [group for group in groups if len(group[1]) > 1]
    ordered = sorted(single, key=lambda group: len(group[0])), sorted(several, key=lambda group: len(group[0]))
    for some in ordered:
        yield from _rows_together(some, lambda group: len(group[0]) + 1, lambda group: len(group[1]))


def _rows_together(
    ordered: Sequence[T], width: Callable[[T], int], rows: Callable[[T], int] = lambda _: 1
) -> Iterator[list[T]]:
    """Parts of what is ordered by growing width that have no more rows and tokens than a batch may."""
    batch: list[T] = []
    count = 0
    for one in ordered:
        more = count + rows(one)
        if batch and (more > ROWS_A_BATCH or more * width(one) > TOKENS_A_BATCH):
            yield batch
            batch, more = [], rows(one)
        batch.append(one)
        count = more
    if batch:
        yield batch


def _common(a: list[int], b: list[int]) -> int:
    """How many ids are the same at the beginning of both."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


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
        keep = min(_common(self._held, ids), len(ids) - last)
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
