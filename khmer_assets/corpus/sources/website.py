"""The kind `website`: the articles of a site, crawled politely from its start pages, sitemaps and feeds.

Settings of the catalogue's entry:

| key | meaning |
|---|---|
| start | the address where the crawl begins, or a list; a start page is read for its links |
| sitemap, feed | addresses of sitemaps (XML, plain or .gz, nested or not) and of RSS or Atom feeds |
| articles | regular expressions; a page with one in its path is an article. Default: all but the start pages |
| follow | regular expressions for pages that are read for their links alone; of use beside `articles` |
| selectors | CSS or XPath for title, text, category or published_at, where the general extraction needs help |
| contact | an address that requests name, so that the site's owner can reach you |
| max_pages | at most so many pages of the site in all; default 100,000 |
| max_depth | at most so many links away from a start page; default 10. What a sitemap or feed lists is one link away |
| max_seconds | at most so many seconds a refresh; default six hours |
| delay | the fewest seconds between two requests; default 1. A slow host gets longer pauses |
| timeout | seconds for one page; default 30 |
| revisit_articles | whether a refresh asks for known articles again; default true. False suits a large archive |

Only hosts that the settings name are visited, each with and without `www.`, as their robots.txt allows. A refresh asks
for known pages again, with what the host said to recognize them by (ETag, Last-Modified), and adds what is new; one
that was ended early goes on with what is left. An article that changed gives another row beside the one before it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from khmer_assets.corpus.sources.collection import Collection
from khmer_assets.corpus.sources.entries import settings_of
from khmer_assets.recipe import Settings, Source, digest_of

MAX_ADDRESS = 2_000  # characters; longer links are a site's mistakes

Address = Annotated[str, Field(pattern=r"^https?://[^/?#\s]+\S*$", max_length=MAX_ADDRESS)]
Addresses = Address | list[Address]


class Selectors(Settings):
    """CSS, or XPath where it begins with `/` or `(`. `text` selects the paragraphs, the others take the first match."""

    title: str | None = None
    text: str | None = None
    category: str | None = None
    published_at: str | None = None

    @field_validator("title", "text", "category", "published_at")
    @classmethod
    def _can_be_used(cls, selector: str | None) -> str | None:
        if selector is not None:
            from parsel import Selector

            try:
                select(Selector(text="<p></p>"), selector)
            except Exception as error:  # cssselect and lxml raise their own
                raise ValueError(f"neither CSS nor XPath: {error}") from None
        return selector


class WebsiteSettings(Settings):
    """The entry's `settings`; the module's docstring says what each key means."""

    start: Address | Annotated[list[Address], Field(min_length=1)]
    sitemap: Addresses = Field(default=[])
    feed: Addresses = Field(default=[])
    articles: list[re.Pattern[str]] = Field(default=[])
    follow: list[re.Pattern[str]] = Field(default=[])
    selectors: Selectors = Selectors()
    contact: str | None = None
    max_pages: Annotated[int, Field(gt=0, le=10_000_000)] = 100_000
    max_depth: Annotated[int, Field(ge=0, le=10_000)] = 10
    max_seconds: Annotated[float, Field(gt=0, le=30 * 86_400)] = 6 * 3_600
    delay: Annotated[float, Field(ge=0, le=600)] = 1.0
    timeout: Annotated[float, Field(gt=0, le=600)] = 30.0
    revisit_articles: bool = True

    @property
    def named(self) -> dict[str, str]:
        """The addresses that the settings name, each with its part: start, sitemap or feed."""
        parts = {"start": self.start, "sitemap": self.sitemap, "feed": self.feed}
        return {
            address: part for part, given in parts.items() for address in ([given] if isinstance(given, str) else given)
        }


def collect(source: Source, base: Path, collection: Collection, log: Callable[[str], None]) -> dict[str, Any]:
    """Crawl what waits; when nothing does, ask for the known pages again and for what they lead to.

    Returns the numbers of pages fetched, of those unchanged since the last refresh, and of failures, and whether the
    time limit ended it. It starts Twisted's reactor, so a process can do this once. Raises `RecipeError` for wrong
    settings; a host that is not there gives rows that say so.
    """
    settings = settings_of(source, WebsiteSettings)
    from khmer_assets.corpus.sources.spider import crawl

    return crawl(settings, collection, log)


def fingerprint(source: Source, base: Path) -> str:
    """A digest of the entry alone: a refresh is asked for, not noticed. Raises `RecipeError` for wrong settings."""
    settings_of(source, WebsiteSettings)
    return digest_of(source.model_dump(mode="json"))


def select(page: Any, selector: str) -> list[str]:
    """The texts of what a selector finds on a parsel page: an element's whole text, an attribute's value."""
    found = page.xpath(selector) if selector.startswith(("/", "(")) else page.css(selector)
    texts = (one.xpath("string()").get() if hasattr(one.root, "tag") else one.get() for one in found)
    return [text.strip() for text in texts if text.strip()]
