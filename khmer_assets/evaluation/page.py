"""The report as one HTML page that needs nothing else: tables that scroll in a narrow window, pictures for light and
dark. What is in the report stands in `report.py`."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import polars as pl

MAX_CELL = 400  # characters

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1f2328; --soft: #59636e; --line: #d0d7de; --head: #f6f8fa;
  --good: #1a7f37; --bad: #c62f2f; }
@media (prefers-color-scheme: dark) { :root { --back: #16191d; --ink: #e6e8ea; --soft: #9aa4ae; --line: #3a4047;
  --head: #1f242a; --good: #5cc27a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { background: var(--back); color: var(--ink); margin: 0 auto; max-width: 76rem; padding: 1rem 1.25rem 4rem;
  font: 16px/1.55 system-ui, "Noto Sans Khmer", "Khmer OS", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { color: var(--soft); margin: .3rem 0 .8rem; max-width: 46rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .875rem; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { background: var(--head); white-space: nowrap; font-weight: 600; }
tr:last-child td { border-bottom: 0; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--back); }
th:first-child { background: var(--head); }
td.figure { white-space: nowrap; } td.text { min-width: 13rem; overflow-wrap: anywhere; }
.better { color: var(--good); } .worse { color: var(--bad); }
img { max-width: 100%; height: auto; display: block; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; }
.pictures picture { flex: 1 1 19rem; max-width: 34rem; }
@media (max-width: 40rem) { body { padding: .75rem .75rem 3rem; font-size: 15px; }
  td:first-child, th:first-child { min-width: 6.5rem; max-width: 40vw; white-space: normal; } }
"""


class Section(NamedTuple):
    """A heading, a word of explanation, then pictures, each as its light and its dark address, and a table."""

    title: str
    about: str = ""
    table: pl.DataFrame | None = None
    pictures: Sequence[tuple[str, str]] = ()


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """The page. No text of a model or of an item can become markup."""
    body = "\n".join(_section(section) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(about)}</p>
{body}
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.about:
        parts.append(f"<p>{escape(section.about)}</p>")
    if section.pictures:
        shown = [
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img src="{light}" alt="{escape(section.title)}"></picture>'
            for light, dark in section.pictures
        ]
        parts.append(f'<div class="pictures">{"".join(shown)}</div>')
    if section.table is not None:
        parts.append(_table(section.table))
    return "\n".join(parts)


def _table(frame: pl.DataFrame) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in frame.columns)
    rows = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in frame.iter_rows())
    # a scrolling box takes the keyboard's focus, else nobody without a mouse reaches its end
    return f'<div class="scroll" tabindex="0"><table><tr>{head}</tr>\n{rows}</table></div>'


def _cell(value: object) -> str:
    text = f"{value:,.4g}" if isinstance(value, float) else "" if value is None else str(value)
    text = text if len(text) <= MAX_CELL else text[:MAX_CELL] + "…"
    kind = "text" if len(text) > 28 else "figure"
    mark = " better" if text.startswith("▲") else " worse" if text.startswith("▼") else ""
    return f'<td class="{kind}{mark}">{escape(text)}</td>'
