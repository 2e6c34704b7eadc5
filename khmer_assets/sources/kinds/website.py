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

from collections.abc import Callable
from pathlib import Path
from typing import Any

from khmer_assets.foundation.settings import digest_of
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.collection import Collection
from khmer_assets.sources.entries import settings_of
from khmer_assets.sources.site import WebsiteSettings


def collect(source: Source, base: Path, collection: Collection, log: Callable[[str], None]) -> dict[str, Any]:
    """Crawl what waits; when nothing does, ask for the known pages again and for what they lead to.

    Returns the numbers of pages fetched, of those unchanged since the last refresh, and of failures, and whether the
    time limit ended it. It starts Twisted's reactor, so a process can do this once. Raises `RecipeError` for wrong
    settings; a host that is not there gives rows that say so.
    """
    settings = settings_of(source, WebsiteSettings)
    from khmer_assets.sources.spider import crawl

    return crawl(settings, collection, log)


def fingerprint(source: Source, base: Path) -> str:
    """A digest of the entry alone: a refresh is asked for, not noticed. Raises `RecipeError` for wrong settings."""
    settings_of(source, WebsiteSettings)
    return digest_of(source.model_dump(mode="json"))
