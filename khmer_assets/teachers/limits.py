"""How fast a teacher may be asked: requests and tokens a minute, evenly.

Providers count in windows of a minute that begin when they like. So what is sent is spread evenly, what a moment
without the processor has held up is made up for, and no window of 60 seconds holds more than the limit, wherever it
begins.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from khmer_assets.teachers.settings import Teacher

WINDOW = 60.0  # seconds
BURST = 0.02  # of a limit may be made up for at once, where something held the sending up
KNOWN_AFTER = 20  # answers, until their mean is taken for the next one's size
FRAME = 64  # tokens that a chat's form may add to its text
SAFE = 1.2  # times the most tokens a byte so far


class Bucket:
    """One limit, and what was taken of it in the last minute. Times in seconds, of any clock that does not go back."""

    def __init__(self, limit: int, now: float):
        self._limit = limit
        self._left = 0.0
        self._since = now
        self._taken: deque[list[float]] = deque()  # time and cost
        self._total = 0.0

    def wait(self, cost: float, now: float) -> float:
        """Seconds until `cost` may be taken; 0 for now. What is more than the limit must wait for an empty window."""
        rate, burst = self._limit / WINDOW, max(1.0, BURST * self._limit)
        if self._left < burst:  # what has come back of requests that took less is not cut
            self._left = min(burst, self._left + rate * (now - self._since))
        self._since = now
        while self._taken and self._taken[0][0] <= now - WINDOW:
            self._total -= self._taken.popleft()[1]
        too_much = self._total + min(cost, self._limit) - self._limit
        full = 0.0
        for time, taken in self._taken:
            if too_much <= 1e-6:
                break
            too_much -= taken
            full = time + WINDOW - now
        return max(full, -self._left / rate if self._left < -1e-6 else 0.0)

    def take(self, cost: float, now: float) -> list[float]:
        """Take it; `correct` takes what comes back."""
        self._left -= cost
        return self.note(cost, now)

    def note(self, cost: float, at: float) -> list[float]:
        """What was taken at that time counts in its window."""
        self._total += cost
        self._taken.append([at, cost])
        return self._taken[-1]

    def correct(self, entry: list[float], took: float) -> None:
        """Count what was taken as what it turned out to be."""
        if self._taken and entry[0] >= self._taken[0][0]:
            self._total += took - entry[1]
        self._left -= took - entry[1]
        entry[1] = took


@dataclass(frozen=True)
class Size:
    """Tokens of a request's prompt and answer."""

    prompt: int
    answer: int


@dataclass
class Sizes:
    """What requests turned out to take, for a guess of the next. At first a guess is the most that it can be.

    No tokenizer of bytes makes more tokens of a text than it has bytes; the few of a chat's frame come on top.
    """

    answers: int = 0
    rows: int = 0
    prompt_bytes: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    most_a_byte: float = 0.0

    @property
    def known(self) -> bool:
        """Whether guesses are more than bounds."""
        return self.answers >= KNOWN_AFTER

    def learn(self, prompt_bytes: int, rows: int, took: Size) -> None:
        """Note what a request took."""
        self.answers += 1
        self.rows += rows
        self.prompt_bytes += prompt_bytes
        self.prompt_tokens += took.prompt
        self.answer_tokens += took.answer
        self.most_a_byte = max(self.most_a_byte, took.prompt / max(prompt_bytes, 1))

    def likely(self, prompt_bytes: int, rows: int, most: int) -> Size:
        """The mean; `most` tokens of an answer are allowed."""
        if not self.known:
            return Size(prompt_bytes + FRAME, most)
        prompt = prompt_bytes * self.prompt_tokens / max(self.prompt_bytes, 1)
        return Size(round(prompt), min(most, round(rows * self.answer_tokens / max(self.rows, 1))))

    def at_most(self, prompt_bytes: int, most: int) -> Size:
        """What a budget must have left for a request."""
        if not self.known:
            return Size(prompt_bytes + FRAME, most)
        return Size(round(SAFE * prompt_bytes * self.most_a_byte) + FRAME, most)


class Limits:
    """The limits of a teacher that are set."""

    def __init__(self, teacher: Teacher, now: float):
        limits = (teacher.requests_a_minute, teacher.prompt_tokens_a_minute, teacher.answer_tokens_a_minute)
        self._buckets = [(place, Bucket(limit, now)) for place, limit in enumerate(limits) if limit is not None]

    def wait(self, size: Size, now: float) -> float:
        """Seconds until a request of this size may be sent."""
        costs = (1, size.prompt, size.answer)
        return max((bucket.wait(costs[place], now) for place, bucket in self._buckets), default=0.0)

    def take(self, size: Size, now: float, requests: int = 1) -> list[list[float]]:
        """Count requests as sent; `correct` takes what comes back."""
        costs = (requests, size.prompt, size.answer)
        return [bucket.take(costs[place], now) for place, bucket in self._buckets]

    def correct(self, taken: list[list[float]], took: Size) -> None:
        """Count what a request took instead of what it was guessed to take."""
        costs = (1, took.prompt, took.answer)
        for (place, bucket), entry in zip(self._buckets, taken, strict=True):
            bucket.correct(entry, costs[place])

    def note(self, recent: Iterable[tuple[float, Size]]) -> None:
        """What other processes, or one that died, have sent at these times before this one began."""
        for at, size in recent:
            costs = (1, size.prompt, size.answer)
            for place, bucket in self._buckets:
                bucket.note(costs[place], at)
