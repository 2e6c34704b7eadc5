"""The special tokens and the chat template, and the tokenizer that carries them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = [END_OF_TEXT, TURN_START, TURN_END]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


# For models of some types, Qwen 2 among them, transformers 5 cuts text by that type's pattern whatever tokenizer.json
# says, unless the tokenizer names code outside of transformers: so it names none, twice (the slow and the fast).
OF_NO_CODE = {"AutoTokenizer": ["", ""]}


def wrap(tokenizer: "Tokenizer") -> Any:
    """The tokenizer as transformers, vLLM and llama.cpp expect it, with the chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        auto_map=OF_NO_CODE,
    )
