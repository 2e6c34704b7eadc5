"""How a decoder in transformers reads many texts: what they have in common once, and logits only where they are asked
for. What is asked, and of which engine, does not belong here (`engines.py`).

Rows are padded on the right, where what stands before cannot see it: a first pass needs no mask, so that attention
takes its fast way. Later passes see the padding of those before, and mask it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    import torch

ROWS_A_BATCH = 64
TOKENS_A_BATCH = 1 << 14  # padding included; keys and values of so many are held at once, a level of the tree
TOKENS_ON_A_CPU = 1 << 13  # more do not make it faster
LEAST_SAVED = 16  # tokens of a common beginning; fewer are not worth a pass of their own
GROUPED = "grouped"

T = TypeVar("T")


class Node(NamedTuple):
    """Token ids that follow those of the nodes above, the numbers of the texts that end with them, and what follows."""

    ids: list[int]
    ending: list[int]
    children: list["Node"]


def tree(texts: Sequence[list[int]]) -> list[Node]:
    """The texts (one id at least each) as trees, in which a common beginning stands once where that saves enough."""
    order = sorted(range(len(texts)), key=texts.__getitem__)
    shared = [common(texts[a], texts[b]) for a, b in pairwise(order)]  # of a text and the next one
    roots: list[Node] = []
    todo = [(0, len(order), 0, roots)]
    while todo:
        start, end, above, siblings = todo.pop()
        if start == end:
            continue
        length = min(shared[start : end - 1], default=len(texts[order[start]]))
        ending = 0
        while start + ending < end and len(texts[order[start + ending]]) == length:
            ending += 1
        if length - above >= LEAST_SAVED or ending == end - start:
            own = [order[place] for place in range(start, start + ending)]
            node = Node(texts[order[start]][above:length], own, [])
            siblings.append(node)
            todo.append((start + ending, end, length, node.children))
        else:  # apart where least is shared
            cuts = [place + 1 for place in range(start, end - 1) if shared[place] == length]
            todo += [(*part, above, siblings) for part in pairwise([start, *cuts, end])]
    return roots


def rows_together(ordered: Sequence[T], width: Callable[[T], int], tokens: int) -> Iterator[list[T]]:
    """Parts of what is ordered by growing width that have no more than `ROWS_A_BATCH` rows, and `tokens` as padded."""
    batch: list[T] = []
    for one in ordered:
        if batch and (len(batch) == ROWS_A_BATCH or (len(batch) + 1) * width(one) > tokens):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids are the same at the beginning of both."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def read_all(model: Any, texts: Sequence[list[int]]) -> Iterator[tuple["State", list[int], "torch.Tensor"]]:
    """Batch by batch: what has been read, a row a text, the numbers of the texts, and the logits after each, of shape
    (rows, vocabulary)."""
    tokens = TOKENS_ON_A_CPU if model.device.type == "cpu" else TOKENS_A_BATCH
    levels = [(State(model), [(0, node) for node in tree(texts)])]
    while levels:
        above, rows = levels.pop()
        rows.sort(key=lambda row: len(row[1].ids))
        for batch in rows_together(rows, lambda row: above.width + len(row[1].ids), tokens):  # noqa: B023
            state = above.selected([place for place, _ in batch])
            logits = state.read([node.ids for _, node in batch])
            ending = [(place, number) for place, (_, node) in enumerate(batch) for number in node.ending]
            if ending:
                places = [place for place, _ in ending]
                yield state.selected(places), [number for _, number in ending], logits[places]
            if below := [(place, child) for place, (_, node) in enumerate(batch) for child in node.children]:
                levels.append((state, below))


class State:
    """What a model has read, a row a text; nothing at first. `lengths`: ids of each row; `width`: with padding."""

    def __init__(self, model: Any):
        import torch

        self.model = model
        self.cache: Any = None
        self.seen = torch.zeros((1, 0), dtype=torch.bool, device=model.device)

    @property
    def width(self) -> int:
        """Places of a row, padding included."""
        return int(self.seen.shape[1])

    def selected(self, rows: list[int]) -> "State":
        """A state with these rows; one may be there more than once. This one stays as it is."""
        import torch

        state = copy.copy(self)
        if rows == list(range(len(self.seen))) and self.cache is None:
            return state
        places = torch.tensor(rows, device=self.seen.device)
        state.seen = self.seen[places]
        if self.cache is not None:
            state.cache = copy.copy(self.cache)
            state.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
            if rows != list(range(len(self.seen))):
                state.cache.reorder_cache(places)
        return state

    def read(self, texts: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Read on in each row, one id at least; the logits after the last id, of shape (rows, vocabulary)."""
        import torch

        device = self.seen.device
        lengths = torch.tensor([len(text) for text in texts], device=device)
        width = max(map(len, texts))
        ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=device)
        own = torch.arange(width, device=device) < lengths[:, None]
        given: dict[str, Any] = {}
        if not self.seen.all():  # what is padded here comes after all that is asked for, and needs no mask
            at = torch.minimum(torch.arange(width, device=device), lengths[:, None] - 1)  # no place beyond the last
            given["position_ids"] = self.seen.sum(1, keepdim=True) + at
            given["attention_mask"] = torch.cat([self.seen, torch.ones_like(own)], dim=1)
        places = torch.arange(len(texts), device=device), lengths - 1
        logits = self._logits(ids, places, **given)
        self.seen = torch.cat([self.seen, own], dim=1)
        return logits

    def read_choices(self, choices: Sequence[list[list[int]]]) -> list[list[float]]:
        """For each row, the log-likelihood (nats) of each of its choices' ids but the first, which the pass before has
        told. The choices of a row stand one behind the other and do not see each other, so that nothing is copied."""
        import torch

        if all(len(choice) == 1 for own in choices for choice in own):
            return [[0.0] * len(own) for own in choices]
        device, dtype = self.seen.device, self.model.dtype
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
        seen = torch.cat([self.seen[:, None].expand(-1, width, -1), seen.to(device)], dim=2)
        unseen = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
        told = torch.zeros(member.shape, dtype=torch.double)
        places = (member >= 0).nonzero(as_tuple=True)
        logits = self._logits(
            ids.to(device),
            (places[0].to(device), places[1].to(device)),
            attention_mask=unseen[:, None],
            position_ids=self.seen.sum(1, keepdim=True) + at.to(device),
        )
        told[places] = likelihoods(logits, targets[places].to(device)).double().cpu()
        return [
            [float(told[row][member[row] == number].sum()) for number in range(len(own))]
            for row, own in enumerate(choices)
        ]

    def _logits(self, ids: "torch.Tensor", places: tuple["torch.Tensor", "torch.Tensor"], **given: Any) -> Any:
        output = _asked(self.model, ids, places, past_key_values=self.cache, use_cache=True, **given)
        self.cache = output.past_key_values
        return output.logits


