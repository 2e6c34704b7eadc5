"""A website as its entry in the catalogue describes it, and how a selector is applied to a page."""

import re
from typing import Annotated, Any

from pydantic import Field, field_validator

from khmer_assets.foundation.settings import Settings

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
    """The entry's `settings`; the docstring of `kinds/website.py` says what each key means."""

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


def select(page: Any, selector: str) -> list[str]:
    """The texts of what a selector finds on a parsel page: an element's whole text, an attribute's value."""
    found = page.xpath(selector) if selector.startswith(("/", "(")) else page.css(selector)
    texts = (one.xpath("string()").get() if hasattr(one.root, "tag") else one.get() for one in found)
    return [text.strip() for text in texts if text.strip()]
