"""What is learned are the assistant's words with the end of each turn, whatever the template."""

import pytest

from khmer_assets.finetuning.encoding import encode_chats
from khmer_assets.tokenizer.bpe import train_bpe
from khmer_assets.tokenizer.chat_template import wrap
from khmer_assets.training.models import IGNORED

CHAT = [
    {"role": "user", "content": "តើមេឃពណ៌អ្វី?"},
    {"role": "assistant", "content": "មេឃពណ៌ខៀវ។"},
    {"role": "user", "content": "អរគុណ"},
    {"role": "assistant", "content": "មិនអីទេ។"},
]
SYSTEM = {"role": "system", "content": "ឆ្លើយខ្លីៗ"}
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    "adds a system message": "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
    + TURNS
    + PROMPT,
    "tells the date": "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + TURNS + PROMPT,
    "names the assistant otherwise and has no system": "{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}<|im_start|>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}",
    "opens answers with thoughts that are not shown": TURNS + PROMPT.replace("assistant\n", "assistant\n<think>\n"),
    "marks what is generated": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}" + PROMPT,
    "marks what is generated, without the end": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{%- generation -%}{{ m.content }}{%- endgeneration -%}{% else %}{{ m.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}" + PROMPT,
}
THINKS_LAST = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}" + PROMPT
)


@pytest.fixture
def tokenizer():
    return wrap(train_bpe([message["content"] for message in CHAT] * 10, 500))


def spoken(tokenizer, example):
    assert all(label in (IGNORED, identity) for identity, label in zip(*example, strict=True))
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


@pytest.mark.parametrize("name", ["our own", *TEMPLATES])
def test_labels_are_the_answers_with_the_end_of_each_turn(tokenizer, name):
    tokenizer.chat_template = TEMPLATES.get(name, tokenizer.chat_template)
    encoded = encode_chats(tokenizer, [CHAT], 512)
    assert spoken(tokenizer, encoded.examples[0]) == "មេឃពណ៌ខៀវ។<|im_end|>មិនអីទេ។<|im_end|>"
    assert tokenizer.decode(encoded.examples[0].ids) == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert (encoded.last_turn_only, encoded.endless, encoded.set_aside) == (0, 0, [])


def test_where_the_template_rewrites_earlier_turns_the_last_is_learned(tokenizer):
    tokenizer.chat_template = THINKS_LAST
    encoded = encode_chats(tokenizer, [CHAT], 512)
    assert spoken(tokenizer, encoded.examples[0]) == "<think>\n\n</think>\n\nមិនអីទេ។<|im_end|>"
    assert encoded.last_turn_only == 1


def test_an_end_of_turn_that_takes_the_line_break_along_is_learned(tokenizer):
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken("<|done|>", rstrip=True, special=True)])
    tokenizer.chat_template = (TURNS + PROMPT).replace("<|im_end|>", "<|done|>")
    [example] = encode_chats(tokenizer, [CHAT], 512).examples
    assert spoken(tokenizer, example) == "មេឃពណ៌ខៀវ។<|done|>មិនអីទេ។<|done|>"


def test_a_template_without_an_end_of_turn_is_told(tokenizer):
    tokenizer.chat_template = (TURNS + PROMPT).replace("<|im_end|>", "")
    assert encode_chats(tokenizer, [CHAT], 512).endless == 1


def test_chats_that_the_template_refuses_are_set_aside_with_its_reason(tokenizer):
    tokenizer.chat_template = TEMPLATES["names the assistant otherwise and has no system"]
    encoded = encode_chats(tokenizer, [[SYSTEM, *CHAT], CHAT, CHAT[:1]], 512)
    assert len(encoded.examples) == 1
    assert [(aside.number, aside.rule) for aside in encoded.set_aside] == [(0, "template"), (2, "no_answer")]
    report = encoded.report([[SYSTEM, *CHAT], CHAT, CHAT[:1]])
    assert report["set_aside"]["template"]["chats"] == 1
    assert "System role not supported" in report["set_aside"]["template"]["examples"][0]["reason"]
    assert report["set_aside"]["no_answer"]["examples"][0]["chat"] == CHAT[0]["content"]


def test_a_chat_that_is_too_long_is_set_aside_or_truncated(tokenizer):
    [whole] = encode_chats(tokenizer, [CHAT], 512).examples
    fits = len(whole.ids) - 3
    aside = encode_chats(tokenizer, [CHAT], fits)
    assert (aside.examples, aside.set_aside[0].rule) == ([], "too_long")
    cut = encode_chats(tokenizer, [CHAT], fits, "truncate")
    assert cut.examples[0].ids == whole.ids[:fits]
    assert cut.truncated == 1
    assert encode_chats(tokenizer, [CHAT], 3, "truncate").examples == []  # nothing of an answer is left
