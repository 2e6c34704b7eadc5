"""The template of chats, as models are trained and asked with it."""

from khmer_assets.tokenizer.bpe import train_bpe
from khmer_assets.tokenizer.chat_template import wrap


def test_chats_are_rendered_turn_by_turn():
    wrapped = wrap(train_bpe(["កុមារលេងបាល់នៅទីធ្លាវត្ត។"], 300))
    rendered = wrapped.apply_chat_template(
        [{"role": "user", "content": "សួស្តី"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|im_start|>user\nសួស្តី<|im_end|>\n<|im_start|>assistant\n"
    assert wrapped.eos_token == "<|im_end|>"
