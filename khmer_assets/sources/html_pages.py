"""An HTML page as a row: the article on it, without menus and advertisements. Kinds that meet HTML share this.

What belongs here: what a page says. What does not: where it came from and how it was decoded.
"""

import re

from khmer_assets.sources.rows import TEXT_OF_REMOVED, Row, failure

# beyond these, the parsers need seconds to hours: their time grows with the square of both
MAX_TAGS = 25_000
MAX_TAG_WORDS = 2_000

STAND_IN = "\u205c"  # dotted cross
_ZERO_WIDTH_SPACE = re.compile("\u200b|&#0*8203;|&#[xX]0*200[bB];|&ZeroWidthSpace;|<wbr ?/?>")
_LONG_TAG = re.compile(rf"<[a-zA-Z][^<>]{{{MAX_TAG_WORDS * 2},}}")


def extract(html: str, place: str, url: str | None = None) -> Row:
    """The article's `text`, `title`, `category`, `url` and `published_at` (a day, ISO 8601), as trafilatura finds them.

    Zero-width spaces stay in the text, for normalization is to decide on them; word breaks (`<wbr>`) become such.
    Set aside are pages without an article (missing_text), those that would take the parsers hours (too_complex) and
    those that they cannot parse (unreadable_page).
    `url` is the page's address where it is known; else the page says it.
    """
    import trafilatura
    from trafilatura.settings import set_date_params

    shown = html[:TEXT_OF_REMOVED]
    if reason := too_complex(html):
        return failure("too_complex", place, reason, shown)
    dates = set_date_params(extensive=False)  # else any year in the text may become the day of publication
    # trafilatura deletes zero-width spaces: a rare visible sign stands in
    visible = _ZERO_WIDTH_SPACE.sub(STAND_IN, html.replace("\0", ""))
    try:
        article = trafilatura.bare_extraction(
            visible, url=url, with_metadata=True, include_comments=False, date_extraction_params=dates
        )
    except Exception as error:  # whatever the libraries of HTML raise on what is none
        return failure("unreadable_page", place, f"cannot be parsed: {error!r:.200}", shown)
    if article is None or not (article.text or "").strip():
        return failure("missing_text", place, "no article was found on the page", shown)
    return {
        "text": article.text.replace(STAND_IN, "\u200b"),
        "title": _plain(article.title),
        "category": _plain((article.categories or [None])[0]),
        "url": url or article.url,
        "published_at": article.date,
        "place": place,
    }


def too_complex(html: str) -> str | None:
    """Why a page should not be parsed: it has more tags, or a tag more attributes, than any page for readers."""
    tags = html.count("<")
    if tags > MAX_TAGS:
        return f"has {tags:,} tags, and at most {MAX_TAGS:,} are read"
    for tag in _LONG_TAG.finditer(html):
        words = len(tag.group().split())
        if words > MAX_TAG_WORDS:
            return f"has a tag of {words:,} words, and at most {MAX_TAG_WORDS:,} are read"
    return None


def _plain(value: str | None) -> str | None:
    return (value or "").replace(STAND_IN, "").strip() or None
