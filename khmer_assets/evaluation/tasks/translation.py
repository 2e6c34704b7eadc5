"""Translation between English and Khmer: FLORES-200 (NLLB team 2022) and NTREX-128 (Federmann et al. 2022), greedy.

BLEU over characters, for Khmer writes no spaces, and chrF++, both sacrebleu's; its signatures are in the report.
"""

from collections.abc import Mapping
from pathlib import Path

from khmer_assets.evaluation.items import (
    ENGLISH_NAMES,
    Benchmark,
    Item,
    ItemLanguage,
    bad,
    folder_of,
    published,
    rows_of,
)
from khmer_assets.evaluation.measures import Measure
from khmer_assets.sources.rows import SourceError

OTHER: dict[ItemLanguage, ItemLanguage] = {"khm_Khmr": "eng_Latn", "eng_Latn": "khm_Khmr"}
NTREX_NAMES: dict[ItemLanguage, str] = {"khm_Khmr": "ref.khm", "eng_Latn": "src.eng"}


def read(benchmark: Benchmark) -> list[Item]:
    """The pairs as published: a file a language, a line (or a row of Parquet with `text`) a sentence.

    Raises `SourceError` when the files do not have equally many.
    """
    wanted, given = benchmark.language, OTHER[benchmark.language]
    names = {language: _files(benchmark, language) for language in (wanted, given)}
    folder = folder_of(benchmark, [name for listed in names.values() for name in listed])
    if folder.is_file():
        raise SourceError(f"evaluation.tasks ({benchmark.name}): {folder} is a file, expected the folder of both files")
    files = {language: published(folder, listed) for language, listed in names.items()}
    lines = {language: _lines(file) for language, file in files.items()}
    if len(lines[wanted]) != len(lines[given]):
        told = ", ".join(f"{files[language]} has {len(texts)} lines" for language, texts in lines.items())
        raise SourceError(f"evaluation.tasks ({benchmark.name}): {told}; they are no translations of each other")
    items = []
    for number, (source, target) in enumerate(zip(lines[given], lines[wanted], strict=True), 1):
        if not source or not target:
            items.append(bad(str(number), "empty", f"line {number} is empty in one of the languages"))
            continue
        prompt = f"Translate into {ENGLISH_NAMES[wanted]}: {source}"
        items.append(Item(str(number), prompt, reference=target, language=wanted))
    return items[: benchmark.items]


def _files(benchmark: Benchmark, language: ItemLanguage) -> list[str]:
    if benchmark.task == "ntrex128":
        name = f"newstest2019-{NTREX_NAMES[language]}.txt"
        return [f"NTREX-128/{name}", name]
    devtest = f"{language}.devtest"
    return [f"devtest/{devtest}", f"flores200_dataset/devtest/{devtest}", devtest, f"devtest/{language}.parquet"]


def _lines(file: Path) -> list[str]:
    if file.suffix == ".parquet":
        return [str(row.get("text") or "").strip() for row in rows_of(file)]
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def chrf(task: str, answers: Mapping[str, str], references: Mapping[str, str]) -> Measure:
    """chrF++ of the answers, by id."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(word_order=2)
    return Measure(task, "chrF++", "chrf", _sums(metric, answers, references), note=str(metric.get_signature()))


def bleu(task: str, answers: Mapping[str, str], references: Mapping[str, str]) -> Measure:
    """BLEU over characters of the answers, by id."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="char", force=True)
    sums = _sums(metric, answers, references)
    return Measure(task, "BLEU", "bleu", sums, note=str(metric.get_signature()))


def _sums(metric: object, answers: Mapping[str, str], references: Mapping[str, str]) -> dict[str, list[float]]:
    wanted = [references[identity] for identity in answers]
    sums = metric._extract_corpus_statistics(list(answers.values()), [wanted])  # type: ignore[attr-defined]
    return {identity: [float(value) for value in own] for identity, own in zip(answers, sums, strict=True)}
