"""Teaches the tokenizer of an open model Khmer: new merges are learned on top of its own and appended last.

What belongs here: the pattern that cuts text, the merges, and the proof that no other text gets other ids. The rows of
the model are the business of `embeddings.py`.

Most byte-level tokenizers cut Khmer at every vowel sign, as their pattern counts marks (\\p{M}) not among letters; then
merges cannot grow beyond a part of a syllable. So Khmer's marks join the letters of the pattern, which touches no text
without them; and as each new merge holds a part of a Khmer character, no other text can get a new token. Merges are
learned over runs of Khmer with the space before them: 0.23 tokens a character on other text, without the space 0.28.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from khmer_assets.extension import pruning
from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.tokenizer.bpe import GPT2_PATTERN, KHMER_PATTERN, QWEN2_PATTERN, TrainingSample, texts_of
from khmer_assets.tokenizer.chat_template import OF_NO_CODE
from resources.payload import PayloadRun, Refusal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FIGURES = "extension.json"
UNPRUNED = "unpruned"  # the tokenizer before tokens were taken away, in a folder of its own
LLAMA_CPP_NAME = "qwen35"  # llama.cpp's name of KHMER_PATTERN
KHMER_MARKS = "\u17b4-\u17d3\u17dd"  # a range within brackets
KHMER_RUN = re.compile(r" ?[\u1780-\u17d3\u17d7\u17dc\u17dd]+")
KHMER_LETTERS = [chr(code) for code in range(0x1780, 0x17B4)]
KHMER_CHARACTERS = frozenset(map(chr, (*range(0x1780, 0x17DE), *range(0x17E0, 0x17EA))))
SPACE = "Ġ"  # as byte-level BPE writes it
SYMBOLS_FROM = 0x10000  # each token present is one character from here on while merges are learned
MAX_CHANGED = 0.01
EXAMPLES = 10
COPIED = ("chat_template.jinja", "special_tokens_map.json")
ADDED_TOKENS = "added_tokens.json"
CODE = """import re\n\n\nclass Counter:\n    \"\"\"Counts words.\"\"\"\n\n    def __init__(self, limit=1_000):
        self.limit = limit\n\t# tabs\tand   spaces\n        self.words = {}\n\n
    def add(self, text: str) -> int:\n        for word in re.findall(r"[a-z]+'?[a-z]*", text.lower()):
            if len(word) >= 3 and word != "the":\n                self.words[word] = self.words.get(word, 0) + 1
        return sum(n for n in self.words.values() if n % 2 == 0)\n\n
<div class="row" id='main'>\r\n  <a href="/index.html?page=2&amp;q=3.14159">It's  here</a>\r\n</div>\n
{"name": "x", "values": [1, 20, 300, -4.5e-6], "ok": true, "nothing": null}\n
for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } // O(n)\n    \n\n   SELECT * FROM users WHERE age >= 18;\n"""
CHAT = [
    {"role": "user", "content": "Hello! What's the capital of France?"},
    {"role": "assistant", "content": "It is Paris.\n\n1. Seine\n2. Louvre"},
    {"role": "user", "content": "Thank you, that's 100% right."},
]


class Extension(Settings):
    """`merges`: how many are learned, beside one token for each Khmer character. `sample_characters`: of how much
    training text. `pattern`: what to do where llama.cpp knows no pattern that leaves the base's ids as they are. With
    `exact` they stay, and no GGUF can be made; with `llama_cpp` the model can become GGUF, and the English lines that
    get other ids are listed. For bases with Qwen 2's pattern both are the same, and right: llama.cpp's `qwen35` differs
    from it in the marks of all scripts alone. `prune`: how many of the base's tokens are taken away, those that the
    sample needs least; the others then get other ids. It pays where the vocabulary is a large part of a small model."""

    merges: PositiveInt = 16_000
    sample_characters: PositiveInt = 20_000_000
    pattern: Literal["exact", "llama_cpp"] = "exact"
    prune: PositiveInt | None = None


