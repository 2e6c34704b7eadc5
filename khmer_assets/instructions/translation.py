"""English chats in Khmer: the payload that translates them by CTranslate2 with weights of 8 bits.

Any model of the M2M100 family serves (NLLB-200, M2M-100, SMaLL-100). Texts are translated sentence by sentence; blocks
of code, addresses, numbers and names of things are kept (`placeholders.py`), lines stay lines. A chat is set aside as
soon as one of its sentences is not sound:

| rule | measure |
|---|---|
| not_english | the share of Khmer letters |
| too_long | the sentence's tokens |
| cut_off | the translation's tokens, where the model came to no end |
| other_language | the share of Khmer among the letters of the translation |
| repeated | the share of its runs of characters that were there before |
| placeholder_lost | how many placeholders are not exactly once in the translation |

Limits were set by reason and tried on models without knowledge: no English-Khmer weights were at hand. Look at what
each rule sets aside before you trust them.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import polars as pl
from pydantic import BaseModel, BeforeValidator

from khmer_assets.base_model.bring_in import folder_or_name
from khmer_assets.instructions.chat_dataset import UNREADABLE
from khmer_assets.instructions.chat_files import ChatFiles, read_all
from khmer_assets.instructions.chats import NEW_CHAT
from khmer_assets.instructions.placeholders import bare_of_placeholders, protected, restored
from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.khmer.script import dominant_script, script_shares
from khmer_assets.khmer.sentences import sentences
from khmer_assets.sources.documents import SET_ASIDE
from khmer_assets.sources.rows import SourceError
from resources.payload import PayloadRun, Refusal

ROWS = "rows.parquet"
LANGUAGES = (("eng_Latn", "khm_Khmr"), ("__en__", "__km__"))  # how NLLB and M2M-100 name them
MAX_TOKENS = 256  # of a sentence
TOKENS_AT_ONCE = 2_048  # of a batch
SENTENCES_AT_ONCE = 512  # are sorted by length, translated and written down together
BEAMS = 2
KHMER_SHARE = 0.6  # of the letters, placeholders aside
RUN, REPEATED = 6, 0.5  # characters; the share of a text's runs that may repeat
SHORTEST_REPEATED = 30  # characters
CODE = re.compile(r"(```.*?(?:```|\Z))", re.DOTALL)
BEGIN = re.compile(r"\s*(?:(?:[-*•>]|\d{1,4}[.)]|#{1,6})\s+)?")  # of a line


class Translated(ChatFiles):
    """`model`: a folder (relative to the recipe, beginning with ./, / or ~) or a name on the Hugging Face hub, such as
    facebook/nllb-200-distilled-600M (whose license, CC-BY-NC, forbids commercial use). `path` as of chat_files."""

    model: Annotated[str, BeforeValidator(folder_or_name)]


class Spec(BaseModel):
    """The chat sources, by name."""

    sources: dict[str, Translated]
    normalization: Normalization


class Translation(NamedTuple):
    """A sentence's translation as the model gave it: `ended` is whether it came to an end."""

    text: str
    tokens: int
    ended: bool


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `rows.parquet`, `NEW_CHAT` with rule, measure and reason; return figures. Raises `Refusal`.

    What is translated is written down as it comes, so a run that is killed goes on where it was.
    """
    frames: list[pl.DataFrame] = []
    figures: dict[str, int] = {}
    for name, settings in spec.sources.items():
        try:
            chats = read_all(settings, name, spec.normalization).collect().to_dicts()
        except (OSError, SourceError) as error:
            raise Refusal(f"the chats of the source {name!r} cannot be read: {error}") from None
        model = _Model(settings.model, run.state / name)
        pieces = {p for chat in chats if _is_english(chat) for m in chat["messages"] for p in _pieces(m["content"])}
        known = _translated(sorted(pieces), model, run.state / f"{name}.jsonl", run)
        rows = [_row(chat, known, spec.normalization) for chat in chats]
        frames.append(pl.DataFrame(rows, schema={**NEW_CHAT, **SET_ASIDE}))
        figures |= {f"{name}_sentences": len(pieces), f"{name}_model_bytes": model.size}
    pl.concat(frames).write_parquet(run.output / ROWS)
    return figures


def _is_english(chat: dict[str, Any]) -> bool:
    return chat[UNREADABLE] is None and chat["language"] == "eng"


def parts(text: str) -> Iterator[tuple[str, bool]]:
    """The text in parts, and whether each is a sentence to translate; together they are the text, one space between
    the sentences of a line."""
    for block in CODE.split(text):
        if block.startswith("```"):
            yield block, False
            continue
        for line in block.splitlines(keepends=True):
            begin = cast(re.Match[str], BEGIN.match(line)).end()
            end = max(begin, len(line.rstrip()))
            yield line[:begin], False
            found = list(sentences(line[begin:end]))
            for number, sentence in enumerate(found):
                if number:
                    yield " ", False
                yield sentence, True
            yield line[end if found else begin :], False


def _pieces(text: str) -> Iterator[str]:
    """The sentences of a text that have words beside their placeholders, as the model reads them."""
    for part, translates in parts(text):
        hidden, _ = protected(part)
        if translates and dominant_script(bare_of_placeholders(hidden)) is not None:
            yield hidden


def _row(chat: dict[str, Any], known: dict[str, Translation], normalization: Normalization) -> dict[str, Any]:
    fault: tuple[str | None, float | None, str | None] = (None, None, None)
    if (reason := chat.pop(UNREADABLE)) is not None:
        fault = UNREADABLE, 1.0, reason
    elif chat["language"] != "eng":
        khmer, _ = script_shares("\n".join(message["content"] for message in chat["messages"]))
        fault = "not_english", khmer, f"{khmer:.0%} of the letters are Khmer already"
    for message in chat["messages"] if fault[0] is None else []:
        translated, found = _of_message(message["content"], known)
        message["content"] = normalize(translated, normalization)[0]
        fault = found or fault
    if fault[0] is None:
        chat["language"] = "khm"
    return {**chat, **dict(zip(SET_ASIDE, fault, strict=True))}


def _of_message(text: str, known: dict[str, Translation]) -> tuple[str, tuple[str, float, str] | None]:
    """The translated message, and the first fault of its sentences."""
    made = []
    for part, translates in parts(text):
        hidden, kept = protected(part)
        if not translates or hidden not in known:
            made.append(part)
            continue
        if (fault := judged(hidden, known[hidden], len(kept))) is not None:
            return text, fault
        made.append(restored(known[hidden].text, kept)[0])
    return "".join(made), None


def judged(source: str, translation: Translation, placeholders: int) -> tuple[str, float, str] | None:
    """Rule, measure and reason where a translation is not sound, else None."""
    text, tokens, ended = translation
    if not ended:
        rule = "too_long" if not text else "cut_off"
        return rule, tokens, f"{tokens} tokens, expected at most {MAX_TOKENS}: {source:.200}"
    khmer, _ = script_shares(bare_of_placeholders(text))
    if khmer < KHMER_SHARE:
        return "other_language", khmer, f"{khmer:.0%} of the letters are Khmer: {text:.200}"
    if (share := repetition(text)) > REPEATED:
        return "repeated", share, f"{share:.0%} of its runs of characters were there before: {text:.200}"
    if wrong := restored(text, [""] * placeholders)[1]:
        return "placeholder_lost", wrong, f"{wrong} placeholders are not there once: {text:.200}"
    return None


def repetition(text: str) -> float:
    """The share (0 to 1) of a text's runs of six characters that were in it before; 0 for a short one."""
    letters = "".join(text.split())
    if len(letters) < SHORTEST_REPEATED:
        return 0.0
    runs = [letters[place : place + RUN] for place in range(len(letters) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs)


def _translated(pieces: list[str], model: "_Model", file: Path, run: PayloadRun) -> dict[str, Translation]:
    known = _written_down(file)
    missing = sorted((piece for piece in pieces if piece not in known), key=len)
    began, done = time.monotonic(), 0
    with file.open("a", encoding="utf-8") as kept:
        for start in range(0, len(missing), SENTENCES_AT_ONCE):
            batch = missing[start : start + SENTENCES_AT_ONCE]
            for piece, translation in zip(batch, model.translate(batch), strict=True):
                known[piece] = translation
                kept.write(json.dumps([piece, *translation], ensure_ascii=False) + "\n")
            kept.flush()
            done += len(batch)
            rate = done / max(time.monotonic() - began, 1e-9)
            run.log(f"{done:,} of {len(missing):,} sentences, {rate:.1f} a second")
    return known


def _written_down(file: Path) -> dict[str, Translation]:
    """What an earlier run has translated; its last line may be half a line, which is taken away."""
    known: dict[str, Translation] = {}
    if not file.exists():
        return known
    whole = file.read_bytes().rpartition(b"\n")[0]
    with file.open("wb") as kept:
        kept.write(whole + b"\n" if whole else b"")
    for line in whole.decode().split("\n") if whole else []:
        piece, *translation = json.loads(line)
        known[piece] = Translation(*translation)
    return known


class _Model:
    """A model of the M2M100 family in 8 bits, converted once into the folder."""

    def __init__(self, name: str, folder: Path):
        import ctranslate2
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
            if not (folder / "model.bin").exists():
                _convert(name, folder, self._tokenizer)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise Refusal(
                f"{name} cannot be read as a translation model: {error!s:.500}; expected one of the M2M100 family, as "
                "a folder that begins with ./, / or ~, or a name on the hub"
            ) from None
        ids = self._tokenizer.get_vocab()
        pair = next((pair for pair in LANGUAGES if set(pair) <= ids.keys()), None)
        if pair is None:
            raise Refusal(f"{name} knows none of the languages {LANGUAGES}; expected NLLB-200 or M2M-100")
        self._source, self._target = pair
        self.size = (folder / "model.bin").stat().st_size
        self._translator = ctranslate2.Translator(str(folder), device="auto", compute_type="int8")

    def translate(self, texts: Iterable[str]) -> list[Translation]:
        """The translation of each sentence; one of too many tokens is not translated."""
        end = self._tokenizer.eos_token
        tokenized = [[self._source, *self._tokenizer.tokenize(text), end] for text in texts]
        short = [tokens for tokens in tokenized if len(tokens) <= MAX_TOKENS]
        results = iter(
            self._translator.translate_batch(
                short,
                target_prefix=[[self._target]] * len(short),
                batch_type="tokens",
                max_batch_size=TOKENS_AT_ONCE,
                max_decoding_length=MAX_TOKENS,
                beam_size=BEAMS,
                return_end_token=True,
            )
        )
        return [
            Translation("", len(tokens), False) if len(tokens) > MAX_TOKENS else self._of(next(results).hypotheses[0])
            for tokens in tokenized
        ]

    def _of(self, tokens: list[str]) -> Translation:
        ended = bool(tokens) and tokens[-1] == self._tokenizer.eos_token
        words = tokens[1 : len(tokens) - ended]  # the first is the language
        text = self._tokenizer.convert_tokens_to_string(words)
        return Translation(text.strip(), len(tokens), ended)


def _convert(name: str, folder: Path, tokenizer: Any) -> None:
    """Convert by writing aside and renaming: a folder is there when it is whole."""
    from ctranslate2.converters import TransformersConverter

    aside = folder.with_name(f"{folder.name}.aside")
    with _whole_vocabulary(tokenizer):
        TransformersConverter(name).convert(str(aside), quantization="int8", force=True)
    aside.rename(folder)


@contextmanager
def _whole_vocabulary(tokenizer: Any) -> Iterator[None]:
    """CTranslate2 4.8 asks the tokenizer for its special tokens by a field that transformers 5 leaves empty."""
    from ctranslate2.converters.transformers import M2M100Loader

    def vocabulary(_: Any, model: Any, __: Any) -> list[str]:
        names = {identity: token for token, identity in tokenizer.get_vocab().items()}
        return [names.get(number, f"madeupword{number}") for number in range(model.config.vocab_size)]

    own = M2M100Loader.get_vocabulary
    M2M100Loader.get_vocabulary = vocabulary
    try:
        yield
    finally:
        M2M100Loader.get_vocabulary = own
