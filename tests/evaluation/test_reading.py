"""A common beginning is read once, and every text is still whole."""

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.evaluation import reading
from khmer_assets.evaluation.reading import LEAST_SAVED, Node, tree

HEADER = list(range(1000, 1100))
TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12)


def leaves(nodes: list[Node], above: list[int]) -> list[tuple[int, list[int]]]:
    found = []
    for node in nodes:
        own = above + node.ids
        found += [(number, own) for number in node.ending] + leaves(node.children, own)
    return found


def size(nodes: list[Node]) -> int:
    return sum(len(node.ids) + size(node.children) for node in nodes)


@given(TEXTS, st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_every_text_is_in_the_tree_once_and_no_node_is_empty(tails, headers):
    texts = [HEADER * times + tail for tail, times in zip(tails, headers, strict=False)]
    found = tree(texts)
    assert sorted(leaves(found, [])) == sorted(enumerate(texts))
    assert size(found) <= sum(map(len, texts))
    todo = list(found)
    while todo:
        node = todo.pop()
        assert node.ids and (node.ending or len(node.children) > 1)
        todo += node.children


def test_solved_items_before_each_are_read_once_also_where_some_differ():
    """Five of the first six solved items stand before each: those of the first six lack themselves."""
    shots = [[n] * 80 for n in range(6)]
    before = [[shot for m, shot in enumerate(shots) if m != n][:5] for n in range(20)]
    texts = [[*chain.from_iterable(solved), *[100 + n] * 20] for n, solved in enumerate(before)]
    assert size(tree(texts)) <= 5 * 80 + (1 + 2 + 3 + 4 + 5) * 80 + 20 * 20 < sum(map(len, texts)) / 3


def test_what_saves_too_little_is_not_read_apart():
    short = HEADER[: LEAST_SAVED - 1]
    assert len(tree([[*short, 1], [*short, 2]])) == 2
    assert len(tree([[*HEADER, 1], [*HEADER, 2]])) == 1


def test_the_logits_of_other_places_are_not_made(tmp_path):
    import torch

    from khmer_assets.training.models import load_model
    from tests.tiny_model import save_tiny_model

    model = load_model(save_tiny_model(tmp_path / "model")).eval()
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *given: seen.append(given[2].shape[:-1].numel()))
    texts = [[5, 6, 7], [*range(10, 40)], [*range(10, 39), 50]]
    with torch.no_grad():
        found = {
            n: row for _, numbers, rows in reading.read_all(model, texts) for n, row in zip(numbers, rows, strict=True)
        }
        hook.remove()
        for number, text in enumerate(texts):
            expected = model(torch.tensor([text])).logits[0, -1]
            assert torch.allclose(found[number], expected, atol=1e-3)
    assert sum(seen) == len(texts) + 1  # and after what two of them share
