"""A tiny random model with a real tokenizer, for tests that need a transformers folder but no quality."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from khmer_assets.tokenizer.bpe import train_bpe
from khmer_assets.tokenizer.chat_template import wrap

KHMER_TEXTS = (
    "ខ្ញុំទៅផ្សារនៅពេលព្រឹក ហើយទិញត្រីនិងបន្លែសម្រាប់គ្រួសារ។",
    "ថ្ងៃនេះមេឃភ្លៀងខ្លាំងណាស់ ដូច្នេះកុមារៗមិនអាចលេងនៅខាងក្រៅបានទេ។",
    "គ្រូបង្រៀនសួរសិស្សថា តើ ១២ បូក ៧ ស្មើនឹងប៉ុន្មាន?",
    "ភូមិរបស់ជីតាខ្ញុំស្ថិតនៅក្បែរទន្លេធំ មានដើមឈើច្រើន។",
    "សៀវភៅ​នេះ​និយាយ​អំពី​ការ​ដាំ​ស្រូវ​នៅ​រដូវ​វស្សា។",
    "នាងចូលចិត្តអានរឿងខ្លីៗ មុនពេលចូលគេងរាល់យប់។",
)
ENGLISH_TEXTS = (
    "My sister rides a red bicycle to the library every Tuesday.",
    "The kettle whistled twice before anyone noticed it was boiling.",
    "Twelve plus seven makes nineteen, and nobody argued about it.",
    "We've planted beans, carrots and 3 kinds of pepper behind the shed.",
    "A small boat drifted past the bridge while the sun went down.",
    "Please write your name, the date and the page number at the top.",
)


def save_tiny_model(
    folder: Path,
    texts: Iterable[str] = (*KHMER_TEXTS, *ENGLISH_TEXTS),
    architecture: Literal["qwen3", "qwen2", "llama", "gpt2"] = "qwen3",
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Save a random two-layer model and a byte-level BPE of `texts` to `folder`; `settings` go to its config."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

    tokenizer = wrap(train_bpe(texts, 512))
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture == "gpt2":
        config: Any = GPT2Config(n_embd=256, n_layer=2, n_head=4, n_positions=256, **{**common, **settings})
    else:
        kinds = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig}
        sizes: dict[str, Any] = {
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 256,
        }
        config = kinds[architecture](**{**sizes, **common, **settings})
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# shows tools and asks for calls as Qwen 2.5's does
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nFunctions:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n"
    'Write <tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    '\n<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL_MODEL_LENGTH = 640  # tokens
RAIN: list[Any] = [{"role": "user", "content": "តើមេឃភ្លៀងទេ?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": CITY}}
WEATHER_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "ភ្នំពេញ"}}\n</tool_call><|im_end|>'


def save_tool_model(folder: Path) -> Path:
    """Save a tiny model that, asked RAIN with the tool WEATHER, calls it, and knows nothing else.

    It reads `TOOL_MODEL_LENGTH` tokens and no more: where a model can, llama.cpp reads on to a multiple of 256.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_tiny_model(folder, max_position_embeddings=TOOL_MODEL_LENGTH)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TOOL_TEMPLATE
    tokenizer.save_pretrained(folder)
    asked = tokenizer.apply_chat_template(RAIN, tools=[WEATHER], add_generation_prompt=True, tokenize=False)
    read, written = (tokenizer(text)["input_ids"] for text in (asked, WEATHER_CALL))
    tokens, labels = torch.tensor([read + written]), torch.tensor([[-100] * len(read) + written])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loss = None
    for _ in range(100):
        loss = model(input_ids=tokens, labels=labels).loss
        if loss < 0.01:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss is not None and loss < 0.05, "it has learned the call"
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def save_tiny_adapter(model: Path, folder: Path, seed: int = 0, rank: int = 8) -> Path:
    """Save a random LoRA adapter of the model in the folder `model` to `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def save_tiny_mixture(folder: Path) -> Path:
    """Save a training mixture of the texts above, with the columns that the corpus stage writes."""
    import polars as pl

    folder.mkdir(parents=True, exist_ok=True)
    rows = [("khm", text) for text in KHMER_TEXTS] + [("eng", text) for text in ENGLISH_TEXTS]
    pl.DataFrame(
        {
            "id": [str(number) for number in range(len(rows))],
            "source": "written",
            "language": [language for language, _ in rows],
            "text": [text for _, text in rows],
            "content_hash": [f"{number:016x}" for number in range(len(rows))],
            "split": ["validation" if number % 6 == 5 else "train" for number in range(len(rows))],
            "copies": 1,
        }
    ).write_parquet(folder / "data.parquet")
    return folder


def save_embedder(tokenizer: Path, folder: Path) -> Path:
    """A random static embedding of the tokens of a model's folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    module = StaticEmbedding(Tokenizer.from_file(str(tokenizer / "tokenizer.json")), embedding_dim=16)
    SentenceTransformer(modules=[module]).save(str(folder))
    return folder
