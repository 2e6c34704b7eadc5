"""What a person looks at: documents of each label with what was said of them and what the model says.

The model's verdicts here are of classifiers that have not learned from the document. Texts come from anywhere, so they
stand escaped on a page that runs no code and fetches nothing.
"""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from khmer_assets.foundation.tables import markdown_table
from khmer_assets.labels.calibration import Floats, Targets, slices
from khmer_assets.labels.categories import ANY_OF, GOOD, LABELS, ONE_OF, Categories, Head

SHOWN = 20  # documents a label
TEXT = 600  # characters of a document on the page
IN_METADATA = 2  # documents a label

STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans Khmer", sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } td, th { border: 1px solid #ccc; padding: .3rem .5rem;
text-align: left; vertical-align: top } tr.differs { background: #fff3d6 } td.text { overflow-wrap: anywhere }
.id { color: #666; font-size: 12px; overflow-wrap: anywhere }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def chosen(
    rows: pl.DataFrame,
    asked: list[Head],
    targets: Targets,
    given: dict[str, Floats],
    verdicts: dict[str, list[list[str]]],
) -> list[dict[str, Any]]:
    """At most twenty documents for each label that somebody or the model gives: half of them, if there are so many,
    where the two differ, the surest first."""
    place = slices(asked)
    records = rows.to_dicts()
    found = []
    for head in asked:
        if head.name not in (*ONE_OF, *ANY_OF, "good_quality"):
            continue
        said = targets[:, place[head.name]]
        for number, label in enumerate(head.labels):
            own = np.array([label in verdict for verdict in verdicts[head.name]])
            known = said[:, number] != 0
            has = said[:, number] == 1
            order = np.argsort(-given[head.name][:, number], kind="stable")
            differing = [row for row in order if known[row] and has[row] != own[row]]
            alike = [row for row in order if has[row] and own[row]]
            half = max(SHOWN // 2, SHOWN - len(alike))
            for row in [*differing[:half], *alike[: SHOWN - min(half, len(differing))]]:
                found.append(
                    {
                        "question": head.name,
                        "label": label,
                        "source": records[row]["source"],
                        "id": records[row]["id"],
                        "text": records[row]["text"][:TEXT],
                        "by": records[row]["teacher"],
                        "said": _said(records[row], head.name),
                        "model": ", ".join(verdicts[head.name][row]) or "none",
                        "probability": round(float(given[head.name][row, number]), 3),
                        "differs": bool(has[row] != own[row]),
                        "labels": {name: records[row][name] for name in LABELS},
                    }
                )
    return found


def _said(row: dict[str, Any], question: str) -> str:
    if question == "good_quality":
        return f"quality {row['quality']}"
    value = row[question]
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)


def write(shown: list[dict[str, Any]], categories: Categories, folder: Path) -> None:
    """`labels.html` for a reader, and `review.jsonl`: the same documents as lines of corrections, to be edited."""
    parts = [
        "<!doctype html><html lang=km><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>Labels</title><style>{STYLE}</style><h1>Labels</h1>",
        "<p>Up to twenty documents a label, first those of which the model says something else (they are marked). "
        "To correct a label, take the document's line out of review.jsonl, change it, and put it into the file that "
        "the recipe names in labels.corrections; leave out what you have not judged.</p>",
    ]
    heading = None
    for one in shown:
        if heading != (one["question"], one["label"]):
            parts += ["</table>"] if heading else []
            heading = (one["question"], one["label"])
            parts.append(
                f"<h2>{_escaped(one['question'])}: {_escaped(_called(categories, *heading))}</h2><table><tr>"
                "<th>document<th>said<th>model<th>probability"
            )
        parts.append(
            f"<tr{' class=differs' if one['differs'] else ''}><td class=text><div class=id>{_escaped(one['source'])} "
            f"{_escaped(one['id'])}</div>{_escaped(one['text'])}<td>{_escaped(one['said'])}<div class=id>"
            f"{_escaped(one['by'])}</div><td>{_escaped(one['model'])}<td>{one['probability']:.3f}"
        )
    parts += ["</table>"] if heading else ["<p>Nothing was labelled.</p>"]
    (folder / "labels.html").write_text("\n".join(parts), encoding="utf-8")
    lines = {(one["source"], one["id"]): {"source": one["source"], "id": one["id"], **one["labels"]} for one in shown}
    (folder / "review.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values()), encoding="utf-8"
    )


def _escaped(text: str) -> str:
    return html.escape("".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text))


def _called(categories: Categories, question: str, label: str) -> str:
    if question == "good_quality":
        return f"quality of {GOOD} or more"
    called = getattr(categories, question)[label]
    return f"{label} ({called.en}; {called.km})"


def markdown(shown: list[dict[str, Any]]) -> str:
    """Some of them as a table."""
    columns = ("question", "label", "text", "said", "model", "probability")
    taken: dict[tuple[str, str], int] = {}
    rows = []
    for one in shown:
        key = (one["question"], one["label"])
        taken[key] = taken.get(key, 0) + 1
        if taken[key] <= IN_METADATA:
            rows.append({column: one[column] for column in columns})
    return markdown_table(pl.DataFrame(rows)) if rows else "Nothing was labelled."