class Spec(BaseModel):
    """Folders of the base model and of training_mixture."""

    base: Path
    mixture: Path
    settings: Extension


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the base's tokenizer with Khmer tokens as a transformers folder, with `extension.json` of what is returned.

    Raises `Refusal` for a tokenizer that is no byte-level BPE, when the text is too little for the merges, when other
    texts than Khmer would get other ids (with the pattern `llama_cpp`: more than 1 % of the English lines), and when
    fewer tokens can be pruned than are to be. What pruning itself changes is told, and not refused.
    """
    from tokenizers import Tokenizer

    content = read_tokenizer(spec.base)
    name = use_khmer_pattern(content, spec.settings.pattern)
    sample = TrainingSample(spec.mixture, spec.settings.sample_characters)
    runs = Counter(found for text in sample for found in KHMER_RUN.findall(text))
    characters = sum(len(found) * count for found, count in runs.items())
    run.log(f"learning {spec.settings.merges:,} merges from {characters:,} Khmer characters")
    first = next_id(content)
    before = len(content["model"]["vocab"])
    of_characters = whole_characters(content)
    learned = learn(Tokenizer.from_str(json.dumps(content)), runs, spec.settings.merges)
    if len(learned) < spec.settings.merges:
        raise Refusal(
            f"the training text yields only {len(learned)} merges, fewer than extension.merges "
            f"({spec.settings.merges}); lower the setting or add Khmer text"
        )
    append(content, learned)
    save(content, spec.base, run.output)
    figures = {
        "first_new_token": first,
        "new_tokens": len(content["model"]["vocab"]) - before,
        "merges_of_characters": of_characters,
        "merges_learned": len(learned),
        "sampled_characters": sample.characters,
        "khmer_characters": characters,
        "llama_cpp_pre_tokenizer": name,
        **compare(spec.base, run.output, spec.mixture),
    }
    _refuse_changes(figures, spec.settings)
    if spec.settings.prune is not None:
        figures |= _pruned(content, sample, figures, spec, run)
    (run.output / FIGURES).write_text(json.dumps(figures, ensure_ascii=False, indent=1))
    return {key: value for key, value in figures.items() if not isinstance(value, list)}


def _pruned(
    content: dict[str, Any], sample: TrainingSample, figures: dict[str, Any], spec: Spec, run: PayloadRun
) -> dict[str, Any]:
    """Write the tokenizer again without the tokens that the sample needs least; the figures that this changes."""
    wanted = spec.settings.prune or 0
    (run.output / UNPRUNED).mkdir()
    save(content, spec.base, run.output / UNPRUNED)
    needed = pruning.needs(content, sample)
    gone = pruning.prune(content, needed, wanted, figures["first_new_token"])
    if len(gone) < wanted:
        raise Refusal(
            f"only {len(gone)} of the base's tokens can be taken away, for Khmer is built on the others, or they are "
            f"bytes or special; lower extension.prune ({wanted})"
        )
    save(content, spec.base, run.output)
    return {
        "pruned_tokens": len(gone),
        "pruned_share_of_sample": sum(needed[token] for token in gone) / needed.total(),
        "first_new_token": figures["first_new_token"] - len(gone),
        **compare(spec.base, run.output, spec.mixture),
    }


def read_tokenizer(base: Path) -> dict[str, Any]:
    """The base's `tokenizer.json`, all added tokens in its vocabulary too, so that they keep their ids beside new ones.

    Raises `Refusal` for a tokenizer that is no byte-level BPE.
    """
    file = base / "tokenizer.json"
    if not file.is_file():
        raise Refusal(f"{base} has no tokenizer.json; give a base model whose tokenizer is a byte-level BPE")
    content: dict[str, Any] = json.loads(file.read_text())
    kind, steps = content["model"]["type"], _steps(content)
    last = steps[-1] if steps else {}
    if kind != "BPE" or last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        cut = ", ".join(step["type"] for step in steps) or "nothing"
        raise Refusal(
            f"the tokenizer of {base} is a {kind} model that cuts text by {cut} (SentencePiece, where it is Unigram or "
            "Metaspace). Only a byte-level BPE without a prefix space can be taught Khmer, as Qwen, Llama 3 and SmolLM "
            "have; take such a base, or leave out the recipe's section `extension`"
        )
    if (content["normalizer"] or {}).get("normalizers") == []:
        content["normalizer"] = None
    for token in content["added_tokens"]:
        content["model"]["vocab"].setdefault(token["content"], token["id"])
    return content


def _steps(content: dict[str, Any]) -> list[dict[str, Any]]:
    pre = content["pre_tokenizer"] or {}
    return list(pre.get("pretokenizers", [pre] if pre else []))


def use_khmer_pattern(content: dict[str, Any], pattern: Literal["exact", "llama_cpp"]) -> str | None:
    """Let the tokenizer keep Khmer marks with their letters; llama.cpp's name of how it then cuts text, if it has one.

    Raises `Refusal` where the steps that cut text are not understood.
    """
    *steps, byte_level = _steps(content)
    if byte_level["use_regex"]:
        steps.append(_split(GPT2_PATTERN))
        byte_level = {**byte_level, "use_regex": False}
    patterns = [step["pattern"].get("Regex", "") for step in steps if step["type"] == "Split"]
    if unknown := {step["type"] for step in steps} - {"Split", "Digits"}:
        raise Refusal(f"the base's tokenizer cuts text by {', '.join(unknown)}; only Split and Digits are understood")
    if not any(_is_of_letters(one) for one in patterns):
        raise Refusal(f"no pattern of the base's tokenizer is one of letters (\\p{{L}}): {patterns}")
    of_qwen = len(steps) == 1 and patterns[0] in (QWEN2_PATTERN, KHMER_PATTERN)
    if of_qwen or pattern == "llama_cpp":
        if content["model"].get("ignore_merges"):
            raise Refusal("llama.cpp would read this base's tokens in another way; set extension.pattern: exact")
        steps, name = [_split(KHMER_PATTERN)], LLAMA_CPP_NAME
    else:
        name = None
        for step in steps:
            if step["type"] == "Split" and "Regex" in step["pattern"]:
                step["pattern"]["Regex"] = with_khmer_marks(step["pattern"]["Regex"])
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*steps, byte_level]}
    return name


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _is_of_letters(pattern: str) -> bool:
    return r"\p{L}" in pattern or r"\p{M}" in pattern


def with_khmer_marks(pattern: str) -> str:
    r"""`pattern` with Khmer's marks wherever it names letters, unless it knows marks already.

    >>> with_khmer_marks(r" ?\p{L}+| ?[^\s\p{L}]+") == rf" ?[\p{{L}}{KHMER_MARKS}]+| ?[^\s\p{{L}}{KHMER_MARKS}]+"
    True
    """
    if r"\p{M}" in pattern:
        return pattern
    return re.sub(
        r"\[[^\]]*\]|\\p\{L\}",
        lambda found: (
            found[0].replace(r"\p{L}", r"\p{L}" + KHMER_MARKS)
            if found[0].startswith("[")
            else rf"[\p{{L}}{KHMER_MARKS}]"
        ),
        pattern,
    )


def whole_characters(content: dict[str, Any]) -> int:
    """Append the merges that make each Khmer character one token, letters after a space too; how many those are."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(content))
    merges: dict[tuple[str, str], None] = {}
    for text in (*sorted(KHMER_CHARACTERS), *(f" {letter}" for letter in KHMER_LETTERS)):
        tokens = tokenizer.encode(text, add_special_tokens=False).tokens
        tokens = tokens[1:] if tokens[0] == SPACE else tokens
        while len(tokens) > 1:
            merges[tokens[0], tokens[1]] = None
            tokens = ["".join(tokens[:2]), *tokens[2:]]
    append(content, merges)
    return len(merges)


