"""How fast a teacher may be asked: requests and tokens a minute, evenly, and no faster after a pause.

Providers count in windows of a minute that begin when they like. So what is sent is spread evenly: in no window of 60
seconds is it more than the limit, wherever the window begins and however often the process is started anew.
"""

from dataclasses import dataclass

from khmer_assets.teachers.settings import Teacher

WINDOW = 60.0  # seconds
BURST = 0.003  # of a limit may be made up for at once, where something held the sending up
LARGEST_BURST = 0.1  # of a limit, for a request that takes more than `BURST` of it
KNOWN_AFTER = 20  # answers, until their mean is taken for the next one's size
FRAME = 64  # tokens that a chat's form may add to its text
SAFE = 1.2  # times the most tokens a byte so far


class Bucket:
    """What is left of one limit; it fills evenly. Times in seconds, of any clock that does not go back."""

    def __init__(self, limit: int | None, now: float):
        self._limit = limit
        self._left = 1.0
        self._since = now

    def wait(self, cost: float, now: float, known: bool) -> float:
        """Seconds until `cost` may be taken; 0 for now. `known`: it is about right, and not the most that it can be."""
        if self._limit is None:
            return 0.0
        burst = max(1.0, BURST * self._limit, min(cost, LARGEST_BURST * self._limit) if known else 0.0)
        rate = (self._limit - burst) / WINDOW
        if self._left < burst:  # what has come back of requests that took less is not cut
            self._left = min(burst, self._left + rate * (now - self._since))
        self._since = now
        missing = min(cost, burst) - self._left
        return 0.0 if missing <= 1e-9 else missing / rate if rate > 0 else WINDOW

    def take(self, cost: float) -> None:
        """Take it, or, below 0, give back what was taken too much."""
        self._left -= cost


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
    """The three limits of a teacher."""

    def __init__(self, teacher: Teacher, now: float):
        self._buckets = [
            Bucket(limit, now)
            for limit in (teacher.requests_a_minute, teacher.prompt_tokens_a_minute, teacher.answer_tokens_a_minute)
        ]

    def wait(self, size: Size, now: float, known: bool) -> float:
        """Seconds until a request of this size may be sent; `known` as in `Bucket`."""
        costs = (1, size.prompt, size.answer)
        return max(bucket.wait(cost, now, known) for bucket, cost in zip(self._buckets, costs, strict=True))

    def take(self, requests: int, size: Size) -> None:
        """Count requests as sent."""
        for bucket, cost in zip(self._buckets, (requests, size.prompt, size.answer), strict=True):
            bucket.take(cost)

    def correct(self, guessed: Size, took: Size) -> None:
        """Count what a request took instead of what it was guessed to take."""
        self.take(0, Size(took.prompt - guessed.prompt, took.answer - guessed.answer))
