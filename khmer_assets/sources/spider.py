"""The spider of the kind `website`: Scrapy fetches, politely; `crawl.py` says what, and what an answer means."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import urlsplit

import scrapy
from scrapy import signals
from scrapy.crawler import AsyncCrawlerProcess
from scrapy.downloadermiddlewares.retry import RetryMiddleware
from scrapy.exceptions import CloseSpider
from scrapy.extensions.throttle import AutoThrottle
from scrapy.http import Request, Response
from w3lib.url import canonicalize_url

from khmer_assets.sources.collection import Collection
from khmer_assets.sources.crawl import AT_ONCE, MAX_PAGE_BYTES, MAX_SITEMAP_BYTES, Info, Refresh
from khmer_assets.sources.fetching import user_agent
from khmer_assets.sources.site import WebsiteSettings

TRIES_MORE = 2
LONGEST_PAUSE = 60.0  # seconds, whatever Retry-After or Crawl-delay ask for


def crawl(settings: WebsiteSettings, collection: Collection, log: Callable[[str], None]) -> dict[str, Any]:
    """What `website.collect` says."""
    if not collection.counts()["waiting"]:
        if settings.revisit_articles:
            collection.reopen()
        else:
            collection.reopen([key for key, info in collection.items() if not info.get("article")])
    collection.add(
        (canonicalize_url(url), {"url": url, "part": part, "depth": 0}) for url, part in settings.named.items()
    )
    process = AsyncCrawlerProcess(
        {
            "AUTOTHROTTLE_ENABLED": settings.delay > 0,
            "AUTOTHROTTLE_MAX_DELAY": max(settings.delay, LONGEST_PAUSE),
            "AUTOTHROTTLE_START_DELAY": settings.delay,
            "CLOSESPIDER_TIMEOUT": settings.max_seconds,
            "CONCURRENT_REQUESTS": AT_ONCE,
            "CONCURRENT_REQUESTS_PER_DOMAIN": AT_ONCE,
            "COOKIES_ENABLED": False,
            "DEFAULT_REQUEST_HEADERS": {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.5"},
            "DOWNLOADER_MIDDLEWARES": {RetryMiddleware: None, RetryAfterMiddleware: 550},
            "DOWNLOAD_DELAY": settings.delay,
            "DOWNLOAD_DELAY_JITTER": 0,  # the delay is the least, not the mean
            "DOWNLOAD_MAXSIZE": MAX_PAGE_BYTES,
            "DOWNLOAD_TIMEOUT": settings.timeout,
            "DOWNLOAD_VERIFY_CERTIFICATES": True,
            "DUPEFILTER_CLASS": "scrapy.dupefilters.BaseDupeFilter",  # the collection's keys are
            "LOG_INSTALL_ROOT_HANDLER": False,
            "LOG_LEVEL": "ERROR",
            "METAREFRESH_ENABLED": False,
            "REFERER_ENABLED": False,
            "REMOTE_CONTROL_ENABLED": False,
            "RETRY_GIVE_UP_LOG_LEVEL": "DEBUG",
            "RETRY_TIMES": TRIES_MORE,
            "ROBOTSTXT_OBEY": True,
            "STATS_DUMP": False,
            "TELNETCONSOLE_ENABLED": False,
            "URLLENGTH_LIMIT": 0,  # it would drop what the collection waits for
            "USER_AGENT": user_agent(settings.contact),
        }
    )
    refresh = Refresh(settings, collection, log)
    process.crawl(SiteSpider, refresh=refresh)
    process.start(install_signal_handlers=False)  # a signal ends the process, and the next refresh goes on
    if refresh.broken is not None:
        raise refresh.broken
    return {**refresh.figures, "limit_reached": bool(collection.waiting(limit=1))}


class SiteSpider(scrapy.Spider):
    """Fetches what the refresh asks for, a few at a time: each end of one asks for the next."""

    name = "website"

    def __init__(self, refresh: Refresh, **kwargs: Any):
        super().__init__(**kwargs)
        self.refresh = refresh

    @classmethod
    def from_crawler(cls, crawler: Any, *args: Any, **kwargs: Any) -> "SiteSpider":
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider._slow_down, signals.robots_parsed)
        return spider

    async def start(self) -> AsyncIterator[Request]:
        for request in self._requests():
            yield request

    def _requests(self) -> Iterator[Request]:
        for key, info, headers in self.refresh.next_items():
            yield Request(
                info["url"],
                headers=headers,
                meta={
                    "dont_redirect": True,
                    "handle_httpstatus_all": True,
                    "download_maxsize": MAX_SITEMAP_BYTES if info["part"] == "sitemap" else MAX_PAGE_BYTES,
                },
                callback=self._answered,
                errback=self._failed,
                cb_kwargs={"key": key, "info": info},
            )

    def _answered(self, response: Response, key: str, info: Info) -> Iterator[Request]:
        yield from self._after(self.refresh.answered, key, info, response)

    def _failed(self, reason: Any) -> Iterator[Request]:
        about = reason.request.cb_kwargs
        yield from self._after(self.refresh.failed, about["key"], about["info"], reason.value)

    def _after(self, store: Callable[..., None], *given: Any) -> Iterator[Request]:
        try:
            store(*given)
        except sqlite3.Error as error:  # nothing can be stored any more
            self.refresh.broken = error
            raise CloseSpider("storage") from None
        yield from self._requests()

    def _slow_down(self, robotparser: Any, request: Request) -> None:
        """Obey a Crawl-delay that is longer than the delay of the settings."""
        asked = min(robotparser.crawl_delay(self.settings["USER_AGENT"]) or 0, LONGEST_PAUSE)
        if asked > self.refresh.settings.delay:
            throttle = self.crawler.get_extension(AutoThrottle)
            if throttle is not None:
                throttle.mindelay = max(throttle.mindelay, asked)
            slot = self.crawler.engine.downloader.slots.get(urlsplit(request.url).hostname or "")
            if slot is not None:
                slot.delay = max(slot.delay, asked)


class RetryAfterMiddleware(RetryMiddleware):
    """Scrapy's retries, not before the time that the host asked for in `Retry-After`."""

    async def process_response(  # type: ignore[override]  # Scrapy takes both forms
        self, request: Request, response: Response, spider: Any = None
    ) -> Request | Response:
        """A request to try again, or the response that ends it."""
        result = super().process_response(request, response)
        asked = (response.headers.get("Retry-After") or b"").decode("latin-1")
        if isinstance(result, Request) and asked:
            left = cast(SiteSpider, self.crawler.spider).refresh.ends - time.monotonic()
            await asyncio.sleep(max(0.0, min(_seconds(asked), LONGEST_PAUSE, left)))
        return result


def _seconds(retry_after: str) -> float:
    """Seconds from a Retry-After header, which gives them or a date; 0 where it gives neither."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except ValueError:
        return 0.0