def learn(tokenizer: "Tokenizer", runs: Counter[str], merges: int) -> list[tuple[str, str]]:
    """The `merges` most useful merges of the tokens that `tokenizer` gives for the runs (and counts), in order."""
    from tokenizers import Tokenizer, models, trainers

    symbols: dict[str, str] = {}
    texts = list(runs)
    words = [
        "".join(symbols.setdefault(token, chr(SYMBOLS_FROM + len(symbols))) for token in encoded.tokens)
        for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)
    ]
    learner = Tokenizer(models.BPE())
    learner.train_from_iterator(
        (word for text, word in zip(texts, words, strict=True) for word in repeat(word, runs[text])),
        trainers.BpeTrainer(vocab_size=len(symbols) + merges, min_frequency=2, show_progress=False),
    )
    tokens = {symbol: token for token, symbol in symbols.items()}
    return [
        ("".join(tokens[symbol] for symbol in left), "".join(tokens[symbol] for symbol in right))
        for left, right in json.loads(learner.to_str())["model"]["merges"]
    ]


def append(content: dict[str, Any], merges: Iterable[tuple[str, str]]) -> None:
    """Append merges to a `tokenizer.json`, and what they make to its vocabulary under the next ids."""
    vocabulary, known = content["model"]["vocab"], content["model"]["merges"]
    joined = bool(known) and isinstance(known[0], str)
    following = next_id(content)
    for left, right in merges:
        known.append(f"{left} {right}" if joined else [left, right])
        if left + right not in vocabulary:
            vocabulary[left + right] = following
            following += 1


