"""The model learns what is said of texts, tells how sure it is, and is the same after it was written."""

import numpy as np
import pytest

from khmer_assets.labels.categories import heads
from khmer_assets.labels.model import WEIGHTS, LabelModel, learn
from khmer_assets.labels.train import targets_of
from tests.labels.conftest import labelled_documents, text_of, verdict

COUNT = 240


@pytest.fixture(scope="module")
def learned(categories):
    rows = labelled_documents("news", COUNT)
    asked = heads(categories)
    held_out = np.arange(COUNT) % 5 == 0
    trust = np.ones(COUNT, dtype=np.float32)
    return learn(rows["text"].to_list(), asked, targets_of(rows, asked), trust, held_out, 3000, 1)


def test_new_texts_get_the_labels_that_their_words_have(learned):
    texts = [text_of(number)[0] for number in range(1000, 1060)]
    given = learned.model.probabilities(texts)
    said = learned.model.verdicts(given)
    right = [verdict(text) for text in texts]
    assert np.mean([set(a) == set(b["topics"]) for a, b in zip(said["topics"], right, strict=True)]) > 0.9
    assert np.mean([a == [b["validity"]] for a, b in zip(said["validity"], right, strict=True)]) > 0.9
    assert np.mean([bool(a) == bool(b["toxicity"]) for a, b in zip(said["unsafe"], right, strict=True)]) > 0.9
    assert np.mean([bool(a) == (b["accuracy"] == 3) for a, b in zip(said["good_quality"], right, strict=True)]) > 0.9
    assert all(1 <= len(topics) <= 3 for topics in said["topics"])
    for head in learned.model.heads:
        assert ((given[head.name] >= 0) & (given[head.name] <= 1)).all()
        if head.kind == "one":
            assert given[head.name].sum(axis=1) == pytest.approx(np.ones(len(texts)))


def test_a_text_of_nothing_and_a_text_of_everything_are_judged_too(learned):
    texts = ["", "\u200b", "\x00\ud83d", "😀" * 5000, "a" * 100_000]
    for chances in learned.model.probabilities([text.encode("utf-8", "replace").decode() for text in texts]).values():
        assert np.isfinite(chances).all()


def test_the_model_is_the_same_after_it_was_written_and_holds_no_code(learned, tmp_path):
    learned.model.save(tmp_path)
    again = LabelModel.load(tmp_path)
    texts = [text_of(number)[0] for number in range(500, 530)]
    first, second = learned.model.probabilities(texts), again.probabilities(texts)
    for name, chances in first.items():
        assert second[name] == pytest.approx(chances, abs=1e-6)
    assert learned.model.heads == again.heads
    assert (tmp_path / WEIGHTS).stat().st_size < 20_000_000


def test_held_out_texts_are_scored_by_classifiers_that_have_not_seen_them(categories):
    rows = labelled_documents("news", 120)
    asked = heads(categories)[3:4]
    shuffled = np.random.default_rng(1).permuted(targets_of(rows, asked), axis=0)  # nothing can be learned of this
    held_out = np.arange(120) % 4 == 0
    found = learn(rows["text"].to_list(), asked, shuffled, np.ones(120, dtype=np.float32), held_out, 3000, 1)
    label = int((shuffled == 1).sum(axis=0).argmax())
    seen = found.model.calibrated(found.scores)["topics"][:, label]
    truth = shuffled[:, label] == 1
    for part in (held_out, ~held_out):
        assert abs(seen[part & truth].mean() - seen[part & ~truth].mean()) < 0.2