def use_grouped_attention(model: Any) -> None:
    """Let query heads share their keys and values, which transformers repeats for each of them where there is a mask:
    on a processor, the same numbers in a third of the time. Accelerators have no fast way for that."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(GROUPED, _grouped_attention)
        AttentionMaskInterface.register(GROUPED, sdpa_mask)
        model.set_attn_implementation(GROUPED)


def _grouped_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **options: Any
) -> tuple[Any, None]:
    """For transformers' attention interface; tensors of shape (rows, heads, tokens, width)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    found = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2).contiguous(), None


def likelihoods(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """The log-likelihood (nats) of an id a row, of logits of shape (rows, vocabulary)."""
    logits = logits.float()
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def logits_at(model: Any, ids: "torch.Tensor", places: tuple["torch.Tensor", "torch.Tensor"]) -> "torch.Tensor":
    """The logits after the ids at `places` (rows, columns), of shape (places, vocabulary); nothing is kept."""
    logits: torch.Tensor = _asked(model, ids, places, use_cache=False).logits
    return logits


def _asked(model: Any, ids: "torch.Tensor", places: tuple["torch.Tensor", "torch.Tensor"], **given: Any) -> Any:
    """The model's output with logits at `places` alone: the head, which takes a fifth of a small model's time, gets no
    other position. What a model does with its logits (scaling, capping) it does with these."""
    rows, columns = places
    head = model.get_output_embeddings()
    reached = []

    def only_these(_: Any, hidden: tuple["torch.Tensor", ...]) -> tuple["torch.Tensor", ...]:
        reached.append(True)
        return (hidden[0][rows, columns][None], *hidden[1:])

    hook = head.register_forward_pre_hook(only_these)
    try:
        output = model(input_ids=ids, **given)
    finally:
        hook.remove()
    output.logits = output.logits[0] if reached else output.logits[rows, columns]
    return output