def next_id(content: dict[str, Any]) -> int:
    """The id after all that the vocabulary of a `tokenizer.json` has."""
    return max(content["model"]["vocab"].values()) + 1


def save(content: dict[str, Any], base: Path, target: Path) -> None:
    """Write a `tokenizer.json`, and beside it what else the base's tokenizer has.

    Its class becomes the general one, for those of single models cut text by a pattern of their own instead of the
    file's. Where the other files name ids of added tokens, they are those of the `tokenizer.json`.
    """
    (target / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    for name in COPIED:
        if (base / name).exists():
            shutil.copyfile(base / name, target / name)
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    if (base / ADDED_TOKENS).exists():
        named = {
            token: added.get(token, former) for token, former in json.loads((base / ADDED_TOKENS).read_text()).items()
        }
        (target / ADDED_TOKENS).write_text(json.dumps(named, ensure_ascii=False, indent=1))
    file = base / "tokenizer_config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": OF_NO_CODE}
    if decoder := config.get("added_tokens_decoder"):
        config["added_tokens_decoder"] = {
            str(added.get(token["content"], former)): token for former, token in decoder.items()
        }
    (target / file.name).write_text(json.dumps(config, indent=1))


def compare(base: Path, extended: Path, mixture: Path) -> dict[str, Any]:
    """In how many of the held-out English lines, in the code, and in the chat both tokenizers give the same ids, or,
    where they have moved because tokens were pruned, the same tokens.

    A line that quotes Khmer is none of them: its ids are to change.
    """
    from transformers import AutoTokenizer

    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (base, extended))
    vocabulary = new.get_vocab()
    moved = {identity: vocabulary.get(token) for token, identity in old.get_vocab().items()}

    def is_as_before(before: Sequence[int], after: Sequence[int]) -> bool:
        return [moved[identity] for identity in before] == list(after)

    held_out = (line for text in texts_of(mixture, "validation", "eng") for line in text.splitlines())
    lines = [line for line in held_out if line.strip() and KHMER_CHARACTERS.isdisjoint(line)]
    before, after = (t(lines)["input_ids"] if lines else [] for t in (old, new))
    changed = [line for line, a, b in zip(lines, before, after, strict=True) if not is_as_before(a, b)]
    chats = [t.apply_chat_template(CHAT, return_dict=False) for t in (old, new)] if old.chat_template else [[], []]
    return {
        "english_lines": len(lines),
        "english_lines_changed": len(changed),
        "examples_of_changed_lines": changed[:EXAMPLES],
        "code_ids_equal": is_as_before(old(CODE)["input_ids"], new(CODE)["input_ids"]),
        "chat_template_ids_equal": is_as_before(*chats),
    }


def _refuse_changes(figures: dict[str, Any], settings: Extension) -> None:
    lines, changed = figures["english_lines"], figures["english_lines_changed"]
    code_or_chat = not (figures["code_ids_equal"] and figures["chat_template_ids_equal"])
    if settings.pattern == "exact" and (changed or code_or_chat):
        raise Refusal(
            f"{changed} of {lines} English lines, the code or the chat template would get other ids, such as "
            f"{figures['examples_of_changed_lines']}; this base's tokenizer cannot be extended by this project"
        )
    if changed > MAX_CHANGED * lines:
        raise Refusal(
            f"{changed} of {lines} English lines would get other ids with llama.cpp's pattern {LLAMA_CPP_NAME}; set "
            "extension.pattern: exact and release a variant that is no GGUF, or take a base with Qwen 2's pattern"
        )
