"""A rule on documents: a measure, a limit, and a sentence for people; and the first rule that a document breaks."""

import polars as pl

VERDICT = ("_rule", "_measure", "_reason")
Rule = tuple[str, str, pl.Expr, pl.Expr]
"""Name, measure, whether it is broken, and the sentence."""


def below(rule: str, measure: str, limit: float, sentence: str) -> Rule:
    """Broken where the measure is below the limit; `sentence` has a place for the measure and one for the limit."""
    return rule, measure, pl.col(measure) < limit, _sentence(sentence, measure, limit)


def above(rule: str, measure: str, limit: float, sentence: str) -> Rule:
    """Broken where the measure is above the limit, as `below`."""
    return rule, measure, pl.col(measure) > limit, _sentence(sentence, measure, limit)


def _sentence(sentence: str, measure: str, limit: float) -> pl.Expr:
    return pl.format(sentence, pl.col(measure).round(3), pl.lit(f"{limit:g}"))


def judged(rows: pl.DataFrame, rules: list[Rule]) -> pl.DataFrame:
    """`rows` with the columns of `VERDICT`: of the first rule that a row breaks, null where it breaks none."""
    verdict = pl.coalesce(
        pl.when(broken).then(pl.struct(_rule=pl.lit(rule), _measure=pl.col(measure).cast(pl.Float64), _reason=reason))
        for rule, measure, broken, reason in rules
    )
    return rows.with_columns(verdict.alias("_verdict")).unnest("_verdict")
