"""What the pages of the corpus' artifacts show: figures, and tables and pictures in Markdown."""

from typing import Any

import polars as pl

from khmer_assets.foundation.plots import as_markdown, new_figure
from khmer_assets.foundation.tables import markdown_table


def lengths(documents: pl.LazyFrame) -> dict[str, Any]:
    """How long the documents are."""
    lengths = documents.select(pl.col("text").str.len_chars()).collect()["text"]
    figure = new_figure()
    axes = figure.subplots()
    if lengths.len():
        axes.hist(lengths.to_numpy(), bins=[10 ** (place / 5) for place in range(36)])
    axes.set(xscale="log", xlabel="characters of a document", ylabel="documents")
    return {"characters": int(lengths.sum()), "length_histogram": as_markdown(figure)}


def verdicts(rows: pl.LazyFrame, column: str) -> dict[str, Any]:
    """Documents by source and verdict, as a table and a picture."""
    counts = rows.group_by("source", pl.col(column).fill_null("kept")).len("documents").sort("source", column).collect()
    figure = new_figure()
    axes = figure.subplots()
    by_rule = counts.group_by(column).agg(pl.col("documents").sum()).sort("documents")
    axes.bar_label(axes.barh(by_rule[column].to_list(), by_rule["documents"].to_list()))
    axes.set(xlabel="documents")
    return {
        "documents_by_rule": markdown_table(counts),
        "verdicts": as_markdown(figure),
    }


def composition(mixture: pl.LazyFrame) -> dict[str, Any]:
    """Documents and characters by language and source; characters count as often as they are used."""
    table = (
        mixture.group_by("language", "source", "split")
        .agg(
            documents=pl.len(),
            characters=pl.col("text").str.len_chars().sum(),
            characters_used=(pl.col("text").str.len_chars().cast(pl.Int64) * pl.col("copies")).sum(),
        )
        .sort("language", "source", "split")
        .collect()
    )
    figure = new_figure()
    axes = figure.subplots()
    used: dict[str, int] = {}
    languages = table["language"].unique(maintain_order=True).to_list()
    train = table.filter(split="train")
    for source in train["source"].unique(maintain_order=True):
        own = dict(train.filter(source=source).select("language", "characters_used").iter_rows())
        heights = [own.get(language, 0) for language in languages]
        axes.bar(languages, heights, bottom=[used.get(language, 0) for language in languages], label=source)
        used = {language: used.get(language, 0) + height for language, height in zip(languages, heights, strict=True)}
    axes.set(ylabel="training characters, repeats counted")
    if used:
        axes.legend()
    return {
        "composition": markdown_table(table),
        "characters_by_language": as_markdown(figure),
    }
